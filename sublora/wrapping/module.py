"""Any torch.nn.Module whose trained part is a vector w of d numbers: LoRA on linear maps, or the parameters themselves.

    theta = theta_0 + s * (P w),   w rounded to multiples of a step after `quantize` was called; s = 1 without scales

The module is frozen and stays unchanged: adapters are attached by hooks during a forward pass. Trained are w (d), one
logit per gate of the learned allocation, and the logarithm of the quantization step; only they are in `parameters()`
and in the state dict, which has kilobytes whatever the module's size.

Sources: SubLoRA, Lotfi et al., ICML 2024; the gradient of the step, Esser et al., Learned step size quantization,
ICLR 2020.

Shape legend: D entries of theta, S coordinates of w (d of them).
"""

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import functional_call

from sublora.coding.quantizer import EntropyWeights, nearest_step_index, quantize_entropy, step_of
from sublora.models.linear_maps import Attachment, ParameterReads
from sublora.models.lora import Adapters, Pair
from sublora.subspace.allocations import parse_allocation, soft_width
from sublora.subspace.subspace import Subspace, SubspaceShape
from sublora.system.streams import generator
from sublora.system.validation import describe
from sublora.wrapping.frozen import PassWatch, check_values
from sublora.wrapping.identity import ModuleIdentity
from sublora.wrapping.targets import WrapArguments, lay_out, replace_parameters

FARTHEST_LOGIT = 40.0
"""The logit of a gate that gives everything to one side."""


def wrap(
    module: nn.Module,
    targets: str | Iterable[str],
    *,
    budget: int,
    seed: int,
    rank: int | None = 4,
    alpha: float = 32.0,
    allocation: str = "uniform",
    init: str = "zero_b",
    projection: str = "kronecker_qr",
    sharing: str = "shared",
    scales: Mapping[str, float] | None = None,
) -> "Wrapped":
    """Return a module that computes what `module` does and trains only `budget` numbers.

    Args:
        module: any network. It is frozen (requires_grad off) and used, not copied.
        targets: shell-style patterns of dotted names, or of their ends: "q_proj", "*.3.attn.*", "classifier". With a
            rank they select linear maps (torch.nn.Linear, transformers' Conv1D), with rank None parameters.
        budget: d, the length of w.
        seed: seed of LoRA's A and of the random projection. Fix it before the data are seen, or charge for the choice.
        rank: rank of each adapter W x + (alpha / rank) B A x; None if the chosen parameters themselves move in the
            subspace.
        alpha: scale of the adapters; without effect if the rank is None.
        allocation: a name of `sublora.subspace.allocations`, such as uniform, fixed-0.2 (a fifth of w is for B) or
            learned (one gate per layer). Only uniform with rank None.
        init: zero_b (B starts at zero) or both_random (and the initial product is subtracted).
        projection: a name in sublora.subspace.projections.PROJECTIONS.
        sharing: whether each learned gate divides all of w (shared) or its own part of w (per_layer).
        scales: a positive number for each trained matrix by its name in `Wrapped.space`, up to a common factor: theta =
            theta_0 + s * (P w) with mean square 1 of s over the entries. Like the seed they must be fixed before the
            data are seen, for example from gradients on other data. None: 1 for all.

    Returns:
        The wrapped module. At w = 0 its outputs are those of the module.

    Raises:
        ValueError: a pattern fits nothing, or a map whose weight is no parameter (legacy weight_norm); the budget
            exceeds the number of entries of theta, the rank exceeds that of every map, scales are not those of the
            trained matrices, or an argument is out of its range; the module has parameters without values.
    """
    # The pydantic model checks the arguments, and travels in the message's header.
    given = {
        "targets": (targets,) if isinstance(targets, str) else tuple(targets),
        "budget": budget,
        "seed": seed,
        "rank": rank,
        "alpha": float(alpha),
        "allocation": allocation,
        "init": init,
        "projection": projection,
        "sharing": sharing,
        "scales": None if scales is None else {name: float(scale) for name, scale in scales.items()},
    }
    try:
        arguments = WrapArguments.model_validate(given)
    except ValidationError as error:
        raise ValueError(describe(error, WrapArguments.model_json_schema())) from None
    return Wrapped(module, arguments)


class Wrapped(nn.Module):
    """The module that `wrap` returns: forward takes the arguments of the wrapped module and returns its outputs.

    Trained: `subspace.subspace_params` (d), `subspace.gating_params.*`, `log_step`.
    """

    accepts_loss_kwargs = False
    """Tells transformers' Trainer that the loss is the module's own mean over a batch."""
    module: nn.Module
    """The frozen network. It is not a submodule, so its weights are in neither parameters() nor the state dict."""

    def __init__(self, module: nn.Module, arguments: WrapArguments) -> None:
        """Freeze and wrap a module; ValueError as for `wrap`."""
        super().__init__()
        self.__dict__["module"] = module
        self.arguments = arguments
        self._required_grad = {name for name, p in module.named_parameters() if p.requires_grad}
        check_values(module)
        self.space, self._maps, origin_D, scale_D = lay_out(module, arguments)
        # Build the subspace, and the trained numbers.
        shape = SubspaceShape(
            space=self.space,
            allocation=parse_allocation(arguments.allocation),
            budget=arguments.budget,
            projection=arguments.projection,
            sharing=arguments.sharing,
            scale_D=scale_D,
        )
        self.subspace = Subspace(shape, origin_D, functools.partial(generator, arguments.seed, "projection"))
        self.log_step = nn.Parameter(torch.zeros(()))
        self.rounding = False
        """Whether forward uses rounded w; `quantize` turns it on."""
        self.mask_width = 0.0
        """Width of the learned gates' soft masks, in coordinates of w; 0 for the hard split that messages hold."""
        # Freeze the module; the trained numbers go to its device.
        module.requires_grad_(False)
        self.subspace.to(_device(module))
        self.log_step.data = self.log_step.data.to(_device(module))
        self.identity = ModuleIdentity.of(module)
        """The frozen module at the time of wrapping."""
        self._checked_modes: set[bool] = set()
        """The modes, training or not, in which a pass was found to leave the module unchanged."""
        self.train(module.training)

    # The network

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Return the module's output with theta in place, differentiable in w, gates and step.

        ValueError, with the name of what is wrong, if the module recomputes activations in the backward pass (gradient
        checkpointing, reversible layers), since it would do so without w; or, in the first pass of a mode, if the
        module changes its own parameters or buffers.
        """
        check_state = self.training not in self._checked_modes
        watch = PassWatch(self.module, self.identity.base_sha256, check_state=check_state)
        theta_D = self.theta()
        attached = self._moving(theta_D, watch) if self.arguments.rank is None else self._attached(theta_D, watch)
        with attached as call:
            output = call(*arguments, **options)
        watch.finish()
        self._checked_modes.add(self.training)
        return output

    def theta(self) -> Tensor:
        """Return theta (D) of the present gates and w, which is rounded after `quantize`.

        It is differentiable, and in float32 even under autocast.
        """
        w_S = self.subspace.subspace_params
        with torch.autocast(w_S.device.type, enabled=False):
            return self.subspace.theta(self.used_w(), self.subspace.masks(self.mask_width))

    def merge(self) -> nn.Module:
        """Return a copy of the module with theta added to its weights.

        The copy is a plain network without hooks, trainable as before. Its outputs equal those of the wrapped module up
        to floating-point rounding. A linear map whose weight is shared with another module (a head tied to the
        embedding) gets its own weight.
        """
        merged = copy.deepcopy(self.module)
        with torch.no_grad():
            theta_D = self.theta()
            if self.arguments.rank is None:
                replace_parameters(merged, self._moved(theta_D))
            else:
                self._merge_adapters(merged, theta_D)
        for name, parameter in merged.named_parameters():
            parameter.requires_grad_(name in self._required_grad)
        return merged

    def _merge_adapters(self, merged: nn.Module, theta_D: Tensor) -> None:
        """Add the adapters' products to the weights of a copy; shared weights are separated."""
        owners: dict[int, int] = {}
        for _, parameter in merged.named_parameters(remove_duplicate=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        for name, (down, up) in self._pairs(theta_D, lowest=torch.float32).items():
            layer = merged.get_submodule(name)
            weight = layer.get_parameter("weight")
            update = up @ down
            value = weight.to(update.dtype) + (update if isinstance(layer, nn.Linear) else update.T)
            layer.weight = nn.Parameter(value.to(weight.dtype))
            if owners[id(weight)] > 1 and getattr(getattr(merged, "config", None), "tie_word_embeddings", False):
                merged.config.tie_word_embeddings = False  # type: ignore[union-attr]

    @contextlib.contextmanager
    def _attached(self, theta_D: Tensor, watch: PassWatch) -> Iterator[Callable[..., Any]]:
        """Attach the adapters of theta for the length of the block; yield the module."""
        pairs = self._pairs(theta_D)
        attachment = Attachment(self.module, self._maps, observe=watch.saw)
        try:
            attachment.use(pairs)
            yield self.module
        finally:
            attachment.remove()

    @contextlib.contextmanager
    def _moving(self, theta_D: Tensor, watch: PassWatch) -> Iterator[Callable[..., Any]]:
        """Let the watch see reads of the moved parameters in the block; yield the module with them in place."""
        moved, reads = self._moved(theta_D), ParameterReads()

        def read(name: str, value: Tensor) -> Tensor:
            watch.saw(name, value if value is moved[name] else None)
            return value

        try:
            for p in self.space.parameters:
                owner, _, attribute = p.name.rpartition(".")
                reads.attach(self.module.get_submodule(owner), attribute, functools.partial(read, p.name))
            yield lambda *arguments, **options: functional_call(self.module, moved, arguments, options)
        finally:
            reads.remove()

    def _pairs(self, theta_D: Tensor, *, lowest: torch.dtype | None = None) -> dict[str, Pair]:
        """Return (down, up) of every adapted map by its name, in the map's type or, if that is lower, in `lowest`."""
        rank, origin = self.arguments.rank or 1, self.subspace.origin_D
        weights = {each.name: self.module.get_submodule(each.name).get_parameter("weight") for each in self._maps}
        dtypes = {name: torch.promote_types(p.dtype, lowest or p.dtype) for name, p in weights.items()}
        by_dtype = {
            each: Adapters(
                self.space,
                theta_D,
                scale=self.arguments.alpha / rank,
                dtype=each,
                origin_D=origin if self.arguments.init == "both_random" else None,
            )
            for each in set(dtypes.values())
        }
        pairs = {}
        for each in self._maps:
            pair, device = by_dtype[dtypes[each.name]].pair(each.group, each.target), weights[each.name].device
            assert pair is not None
            pairs[each.name] = (pair[0].to(device), pair[1].to(device))
        return pairs

    def _moved(self, theta_D: Tensor) -> dict[str, Tensor]:
        """Return the chosen parameters, each moved by its part of theta."""
        found = {}
        for p in self.space.parameters:
            weight = self.module.get_parameter(p.name)
            found[p.name] = weight + theta_D[p.start : p.stop].view(p.shape).to(weight.device, weight.dtype)
        return found

    # Quantization

    @property
    def step(self) -> float:
        """The quantization step: of the steps that a message can name, the one nearest to exp(log_step)."""
        return step_of(nearest_step_index(math.exp(float(self.log_step.detach()))))

    def used_w(self) -> Tensor:
        """Return w (d) as forward uses it: with `rounding`, exactly the float32 values that a message describes.

        Gradients pass straight through the rounding to w; the step's gradient is that of learned step size
        quantization.
        """
        w_S = self.subspace.subspace_params
        if not self.rounding:
            return w_S
        symbols_S = torch.round(w_S.detach().double() / self.step)
        rounded_S = (symbols_S * self.step).to(w_S.dtype)
        trained = self.trained_step()
        slope_S = symbols_S.to(w_S.dtype) - (w_S / trained).detach()
        return rounded_S + (w_S - w_S.detach()) + slope_S * (trained - trained.detach())

    def trained_step(self) -> Tensor:
        """Return `step` (), differentiable in log_step."""
        length = self.log_step.exp()
        return length * (self.step / length.detach())

    def quantize(self, step: float | None = None, *, relative_step: float = 1.0) -> None:
        """Round w in forward from now on, to multiples of a step that is trained as well.

        Args:
            step: the first step, in units of w; by default `relative_step` standard deviations of w.
            relative_step: about 1 gives 2 bits per coordinate, 2 gives 1 bit.

        Raises:
            ValueError: w is all zero and no step is given, or the step is outside the grid of 2^-40 to 2^24.
        """
        if step is None:
            step = relative_step * float(self.subspace.subspace_params.detach().double().std(correction=0))
            if step == 0.0:
                raise ValueError("w does not vary: train it before it is quantized, or give a step")
        self.log_step.data.fill_(math.log(step_of(nearest_step_index(step))))
        self.rounding = True

    def symbols(self) -> EntropyWeights:
        """Return the rounded w as integers and their step. ValueError before `quantize` or if w is not finite."""
        if not self.rounding:
            raise ValueError("w is not quantized yet: call quantize(), and score the model after it")
        return quantize_entropy(self.subspace.subspace_params.detach().cpu().double().numpy(), self.step)

    # The schedule of a training

    def anneal(
        self,
        progress: float,
        *,
        soft_until: float = 0.5,
        round_from: float = 0.6,
        relative_step: float = 1.0,
        mask_width_start: float = 0.25,
        mask_width_end: float = 0.3,
    ) -> None:
        """Set what changes over a training.

        Call it before each step with `progress`, the share of the training that is done, 0 to 1. Until `soft_until` the
        masks of learned gates are soft, narrowing geometrically from mask_width_start (a share of a gate's coordinates)
        to mask_width_end (coordinates); afterwards the split is hard. From `round_from` on w is rounded, with
        `relative_step` standard deviations as the first step. ValueError for progress outside [0, 1].
        """
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress is a share of the training, 0 to 1, found {progress}")
        # Gates first, then rounding.
        self.mask_width = 0.0
        if self.subspace.gates and progress < soft_until:
            size = self.subspace.largest_gate
            self.mask_width = soft_width(progress / soft_until, size=size, start=mask_width_start, end=mask_width_end)
        if progress >= round_from and not self.rounding:
            self.quantize(relative_step=relative_step)

    def set_message(self, weights: EntropyWeights, gates: tuple[int, ...]) -> None:
        """Take over a message's w (d), step and integers of the gates. ValueError if they do not fit."""
        if weights.symbols.shape != (self.arguments.budget,) or len(gates) != len(self.subspace.gates):
            raise ValueError("the message's w or gates do not fit this module")
        with torch.no_grad():
            self.subspace.subspace_params.copy_(torch.from_numpy(weights.values()))
            for gate, k in zip(self.subspace.gates, gates, strict=True):
                share = k / gate.size
                logit = FARTHEST_LOGIT * (2 * share - 1) if share in (0.0, 1.0) else math.log(share / (1.0 - share))
                self.subspace.gating_params[gate.group].fill_(logit)
        self.quantize(weights.step)
        self.mask_width = 0.0
        kept = self.symbols()
        if tuple(self.subspace.hard_split().tolist()) != gates or not np.array_equal(kept.symbols, weights.symbols):
            raise ValueError("the message's values cannot be represented in float32")

    # What torch asks of a module

    def train(self, mode: bool = True) -> "Wrapped":
        """Set the mode as for any module; batch and instance normalization keep their statistics.

        No message holds them, so they stay those of the module.
        """
        super().train(mode)
        self.module.train(mode)
        for each in self.module.modules():
            # The base class of batch and instance normalization. Instances without running statistics follow the mode.
            if isinstance(each, nn.modules.batchnorm._NormBase) and each.track_running_stats:
                each.eval()
        return self

    def gradient_checkpointing_enable(self, *arguments: Any, **options: Any) -> None:
        """Raise ValueError: transformers' Trainer calls this for TrainingArguments(gradient_checkpointing=True)."""
        raise ValueError(
            "a wrapped module cannot use gradient checkpointing, which would recompute without w; leave out "
            "gradient_checkpointing (activation_checkpointing) of TrainingArguments"
        )

    activation_checkpointing_enable = gradient_checkpointing_enable

    def _apply(self, function: Any, recurse: bool = True) -> "Wrapped":
        self.module._apply(function, recurse)
        return super()._apply(function, recurse)

    def get_extra_state(self) -> Tensor:
        """Return `rounding` and `mask_width`, so that a state dict is complete."""
        return torch.tensor([float(self.rounding), self.mask_width], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        rounding, self.mask_width = state.tolist()
        self.rounding = bool(rounding)


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))

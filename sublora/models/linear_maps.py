"""The linear maps inside any torch.nn.Module: found by name, grouped, and adapted by hooks.

A linear map is a torch.nn.Linear, or transformers' Conv1D, which stores its weight transposed. Adapters are inputs of a
forward pass, not parameters: before each pass `Attachment.use` sets what every map adds to its output, so one frozen
module serves any number of theta. Some networks read a map's weight instead of calling the map (WavLM's attention,
Mamba's dt_proj, fused kernels); they read the weight with the adapter in it (`ParameterReads`).

Shape legend: I inputs, O outputs, R rank.
"""

import dataclasses
import fnmatch
import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from sublora.models.lora import Pair, down_projection
from sublora.models.spaces import lora_name
from sublora.subspace.parameters import ParameterSpace

Read = Callable[[Tensor], Tensor]
"""Returns, for the parameter's value, what the reader gets instead."""
READS = "_sublora_reads"
"""The attribute of a module that holds its functions by the parameters' names."""
_subclasses: dict[tuple[type[nn.Module], str], type[nn.Module]] = {}


class ParameterReads:
    """Functions through which chosen parameters are read until `remove`.

    `layer.weight` then gives what the function returns, in the layer's own code as in that of its owner. The parameters
    stay registered, so state dicts, `parameters()` and moves between devices see them as before.
    """

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, type[nn.Module], Any]] = []

    def attach(self, layer: nn.Module, name: str, read: Read) -> None:
        """Pass reads of a parameter of `layer` itself through `read`, after functions that were attached earlier."""
        known: dict[str, Read] = layer.__dict__.get(READS, {})
        self._before.append((layer, type(layer), known or None))
        earlier = known.get(name)
        layer.__dict__[READS] = known | {name: read if earlier is None else lambda value: read(earlier(value))}
        if earlier is None:
            layer.__class__ = _with_read(type(layer), name)

    def remove(self) -> None:
        """Restore the modules as they were."""
        while self._before:
            layer, kind, known = self._before.pop()
            layer.__class__ = kind
            if known is None:
                del layer.__dict__[READS]
            else:
                layer.__dict__[READS] = known


def _with_read(kind: type[nn.Module], name: str) -> type[nn.Module]:
    """Return a subclass that looks the same and reads one parameter through the module's function for it."""
    if (kind, name) in _subclasses:
        return _subclasses[kind, name]

    def read(layer: nn.Module) -> Tensor:
        value = layer._parameters[name]
        assert value is not None
        return layer.__dict__[READS][name](value)

    contents = {name: property(read), "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    _subclasses[kind, name] = types.new_class(kind.__name__, (kind,), exec_body=lambda body: body.update(contents))
    return _subclasses[kind, name]


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """One linear map of a module."""

    name: str
    """Dotted name of the module that computes it."""
    inputs: int
    outputs: int
    group: str
    """Maps of one group share a gate."""
    target: str
    """Its name within the group, without dots."""


PLAIN = {
    ("transformers.pytorch_utils", "Conv1D"),
    ("transformers.models.falcon.modeling_falcon", "FalconLinear"),
}
"""Module and name of classes with a forward pass of their own that computes W x + b; so nothing need be imported."""


def is_linear(module: nn.Module) -> bool:
    """Return whether a module computes W x + b and nothing else."""
    kind = type(module)
    if (kind.__module__, kind.__name__) in PLAIN:
        return True
    # A subclass of Linear may compute something else. The one inside torch.nn.MultiheadAttention is left out because
    # messages whose targets are "*" were written without it.
    if not issubclass(kind, nn.Linear) or kind is NonDynamicallyQuantizableLinear:
        return False
    weight = module._parameters.get("weight")
    unknown = is_parametrized(module) or (weight is not None and is_lazy(weight))
    return kind.forward is nn.Linear.forward and not unknown


def sizes(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear map."""
    rows, columns = module.get_parameter("weight").shape
    return (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)


def matches(name: str, pattern: str) -> bool:
    """Return whether a dotted name, or its end after a dot, fits a shell-style pattern: q_proj, *.3.attn.*, lm_head."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(f".{name}", f"*.{pattern}")


def group_of(name: str) -> str:
    """Return the default group, the layer: the first number in a dotted name, else the name with _ for its dots."""
    return next((part for part in name.split(".") if part.isdigit()), name.replace(".", "_"))


def linear_maps(
    module: nn.Module, patterns: Iterable[str], *, group: Callable[[str], str] = group_of
) -> tuple[LinearMap, ...]:
    """Return the linear maps whose names fit one of the patterns, in the order of the module, group by group.

    ValueError, which names some existing maps, if a pattern fits no map, and for a map whose weight is no parameter.
    """
    # Every pattern must fit some map.
    patterns = tuple(patterns)
    known = {name: found for name, found in module.named_modules() if is_linear(found)}
    for pattern in patterns:
        if not any(matches(name, pattern) for name in known):
            some = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in known))
            raise ValueError(f"target '{pattern}' fits no linear map of the network; it has {some or 'none'}")
    # Group the chosen maps in the order of the module.
    chosen = [name for name in known if any(matches(name, pattern) for pattern in patterns)]
    for name in chosen:
        _check_weight(name, known[name])
    by_group: dict[str, list[str]] = {}
    for name in chosen:
        by_group.setdefault(group(name), []).append(name)
    # Name each map within its group by the shortest kind of name that tells all of them apart.
    found = []
    for label, names in by_group.items():
        short = [name.rpartition(".")[2] for name in names]
        within = [_within_group(name, label) for name in names]
        whole = [name.replace(".", "_") for name in names]
        targets = next(labels for labels in (short, within, whole) if len(set(labels)) == len(names) or labels is whole)
        found += [
            LinearMap(name, *sizes(known[name]), group=label, target=target)
            for name, target in zip(names, targets, strict=True)
        ]
    return tuple(found)


def _check_weight(name: str, layer: nn.Module) -> None:
    """Raise ValueError unless the weight of a linear map is a parameter of real numbers."""
    weight = layer._parameters.get("weight")
    if weight is None:
        raise ValueError(
            f"the weight of '{name}' is no parameter but computed before each pass (legacy weight_norm, spectral_norm "
            "or pruning); remove that first, or choose other targets"
        )
    if not weight.is_floating_point():
        raise ValueError(f"the weight of '{name}' is {weight.dtype}, expected a floating-point type; choose others")


def _within_group(name: str, label: str) -> str:
    """Return the part of a name after the number of the layer, without dots; the whole name if it has none."""
    parts = name.split(".")
    return "_".join(parts[parts.index(label) + 1 :] or parts) if label in parts else "_".join(parts)


def linear_map_space(maps: Iterable[LinearMap], rank: int) -> ParameterSpace:
    """Return the LoRA parameters of the maps: every A (R x I), then every B (O x R), each in the order of the maps."""
    maps = tuple(maps)
    described = []
    for role in ("A", "B"):
        for each in maps:
            shape = (rank, each.inputs) if role == "A" else (each.outputs, rank)
            described.append((lora_name(each.group, each.target, role), shape, each.group, role))
    return ParameterSpace.of(described)


Observe = Callable[[str, Tensor | None], None]
"""Is told the name of a map whose adapter is used and, if its owner read it, the weight with the adapter in it."""


class Attachment:
    """Adapters on some linear maps of a module: a map adds up down x to its output, its owner reads W + up down."""

    def __init__(self, module: nn.Module, maps: Iterable[LinearMap], *, observe: Observe | None = None) -> None:
        """Attach adapters; `observe` is called whenever one is used."""
        self._pairs: Mapping[str, Pair] = {}
        self._dropout = 0.0
        self._observe = observe
        self._called: set[str] = set()
        """Maps that are being called: they read their own weight, to whose product the hook adds."""
        self._handles: list[Any] = []
        self._reads = ParameterReads()
        for each in maps:
            layer = module.get_submodule(each.name)
            self._handles.append(layer.register_forward_pre_hook(functools.partial(self._before_call, each.name)))
            hook = functools.partial(self._after_call, each.name)
            self._handles.append(layer.register_forward_hook(hook, with_kwargs=True))
            self._reads.attach(layer, "weight", functools.partial(self._read, each.name, isinstance(layer, nn.Linear)))

    def use(self, pairs: Mapping[str, Pair], *, dropout: float = 0.0) -> None:
        """Set the pairs (down R x I, up O x R), by the maps' names, for all passes from the next one on.

        `dropout` acts on the input of an adapter; a map whose weight is read has none.
        """
        self._pairs, self._dropout = pairs, dropout
        self._called.clear()

    def remove(self) -> None:
        """Remove the adapters, which leaves the module unchanged."""
        for handle in self._handles:
            handle.remove()
        self._reads.remove()

    def _before_call(self, name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._called.add(name)

    def _after_call(
        self, name: str, layer: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Tensor
    ) -> Tensor:
        self._called.discard(name)
        pair = self._pairs.get(name)
        if pair is None:
            return output
        if self._observe is not None:
            self._observe(name, None)
        x = inputs[0] if inputs else next(iter(options.values()))
        return output + F.linear(down_projection(x, pair, self._dropout), pair[1])

    def _read(self, name: str, is_out_by_in: bool, weight: Tensor) -> Tensor:
        """Return the weight with the adapter's product in it, unless the map reads it during its own call."""
        pair = self._pairs.get(name)
        if pair is None or name in self._called:
            return weight
        update_OI = (pair[1] @ pair[0]).to(weight.dtype)
        adapted = weight + (update_OI if is_out_by_in else update_OI.T)
        if self._observe is not None:
            self._observe(name, adapted)
        return adapted

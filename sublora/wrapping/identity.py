"""What a message's reader compares: the weights of a module, and what the module computes with them.

The same weights in another architecture (other heads, another epsilon, another rotary base) give another predictor.
A program cannot compare code; it compares

    weights         every tensor of the state dict
    architecture    the configuration of a model of transformers, of other modules their classes and plain attributes,
                    and the integers and booleans in buffers that no state dict holds
    buffers         the other numbers in such buffers, up to rounding: machines compute them anew, and not always alike
    probe           on request, outputs for given inputs: the only way to see what is written in a `forward`
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sublora.system.digests import json_sha256, tensors_sha256
from sublora.system.errors import UserError
from sublora.wrapping.frozen import base_sha256

WITHOUT_EFFECT = re.compile(r".*drop.*|training|inplace|device|.*name|.*path|.*checkpointing|layer_idx")
"""Attributes that say nothing of what a frozen module computes."""
LONGEST_TUPLE = 16
PROBE_TOLERANCE = 1e-3
"""By how much the outputs for a probe may differ, relative to their scale: devices sum in different orders."""
PROBE_SUMS = 4
TOLERANCE = 1e-5
"""By how much `ModuleIdentity.buffers` may differ, relative to its scale: float32 rounds at 6e-8."""


@dataclasses.dataclass(frozen=True)
class ModuleIdentity:
    """A module as it was when it was wrapped."""

    base_sha256: str
    """Digest of the tensors in the state dict."""
    architecture_sha256: str
    buffers: float
    """A weighted sum of the floating-point buffers outside the state dict."""
    buffers_scale: float
    """The same sum of magnitudes."""

    @classmethod
    def of(cls, module: nn.Module) -> "ModuleIdentity":
        """Describe a module; its tensors are read once."""
        return cls(base_sha256(module), architecture_sha256(module), *_sums(module))

    def same_buffers(self, value: float) -> bool:
        """Return whether another module's `buffers` is this one's up to rounding."""
        return abs(value - self.buffers) <= TOLERANCE * self.buffers_scale


def architecture_sha256(module: nn.Module) -> str:
    """Return the digest of a module's configurations, classes and plain attributes, and of its integer buffers."""
    described: list[Any] = []
    covered: tuple[str, ...] = ()
    for name, each in module.named_modules():
        if name.startswith(covered):
            continue
        config = getattr(each, "config", None)
        if hasattr(config, "model_type") and hasattr(config, "to_dict"):
            # The configuration describes everything below.
            described.append([name, type(each).__name__, _transformers_config(config)])
            covered += (f"{name}." if name else "",)
        else:
            described.append([name, type(each).__name__, _attributes(each)])
    whole = ((name, value) for name, value in _unsaved_buffers(module) if not value.is_floating_point())
    masks = ((name, value.isfinite()) for name, value in _unsaved_buffers(module) if value.is_floating_point())
    return tensors_sha256([*whole, *masks], after=json_sha256(described))


def _transformers_config(config: Any) -> object:
    """Return what a configuration says of what its model computes; all of it for kinds that transformers lacks."""
    from sublora.models.huggingface import config_sha256

    facts = config.to_dict()
    try:
        return config_sha256(facts)
    except UserError:
        return _plain({key: value for key, value in facts.items() if key not in ("transformers_version", "dtype")})


def _attributes(module: nn.Module) -> dict[str, object]:
    """Return the plain attributes of one module, without those of its submodules."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return {}
    found = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    config = found.pop("config", None)
    plain = _plain(found)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        plain["config"] = _plain(dataclasses.asdict(config))
    elif isinstance(config, Mapping) or hasattr(config, "__dict__"):
        plain["config"] = _plain(config if isinstance(config, Mapping) else vars(config))
    return plain


def _plain(values: Mapping[str, Any]) -> dict[str, object]:
    """Return the numbers, words, and short sequences of them that have an effect; floats in six digits."""
    found: dict[str, object] = {}
    for key, value in values.items():
        if not isinstance(key, str) or WITHOUT_EFFECT.fullmatch(key):
            continue
        if isinstance(value, tuple | list) and len(value) <= LONGEST_TUPLE and all(map(_is_plain, value)):
            found[key] = [_spelled(each) for each in value]
        elif _is_plain(value):
            found[key] = _spelled(value)
        elif isinstance(value, Mapping):
            found[key] = _plain(value)
    return found


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str)


def _spelled(value: Any) -> object:
    """Return a number or a word in a spelling that does not depend on the last bit of a machine's arithmetic."""
    return f"{value:.6g}" if isinstance(value, float) else value


def _unsaved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values of the buffers that are not in the state dict."""
    for name, each in module.named_modules():
        for buffer in sorted(each._non_persistent_buffers_set):
            value = each._buffers.get(buffer)
            if value is not None:
                yield f"{name}.{buffer}" if name else buffer, value


@torch.no_grad()
def _sums(module: nn.Module) -> tuple[float, float]:
    """Return the weighted sum of floating-point buffers that are not saved, and that of their magnitudes.

    Values are compressed by asinh, so that a mask's largest negative number does not hide the others.
    """
    total = scale = 0.0
    for _, value in _unsaved_buffers(module):
        if not value.is_floating_point():
            continue
        flat = torch.asinh(value.detach().cpu().double().flatten().nan_to_num(0.0, 0.0, 0.0))
        weights = torch.cos(torch.arange(1, len(flat) + 1, dtype=torch.float64) + len(flat))
        total += float(flat @ weights)
        scale += float(flat.abs().sum())
    return (total, scale) if math.isfinite(total) else (0.0, 0.0)


Probe = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""Inputs of a module: one tensor, positional arguments, or keyword arguments."""


@torch.no_grad()
def probe_sums(module: nn.Module, probe: Probe) -> tuple[float, ...]:
    """Return weighted sums of a module's outputs for some inputs, in evaluation mode, and last their scale.

    ValueError if the outputs hold no finite numbers.
    """
    modes = {each: each.training for each in module.modules()}
    try:
        module.eval()
        if isinstance(probe, Mapping):
            output = module(**probe)
        else:
            output = module(*(probe if isinstance(probe, tuple) else (probe,)))
    finally:
        for each, mode in modes.items():
            each.training = mode
    values = [value.detach().cpu().double().flatten() for value in _tensors(output)]
    if not values or not all(bool(value.isfinite().all()) for value in values):
        raise ValueError("the outputs for the probe hold no finite numbers; choose other inputs")
    flat = torch.cat(values)
    positions = torch.arange(1, len(flat) + 1, dtype=torch.float64)
    sums = (float(flat @ torch.cos(positions * (k + 1))) for k in range(PROBE_SUMS))
    return (*sums, float(flat.norm()))


def same_outputs(ours: tuple[float, ...], theirs: tuple[float, ...]) -> bool:
    """Return whether two results of `probe_sums` are those of one function, up to rounding."""
    scale = PROBE_TOLERANCE * ours[-1]
    return len(ours) == len(theirs) and all(abs(a - b) <= scale for a, b in zip(ours, theirs, strict=True))


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in a module's output, in its order."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)

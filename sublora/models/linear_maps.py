"""The linear maps inside any torch.nn.Module: found by name, grouped, and adapted by hooks.

A linear map is a torch.nn.Linear, or transformers' Conv1D, which stores its weight transposed. Adapters are inputs of a
forward pass, not parameters: before each pass `Attachment.use` sets what every map adds to its output, so one frozen
module serves any number of theta.

Shape legend: I inputs, O outputs, R rank.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sublora.models.lora import Pair, down_projection
from sublora.models.spaces import lora_name
from sublora.subspace.parameters import ParameterSpace


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


def is_linear(module: nn.Module) -> bool:
    """Return whether a module computes W x + b and nothing else."""
    # Conv1D is recognised by name, so that transformers need not be imported. A subclass may compute something else,
    # and the one inside torch.nn.MultiheadAttention is never called: its owner reads the weight, and hooks would do
    # nothing.
    return type(module) is nn.Linear or (
        type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"
    )


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

    ValueError, which names some existing maps, if a pattern fits no map.
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


class Attachment:
    """Hooks on some linear maps of a module; each adds up down x to the map's output."""

    def __init__(self, module: nn.Module, maps: Iterable[LinearMap]) -> None:
        self._pairs: Mapping[str, Pair] = {}
        self._dropout = 0.0
        self._handles = [module.get_submodule(each.name).register_forward_hook(self._hook(each.name)) for each in maps]

    def use(self, pairs: Mapping[str, Pair], *, dropout: float = 0.0) -> None:
        """Set the pairs (down R x I, up O x R), by the maps' names, for all passes from the next one on.

        `dropout` acts on an adapter's input.
        """
        self._pairs, self._dropout = pairs, dropout

    def remove(self) -> None:
        """Remove the hooks, which leaves the module unchanged."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            pair = self._pairs.get(name)
            if pair is None:
                return output
            return output + F.linear(down_projection(inputs[0], pair, self._dropout), pair[1])

        return add

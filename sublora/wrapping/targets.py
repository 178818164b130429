"""What the arguments of `wrap` choose in a module: the parameters, or the LoRA matrices, that w moves."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, nn

from sublora.models.linear_maps import LinearMap, group_of, linear_map_space, linear_maps, matches
from sublora.models.lora import initial_theta
from sublora.subspace.parameters import ParameterSpace
from sublora.subspace.projections import PROJECTIONS
from sublora.subspace.scales import entry_scales
from sublora.system.validation import PositiveFloat, PositiveInt, Strict

ROLE = "weight"
"""The role of parameters that are moved themselves."""


class WrapArguments(Strict):
    """What others need beside the module to wrap it in the same way; every key is an argument of `wrap`."""

    targets: Annotated[tuple[str, ...], Field(min_length=1, max_length=1000)]
    budget: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    rank: PositiveInt | None
    alpha: PositiveFloat
    allocation: str
    init: Annotated[str, Field(pattern="^(zero_b|both_random)$")]
    projection: str
    sharing: Annotated[str, Field(pattern="^(shared|per_layer)$")]
    scales: dict[str, PositiveFloat] | None = None

    @model_serializer(mode="wrap")
    def _without_null_scales(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a null: messages from before there were scales keep their bytes."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key != "scales" or value is not None}


class Layout(NamedTuple):
    """Theta as the arguments of `wrap` choose it."""

    space: ParameterSpace
    maps: tuple[LinearMap, ...]
    """The adapted linear maps; none if parameters move themselves."""
    origin_D: NDArray[np.float32]
    """Theta at w = 0."""
    scale_D: NDArray[np.float32] | None
    """Scale of every entry of theta; None: 1."""


def lay_out(module: nn.Module, arguments: WrapArguments) -> Layout:
    """Return theta: the chosen parameters' changes, which start at 0, or the LoRA matrices of the chosen maps.

    ValueError as for `wrap`.
    """
    if arguments.projection not in PROJECTIONS:
        raise ValueError(f"projection '{arguments.projection}' is not one of {', '.join(PROJECTIONS)}")
    maps: tuple[LinearMap, ...]
    if arguments.rank is None:
        space = parameter_space(module, arguments.targets)
        maps, origin_D = (), np.zeros(space.size, dtype=np.float32)
        if arguments.allocation != "uniform":
            raise ValueError(f"allocation {arguments.allocation} divides w between A and B: it needs a rank")
    else:
        maps = linear_maps(module, arguments.targets)
        largest = max(min(each.inputs, each.outputs) for each in maps)
        if arguments.rank > largest:
            raise ValueError(f"rank {arguments.rank} exceeds that of every chosen map, at most {largest}")
        space = linear_map_space(maps, arguments.rank)
        origin_D = initial_theta(space, arguments.seed, arguments.init)
    if arguments.budget > space.size:
        raise ValueError(
            f"budget {arguments.budget} exceeds the {space.size} numbers that it would move; lower it, or choose more "
            "targets or a higher rank"
        )
    scale_D = None
    if arguments.scales is not None:
        scale_D = entry_scales(space, {name: [scale] for name, scale in arguments.scales.items()})
    return Layout(space, maps, origin_D, scale_D)


def parameter_space(module: nn.Module, patterns: Iterable[str]) -> ParameterSpace:
    """Return the floating-point parameters whose names fit a pattern, group by group.

    ValueError if a pattern fits no parameter.
    """
    known = {name: p for name, p in module.named_parameters() if p.is_floating_point()}
    patterns = tuple(patterns)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in known):
            some = ", ".join(list(known)[:8])
            raise ValueError(f"target '{pattern}' fits no parameter of the network; it has {some or 'none'}")
    chosen = [name for name in known if any(matches(name, pattern) for pattern in patterns)]
    groups: Mapping[str, list[str]] = {}
    for name in chosen:
        groups.setdefault(group_of(name), []).append(name)  # type: ignore[attr-defined]
    described = [(name, tuple(known[name].shape), group, ROLE) for group, names in groups.items() for name in names]
    return ParameterSpace.of(described)


def replace_parameters(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Register new parameters with these values under every name that the present ones have.

    As in a forward pass on moved parameters, a shared parameter stays shared, and what else holds the present one (a
    list of the module's own) is left alone.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for name, value in values.items():
        moved = nn.Parameter(value.detach().clone())
        for each in names[id(module.get_parameter(name))]:
            owner, _, attribute = each.rpartition(".")
            setattr(module.get_submodule(owner), attribute, moved)

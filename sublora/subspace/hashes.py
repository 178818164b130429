"""The hashes that name a subspace: the trained parameters, theta at w = 0, and the map from w to theta.

A certificate holds them, so that a reader whose version draws other arrays from the same seeds refuses it. This module
does not import torch.
"""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sublora.system.digests import json_sha256, tensors_sha256

if TYPE_CHECKING:
    from sublora.subspace.parameters import ParameterSpace
    from sublora.subspace.scales import Points
    from sublora.subspace.subspace import Subspace


class NamesSubspace(Protocol):
    """A header that names a subspace by its hashes."""

    @property
    def space_sha256(self) -> str: ...
    @property
    def lora_init_sha256(self) -> str: ...
    @property
    def projection_sha256(self) -> str: ...


class SubspaceHashes(NamedTuple):
    """The three hashes of a subspace, hexadecimal, by their names in the header of a certificate."""

    space_sha256: str
    lora_init_sha256: str
    projection_sha256: str

    @classmethod
    def of(cls, space: "ParameterSpace", subspace: "Subspace") -> "SubspaceHashes":
        """Return the hashes of a network's trained parameters and of the subspace in which they move."""
        return cls(space_sha256(space), lora_init_sha256(subspace), projection_sha256(subspace))

    def beside(self, header: NamesSubspace) -> Iterator[tuple[str, str, str]]:
        """Yield what is hashed, the hash that a header names, and this one."""
        yield "trained parameters", header.space_sha256, self.space_sha256
        yield "LoRA initialization", header.lora_init_sha256, self.lora_init_sha256
        yield "projection", header.projection_sha256, self.projection_sha256


def lora_init_sha256(subspace: "Subspace") -> str:
    """Return the hexadecimal hash that names theta at w = 0."""
    return tensors_sha256([("theta", subspace.origin_D.cpu().numpy())])


def space_sha256(space: "ParameterSpace") -> str:
    """Return the hexadecimal hash that names the parameters that theta stands for: names, shapes, groups, roles."""
    return json_sha256([[each.name, list(each.shape), each.group, each.role] for each in space.parameters])


def points_sha256(points: "Points") -> str:
    """Return the hexadecimal hash that names what scales follow from, their exponent aside."""
    return json_sha256({name: list(values) for name, values in points.items()})


def projection_sha256(subspace: "Subspace") -> str:
    """Return the hexadecimal hash that names the map from w to theta.

    It covers which coordinates feed which entries, behind which gates, by which arrays, at which scales, and how the
    entries reach theta where they are not theta.
    """
    hashes: list[str] = []
    buffers = dict(subspace.named_buffers())
    for part in subspace.parts:
        rows, coordinates = part.rows, part.coordinates
        layout = [part.name, rows.start, rows.stop, coordinates.start, coordinates.stop, part.gate, part.takes_first]
        prefix = f"{part.name}__"
        arrays = [(name, buffers[name].cpu().numpy()) for name in sorted(buffers) if name.startswith(prefix)]
        hashes += [json_sha256(layout), tensors_sha256(arrays)]
    # Scales that are all 1 are no scales: the same map has one hash.
    if subspace.scale_D is not None and not bool((subspace.scale_D == 1.0).all()):
        hashes.append(tensors_sha256([("scale", subspace.scale_D.cpu().numpy())]))
    if subspace.shape.lift is not None:
        hashes.append(space_sha256(subspace.shape.space))
        hashes.append(tensors_sha256([(name, buffers[name].cpu().numpy()) for name in subspace.lift_names]))
    return hashlib.sha256("".join(hashes).encode()).hexdigest()

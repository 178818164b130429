"""Scales of a subspace, theta = theta_0 + s * (P w): one positive number for each trained matrix, or each of its rows.

s is proportional to g^a, where g is the root mean square of the gradient of a loss that knows nothing of the n
documents. What is kept of a gradient are its points, log2 g on a grid of 1/8: machines that sum in different orders
round to the same points. Importing this module does not import numpy, so that settings can be read without it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sublora.subspace.parameters import ParameterSpace

GRADIENT, FISHER = "gradient", "fisher"
"""One scale for each matrix; one for each input of an A and output of a B, which are the rows along the longer side."""
LARGEST_EXPONENT = 2.0
POINTS_PER_OCTAVE = 8
RANGE_OCTAVES = 20
"""A gradient smaller than 2^-20 of the largest counts as that: of a parameter that nothing reaches it is 0."""
POINT_TOLERANCE = 0.01
"""How far beyond half a step the gradient of another machine may lie from a point, in steps."""

Points = Mapping[str, Sequence[int]]
"""8 log2 g of each parameter by its name: one number, or one for each row along its longer side."""


class ScaleName(NamedTuple):
    """A parsed name: the kind of scale, gradient or fisher, and its exponent a."""

    kind: str
    exponent: float

    def __str__(self) -> str:
        """Return the canonical spelling of the name."""
        return f"{self.kind}({self.exponent!r})"


def parse_scale(text: str) -> ScaleName:
    """Parse a name such as `gradient(-0.5)`. ValueError, in one line, for any other text."""
    match = re.fullmatch(rf"\s*({GRADIENT}|{FISHER})\s*\(\s*([0-9.eE+-]+)\s*\)\s*", text)
    try:
        # An exponent of 0 would be another name for a subspace without scales.
        if match and 0.0 < abs(float(match[2])) <= LARGEST_EXPONENT:
            return ScaleName(match[1], float(match[2]))
    except ValueError:
        pass
    raise ValueError(
        f"scale {text[:40]!r}: expected {GRADIENT}(a) or {FISHER}(a) with an exponent a from -{LARGEST_EXPONENT:g} to "
        f"{LARGEST_EXPONENT:g} that is not 0, as in {GRADIENT}(-0.5), or null"
    )


def gradient_points(squares_D: "NDArray[np.float64]", space: "ParameterSpace", kind: str) -> dict[str, list[float]]:
    """Return 8 log2 g of every parameter, not rounded, from the mean squares of the entries' gradients (D).

    ValueError if all of them are 0 or one is not finite.
    """
    import numpy as np

    # Average over a whole matrix, or over the shorter side.
    means = {}
    for p in space.parameters:
        squares = squares_D[p.start : p.stop].reshape(p.shape)
        rows = np.moveaxis(squares, _long_axis(p.shape), 0).reshape(max(p.shape), -1)
        means[p.name] = rows.mean(axis=1) if kind == FISHER else np.array([squares.mean()])
    largest = max(float(each.max()) for each in means.values())
    if not (np.isfinite(largest) and largest > 0.0):
        raise ValueError(f"the largest mean square of a gradient is {largest}, expected a positive number")
    # g^2 halves the octaves.
    lowest = largest * 2.0 ** (-2 * RANGE_OCTAVES)
    return {
        name: (0.5 * POINTS_PER_OCTAVE * np.log2(np.maximum(each, lowest))).tolist() for name, each in means.items()
    }


def rounded_points(points: Mapping[str, Sequence[float]]) -> dict[str, tuple[int, ...]]:
    """Return the nearest points of the grid."""
    return {name: tuple(round(each) for each in values) for name, values in points.items()}


def agree(points: Points, measured: Mapping[str, Sequence[float]]) -> bool:
    """Return whether points are those of gradients that were measured again, which need not round alike."""
    limit = 0.5 + POINT_TOLERANCE
    return points.keys() == measured.keys() and all(
        len(points[name]) == len(values) and all(abs(a - b) <= limit for a, b in zip(points[name], values, strict=True))
        for name, values in measured.items()
    )


def scales_of_points(points: Points, name: ScaleName) -> dict[str, list[float]]:
    """Return the scales by parameter, up to a common factor: g^a, and (g^2)^a for `fisher`."""
    octaves = name.exponent * (2.0 if name.kind == FISHER else 1.0) / POINTS_PER_OCTAVE
    largest = max(octaves * point for values in points.values() for point in values)
    return {key: [2.0 ** max(octaves * point - largest, -1000.0) for point in values] for key, values in points.items()}


def entry_scales(space: "ParameterSpace", scales: Mapping[str, Sequence[float]]) -> "NDArray[np.float32]":
    """Return the scale of every entry of theta, float32 (D), with mean square 1.

    Args:
        space: the trained parameters.
        scales: for each of them one number, or one for each row along its longer side; up to a common factor.

    Raises:
        ValueError: a parameter has no scale, or the wrong number of them; a name is unknown; or a scale is not a
            positive number, compared to the largest.
    """
    import numpy as np

    names = {p.name for p in space.parameters}
    if wrong := sorted(names.symmetric_difference(scales)):
        which = "has no scale" if wrong[0] in names else "is not a trained parameter"
        some = ", ".join(p.name for p in space.parameters[:8])
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise ValueError(f"scales: '{wrong[0]}' {which}; expected a scale for each of {some}{more}")
    scale_D = np.empty(space.size, dtype=np.float64)
    for p in space.parameters:
        given = np.asarray(scales[p.name], dtype=np.float64)
        if given.shape not in ((1,), (max(p.shape),)):
            raise ValueError(f"scales: '{p.name}' of shape {p.shape} has {given.size}, expected 1 or {max(p.shape)}")
        along = [1] * len(p.shape)
        along[_long_axis(p.shape)] = len(given)
        scale_D[p.start : p.stop] = np.broadcast_to(given.reshape(along), p.shape).ravel()
    if not (np.isfinite(scale_D).all() and (scale_D > 0.0).all()):
        raise ValueError("scales must be positive numbers")
    # By the largest first, so that no square overflows.
    scale_D /= scale_D.max()
    scale_D /= np.sqrt(np.mean(np.square(scale_D)))
    entries_D = scale_D.astype(np.float32)
    if not (entries_D >= np.finfo(np.float32).tiny).all():
        raise ValueError("scales differ by more than float32 can hold")
    return entries_D


def _long_axis(shape: tuple[int, ...]) -> int:
    """Return the axis of the longest side, the first of several."""
    return shape.index(max(shape))

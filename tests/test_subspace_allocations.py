"""How allocations divide the coordinates of w: sizes, coverage, names, and what is refused."""

import math

import pytest
import torch

from sublora.models.spaces import lora_space
from sublora.subspace.allocations import Fixed, Learned, Uniform, mask_width, parse_allocation, soft_mask
from sublora.subspace.parameters import ParameterSpace

ALLOCATIONS = ["uniform", "fixed-0.2", "fixed-0.5", "fixed-0.8", "learned"]


@pytest.mark.parametrize(("budget", "groups"), [(60, 3), (61, 3), (3, 3), (1000, 13)])
def test_own_coordinates_of_the_groups_make_up_w(budget, groups):
    names = tuple(map(str, range(groups)))
    gates = Learned().gates(names, budget, "per_layer")
    used = [i for gate in gates for i in range(gate.coordinates.start, gate.coordinates.stop)]
    assert used == list(range(budget))
    assert max(gate.size for gate in gates) - min(gate.size for gate in gates) <= 1
    shared = Learned().gates(names, budget, "shared")
    assert [gate.coordinates for gate in shared] == [slice(0, budget)] * groups
    assert tuple(gate.group for gate in gates) == tuple(gate.group for gate in shared) == names


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("sharing", ["shared", "per_layer"])
def test_parts_cover_theta_once_and_use_every_coordinate(tiny_settings, allocation, sharing):
    space = lora_space(tiny_settings.model, tiny_settings.lora, 50)
    parts = parse_allocation(allocation).parts(space, 61, sharing)
    rows = [i for part in parts for i in range(part.rows.start, part.rows.stop)]
    assert rows == list(range(space.size))
    assert {i for part in parts for i in range(part.coordinates.start, part.coordinates.stop)} == set(range(61))
    assert len({part.name for part in parts}) == len(parts)


@pytest.mark.parametrize(
    ("ratio", "budget", "of_b"), [("0.2", 1000, 200), ("0.5", 61, 31), ("0.25", 10, 3), ("0.8", 60, 48)]
)
def test_a_fixed_split_rounds_half_up(ratio, budget, of_b):
    space = ParameterSpace.of([("a", (2000,), "0", "A"), ("b", (2000,), "0", "B")])
    a, b = Fixed(ratio).parts(space, budget, "shared")
    assert (b.coordinates, a.coordinates) == (slice(0, of_b), slice(of_b, budget))


@pytest.mark.parametrize("name", [*ALLOCATIONS, "fixed-0.20"])
def test_names_are_kept_as_written(name):
    allocation = parse_allocation(name)
    assert allocation.name == name
    expected = {"uniform": Uniform(), "learned": Learned()}.get(name, Fixed(name.removeprefix("fixed-")))
    assert allocation == expected
    assert allocation.ratio == (float(name.removeprefix("fixed-")) if "fixed" in name else None)


@pytest.mark.parametrize("name", ["fixed", "fixed-", "fixed-0", "fixed-1", "fixed-nan", "fixed-x", "Uniform", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f"allocation '{name}' is not one of uniform, learned, .*fixed-<ratio>"):
        parse_allocation(name)


def test_a_soft_mask_gives_b_the_coordinates_below_the_boundary():
    """Its sum is the boundary where the mask does not reach the ends, and a narrow one is the hard split."""
    boundary = torch.tensor([10.0, 25.5])
    mask = soft_mask(boundary, 50, 1.0)
    assert mask.sum(1).tolist() == pytest.approx([10.0, 25.5], abs=1e-3)
    assert bool((mask[:, :-1] >= mask[:, 1:]).all())
    assert soft_mask(boundary, 50, 1e-3)[0].tolist() == [1.0] * 10 + [0.0] * 40


def test_the_width_falls_geometrically_and_then_to_nothing():
    widths = [mask_width(step, size=40, start=0.25, end=0.1, soft_steps=5) for step in range(7)]
    assert widths[0] == pytest.approx(10.0) and widths[4] == pytest.approx(0.1) and widths[5:] == [0.0, 0.0]
    ratios = [math.log(b / a) for a, b in zip(widths[:4], widths[1:5], strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 4)

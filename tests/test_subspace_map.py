"""The Kronecker-QR projection and the subspace module against dense matrices."""

import numpy as np
import pytest
import torch
from sublora.nn.layout import build_layout, group_slices
from sublora.nn.lora import initial_theta

from sublora import config, random
from sublora.errors import UserError
from sublora.nn.projectors import KroneckerQR, StructuredIDModule, build_subspace, kronecker_sizes

VOCABULARY = 50
SIZES = [(5380, 1000), (5380, 2000), (512, 1000), (300, 300), (100, 1), (17, 16), (1, 5), (97, 96)]
ALLOCATIONS = ["uniform", "fixed-0.2", "fixed-0.5", "fixed-0.8", "learned"]


def dense(projection: torch.nn.Module, columns: int) -> torch.Tensor:
    return torch.stack([projection(unit) for unit in torch.eye(columns, dtype=torch.float64)], dim=1)


def make(rows: int, columns: int, name: str = "x", total: int = 7000) -> KroneckerQR:
    return KroneckerQR(rows, columns, total=total, stream=random.generator(1, name)).double()


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_columns_or_rows_are_orthogonal_with_the_stated_norm(rows, columns):
    p = dense(make(rows, columns), columns)
    assert p.shape == (rows, columns)
    gram = p.T @ p if rows >= columns else p @ p.T
    norm = max(rows, columns) / 7000
    torch.testing.assert_close(gram, norm * torch.eye(len(gram), dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert float(p.square().mean()) == pytest.approx(1 / 7000, rel=1e-5)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_remainder_is_tall_and_reaches_every_row(rows, columns):
    tall, narrow = max(rows, columns), min(rows, columns)
    a, b = kronecker_sizes(tall, narrow)
    rest_rows, rest_columns = tall - a * a, narrow - b * b
    assert rest_rows == rest_columns == 0 or 0 < rest_columns <= rest_rows
    assert bool((dense(make(rows, columns), columns).abs().sum(1) > 0).all())


def test_kronecker_part_is_the_kronecker_product():
    projection = make(100, 30)
    a, b = projection.a, projection.b
    assert a * b > 0
    matrix = torch.block_diag(torch.kron(projection.left, projection.right), projection.rest)
    torch.testing.assert_close(dense(projection, 30), matrix[projection.order] * projection.scale)


def module(
    settings: config.Settings, allocation: str, budget: int = 60, seed: int = 1, sharing: str = "shared"
) -> StructuredIDModule:
    settings = settings.model_copy(update={"gating": settings.gating.model_copy(update={"sharing": sharing})})
    layout = build_layout(settings.model, settings.lora, VOCABULARY)
    return build_subspace(settings, config.RunSpec(budget=budget, allocation=allocation, seed=seed), layout).double()


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_all_arms_start_at_the_same_initialization(tiny_settings, allocation):
    subspace = module(tiny_settings, allocation)
    start = subspace(mask_width=3.0 if allocation == "learned" else 0.0)
    expected = torch.from_numpy(initial_theta(subspace.layout, 1, "zero_b")).double()
    assert torch.equal(start, expected) and bool((expected[subspace.layout.span("B")] == 0).all())


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("width", [0.0, 5.0])
def test_gradient_equals_dense_reference(tiny_settings, allocation, width):
    """theta = init + M w with M built column by column; grad of a quadratic in theta is M' (theta - target)."""
    subspace = module(tiny_settings, allocation)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        subspace.subspace_params.copy_(torch.randn(60, generator=generator))
        for index, gate in enumerate(subspace.gating_params.values()):
            gate.fill_(0.7 * index - 1.0)
    target = torch.randn(subspace.layout.size, generator=generator, dtype=torch.float64)

    def matrix() -> torch.Tensor:
        gates = torch.sigmoid(torch.stack(list(subspace.gating_params.values()))) if subspace.gating_params else None
        i = torch.arange(60, dtype=torch.float64)
        columns = []
        for unit in torch.eye(60, dtype=torch.float64):
            parts = []
            for factor in ("A", "B"):
                if subspace.mode == "uniform":
                    continue
                if subspace.mode == "fixed":
                    inside = slice(subspace.split, 60) if factor == "A" else slice(0, subspace.split)
                    parts.append(subspace.projections[factor](unit[inside]))
                    continue
                for g, group in enumerate(subspace.layout.groups):
                    to_b = (
                        torch.sigmoid((gates[g] * 60 - i - 0.5) / width)
                        if width
                        else (i < torch.round(gates[g] * 60)).double()
                    )
                    mask = to_b if factor == "B" else 1 - to_b
                    parts.append(subspace.projections[f"{group}_{factor}"](mask * unit))
            columns.append(torch.cat(parts) if parts else subspace.projections["all"](unit))
        return torch.stack(columns, dim=1)

    m = matrix()
    theta = subspace(mask_width=width)
    torch.testing.assert_close(theta, subspace.theta_init + m @ subspace.subspace_params)
    (0.5 * (theta - target).square().sum()).backward()
    torch.testing.assert_close(subspace.subspace_params.grad, m.detach().T @ (theta.detach() - target))
    if allocation == "learned" and width:
        assert all(float(gate.grad.abs()) > 0 for gate in subspace.gating_params.values())


@pytest.mark.parametrize(("budget", "groups"), [(60, 3), (61, 3), (3, 3), (1000, 13)])
def test_own_coordinates_of_the_groups_make_up_w(budget, groups):
    slices = group_slices(budget, groups, "per_layer")
    used = [i for part in slices for i in range(part.start, part.stop)]
    assert used == list(range(budget))
    sizes = [part.stop - part.start for part in slices]
    assert max(sizes) - min(sizes) <= 1
    assert group_slices(budget, groups, "shared") == (slice(0, budget),) * groups


@pytest.mark.parametrize("width", [0.0, 4.0])
def test_a_coordinate_of_one_group_moves_no_other(tiny_settings, width):
    """61 coordinates for three groups; theta = init + P (m w) of the group's own slice, in A and in B."""
    subspace = module(tiny_settings, "learned", budget=61, sharing="per_layer")
    assert subspace.gate_sizes == (20, 20, 21)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for index, gate in enumerate(subspace.gating_params.values()):
            gate.fill_(0.6 * index - 0.5)
    w = torch.randn(61, generator=generator, dtype=torch.float64)
    for index, (group, own, size) in enumerate(
        zip(subspace.layout.groups, subspace.slices, subspace.gate_sizes, strict=True)
    ):
        with torch.no_grad():
            subspace.subspace_params.zero_()
            subspace.subspace_params[own] = w[own]
            moved = subspace(mask_width=width) - subspace.theta_init
        i, gamma = torch.arange(size, dtype=torch.float64), float(subspace.gamma()[index].detach())
        mask = torch.sigmoid((gamma * size - i - 0.5) / width) if width else (i < round(gamma * size)).double()
        for factor, share in (("A", 1.0 - mask), ("B", mask)):
            span = subspace.layout.span(factor, group)
            torch.testing.assert_close(moved[span], subspace.projections[f"{group}_{factor}"](share * w[own]))
            assert float(moved[span].abs().max()) > 0.0
            moved[span] = 0.0
        assert float(moved.abs().max()) == 0.0


def test_fewer_coordinates_than_groups_are_refused(tiny_settings):
    with pytest.raises(UserError, match="budget 2 leaves some of 3 groups without a coordinate"):
        module(tiny_settings, "learned", budget=2, sharing="per_layer")
    with pytest.raises(ValueError, match="2 coordinates cannot be divided among 3 groups"):
        group_slices(2, 3, "per_layer")


@pytest.mark.parametrize("sharing", ["shared", "per_layer"])
def test_gates_round_to_integers_of_their_own_coordinates(tiny_settings, sharing):
    subspace = module(tiny_settings, "learned", budget=61, sharing=sharing)
    with torch.no_grad():
        for gate, gamma in zip(subspace.gating_params.values(), (0.0001, 0.26, 0.9999), strict=True):
            gate.fill_(float(np.log(gamma / (1.0 - gamma))))
    sizes = {"shared": (61, 61, 61), "per_layer": (20, 20, 21)}[sharing]
    assert subspace.hard_split().tolist() == [0, round(0.26 * sizes[1]), sizes[2]]


def test_both_random_draws_b_like_a_and_keeps_a(tiny_settings):
    """Both uniform within 1 / sqrt(inputs); A is the same as without the option."""
    layout = module(tiny_settings, "uniform").layout
    zero, both = (initial_theta(layout, 1, init) for init in ("zero_b", "both_random"))
    a, b = layout.span("A"), layout.span("B")
    np.testing.assert_array_equal(zero[a], both[a])
    limit = 1.0 / np.sqrt(tiny_settings.model.n_embd)
    for part in (both[a], both[b]):
        assert 0.95 * limit < np.abs(part).max() <= limit
        assert np.square(part).mean() == pytest.approx(limit**2 / 3, rel=0.2)
    assert len(np.unique(both)) > 0.99 * layout.size


def test_groups_and_seeds_have_different_projections(tiny_settings):
    subspace, other = module(tiny_settings, "learned"), module(tiny_settings, "learned", seed=2)
    layers = [dense(subspace.projections[f"{group}_A"], 60) for group in ("0", "1")]
    assert not torch.allclose(layers[0], layers[1])
    assert not torch.allclose(layers[0], dense(other.projections["0_A"], 60))


def test_state_dict_has_the_published_names(tiny_settings):
    assert set(module(tiny_settings, "uniform").state_dict()) == {"subspace_params"}
    names = {"subspace_params", "gating_params.0", "gating_params.1", "gating_params.head"}
    assert set(module(tiny_settings, "learned").state_dict()) == names


def test_hard_split_equals_fixed_dimensions(tiny_settings):
    """Gates at the ends give all of w to A, or all to B."""
    subspace = module(tiny_settings, "learned")
    with torch.no_grad():
        subspace.subspace_params.fill_(1.0)
    moved = {k: subspace(split_G=torch.full((3,), k)) - subspace.theta_init for k in (0, 60)}
    a, b = subspace.layout.span("A"), subspace.layout.span("B")
    assert float(moved[0][b].abs().max()) == 0.0 and float(moved[60][a].abs().max()) == 0.0
    assert float(moved[0][a].abs().max()) > 0.0 and float(moved[60][b].abs().max()) > 0.0


@pytest.mark.parametrize(("budget", "allocation"), [(100000, "uniform"), (300, "fixed-0.2"), (4, "fixed-0.05")])
def test_impossible_budgets_are_refused(tiny_settings, budget, allocation):
    with pytest.raises(UserError, match=f"budget {budget}"):
        module(tiny_settings, allocation, budget=budget)


def test_scale_does_not_depend_on_the_arm(tiny_settings):
    """A random w moves theta by the same mean square in the uniform arm and the fixed ones."""
    generator = np.random.default_rng(0)
    moves = {}
    for allocation in ("uniform", "fixed-0.5"):
        subspace = module(tiny_settings, allocation)
        squares = []
        for _ in range(20):
            with torch.no_grad():
                subspace.subspace_params.copy_(torch.from_numpy(generator.standard_normal(60)))
                squares.append(float((subspace() - subspace.theta_init).square().sum()))
        moves[allocation] = np.mean(squares)
    # E |P w|^2 = sum over coordinates of their column's squared norm: 60 for uniform, D_A/D and D_B/D for fixed.
    layout = module(tiny_settings, "uniform").layout
    size_a = layout.span("A").stop - layout.span("A").start
    expected = 30 * size_a / layout.size + 30 * (layout.size - size_a) / layout.size
    assert moves["uniform"] == pytest.approx(60, rel=0.15)
    assert moves["fixed-0.5"] == pytest.approx(expected, rel=0.15)

"""The map from w to theta against dense matrices, its purity, and the arms' common start."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import build_on

from sublora import config
from sublora.models.lora import initial_theta
from sublora.models.spaces import lora_space
from sublora.subspace.allocations import hard_split, parse_allocation
from sublora.subspace.projections import PROJECTIONS
from sublora.subspace.subspace import Subspace, SubspaceShape
from sublora.system.errors import UserError
from sublora.system.streams import generator

VOCABULARY = 50
ALLOCATIONS = ["uniform", "fixed-0.2", "fixed-0.5", "fixed-0.8", "learned"]


def streams_of(settings: config.Settings, seed: int) -> Callable[[str], np.random.Generator]:
    return functools.partial(generator, seed, "projection", settings.subspace.projection_seed)


def make(
    settings: config.Settings, allocation: str, budget: int = 60, seed: int = 1, sharing: str = "shared"
) -> Subspace:
    space = lora_space(settings.model, settings.lora, VOCABULARY)
    shape = SubspaceShape(space, parse_allocation(allocation), budget, sharing=sharing)
    return Subspace(shape, initial_theta(space, seed, "zero_b"), streams_of(settings, seed)).double()


def projection_of(settings: config.Settings, subspace: Subspace, name: str, seed: int = 1) -> torch.Tensor:
    """The dense matrix of a part, drawn anew from its stream."""
    (part,) = (part for part in subspace.parts if part.name == name)
    columns = part.coordinates.stop - part.coordinates.start
    kind = PROJECTIONS[subspace.shape.projection]
    projection = kind(part.rows.stop - part.rows.start, columns, total=subspace.shape.space.size)
    drawn = {key: torch.from_numpy(a) for key, a in projection.arrays(streams_of(settings, seed)(name)).items()}
    arrays = {key: a.double() if a.is_floating_point() else a for key, a in drawn.items()}
    units = torch.eye(columns, dtype=torch.float64)
    return torch.stack([projection.apply(arrays, unit) for unit in units], dim=1)


def randomize(subspace: Subspace, seed: int = 2) -> None:
    with torch.no_grad():
        w = torch.randn(len(subspace.subspace_params), generator=torch.Generator().manual_seed(seed))
        subspace.subspace_params.copy_(w)
        for index, gate in enumerate(subspace.gating_params.values()):
            gate.fill_(0.7 * index - 1.0)


# Values and gradients


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_all_arms_start_at_the_same_initialization(tiny_settings, allocation):
    subspace = make(tiny_settings, allocation)
    start = subspace(mask_width=3.0 if allocation == "learned" else 0.0)
    expected = torch.from_numpy(initial_theta(subspace.shape.space, 1, "zero_b")).double()
    assert torch.equal(start, expected) and bool((expected[subspace.shape.space.span("B")] == 0).all())


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("width", [0.0, 5.0])
def test_gradient_equals_dense_reference(tiny_settings, allocation, width):
    """theta = init + M w with M put together from dense parts; grad of a quadratic in theta is M' (theta - target)."""
    subspace = make(tiny_settings, allocation)
    randomize(subspace)
    noise = torch.Generator().manual_seed(3)
    target = torch.randn(subspace.shape.space.size, generator=noise, dtype=torch.float64)
    dense = functools.partial(projection_of, tiny_settings, subspace)

    def matrix() -> torch.Tensor:
        if allocation == "uniform":
            return dense("all")
        if allocation.startswith("fixed"):
            split = round(float(allocation.removeprefix("fixed-")) * 60)
            return torch.cat([F.pad(dense("A"), (split, 0)), F.pad(dense("B"), (0, 60 - split))])
        i, blocks = torch.arange(60, dtype=torch.float64), []
        for role in ("A", "B"):
            for group in subspace.shape.space.groups:
                boundary = torch.sigmoid(subspace.gating_params[group]) * 60
                to_b = torch.sigmoid((boundary - i - 0.5) / width) if width else (i < torch.round(boundary)).double()
                blocks.append(dense(f"{group}_{role}") * (to_b if role == "B" else 1 - to_b))
        return torch.cat(blocks)

    m = matrix()
    theta = subspace(mask_width=width)
    torch.testing.assert_close(theta, subspace.origin_D + m @ subspace.subspace_params)
    (0.5 * (theta - target).square().sum()).backward()
    torch.testing.assert_close(subspace.subspace_params.grad, m.detach().T @ (theta.detach() - target))
    if allocation == "learned" and width:
        assert all(float(gate.grad.abs()) > 0 for gate in subspace.gating_params.values())


@pytest.mark.parametrize("width", [0.0, 4.0])
def test_a_coordinate_of_one_group_moves_no_other(tiny_settings, width):
    """61 coordinates for three groups; theta = init + P (m w) of the group's own slice, in A and in B."""
    subspace = make(tiny_settings, "learned", budget=61, sharing="per_layer")
    assert subspace.sizes_G.tolist() == [20, 20, 21]
    randomize(subspace)
    w = subspace.subspace_params.detach().clone()
    for gate, gamma in zip(subspace.gates, subspace.gamma().tolist(), strict=True):
        own = torch.zeros(61, dtype=torch.float64)
        own[gate.coordinates] = w[gate.coordinates]
        moved = subspace.theta(own, subspace.masks(width)).detach() - subspace.origin_D
        i = torch.arange(gate.size, dtype=torch.float64)
        boundary = gamma * gate.size
        mask = torch.sigmoid((boundary - i - 0.5) / width) if width else (i < round(boundary)).double()
        for role, share in (("A", 1.0 - mask), ("B", mask)):
            span = subspace.shape.space.span(role, gate.group)
            expected = projection_of(tiny_settings, subspace, f"{gate.group}_{role}") @ (share * w[gate.coordinates])
            torch.testing.assert_close(moved[span], expected)
            assert float(moved[span].abs().max()) > 0.0
            moved[span] = 0.0
        assert float(moved.abs().max()) == 0.0


def test_hard_split_equals_fixed_dimensions(tiny_settings):
    """Gates at the ends give all of w to A, or all to B."""
    subspace = make(tiny_settings, "learned")
    w = torch.ones(60, dtype=torch.float64)
    moved = {k: subspace.theta(w, subspace.split_masks(torch.full((3,), k))) - subspace.origin_D for k in (0, 60)}
    a, b = subspace.shape.space.span("A"), subspace.shape.space.span("B")
    assert float(moved[0][b].abs().max()) == 0.0 and float(moved[60][a].abs().max()) == 0.0
    assert float(moved[0][a].abs().max()) > 0.0 and float(moved[60][b].abs().max()) > 0.0


def test_scale_does_not_depend_on_the_arm(tiny_settings):
    """A random w moves theta by the same mean square in the uniform arm and the fixed ones."""
    rng = np.random.default_rng(0)
    moves = {}
    for allocation in ("uniform", "fixed-0.5"):
        subspace = make(tiny_settings, allocation)
        draws = torch.from_numpy(rng.standard_normal((20, 60)))
        moves[allocation] = np.mean([float((subspace.theta(w) - subspace.origin_D).square().sum()) for w in draws])
    # E |P w|^2 = sum over coordinates of their column's squared norm: 60 for uniform, D_A/D and D_B/D for fixed.
    space = lora_space(tiny_settings.model, tiny_settings.lora, VOCABULARY)
    size_a = space.span("A").stop
    expected = 30 * size_a / space.size + 30 * (space.size - size_a) / space.size
    assert moves["uniform"] == pytest.approx(60, rel=0.15)
    assert moves["fixed-0.5"] == pytest.approx(expected, rel=0.15)


# Purity


@pytest.mark.parametrize("allocation", ["uniform", "fixed-0.2", "learned"])
def test_the_map_changes_nothing(tiny_settings, allocation):
    """theta of a foreign w and foreign masks leaves the module's own parameters, buffers and theta as they were."""
    subspace = make(tiny_settings, allocation)
    randomize(subspace)
    before = {name: tensor.clone() for name, tensor in [*subspace.named_parameters(), *subspace.named_buffers()]}
    own = subspace().detach()
    foreign = torch.full((60,), 3.0, dtype=torch.float64)
    given, masks = foreign.clone(), subspace.split_masks(torch.tensor([0, 60, 7]))
    kept = None if masks is None else masks.clone()
    theta = subspace.theta(given, masks)
    assert not torch.equal(theta, own)
    assert torch.equal(theta, subspace.theta(given, masks)) and torch.equal(given, foreign)
    assert masks is None or torch.equal(masks, kept)
    for name, tensor in [*subspace.named_parameters(), *subspace.named_buffers()]:
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(subspace(), own)


def test_decoding_a_message_leaves_the_run_as_it_was(tiny_root, tiny_settings):
    """Before and after `decoded`: the same w, gates and hidden states; and the decoded model is that of its message."""
    run = build_on(tiny_root, tiny_settings, config.RunSpec(budget=40, allocation="learned", seed=1))
    randomize(run.subspace)
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        own = run.model_at(run.subspace.subspace_params)
    state, hidden = run.subspace.parameter_copies(), own.hidden(tokens)
    w, split = np.linspace(-1.0, 1.0, 40), (3, 40, 0)
    decoded = run.decoded(w, split)
    again = run.model_at(run.subspace.subspace_params)
    assert torch.equal(own.hidden(tokens), hidden) and torch.equal(again.hidden(tokens).detach(), hidden)
    assert all(torch.equal(value, state[name]) for name, value in run.subspace.state_dict().items())
    with torch.no_grad():
        masks = run.subspace.split_masks(torch.tensor(split))
        expected = run.network.at(run.subspace.theta(torch.from_numpy(w.astype(np.float32)), masks))
    assert torch.equal(decoded.hidden(tokens), expected.hidden(tokens))
    assert not torch.equal(decoded.hidden(tokens), hidden)


# Hard splits and refusals


@pytest.mark.parametrize("sharing", ["shared", "per_layer"])
def test_gates_round_to_integers_of_their_own_coordinates(tiny_settings, sharing):
    subspace = make(tiny_settings, "learned", budget=61, sharing=sharing)
    with torch.no_grad():
        for gate, gamma in zip(subspace.gating_params.values(), (0.0001, 0.26, 0.9999), strict=True):
            gate.fill_(float(np.log(gamma / (1.0 - gamma))))
    sizes = {"shared": (61, 61, 61), "per_layer": (20, 20, 21)}[sharing]
    assert subspace.hard_split().tolist() == [0, round(0.26 * sizes[1]), sizes[2]]
    assert torch.equal(subspace.hard_split(), hard_split(subspace.gamma(), torch.tensor(sizes)))


@pytest.mark.parametrize(
    ("budget", "allocation", "sharing", "reason"),
    [
        (100000, "uniform", "shared", "exceeds the 802 trained parameters"),
        (300, "fixed-0.2", "shared", "gives 240 coordinates to A, which has 160"),
        (4, "fixed-0.05", "shared", "gives 0 coordinates to B"),
        (2, "learned", "per_layer", "leaves some of 3 groups without a coordinate"),
    ],
)
def test_impossible_budgets_are_refused_in_one_line(tiny_root, tiny_settings, budget, allocation, sharing, reason):
    gating = tiny_settings.gating.model_copy(update={"sharing": sharing})
    settings = tiny_settings.model_copy(update={"gating": gating})
    spec = config.RunSpec(budget=budget, allocation=allocation, seed=1)
    with pytest.raises(UserError, match=f"budget {budget} .*{reason}") as error:
        build_on(tiny_root, settings, spec)
    assert "\n" not in str(error.value)


# Seeds and names


def test_both_random_draws_b_like_a_and_keeps_a(tiny_settings):
    """Both uniform within 1 / sqrt(inputs); A is the same as without the option."""
    space = lora_space(tiny_settings.model, tiny_settings.lora, VOCABULARY)
    zero, both = (initial_theta(space, 1, init) for init in ("zero_b", "both_random"))
    a, b = space.span("A"), space.span("B")
    np.testing.assert_array_equal(zero[a], both[a])
    limit = 1.0 / np.sqrt(tiny_settings.model.n_embd)
    for part in (both[a], both[b]):
        assert 0.95 * limit < np.abs(part).max() <= limit
        assert np.square(part).mean() == pytest.approx(limit**2 / 3, rel=0.2)
    assert len(np.unique(both)) > 0.99 * space.size


def test_groups_and_seeds_have_different_projections(tiny_settings):
    subspace, other = make(tiny_settings, "learned"), make(tiny_settings, "learned", seed=2)
    w = torch.ones(60, dtype=torch.float64)
    everything = subspace.split_masks(torch.tensor([60, 60, 60]))
    first, second = (s.theta(w, everything) - s.origin_D for s in (subspace, other))
    spans = [subspace.shape.space.span("B", group) for group in ("0", "1")]
    assert not torch.allclose(first[spans[0]], first[spans[1]])
    assert not torch.allclose(first[spans[0]], second[spans[0]])


def test_state_dict_has_the_published_names(tiny_settings):
    assert set(make(tiny_settings, "uniform").state_dict()) == {"subspace_params"}
    names = {"subspace_params", "gating_params.0", "gating_params.1", "gating_params.head"}
    assert set(make(tiny_settings, "learned").state_dict()) == names


def test_the_published_name_of_the_module_is_kept():
    from sublora.nn.projectors import StructuredIDModule

    assert StructuredIDModule is Subspace

"""Where parameters lie in theta."""

import math

import pytest

from sublora.models.spaces import lora_groups, lora_space
from sublora.subspace.parameters import ParameterSpace, span_length

DESCRIBED = [
    ("0.a", (2, 3), "0", "A"),
    ("1.a", (4,), "1", "A"),
    ("0.b", (5, 1), "0", "B"),
    ("0.c", (), "0", "B"),
    ("1.b", (2, 2), "1", "B"),
]
VOCABULARY = 50


def test_parameters_follow_one_another_in_the_order_given():
    space = ParameterSpace.of(DESCRIBED)
    assert [(p.name, p.shape, p.group, p.role) for p in space.parameters] == DESCRIBED
    assert [p.start for p in space.parameters] == [0, 6, 10, 15, 16]
    assert [p.stop for p in space.parameters] == [6, 10, 15, 16, 20]
    assert space.size == 20 == sum(math.prod(shape) for _, shape, _, _ in DESCRIBED)
    assert space.groups == ("0", "1")


def test_spans_hold_a_role_and_a_role_within_a_group():
    space = ParameterSpace.of(DESCRIBED)
    assert (space.span("A"), space.span("B")) == (slice(0, 10), slice(10, 20))
    assert (space.span("A", "0"), space.span("A", "1")) == (slice(0, 6), slice(6, 10))
    assert (space.span("B", "0"), space.span("B", "1")) == (slice(10, 16), slice(16, 20))
    assert [p.name for p in space.found("B", "0")] == ["0.b", "0.c"]
    assert span_length(space.span("B", "0")) == 6


@pytest.mark.parametrize(("role", "group", "reason"), [("C", None, "role C$"), ("A", "2", "role A in group 2")])
def test_a_span_of_nothing_is_refused(role, group, reason):
    with pytest.raises(ValueError, match=f"no parameter has the {reason}"):
        ParameterSpace.of(DESCRIBED).span(role, group)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ([0, 2, 1, 3, 4], "role [AB] and group None do not follow"),  # a role is torn
        ([0, 1, 2, 4, 3], "role B and group 0 do not follow"),  # a group within a role is torn
        ([], "at least one parameter"),
        ([0, 0], "occur twice"),
    ],
)
def test_what_no_slice_can_hold_is_refused(order, reason):
    with pytest.raises(ValueError, match=reason):
        ParameterSpace.of([DESCRIBED[i] for i in order])


@pytest.mark.parametrize("targets", [("query", "value", "head"), ("value",), ("head",)])
def test_lora_matrices_come_all_a_then_all_b(tiny_settings, targets):
    """The order that payloads and checkpoints rely on; groups are those of the message's gates."""
    model, lora = tiny_settings.model, tiny_settings.lora.model_copy(update={"targets": list(targets)})
    space = lora_space(model, lora, VOCABULARY)
    wanted = [f"{layer}.{t}" for layer in range(model.n_layer) for t in ("query", "value") if t in targets]
    wanted += ["head.head"] if "head" in targets else []
    assert [p.name for p in space.parameters] == [f"{name}.lora_{role}" for role in "AB" for name in wanted]
    for p in space.parameters:
        outputs = VOCABULARY if p.group == "head" else model.n_embd
        assert p.shape == ((lora.rank, model.n_embd) if p.role == "A" else (outputs, lora.rank))
    assert space.groups == lora_groups(model, lora)
    assert (space.span("A").start, space.span("A").stop, space.span("B").stop) == (0, space.span("B").start, space.size)

"""The chunked cross-entropy against PyTorch's on whole logits."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from sublora.models import head


def example(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "hidden": normal(23, 6).requires_grad_(),
        "weight": normal(11, 6),
        "down": normal(23, 2).requires_grad_(),
        "up": normal(11, 2).requires_grad_(),
        "targets": torch.randint(0, 11, (23,), generator=generator),
    }


@pytest.fixture(params=["eager", "eager, padded", "compiled", "compiled, padded"])
def use_compiler(request, monkeypatch) -> bool:
    """Every form of the head: compiled or not, vocabulary and width padded as on a GPU or not."""
    if "padded" in request.param:
        monkeypatch.setitem(head.VOCABULARY_MULTIPLE, "cpu", 8)
        monkeypatch.setitem(head.WIDTH_MULTIPLE, "cpu", 8)
    # Traced and differentiated as for a GPU; only the last step, machine code, is left out.
    backend = functools.cache(functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(head, "_compiled", backend)
    return "compiled" in request.param


def plain_logits(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return values["hidden"] @ values["weight"].T + values["down"] @ values["up"].T


@pytest.mark.parametrize("chunk_elements", [1, 11 * 7, 1 << 20])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_equal_plain_cross_entropy(monkeypatch, use_compiler, chunk_elements, smoothing):
    monkeypatch.setitem(head.LOGITS_AT_ONCE, "cpu", chunk_elements)
    monkeypatch.setitem(head.ROWS_AT_LEAST, "cpu", 1)
    values = example(torch.float32)
    weights = torch.rand(23, generator=torch.Generator().manual_seed(1))
    inputs = [values[name] for name in ("hidden", "down", "up")]
    loss = head.head_cross_entropy(
        values["hidden"],
        values["weight"],
        values["down"],
        values["up"],
        values["targets"],
        position_weights_K=weights,
        smoothing=smoothing,
        use_compiler=use_compiler,
    )
    gradients = torch.autograd.grad(3.0 * loss, inputs)

    p = plain_logits(values).softmax(1).gather(1, values["targets"][:, None])[:, 0]
    expected = (weights * -((1 - smoothing) * p + smoothing / 11).log()).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(gradients, torch.autograd.grad(3.0 * expected, inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_elements", [1, 11 * 7, 1 << 20])
def test_target_scores_equal_log_softmax_and_sorted_ranks(monkeypatch, use_compiler, chunk_elements):
    monkeypatch.setitem(head.LOGITS_AT_ONCE, "cpu", chunk_elements)
    monkeypatch.setitem(head.ROWS_AT_LEAST, "cpu", 1)
    values = example(torch.float32)
    log_p, ranks = head.head_target_scores(
        *(values[name] for name in ("hidden", "weight", "down", "up", "targets")), use_compiler=use_compiler
    )
    logits = plain_logits(values).detach()
    expected = logits.log_softmax(1).gather(1, values["targets"][:, None])[:, 0]
    torch.testing.assert_close(log_p, expected, rtol=1e-5, atol=1e-5)
    order = logits.argsort(1, descending=True)
    assert ranks.tolist() == [row.tolist().index(target) for row, target in zip(order, values["targets"], strict=True)]


def test_ties_count_against_the_model():
    """A head that finds all tokens equally likely ranks every target last."""
    hidden, weight = torch.zeros(3, 4), torch.zeros(5, 4)
    log_p, ranks = head.head_target_scores(hidden, weight, None, None, torch.tensor([0, 2, 4]))
    torch.testing.assert_close(log_p, torch.full((3,), -math.log(5)))
    assert ranks.tolist() == [4, 4, 4]


def test_without_adapter_the_mean_equals_cross_entropy():
    values = example(torch.float32)
    loss = head.head_cross_entropy(values["hidden"], values["weight"], None, None, values["targets"])
    torch.testing.assert_close(loss, F.cross_entropy(values["hidden"] @ values["weight"].T, values["targets"]))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weight_gets_a_gradient_only_if_it_is_trained(monkeypatch, use_compiler, trained, with_adapter, smoothing):
    """The same as autograd's through whole logits, beside those of hidden states and adapter; None where frozen."""
    monkeypatch.setitem(head.LOGITS_AT_ONCE, "cpu", 11 * 7)
    monkeypatch.setitem(head.ROWS_AT_LEAST, "cpu", 1)
    found, wanted = example(torch.float32), example(torch.float32)
    for values in (found, wanted):
        values["weight"].requires_grad_(trained)
    adapter = ("down", "up") if with_adapter else ()
    head.head_cross_entropy(
        found["hidden"],
        found["weight"],
        *(found[name] if with_adapter else None for name in ("down", "up")),
        found["targets"],
        smoothing=smoothing,
        use_compiler=use_compiler,
    ).backward()
    logits = plain_logits(wanted) if with_adapter else wanted["hidden"] @ wanted["weight"].T
    p = logits.softmax(1).gather(1, wanted["targets"][:, None])[:, 0]
    (-((1 - smoothing) * p + smoothing / 11).log()).mean().backward()
    for name in ("hidden", *adapter):
        torch.testing.assert_close(found[name].grad, wanted[name].grad, rtol=1e-4, atol=1e-6)
    if trained:
        torch.testing.assert_close(found["weight"].grad, wanted["weight"].grad, rtol=1e-4, atol=1e-6)
    else:
        assert found["weight"].grad is None

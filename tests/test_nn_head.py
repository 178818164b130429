"""The chunked cross-entropy against PyTorch's on whole logits."""

import pytest
import torch
import torch.nn.functional as F

from sublora.nn import head


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


@pytest.mark.parametrize("chunk_elements", [1, 11 * 7, 1 << 20])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_equal_plain_cross_entropy(monkeypatch, chunk_elements, smoothing):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", chunk_elements)
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
    )
    gradients = torch.autograd.grad(3.0 * loss, inputs)

    logits = values["hidden"] @ values["weight"].T + values["down"] @ values["up"].T
    p = logits.softmax(1).gather(1, values["targets"][:, None])[:, 0]
    expected = (weights * -((1 - smoothing) * p + smoothing / 11).log()).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(gradients, torch.autograd.grad(3.0 * expected, inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_without_adapter_the_mean_equals_cross_entropy():
    values = example(torch.float32)
    loss = head.head_cross_entropy(values["hidden"], values["weight"], None, None, values["targets"])
    torch.testing.assert_close(loss, F.cross_entropy(values["hidden"] @ values["weight"].T, values["targets"]))


def test_frozen_weight_gets_no_gradient():
    values = example(torch.float32)
    values["weight"].requires_grad_()
    head.head_cross_entropy(
        values["hidden"], values["weight"], values["down"], values["up"], values["targets"]
    ).backward()
    assert values["weight"].grad is None and values["hidden"].grad is not None

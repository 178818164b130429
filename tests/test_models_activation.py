"""The activation against PyTorch's."""

import torch
import torch.nn.functional as F

from sublora.models.gpt import gelu_tanh


def test_values_and_gradients_equal_pytorch():
    x = torch.linspace(-30, 30, 4001, dtype=torch.float64, requires_grad=True)
    weight = torch.cos(x.detach())
    ours, theirs = gelu_tanh(x), F.gelu(x, approximate="tanh")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (got,) = torch.autograd.grad((weight * ours).sum(), x)
    (expected,) = torch.autograd.grad((weight * theirs).sum(), x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_gradient_by_finite_differences():
    x = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(gelu_tanh, x)

"""GPT-2's activation, the tanh form of GELU."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
CUBIC = 0.044715 * SLOPE


def gelu_tanh(x: Tensor) -> Tensor:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, equal to x sigmoid(SLOPE x + CUBIC x^3).

    In float32 on a CPU by the second form: PyTorch's tanh kernel takes almost twice as long there. In bfloat16 the
    kernel is the exacter one, since it rounds once.
    """
    if x.device.type != "cpu" or x.dtype == torch.bfloat16:
        return F.gelu(x, approximate="tanh")
    return _SigmoidForm.apply(x) if torch.is_grad_enabled() else _gate(x).mul_(x)


def _gate(x: Tensor) -> Tensor:
    """sigmoid(SLOPE x + CUBIC x^3)."""
    return torch.addcmul(x.new_tensor(SLOPE), x, x, value=CUBIC).mul_(x).sigmoid_()


class _SigmoidForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # noqa: ANN001
        gate = _gate(x)
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # noqa: ANN001
        x, gate = ctx.saved_tensors
        # d/dx = gate + gate (1 - gate) x (SLOPE + 3 CUBIC x^2)
        rise = torch.addcmul(x.new_tensor(SLOPE), x, x, value=3.0 * CUBIC).mul_(x)
        rise.mul_(torch.addcmul(gate, gate, gate, value=-1.0))
        return rise.add_(gate).mul_(grad)

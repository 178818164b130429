"""Cross-entropy of the adapted LM head without the logits of all positions in memory.

Shape legend: K positions, C width, R rank, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once (64 MiB in float32)."""


def head_cross_entropy(
    hidden_KC: Tensor,
    weight_VC: Tensor,
    down_KR: Tensor | None,
    up_VR: Tensor | None,
    targets_K: Tensor,
    *,
    position_weights_K: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Weighted sum of -log((1 - a) p + a / V), p = softmax(hidden W' + down up')[target], in nats.

    `down` is the scaled output of the adapter's A, `up` its B; both None for a head without an adapter.
    W is frozen and gets no gradient. Weights default to 1 / K (the mean), `smoothing` a to none.
    Cross-entropy runs in float32 whatever the type of the inputs.
    """
    positions = hidden_KC.shape[0]
    if down_KR is None or up_VR is None:
        down_KR = hidden_KC.new_zeros(positions, 1)
        up_VR = hidden_KC.new_zeros(weight_VC.shape[0], 1)
    if position_weights_K is None:
        position_weights_K = torch.full((positions,), 1.0 / positions, device=hidden_KC.device)
    return _FrozenHeadCrossEntropy.apply(hidden_KC, weight_VC, down_KR, up_VR, targets_K, position_weights_K, smoothing)


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    """Gradients are formed in the forward pass, chunk by chunk, while a chunk's logits exist."""

    @staticmethod
    def forward(ctx, hidden_KC, weight_VC, down_KR, up_VR, targets_K, position_weights_K, smoothing):  # noqa: ANN001, ANN205
        positions, vocab_size = hidden_KC.shape[0], weight_VC.shape[0]
        needs_gradient = any(ctx.needs_input_grad)
        rows = max(1, CHUNK_ELEMENTS // vocab_size)
        total = torch.zeros((), dtype=torch.float32, device=hidden_KC.device)
        grad_hidden = torch.empty_like(hidden_KC) if needs_gradient else None
        grad_down = torch.empty_like(down_KR) if needs_gradient else None
        grad_up = torch.zeros(up_VR.shape, dtype=torch.float32, device=up_VR.device) if needs_gradient else None
        for start in range(0, positions, rows):
            part = slice(start, start + rows)
            logits = torch.addmm(hidden_KC[part] @ weight_VC.T, down_KR[part], up_VR.T).float()
            target_log_p = logits.gather(1, targets_K[part, None])[:, 0] - logits.logsumexp(1)
            losses, factor = _smoothed(target_log_p, smoothing, vocab_size)
            total += losses @ position_weights_K[part]
            if not needs_gradient:
                continue
            # d loss / d logits = factor (softmax - one-hot): without smoothing the factor is 1.
            row_weights = (position_weights_K[part] * factor)[:, None]
            grad_logits = F.softmax(logits, dim=1).mul_(row_weights)
            grad_logits.scatter_add_(1, targets_K[part, None], -row_weights)
            grad_logits = grad_logits.to(hidden_KC.dtype)
            torch.mm(grad_logits, weight_VC, out=grad_hidden[part])
            torch.mm(grad_logits, up_VR, out=grad_down[part])
            grad_up += grad_logits.T @ down_KR[part]
        if needs_gradient:
            ctx.save_for_backward(grad_hidden, grad_down, grad_up.to(up_VR.dtype))
        return total

    @staticmethod
    def backward(ctx, grad_loss):  # noqa: ANN001, ANN205
        grad_hidden, grad_down, grad_up = ctx.saved_tensors
        return grad_hidden * grad_loss, None, grad_down * grad_loss, grad_up * grad_loss, None, None, None


def _smoothed(target_log_p: Tensor, smoothing: float, vocab_size: int) -> tuple[Tensor, Tensor]:
    """-log((1 - a) p + a / V), and the share of the probability that comes from the model, (1 - a) p / p_a."""
    if smoothing == 0.0:
        return -target_log_p, torch.ones_like(target_log_p)
    from_model = (1.0 - smoothing) * target_log_p.exp()
    smoothed = from_model + smoothing / vocab_size
    return -smoothed.log(), from_model / smoothed

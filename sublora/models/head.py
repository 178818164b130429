"""The adapted LM head: losses, gradients and ranks without holding the logits of all positions in memory.

The head and its adapter are one matrix product, `[hidden | down] [W | up]'`. On a GPU its sides are padded with zeros
to sizes that tensor cores process at full speed; padded columns count as -infinity, so they get no probability.

Shape legend: K positions, C width, R rank, V vocabulary, P vocabulary padded, J = C + R padded.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 28}
"""Elements of a chunk's logits: on a CPU as many as fit its caches; a GPU needs large products to be busy (512 MiB)."""
ROWS_AT_LEAST = {"cpu": 512, "cuda": 1024}
"""Positions in a chunk's matrix product, however large the vocabulary, so that reading W takes little of the time.

What follows the product is done in pieces of LOGITS_AT_ONCE.
"""
SCORED_ROWS = {"cpu": 512, "cuda": 2048}
"""Positions in every product of `head_target_scores`: a product of another shape may sum in another order."""
VOCABULARY_MULTIPLE = {"cpu": 1, "cuda": 64}
WIDTH_MULTIPLE = {"cpu": 1, "cuda": 8}


def head_cross_entropy(
    hidden_KC: Tensor,
    weight_VC: Tensor,
    down_KR: Tensor | None,
    up_VR: Tensor | None,
    targets_K: Tensor,
    *,
    position_weights_K: Tensor | None = None,
    smoothing: float = 0.0,
    use_compiler: bool = False,
) -> Tensor:
    """Return the weighted sum of -log((1 - a) p + a / V), p = softmax(hidden W' + down up')[target], in nats.

    `down` is the scaled output of the adapter's A, `up` its B; both are None for a head without an adapter. W gets a
    gradient only if it requires one. Weights default to 1 / K (the mean), `smoothing` a to 0. The cross-entropy is
    computed in float32, whatever the type of the inputs.
    """
    positions = hidden_KC.shape[0]
    # Fill in defaults; a missing adapter has rank 0.
    if down_KR is None or up_VR is None:
        down_KR, up_VR = hidden_KC.new_zeros(positions, 0), hidden_KC.new_zeros(weight_VC.shape[0], 0)
    if position_weights_K is None:
        position_weights_K = torch.full((positions,), 1.0 / positions, device=hidden_KC.device)
    return _HeadCrossEntropy.apply(
        hidden_KC, weight_VC, down_KR, up_VR, targets_K, position_weights_K, smoothing, use_compiler
    )


@torch.no_grad()
def head_target_scores(
    hidden_KC: Tensor,
    weight_VC: Tensor,
    down_KR: Tensor | None,
    up_VR: Tensor | None,
    targets_K: Tensor,
    *,
    use_compiler: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return log p in nats, float32 (K), and the rank of each target, int32 (K).

    The rank is the number of other tokens with at least the target's logit: ties count against the model, so that a
    constant predictor is not always right. All matrix products have the same shape, whatever K is.
    """
    # Pad positions to a multiple of the fixed shape, and drop the padding at the end.
    positions, rows = len(targets_K), SCORED_ROWS[hidden_KC.device.type]
    filling = -positions % rows
    inputs_KJ = F.pad(_joined(hidden_KC, down_KR), (0, 0, 0, filling))
    matrix_PJ, targets_K = _joined(weight_VC, up_VR, pad_rows=True), F.pad(targets_K, (0, filling))
    function = compiled(_target_scores, use_compiler)
    parts = []
    for start in range(0, len(targets_K), rows):
        part = slice(start, start + rows)
        logits_KP, targets_of_part_K = inputs_KJ[part] @ matrix_PJ.T, targets_K[part]
        parts += [function(logits_KP[p], targets_of_part_K[p], weight_VC.shape[0]) for p in _pieces(logits_KP)]
    log_p_K, rank_K = (torch.cat(values)[:positions] for values in zip(*parts, strict=True))
    return log_p_K, rank_K


class _HeadCrossEntropy(torch.autograd.Function):
    """Computes gradients in the forward pass, chunk by chunk, while a chunk's logits exist."""

    @staticmethod
    def forward(ctx, hidden_KC, weight_VC, down_KR, up_VR, targets_K, position_weights_K, smoothing, use_compiler):  # noqa: ANN001, ANN205
        # Join head and adapter into one product, and reserve room for the gradients.
        (width, rank), vocab_size = (hidden_KC.shape[1], down_KR.shape[1]), weight_VC.shape[0]
        inputs_KJ, matrix_PJ = _joined(hidden_KC, down_KR), _joined(weight_VC, up_VR, pad_rows=True)
        needs_gradient = any(ctx.needs_input_grad)
        function = compiled(_losses_and_gradient if needs_gradient else _losses, use_compiler)
        # As a tensor, so that a new value needs no recompilation.
        a = torch.full((), smoothing, device=hidden_KC.device) if smoothing else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_KC.device)
        grad_KJ = torch.empty_like(inputs_KJ if needs_gradient else inputs_KJ[:0])
        # The gradient of the matrix covers B alone, or W and B if W is trained.
        trained = slice(0, width + rank) if ctx.needs_input_grad[1] else slice(width, width + rank)
        columns = trained.stop - trained.start if needs_gradient else 0
        grad_matrix_PJ = matrix_PJ.new_zeros(len(matrix_PJ), columns, dtype=torch.float32)
        # Chunk by chunk: logits, losses, and the gradients by inputs and matrix.
        for part in _chunks(len(targets_K), matrix_PJ):
            logits_KP = inputs_KJ[part] @ matrix_PJ.T
            labels_K, weights_K = targets_K[part], position_weights_K[part]
            for piece in (pieces := _pieces(logits_KP)):
                loss, *gradient = function(logits_KP[piece], labels_K[piece], weights_K[piece], a, vocab_size)
                total += loss
                if needs_gradient and len(pieces) > 1:
                    logits_KP[piece] = gradient[0]
            if needs_gradient:
                # Pieces have overwritten their logits with their gradients.
                gradient_KP = logits_KP if len(pieces) > 1 else gradient[0]
                torch.mm(gradient_KP, matrix_PJ, out=grad_KJ[part])
                grad_matrix_PJ += gradient_KP.T @ inputs_KJ[part, trained]
        # Split the joined gradients into those of the arguments.
        if needs_gradient:
            grad_VJ = grad_matrix_PJ[:vocab_size].to(up_VR.dtype)
            grad_weight_VC = grad_VJ[:, :width] if ctx.needs_input_grad[1] else None
            grad_up_VR = grad_VJ[:, grad_VJ.shape[1] - rank :]
            ctx.save_for_backward(grad_KJ[:, :width], grad_weight_VC, grad_KJ[:, width : width + rank], grad_up_VR)
        return total

    @staticmethod
    def backward(ctx, grad_loss):  # noqa: ANN001, ANN205
        grad_hidden, grad_weight, grad_down, grad_up = ctx.saved_tensors
        grad_weight = None if grad_weight is None else grad_weight * grad_loss
        return grad_hidden * grad_loss, grad_weight, grad_down * grad_loss, grad_up * grad_loss, None, None, None, None


def _joined(left: Tensor, right: Tensor | None, *, pad_rows: bool = False) -> Tensor:
    """Return [left | right | 0], with the width (and the rows) padded to a multiple that suits the device."""
    rows, width = left.shape[0], left.shape[1] + (0 if right is None else right.shape[1])
    device = left.device.type
    padding = [-width % WIDTH_MULTIPLE[device], -rows % VOCABULARY_MULTIPLE[device] if pad_rows else 0]
    joined = left if right is None else torch.cat([left, right], 1)
    return F.pad(joined, (0, padding[0], 0, padding[1])) if any(padding) else joined


def _chunks(positions: int, matrix_PJ: Tensor) -> list[slice]:
    """Return slices of nearly equal length: one size is compiled once, and no small one leaves a GPU idle."""
    device = matrix_PJ.device.type
    most = max(LOGITS_AT_ONCE[device] // len(matrix_PJ), ROWS_AT_LEAST[device])
    rows = max(1, math.ceil(positions / max(1, math.ceil(positions / most))))
    return [slice(start, start + rows) for start in range(0, positions, rows)]


def _pieces(logits_KP: Tensor) -> list[slice]:
    """Return slices of a chunk's rows, small enough that several passes over a slice read it from memory once."""
    rows = max(1, LOGITS_AT_ONCE[logits_KP.device.type] // logits_KP.shape[1])
    return [slice(start, start + rows) for start in range(0, len(logits_KP), rows)]


def _exact(logits_KP: Tensor, vocab_size: int) -> Tensor:
    """Return logits in float32; columns beyond the vocabulary are -infinity."""
    logits_KP = logits_KP.float()
    if logits_KP.shape[1] > vocab_size:
        columns = torch.arange(logits_KP.shape[1], device=logits_KP.device)
        logits_KP = torch.where(columns < vocab_size, logits_KP, -math.inf)
    return logits_KP


def _losses(
    logits_KP: Tensor, targets_K: Tensor, weights_K: Tensor, smoothing: Tensor | None, vocab_size: int
) -> tuple[Tensor]:
    """Return the weighted sum of a chunk's losses."""
    log_p_K = _exact(logits_KP, vocab_size).log_softmax(1).gather(1, targets_K[:, None])[:, 0]
    return (_smoothed(log_p_K, smoothing, vocab_size)[0] @ weights_K,)


def _losses_and_gradient(
    logits_KP: Tensor, targets_K: Tensor, weights_K: Tensor, smoothing: Tensor | None, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Return `_losses` and its gradient by the logits, in the type of the logits.

    d loss / d logits = factor (softmax - one-hot); without smoothing the factor is 1. Softmax and log p share their
    exponentials.
    """
    # Softmax and losses from the same exponentials.
    exact_KP = _exact(logits_KP, vocab_size)
    target_K1, largest_K1 = exact_KP.gather(1, targets_K[:, None]), exact_KP.amax(1, keepdim=True)
    gradient_KP = (exact_KP - largest_K1).exp_()
    total_K1 = gradient_KP.sum(1, keepdim=True)
    losses_K, factor_K = _smoothed((target_K1 - largest_K1 - total_K1.log())[:, 0], smoothing, vocab_size)
    row_weights_K1 = (weights_K * factor_K)[:, None]
    gradient_KP.mul_(row_weights_K1 / total_K1)
    # Subtract the one-hot targets.
    if torch.compiler.is_compiling():
        # One pass that writes the final type; a scatter would keep the compiler from fusing it with the others.
        columns = torch.arange(exact_KP.shape[1], device=exact_KP.device)
        gradient_KP = torch.where(columns == targets_K[:, None], gradient_KP - row_weights_K1, gradient_KP)
    else:
        gradient_KP.scatter_add_(1, targets_K[:, None], -row_weights_K1)
    return losses_K @ weights_K, gradient_KP.to(logits_KP.dtype)


def _target_scores(logits_KP: Tensor, targets_K: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return log p and rank of each target in a chunk."""
    exact_KP = _exact(logits_KP, vocab_size)
    target_K1 = exact_KP.gather(1, targets_K[:, None])
    log_p_K = exact_KP.log_softmax(1).gather(1, targets_K[:, None])[:, 0]
    return log_p_K, (exact_KP >= target_K1).sum(1, dtype=torch.int32) - 1


def _smoothed(target_log_p_K: Tensor, smoothing: Tensor | None, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return -log((1 - a) p + a / V), and the share of the probability that comes from the model, (1 - a) p / p_a."""
    if smoothing is None:
        return -target_log_p_K, torch.ones_like(target_log_p_K)
    from_model_K = (1.0 - smoothing) * target_log_p_K.exp()
    smoothed_K = from_model_K + smoothing / vocab_size
    return -smoothed_K.log(), from_model_K / smoothed_K


def compiled(function: Callable[..., Any], use_compiler: bool) -> Callable[..., Any]:
    """Return the function itself or its compiled form, one per process."""
    return _compiled(function) if use_compiler else function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch
    import torch._dynamo

    # Training, evaluation and scoring differ in gradients, dropout and shapes, and each combination is compiled once.
    # Beyond the limit PyTorch would silently go on uncompiled.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function)

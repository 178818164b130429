"""How many floating-point operations the mathematics asks for, whatever an implementation does."""

import numpy as np

from sublora import config


def model_flops(
    model: config.Model, vocab_size: int, window_lengths: np.ndarray, scored: int, *, training: bool
) -> float:
    """FLOP of windows of these lengths, `scored` positions of which need logits; a multiply-add counts 2.

    With K positions in all, N = 12 L C^2 weights in the L layers (4 C^2 in attention, 8 C^2 in the MLP) and V C in
    the head:

        forward    2 N K + 2 V C scored + attention, 2 L C sum T^2 over windows of T positions
        training   4 N K + 4 V C scored + 3 x attention

    Causal attention: position t meets t others in two products of C multiply-adds, hence 2 T^2 C a layer.
    Training: the weights are frozen, so the backward pass has products for the activations only, as many as the
    forward pass; attention has four products instead of two. With all positions scored the first terms are the
    usual 4 x parameters x tokens. Left out, below 2 %: adapters, norms, softmax; and whatever is computed twice.
    """
    layers, width = model.n_layer, model.n_embd
    lengths = np.asarray(window_lengths, dtype=np.float64)
    linear = 2.0 * 12 * layers * width**2 * lengths.sum() + 2.0 * vocab_size * width * scored
    attention = 2.0 * layers * width * np.square(lengths).sum()
    return float(2.0 * linear + 3.0 * attention if training else linear + attention)

"""The price of the bits in a wrapped module's message, as a term for any training loop."""

from torch import Tensor

from sublora.coding.bits import index_bits
from sublora.coding.entropy import STEP_BITS
from sublora.training.quantization import symbol_bits
from sublora.wrapping.module import Wrapped


def message_bits(wrapped: Wrapped) -> Tensor:
    """Return the bits () of the message of the present w, differentiable in w and the step.

    They are zero before w is rounded. The value is that of `sublora.encode` except for what the adaptive code pays for
    learning; it is interpolated between the integers, so that its slope pulls every coordinate to zero. To train for a
    bound, add message_bits(wrapped) times the loss that one bit may cost; for a mean loss in nats over n examples,
    ln(2) / n is the price in a two-part code. ValueError if w is not finite.
    """
    w_S = wrapped.subspace.subspace_params
    if not wrapped.rounding:
        return w_S.new_zeros(())
    gates = sum(index_bits(gate.size + 1) for gate in wrapped.subspace.gates)
    return symbol_bits(w_S / wrapped.trained_step(), wrapped.symbols().symbols) + STEP_BITS + gates

"""The val loss before quantization, from a checkpoint: only where the checkpoint is one that gives the certificate."""

from pathlib import Path

import numpy as np

from sublora.coding.entropy import EntropyWeights
from sublora.coding.plain import PlainWeights, quantize_plain
from sublora.coding.rounding import round_for_rate
from sublora.runs.encode import PRICES_PER_BIT, val_losses, val_losses_of
from sublora.runs.message import Message
from sublora.runs.verify.checks import Check
from sublora.training import checkpoint
from sublora.training.run import Run

UNQUANTIZED = "val_loss_unquantized_bits"


def unquantized_losses(run: Run, message: Message, path: Path) -> tuple[list[Check], dict[str, np.ndarray]]:
    """Return whether a checkpoint encodes to the message and, if so, the array of its val losses by its name.

    Any w would do for the losses alone. One that rounds to the message may still not be the one that a training ended
    with, which no file can show. UserError if the file is not a checkpoint of this network.
    """
    loaded = checkpoint.load(path)
    checkpoint.restore(run, loaded, path)
    w_d = run.subspace.subspace_params.detach().cpu().numpy()
    split = tuple(int(k) for k in run.subspace.hard_split())
    encodes = split == tuple(message.contents.gates) and _rounds_to(message, w_d, loaded.get("quantization_step"))
    checks = [Check("the checkpoint encodes to the message", True, encodes)]
    if not encodes:
        return checks, {}
    losses_U = val_losses_of(run, val_losses(run, w_d, split), message.contents.smoothing_index)
    return checks, {"val_losses_unquantized_bits": losses_U}


def _rounds_to(message: Message, w_d: np.ndarray, step: object) -> bool:
    """Return whether one of the ways in which `encode` rounds w gives the message's; `step`: as the checkpoint has it.

    Which of them is chosen depends on an estimate from losses, which another machine may round differently.
    """
    weights, w_d = message.contents.weights, w_d.astype(np.float64)
    candidates: list[PlainWeights | EntropyWeights] = []
    try:
        if isinstance(weights, PlainWeights):
            candidates = [quantize_plain(w_d, message.settings.message.levels)]
        elif isinstance(step, float):
            candidates = [round_for_rate(w_d, step, price * step**2) for price in PRICES_PER_BIT]
    except ValueError:  # not finite, or beyond what the quantizer can write
        return False
    return any(np.array_equal(candidate.values(), weights.values()) for candidate in candidates)

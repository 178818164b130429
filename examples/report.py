"""The table that every example prints."""

import dataclasses

import numpy as np

import sublora


@dataclasses.dataclass(frozen=True)
class Result:
    """One row: losses in the unit of the example, C in bits."""

    name: str
    train: float
    """Mean loss of the n examples that the message was chosen with."""
    bound: float
    """On the expected loss of a fresh example, from the n examples and C; holds with probability 0.95."""
    held_out: float
    """Mean loss of examples that nothing was chosen with."""
    held_out_bound: float
    """On the expected loss of a fresh example, from those; holds with probability 0.95."""
    code_bits: float
    n: int
    guessing: float
    """Loss of a predictor that knows nothing."""


def result(
    name: str,
    message: sublora.EncodedMessage,
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    lower: float,
    upper: float,
    guessing: float,
    bound: float | None = None,
) -> Result:
    """Bound the loss of a message's predictor twice: by its bits, and by examples set apart.

    train, held_out: one loss per example, shapes (n,) and (held-out examples,), each in [lower, upper]. bound: by its
    bits, if it follows from more than these losses.
    """
    if bound is None:
        bound = sublora.certify(train, code_bits=message.bits, n=len(train), lower=lower, upper=upper).value
    apart = sublora.certify(held_out, code_bits=0, n=len(held_out), lower=lower, upper=upper)
    return Result(
        name,
        float(train.mean()),
        bound,
        apart.mean_loss,
        apart.value,
        message.bits,
        len(train),
        guessing,
    )


def show(results: list[Result]) -> None:
    names = ("example", "train", "bound", "held out", "its bound", "C, bits", "n", "guessing")
    print("{:22} {:>8} {:>8} {:>9} {:>9} {:>8} {:>7} {:>9}".format(*names))
    for r in results:
        print(
            f"{r.name:22} {r.train:8.3f} {r.bound:8.3f} {r.held_out:9.3f} {r.held_out_bound:9.3f} {r.code_bits:8.0f} "
            f"{r.n:7,} {r.guessing:9.3f}"
        )

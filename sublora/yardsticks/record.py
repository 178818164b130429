"""results/yardsticks.json: a yardstick's row, made from its losses, and the file, written and read as a whole.

format       YARDSTICKS_FORMAT
data_hash    identity of the prepared dataset (`TokenDataset.data_hash`)
base_sha256  hash of the frozen base
settings     what the numbers depend on besides: the settings of the stage, as they rerun it
rows         one row per yardstick, by name (see `Row`)
sha256       digest of the other keys, as canonical JSON
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from sublora.bounds.premises import BoundedLoss, Premises, headline_bound
from sublora.bounds.smoothing import Smoothing, with_tolerance
from sublora.coding.bits import Bits, bits_to_bytes
from sublora.system.digests import json_sha256
from sublora.system.errors import UserError
from sublora.system.files import read_json, write_json
from sublora.system.streams import generator
from sublora.system.validation import Strict, describe

YARDSTICKS_PATH = Path("results") / "yardsticks.json"
YARDSTICKS_FORMAT = 3
"""Version of the layout; a reader refuses every other version."""

GUESSING, UNIGRAM, BIGRAM, ORDER3, FROZEN_BASE = "guessing", "unigram", "bigram", "order3", "frozen_base"
"""Names of the rows. They also seed the draws of units."""

FIX = "delete it and run the workflow again"


class Row(Strict):
    """The facts of one yardstick. Losses and bounds are in bits per token."""

    bound_bits: float
    inequality: str | None
    """Name in `sublora.bounds.inequalities`; None if nothing is estimated."""
    smoothing: str | None
    loss_range_bits: list[float]
    """Smallest and largest loss that a unit can have."""
    empirical_loss_bits: float
    """Mean over the units behind the bound."""
    val_loss_bits: float
    test_loss_bits: float
    """Mean over test units, under the same smoothing as val and the bound."""
    test_losses_bits: list[float]
    """Losses of the test units, in the order of the split; empty where they are all the same."""
    code_bits: float
    """C."""
    code_bits_items: dict[str, float]
    """The items of C."""
    n: int
    m: int | None
    """The number of units scored; None if none had to be."""
    delta: float | None
    delta_sample: float | None
    seconds: float
    """Wall time of the yardstick, scoring included."""


class Yardsticks(Strict):
    """The contents of yardsticks.json, except the digest."""

    format: int
    data_hash: str
    base_sha256: str
    settings: dict[str, Any]
    rows: dict[str, Row]


def write_yardsticks(path: Path, yardsticks: Yardsticks) -> None:
    """Write the file atomically. ValueError for a number that is not finite."""
    facts = yardsticks.model_dump()
    write_json(path, facts | {"sha256": json_sha256(facts)})


def read_yardsticks(path: Path, data_hash: str) -> Yardsticks:
    """Read the file and return its yardsticks.

    UserError if the file is missing, damaged, has another format, or belongs to another dataset.
    """
    missing = ", expected the yardsticks of the dataset; run the workflow"
    found = read_json(path, missing=missing, fix=f"expected yardsticks; {FIX}")
    # The format comes first: a file of another format has other keys.
    if not isinstance(found, dict) or "format" not in found:
        raise UserError(f"{path}: not a file of yardsticks, it has no 'format'; {FIX}")
    if found["format"] != YARDSTICKS_FORMAT:
        raise UserError(f"{path}: format {json.dumps(found['format'])}, this version reads {YARDSTICKS_FORMAT}; {FIX}")
    facts = {key: value for key, value in found.items() if key != "sha256"}
    if found.get("sha256") != json_sha256(facts):
        raise UserError(f"{path}: damaged, its contents do not have the sha256 it states; {FIX}")
    try:
        yardsticks = Yardsticks.model_validate(facts)
    except ValidationError as error:
        raise UserError(f"{path}: damaged, {describe(error, Yardsticks.model_json_schema())}; {FIX}") from None
    if yardsticks.data_hash != data_hash:
        raise UserError(
            f"{path}: yardsticks of the dataset {yardsticks.data_hash}, expected those of {data_hash}; {FIX}"
        )
    return yardsticks


def drawn_units(name: str, message: Bits, premises: Premises, data_hash: str) -> NDArray[np.int64]:
    """Return the training units that a yardstick is scored on: indices of its own draw, or all n in order.

    The draw is seeded with sha256 of the yardstick's name, its frozen message (with its length in bits, since the last
    byte is padded) and the data's hash.
    """
    if premises.m_units is None:
        return np.arange(premises.n_units)
    stream = generator("yardstick", name, len(message), bits_to_bytes(message), data_hash)
    return stream.integers(0, premises.n_units, size=premises.m_units)


@dataclass(frozen=True, eq=False)
class Scored:
    """Losses of one model under the smoothing chosen for it, bits per token, one per unit. D counts units here."""

    smoothing: Smoothing
    losses_D: NDArray[np.float64]
    """Losses of the units in `drawn_units`."""
    val_losses_D: NDArray[np.float64]
    test_losses_D: NDArray[np.float64]


def yardstick_row(scored: Scored, loss: BoundedLoss, *, code_bits: Mapping[str, float], seconds: float) -> Row:
    """Return the row of a model with this message; its bound allows for rounding as a network's (`with_tolerance`).

    Args:
        code_bits: the items of C, in bits; empty for a model that was fixed without the n documents.
        seconds: wall time of the yardstick, scoring included.

    Raises:
        ValueError: the number of losses is not m (or n), or a loss lies outside its range.
    """
    # Bound the losses as a network's.
    premises, loss_range = loss.premises, loss.range_of(scored.smoothing)
    expected = premises.n_units if premises.m_units is None else premises.m_units
    if scored.losses_D.shape != (expected,):
        raise ValueError(f"losses of shape {scored.losses_D.shape}, expected those of {expected} documents")
    total = float(sum(code_bits.values()))
    bound = headline_bound(scored.losses_D, loss_range, total, premises)
    return Row(
        bound_bits=with_tolerance(bound, loss_range),
        inequality=premises.headline,
        smoothing=scored.smoothing.name,
        loss_range_bits=list(loss_range),
        empirical_loss_bits=float(scored.losses_D.mean()),
        val_loss_bits=float(scored.val_losses_D.mean()),
        test_loss_bits=float(scored.test_losses_D.mean()),
        test_losses_bits=scored.test_losses_D.tolist(),
        code_bits=total,
        code_bits_items=dict(code_bits),
        n=premises.n_units,
        m=expected,
        delta=premises.delta,
        delta_sample=premises.delta_sample,
        seconds=seconds,
    )


def guessing_row(loss: BoundedLoss) -> Row:
    """Return the row of uniform guessing, whose loss is log2 V on every document, so that nothing is estimated."""
    guessing_bits = math.log2(loss.vocab_size)
    return Row(
        bound_bits=guessing_bits,
        inequality=None,
        smoothing=None,
        loss_range_bits=[guessing_bits, guessing_bits],
        empirical_loss_bits=guessing_bits,
        val_loss_bits=guessing_bits,
        test_loss_bits=guessing_bits,
        test_losses_bits=[],
        code_bits=0.0,
        code_bits_items={},
        n=loss.premises.n_units,
        m=None,
        delta=None,
        delta_sample=None,
        seconds=0.0,
    )

"""The bound to expect before anything is trained, from n, the message's length and a guess of the loss.

The assumptions, and their consequences for the numbers:

- The loss after adaptation is the user's guess. No program can know it before the training.
- Documents' losses have a normal distribution around it. The bound is smallest for equal losses and largest if every
  document has the smallest or the largest possible loss, so these two enclose it whatever the spread is.
- A coordinate of w costs a typical number of bits.
- Within a document all tokens have the same loss. The smoothed loss is concave in it, so any other spread with the same
  mean makes the smoothed loss smaller.

Shape legend: D documents of the model.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from sublora import config
from sublora.bounds.checks import LN2
from sublora.bounds.selection import estimated_bound
from sublora.bounds.smoothing import DocumentMixture, LossRange, Smoothing
from sublora.coding.bits import index_bits
from sublora.data.base_and_target import open_target
from sublora.data.dataset import dataset_folder
from sublora.data.meta import META_FILE
from sublora.data.tokenizers import TOKENIZERS
from sublora.losses.bounded import bounded_loss
from sublora.system.errors import UserError
from sublora.tools.message_cost import code_bits

BITS_PER_COORDINATE = 2.2
"""2.1 to 2.4 in the demo, with the entropy code."""
DEVIATION_BITS = 0.4
"""Standard deviation of documents' losses, bits per token; 0.38 to 0.42 in the demo."""
QUANTILES_D = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / 50) for i in range(50)])
QUANTILES_D /= QUANTILES_D.std()
"""Documents that represent a normal distribution with mean 0 and deviation 1."""
ENDS = 1000
"""The number of documents that represent losses at the ends of their range."""
LARGEST_N = 10**9


@dataclasses.dataclass(frozen=True)
class Guess:
    """What is assumed of a run that has not been trained."""

    loss_bits: float
    """Mean loss on new documents after adaptation, bits per token."""
    base_loss_bits: float | None = None
    """The same for the frozen base; None if it is not compared."""
    deviation_bits: float = DEVIATION_BITS
    bits_per_coordinate: float = BITS_PER_COORDINATE

    def __post_init__(self) -> None:
        for name in ("loss_bits", "base_loss_bits", "deviation_bits", "bits_per_coordinate"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < np.inf:
                raise UserError(f"{name.replace('_', ' ')} {value}: expected a finite number of at least 0")


@dataclasses.dataclass(frozen=True)
class KnownData:
    """What is known about the data."""

    n_units: int
    vocab_size: int
    targets: float
    """The number of targets in a typical document, its end-of-text included."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What to expect of the runs with one budget; bounds and losses in bits per token."""

    budget: int
    code_bits: float
    bound: float
    """The bound with the guessed spread of documents' losses."""
    bound_smallest: float
    """The bound if the losses of all documents were equal."""
    bound_largest: float
    """The bound if every document's loss were the smallest or the largest possible."""
    price: float
    """The message's part of the bound: the loss must fall by more than this below the frozen base's."""
    base_bound: float | None
    """The bound of the frozen base with an empty message."""
    guessing: float
    """log2 V, the loss of guessing, which needs no network."""
    pays_at: Callable[[int], bool]
    """Whether with another n the bound is below guessing, and below the frozen base's if its loss was guessed."""

    @functools.cached_property
    def n_needed(self) -> int | None:
        """The smallest n at which the message pays; None if it pays at no n."""
        return _smallest(self.pays_at)

    @property
    def is_worth_it(self) -> bool:
        return self.bound < self.target

    @property
    def target(self) -> float:
        """The number that the bound has to beat."""
        return self.guessing if self.base_bound is None else min(self.base_bound, self.guessing)


def known_data(settings: config.Settings, root: Path, n_units: int | None) -> KnownData:
    """Return what the prepared data say, with `n_units` instead of their number if given.

    Before the data are prepared, a typical document is assumed to be as short as the population admits. UserError if
    neither the data nor `n_units` say how many units there are.
    """
    if (dataset_folder(root, settings.data) / META_FILE).exists():
        dataset = open_target(settings, root)
        targets = float(np.mean(dataset.document_lengths("train"))) + 1.0
        return KnownData(n_units or dataset.n_units, dataset.vocab_size, targets)
    if n_units is None:
        raise UserError(
            f"data/{settings.data.name} is not prepared, so n is unknown; run sublora prepare, or give it with --n"
        )
    if settings.data.tokenizer not in TOKENIZERS:
        raise UserError(
            f"data/{settings.data.name} is not prepared, and only then the vocabulary of a pretrained model is known "
            "here; run sublora prepare"
        )
    return KnownData(n_units, TOKENIZERS[settings.data.tokenizer].vocab_size, settings.data.min_tokens + 1.0)


def predict(settings: config.Settings, data: KnownData, guess: Guess) -> tuple[Prediction, ...]:
    """Return what to expect of each budget of the grid, for a run that was chosen beforehand.

    UserError if a guessed loss is above that of guessing, since no bound below guessing can follow from it.
    """
    guessing = float(np.log2(data.vocab_size))
    for what, loss in (("--loss", guess.loss_bits), ("--base-loss", guess.base_loss_bits)):
        if loss is not None and loss > guessing:
            raise UserError(
                f"{what} {loss:g}: guessing over {data.vocab_size:,} tokens costs {guessing:.3f} bits per token; "
                "expected less"
            )
    return tuple(
        _predict(settings, data, guess, _dimension(settings, data, budget)) for budget in settings.grid.budgets
    )


def _dimension(settings: config.Settings, data: KnownData, budget: int | Literal["all"]) -> int:
    """Return d of a budget of the grid.

    UserError for all the parameters of a model of which only its files tell the number.
    """
    if budget != "all":
        return budget
    from sublora.runs.networks import trained_parameters  # torch

    parameters = trained_parameters(settings, data.vocab_size)
    if parameters is None:
        raise UserError("grid.budgets all: the number of parameters of a model of transformers is not known here")
    return parameters


def _predict(settings: config.Settings, data: KnownData, guess: Guess, budget: int) -> Prediction:
    # The message of the run, and the empty one of the frozen base.
    bits = code_bits(settings, budget, guess.bits_per_coordinate)
    empty_bits = float(index_bits(len(settings.scoring.smoothing)))
    guessing = float(np.log2(data.vocab_size))
    spread = functools.partial(_spread, deviation_bits=guess.deviation_bits)

    def bounds_at(n_units: int) -> tuple[float, float | None]:
        """Return the bounds of the adapted network and of the frozen base."""
        expect = functools.partial(_expected, settings, dataclasses.replace(data, n_units=n_units), spread)
        base = guess.base_loss_bits
        return expect(guess.loss_bits, bits), None if base is None else expect(base, empty_bits)

    def pays(n_units: int) -> bool:
        bound, base_bound = bounds_at(n_units)
        return bound < (guessing if base_bound is None else min(base_bound, guessing))

    # Bounds at the guessed spread and at the extreme ones.
    bound, base_bound = bounds_at(data.n_units)
    return Prediction(
        budget=budget,
        code_bits=bits,
        bound=bound,
        bound_smallest=_expected(settings, data, _equal, guess.loss_bits, bits),
        bound_largest=_expected(settings, data, _at_the_ends, guess.loss_bits, bits),
        price=bound - _expected(settings, data, spread, guess.loss_bits, empty_bits),
        base_bound=base_bound,
        guessing=guessing,
        pays_at=pays,
    )


def _expected(settings: config.Settings, data: KnownData, spread: "Spread", loss_bits: float, bits: float) -> float:
    """Return the bound with the best smoothing among the settings' candidates, bits per token."""
    n, vocab_size = data.n_units, data.vocab_size
    loss = bounded_loss(settings, vocab_size=vocab_size, n_units=n, n_documents=n).direct
    bounds = []
    for smoothing, loss_range in zip(loss.candidates, loss.ranges, strict=True):
        mean = float(np.clip(_smoothed(smoothing, loss_bits, data), *loss_range))
        bounds.append(estimated_bound(spread(mean, loss_range), loss_range, code_bits=bits, premises=loss.premises))
    return min(bounds)


def _smoothed(smoothing: Smoothing, loss_bits: float, data: KnownData) -> float:
    """Return a typical document's loss under a smoothing, bits per token, if all its tokens have the same loss."""
    log_p = -LN2 * loss_bits
    if isinstance(smoothing, DocumentMixture):
        targets = data.targets
        return float(smoothing.losses_bits(log_p * targets, targets, data.vocab_size))
    return float(smoothing.target_losses_bits(np.array([log_p]), data.vocab_size)[0])


Spread = Callable[[float, LossRange], NDArray[np.float64]]
"""Returns losses of documents (D) with a given mean, in a given range."""


def _equal(mean: float, loss_range: LossRange) -> NDArray[np.float64]:
    return np.array([mean])


def _spread(mean: float, loss_range: LossRange, *, deviation_bits: float) -> NDArray[np.float64]:
    """Return normally distributed losses, with a smaller deviation if the range would cut them off."""
    room = min(mean - loss_range.lower, loss_range.upper - mean)
    return mean + min(deviation_bits, room / QUANTILES_D[-1]) * QUANTILES_D


def _at_the_ends(mean: float, loss_range: LossRange) -> NDArray[np.float64]:
    """Return the smallest and the largest possible loss, with one document between them so that the mean is exact."""
    lower, upper = loss_range
    losses_D = np.full(ENDS, lower)
    whole, rest = divmod(ENDS * (mean - lower) / (upper - lower), 1.0)
    losses_D[: int(whole)] = upper
    if int(whole) < ENDS:
        losses_D[int(whole)] += rest * (upper - lower)
    return losses_D


def _smallest(holds: Callable[[int], bool]) -> int | None:
    """Return the smallest n such that a property holds from n on; None if it is beyond LARGEST_N."""
    if not holds(LARGEST_N):
        return None
    fails, found = 0, LARGEST_N
    while found - fails > 1:
        middle = (fails + found) // 2
        fails, found = (fails, middle) if holds(middle) else (middle, found)
    return found


def predict_and_print(config_path: Path, guess: Guess, *, n_units: int | None = None) -> None:
    """Print the output of `sublora plan --loss` for a settings file."""
    settings = config.load_settings(config_path)
    print_prediction(settings, known_data(settings, config.root_of(config_path), n_units), guess)


def print_prediction(settings: config.Settings, data: KnownData, guess: Guess) -> None:
    """Print the predictions as a table, a verdict for each budget, and the assumptions."""
    predictions = predict(settings, data, guess)
    kind = "documents" if settings.data.unit == "document" else "units"
    table = Table("d", "C, bits", "bound", "from", "to", "price of the message", title="bits per token")
    for each in predictions:
        low, high = f"{each.bound_smallest:.3f}", f"{each.bound_largest:.3f}"
        table.add_row(f"{each.budget:,}", f"{each.code_bits:,.0f}", f"{each.bound:.3f}", low, high, f"{each.price:.3f}")
    Console(width=140).print(table)
    for each in predictions:
        print(f"d = {each.budget:,}: {_verdict(each, data.n_units, kind)}")
    print(
        f"Assumed: n = {data.n_units:,} independent {kind}; a loss of {guess.loss_bits:g} on new ones after "
        f"adaptation, which is your guess; losses of {kind} spread by {guess.deviation_bits:g} around it (from: not at "
        f"all; to: as far as there are losses); {guess.bits_per_coordinate:g} bits per coordinate; a run named "
        "beforehand. It is an estimate, not a bound."
    )


def _verdict(prediction: Prediction, n: int, kind: str) -> str:
    # What the bound has to beat.
    each, base = prediction, prediction.base_bound
    if base is None:
        rival = f"guessing, {each.guessing:.3f}"
    elif base < each.guessing:
        rival = f"the bound of the frozen base, {base:.3f}"
    else:
        rival = f"guessing, {each.guessing:.3f} (the frozen base's bound would be {base:.3f})"
    # Whether it does, and what would be needed otherwise.
    if each.is_worth_it and base is not None:
        return f"worth it: {each.target - each.bound:.3f} below {rival}"
    if each.is_worth_it:
        return (
            f"{each.target - each.bound:.3f} below {rival}; worth it only if adaptation lowers the base's loss by more "
            f"than {each.price:.3f} (--base-loss compares)"
        )
    if each.n_needed is None:
        return f"not worth it at any n: the message costs more than it gains against {rival}"
    return (
        f"n = {n:,} is too small: {each.bound:.3f} is not below {rival}; it would take n = {each.n_needed:,} {kind}, "
        "a smaller budget d, or a base that is better to begin with"
    )

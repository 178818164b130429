"""The bound to expect before anything is trained, from n, the message's length and a guess of the loss.

The assumptions, and their consequences for the numbers:

- The loss after adaptation is the user's guess. No program can know it before the training.
- Documents' losses have a normal distribution around it. The bound is smallest for equal losses and largest if every
  document has the smallest or the largest possible loss, so these two enclose it whatever the spread is.
- With an anchor the same holds for the excess over the base, whose spread is a typical multiple of the mean gain: what
  adapting changes differs between documents, and the more so the more it changes.
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
from sublora.bounds.anchor import certified_gain_bits
from sublora.bounds.checks import LN2
from sublora.bounds.paired import smallest_number
from sublora.bounds.premises import Premises
from sublora.bounds.selection import estimated_bound
from sublora.bounds.smoothing import DocumentMixture, LossRange, Smoothing
from sublora.coding.bits import index_bits
from sublora.data.base_and_target import open_target
from sublora.data.dataset import dataset_folder
from sublora.data.dataset_files import META_FILE
from sublora.data.tokenizers import TOKENIZERS
from sublora.losses.bounded import bounded_loss
from sublora.runs.losses_file import open_base_losses
from sublora.runs.message_cost import code_bits
from sublora.system.errors import UserError
from sublora.system.names import BASE_LOSSES_PATH

BITS_PER_COORDINATE = 2.6
"""2.5 to 2.7 in the demo, with the entropy code."""
DEVIATION_BITS = 0.4
"""Standard deviation of documents' losses, bits per token; 0.38 to 0.42 in the demo."""
DEVIATION_OF_THE_GAIN = 0.45
"""Standard deviation of documents' excess over the base, in units of the mean gain; 0.40 to 0.51 in the demo."""
QUANTILES_D = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / 50) for i in range(50)])
QUANTILES_D /= QUANTILES_D.std()
"""Documents that represent a normal distribution with mean 0 and deviation 1."""
ENDS = 1000
"""The number of documents that represent losses at the ends of their range."""


@dataclasses.dataclass(frozen=True)
class Guess:
    """What is assumed of a run that has not been trained."""

    loss_bits: float
    """Mean loss on new documents after adaptation, bits per token."""
    base_loss_bits: float | None = None
    """The same for the frozen base; None if it is not compared, or measured (`KnownData.base_losses_U`)."""
    deviation_bits: float = DEVIATION_BITS
    """Standard deviation of documents' losses."""
    bits_per_coordinate: float = BITS_PER_COORDINATE
    deviation_of_the_gain: float = DEVIATION_OF_THE_GAIN
    """With an anchor: standard deviation of documents' excess over the base, in units of the mean gain."""

    def __post_init__(self) -> None:
        for name in (field.name for field in dataclasses.fields(self)):
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
    base_losses_U: NDArray[np.float64] | None = None
    """With an anchor, its losses behind the bound on the base, bits per token, once they are measured."""


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
    """The bound of the frozen base: with an anchor the base's part of `bound`, else with an empty message."""
    gain: float | None
    """With an anchor, the gain over the frozen base that would be certified; may be negative."""
    guessing: float
    """log2 V, the loss of guessing, which needs no network."""
    pays_at: Callable[[int], bool]
    """Whether with another n the bound is below guessing, and below the frozen base's if its loss was guessed."""

    @functools.cached_property
    def n_needed(self) -> int | None:
        """The smallest n at which the message pays; None if it pays at no n."""
        return smallest_number(self.pays_at)

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
        measured_U = measured_base_losses(root / BASE_LOSSES_PATH, settings, dataset.data_hash)
        return KnownData(n_units or dataset.n_units, dataset.vocab_size, targets, measured_U)
    n_units = n_units or settings.data.train_documents
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


def measured_base_losses(path: Path, settings: config.Settings, data_hash: str) -> NDArray[np.float64] | None:
    """Return the losses of the anchor that `sublora yardsticks` measured, float64; None where they do not fit.

    They fit if they are of these data, with the settings' mixture and draw; which base they are of is not compared.
    UserError if the file is damaged.
    """
    if not settings.anchors_on_the_base or not path.exists():
        return None
    facts, losses = open_base_losses(path)
    found, scoring = (facts.data_hash, facts.k0, facts.documents or "all"), settings.scoring
    return losses.losses_U if found == (data_hash, scoring.anchor_k0, scoring.base_documents) else None


def predict(settings: config.Settings, data: KnownData, guess: Guess) -> tuple[Prediction, ...]:
    """Return what to expect of each budget of the grid, for a run that was chosen beforehand.

    UserError if a guessed loss is above that of guessing, since no bound below guessing can follow from it, or if
    bounds are anchored on a base whose loss is neither measured nor guessed. A measured base may be worse than
    guessing.
    """
    guessing = float(np.log2(data.vocab_size))
    for what, loss in (("--loss", guess.loss_bits), ("--base-loss", guess.base_loss_bits)):
        if loss is not None and loss > guessing:
            raise UserError(
                f"{what} {loss:g}: guessing over {data.vocab_size:,} tokens costs {guessing:.3f} bits per token; "
                "expected less"
            )
    if settings.anchors_on_the_base and guess.base_loss_bits is None:
        if data.base_losses_U is None:
            raise UserError(
                "these bounds are anchored on the base, whose loss is not known; guess it with --base-loss, or "
                "measure it with sublora yardsticks"
            )
        guess = dataclasses.replace(guess, base_loss_bits=float(data.base_losses_U.mean()))
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
    expectation = _anchored if settings.anchors_on_the_base else _direct

    def pays(n_units: int) -> bool:
        found = expectation(settings, dataclasses.replace(data, n_units=n_units), guess, bits)
        return found.bound < (guessing if found.base_bound is None else min(found.base_bound, guessing))

    # Bounds at the guessed spread and at the extreme ones.
    found, smallest, largest = (
        expectation(settings, data, guess, bits, spread) for spread in (None, _equal, _at_the_ends)
    )
    return Prediction(
        budget=budget,
        code_bits=bits,
        bound=found.bound,
        bound_smallest=smallest.bound,
        bound_largest=largest.bound,
        price=found.bound - expectation(settings, data, guess, empty_bits).bound,
        base_bound=found.base_bound,
        gain=found.gain,
        guessing=guessing,
        pays_at=pays,
    )


@dataclasses.dataclass(frozen=True)
class _Expectation:
    """What follows from one n and one length of the message, bits per token."""

    bound: float
    base_bound: float | None
    gain: float | None = None


def _direct(
    settings: config.Settings, data: KnownData, guess: Guess, bits: float, spread: "Spread | None" = None
) -> _Expectation:
    """Return the expectation where the predictor falls back on guessing; spread: None for the guessed one."""
    spread = spread or functools.partial(_spread, deviation_bits=guess.deviation_bits)
    base, base_bound = guess.base_loss_bits, None
    if base is not None:
        empty_bits = float(index_bits(len(settings.scoring.smoothing)))
        base_bound = _expected(settings, data, spread, base, empty_bits)
    return _Expectation(_expected(settings, data, spread, guess.loss_bits, bits), base_bound)


def _anchored(
    settings: config.Settings, data: KnownData, guess: Guess, bits: float, spread: "Spread | None" = None
) -> _Expectation:
    """Return the expectation of the anchored bound; spread: of the excess, None for the guessed one."""
    n, vocab_size, targets = data.n_units, data.vocab_size, data.targets
    loss = bounded_loss(settings, vocab_size=vocab_size, n_units=n, n_documents=n)
    anchoring, population = loss.anchoring, loss.population
    assert anchoring is not None and guess.base_loss_bits is not None
    # The base, with its own draw and its own part of delta.
    anchor = DocumentMixture(anchoring.k0)
    base_range, base_log_p = anchor.loss_range_bits(*population), -LN2 * guess.base_loss_bits * targets
    losses_D = data.base_losses_U
    if losses_D is None:
        mean = float(anchor.losses_bits(base_log_p, targets, vocab_size))
        losses_D = _spread(mean, base_range, deviation_bits=guess.deviation_bits)
    share = anchoring.base_share(anchoring.base_documents)
    premises = Premises(n, share.delta, anchoring.base_documents, share.delta_sample)
    base_bound = estimated_bound(losses_D, base_range, code_bits=settings.message.extra_bits, premises=premises)
    # The excess over it, with the best of the grid's mixtures.
    excess_bounds = []
    for mixture, excess_range in zip(loss.mixtures, loss.judged_ranges, strict=True):
        mean = float(mixture.excess_bits(-LN2 * guess.loss_bits * targets, base_log_p, targets, vocab_size))
        deviation = guess.deviation_of_the_gain * abs(mean)
        excess_D = (spread or functools.partial(_spread, deviation_bits=deviation))(mean, excess_range)
        excess_bounds.append(estimated_bound(excess_D, excess_range, code_bits=bits, premises=loss.judged_premises))
    excess_bound = min(excess_bounds)
    gain = certified_gain_bits(excess_bound, anchoring.k0, loss.min_targets)
    return _Expectation(base_bound + excess_bound, base_bound, gain)


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


def predict_and_print(config_path: Path, guess: Guess, *, n_units: int | None = None) -> None:
    """Print the output of `sublora plan --loss` for a settings file."""
    settings = config.load_settings(config_path)
    print_prediction(settings, known_data(settings, config.root_of(config_path), n_units), guess)


def print_prediction(settings: config.Settings, data: KnownData, guess: Guess) -> None:
    """Print the predictions as a table, a verdict for each budget, and the assumptions."""
    predictions = predict(settings, data, guess)
    kind = "documents" if settings.data.unit == "document" else "units"
    anchored = settings.anchors_on_the_base
    columns = ("base's bound", "certified gain") if anchored else ()
    table = Table("d", "C, bits", "bound", "from", "to", "price of the message", *columns, title="bits per token")
    for each in predictions:
        numbers = [each.bound, each.bound_smallest, each.bound_largest, each.price]
        numbers += [number for number in (each.base_bound, each.gain) if anchored and number is not None]
        table.add_row(f"{each.budget:,}", f"{each.code_bits:,.0f}", *(f"{number:.3f}" for number in numbers))
    Console(width=140).print(table)
    for each in predictions:
        print(f"d = {each.budget:,}: {_verdict(each, data.n_units, kind)}")
    spread = f"losses of {kind} spread by {guess.deviation_bits:g} around it"
    if anchored:
        spread = f"gains over the base spread by {guess.deviation_of_the_gain:g} of their mean"
    print(
        f"Assumed: n = {data.n_units:,} independent {kind}; a loss of {guess.loss_bits:g} on new ones after "
        f"adaptation, which is your guess; {spread} (from: not at all; to: as far as there are losses); "
        f"{guess.bits_per_coordinate:g} bits per coordinate; a run named beforehand. It is an estimate, not a bound."
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
    if each.is_worth_it and each.gain is not None:
        return f"worth it: a gain of {each.gain:.3f} over the frozen base would be certified, a bound below {rival}"
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

"""What `sublora adapt` plans before it trains: the budget, the bound to expect, whether n suffices, hours and memory.

The budget is chosen by the prediction of `plan --loss` from n and the frozen base's losses on val, before any training,
so that the choice costs no bits. What adapting will gain nobody knows beforehand; it is assumed to be

    G L d / (d + H)

for a base with loss L, where G = 0.17 and H = 600 are those of the demo (gains of 0.25, 0.36 and 0.42 bits at d = 500,
1,000 and 2,000 where the base needs 3.2). With it the gain certified from 100 to 72,354 of the demo's documents was
predicted to within 0.03 (docs/studies/few_documents.md). SmolLM2 on service documentation gained 1.40 bits at
d = 1,000, twice what is assumed here.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sublora import config
from sublora.data.dataset import TokenDataset
from sublora.system.errors import UserError
from sublora.tools.adapt.settings import STEPS, AdaptRequest
from sublora.tools.expected_bound import Guess, KnownData, Prediction, predict
from sublora.tools.plan import Plan
from sublora.tools.statement import grouped_by, units_in_words
from sublora.tools.throughput import Throughput

BUDGETS = (25, 50, 125, 250, 500, 1000, 2000)
"""Candidates for d."""
LARGEST_GAIN, HALF_GAIN_AT = 0.17, 600
"""G and H."""
FEWEST_STEPS, MOST_STEPS = 50, 5000
"""Limits for the steps that --hours gives."""


@dataclasses.dataclass(frozen=True)
class BudgetChoice:
    """A budget, and the prediction by which it was chosen."""

    prediction: Prediction
    assumed_loss_bits: float

    @property
    def certifies(self) -> bool:
        """Whether a gain over the base is expected to be certified."""
        gain = self.prediction.gain
        return self.prediction.is_worth_it and gain is not None and gain > 0.0


@dataclasses.dataclass(frozen=True)
class AdaptPlan:
    """What is known before the training. Losses and bounds in bits per token."""

    n_units: int
    n_documents: int
    unit: str | None
    """The key by which documents are grouped; None: each document is a unit."""
    budget: int
    message_bits: float
    base_loss_bits: float
    """Mean loss of the frozen base on val."""
    assumed_loss_bits: float
    """Loss of the adapted network, a guess."""
    base_bound: float
    bound: float
    gain: float
    """Bounds to expect, and the gain over the base; an estimate."""
    shortfall: str | None
    """Why no gain is to be expected, with the n that would do; None if one is."""
    steps: int
    training_hours: float
    scoring_hours: float
    """Time of one pass over all scored documents; base and adapted network take one, the verification two."""
    memory_mib: float
    measured_on: str

    @property
    def units(self) -> str:
        """n in words."""
        return units_in_words(self.n_units, self.n_documents, self.unit)

    @property
    def seconds(self) -> dict[str, float]:
        """The expected time of the stages that take long."""
        score = 3600.0 * self.scoring_hours
        return {"yardsticks": score, "train": 3600.0 * self.training_hours, "score": score, "verify": 2.0 * score}

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        found = [
            f"n = {self.units}; the frozen model needs {self.base_loss_bits:.3f} bits per token on val",
            f"budget d = {self.budget:,}: a message of about {self.message_bits:,.0f} bits",
            f"expected: a bound of {self.bound:.3f} bits per token (frozen model {self.base_bound:.3f}), a certified "
            f"gain of {self.gain:.3f}, if adapting lowers the loss to {self.assumed_loss_bits:.3f}, which is a guess",
            f"time: {self.steps:,} steps, {in_hours(self.training_hours)}; scoring {in_hours(4 * self.scoring_hours)} "
            f"in all; memory {self.memory_mib / 1024:.1f} GiB ({self.measured_on})",
        ]
        return found if self.shortfall is None else [*found, self.shortfall]


def in_hours(hours: float) -> str:
    """Return a time in the unit that suits it."""
    if hours < 0.025:
        return f"about {max(1.0, 3600 * hours):.0f} s"
    return f"about {60 * hours:.0f} min" if hours < 1.5 else f"about {hours:.1f} h"


def assumed_loss(base_loss_bits: float, budget: int) -> float:
    """Return the loss after adapting with a budget, by the assumption of this module."""
    return base_loss_bits * (1.0 - LARGEST_GAIN * budget / (budget + HALF_GAIN_AT))


def choose_budget(
    settings: config.Settings, data: KnownData, budgets: Sequence[int], base_losses_U: NDArray[np.float64]
) -> BudgetChoice:
    """Return the budget with the largest gain to be expected.

    base_losses_U: losses of the anchor on val, bits per token. UserError for a base that is worse than guessing.
    """
    base_loss = float(base_losses_U.mean())
    guessing = float(np.log2(data.vocab_size))
    if base_loss >= guessing:
        raise UserError(
            f"the frozen model needs {base_loss:.3f} bits per token on these documents, guessing among its "
            f"{data.vocab_size:,} tokens {guessing:.3f}; give a model that fits the documents"
        )
    found = []
    for budget in budgets:
        grid = settings.grid.model_copy(update={"budgets": (budget,)})
        loss = assumed_loss(base_loss, budget)
        (prediction,) = predict(settings.model_copy(update={"grid": grid}), data, Guess(loss))
        found.append(BudgetChoice(prediction, loss))
    return max(found, key=lambda each: each.prediction.gain or -np.inf)


def candidate_budgets(request: AdaptRequest, parameters: int) -> tuple[int, ...]:
    """Return the budgets to choose from, none above the number of trained parameters; UserError if all are."""
    wanted = BUDGETS if request.budget is None else (request.budget,)
    found = tuple(budget for budget in wanted if budget <= parameters)
    if not found:
        raise UserError(
            f"--budget {wanted[0]}: more than the {parameters:,} parameters of the adapters; lower it, or adapt more "
            "maps (--targets)"
        )
    return found


def shortfall(settings: config.Settings, data: KnownData, budgets: Sequence[int], chosen: BudgetChoice) -> str | None:
    """Return in words why no gain is to be expected and the n that would do; None if one is expected."""
    if chosen.certifies:
        return None
    base_loss = data.base_losses_U
    assert base_loss is not None
    # The smallest n of all budgets; most of them are asked about one n alone.
    enough = chosen.prediction.n_needed
    for budget in budgets:
        prediction = choose_budget(settings, data, [budget], base_loss).prediction
        if enough is None or (enough > 1 and prediction.pays_at(enough - 1)):
            enough = prediction.n_needed
    kind = "documents" if settings.data.unit == "document" else "units"
    at = f"d = {budgets[0]:,}" if len(budgets) == 1 else f"any d from {budgets[0]:,} to {budgets[-1]:,}"
    remedy = "no n would do" if enough is None else f"it would take about n = {enough:,}"
    return (
        f"n = {data.n_units:,} {kind} are too few to certify a gain over the frozen model with {at}: {remedy}, if "
        f"adapting gains what it gained in the demo"
    )


def chosen_steps(request: AdaptRequest, settings: config.Settings, throughput: Throughput) -> int:
    """Return the steps of the training: as asked for, by the hours at the measured speed, or the default."""
    if request.hours is None:
        return request.steps or STEPS
    steps = int(request.hours * 3600.0 * throughput.training / settings.training.tokens_per_step)
    if steps < FEWEST_STEPS:
        raise UserError(
            f"--hours {request.hours:g}: enough for {steps} steps here ({throughput.training:,.0f} tokens/s), expected "
            f"at least {FEWEST_STEPS}; give more hours, or --steps"
        )
    return min(steps, MOST_STEPS)


def make_adapt_plan(
    settings: config.Settings,
    dataset: TokenDataset,
    choice: BudgetChoice,
    short: str | None,
    *,
    base_loss_bits: float,
    cost: Plan,
    memory_mib: float,
    measured_on: str,
) -> AdaptPlan:
    """Return the plan of a run whose settings are complete."""
    expected = choice.prediction
    assert expected.base_bound is not None and expected.gain is not None
    return AdaptPlan(
        n_units=dataset.n_units,
        n_documents=dataset.n_documents,
        unit=grouped_by(settings),
        budget=expected.budget,
        message_bits=expected.code_bits,
        base_loss_bits=base_loss_bits,
        assumed_loss_bits=choice.assumed_loss_bits,
        base_bound=expected.base_bound,
        bound=expected.bound,
        gain=expected.gain,
        shortfall=short,
        steps=settings.training.steps,
        training_hours=cost.training_hours,
        scoring_hours=cost.scoring_hours or 0.0,
        memory_mib=memory_mib,
        measured_on=measured_on,
    )

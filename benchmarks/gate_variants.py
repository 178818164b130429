"""Other ways to find the split of a learned allocation: one gate for all, a start in closed form, k chosen at the end.

Shape legend: N batches, D entries of theta, S coordinates of a gate, G gates.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sublora.bounds.smoothing import parse_smoothing
from sublora.losses.documents import DocumentWeights, document_loss, score_documents
from sublora.losses.windows import BatchShape, DocumentSampler
from sublora.subspace.allocations import Allocation, Gate, Part, hard_split
from sublora.subspace.parameters import ParameterSpace
from sublora.subspace.subspace import Subspace
from sublora.training.loop import Trainer
from sublora.training.rate_phase import RatePhase
from sublora.training.reporting import Progress
from sublora.training.run import Run

START_BATCHES = 16
SMALLEST_START = 0.05
"""Started gates lie between this and 1 minus this, so that training can still turn them."""
JOINT_SHIFTS = (-0.25, -0.1, 0.1, 0.25)
SINGLE_SHIFTS = (-0.25, -0.1, 0.1, 0.25)
"""Shifts of logits that are tried beside 0: of all gates together, then of each gate alone."""

Logits = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Variant:
    """An allocation's name, and what is done about its gates beside training them."""

    allocation: str
    start: bool = False
    """Gates start from `start_gammas` instead of 1/2."""
    choice: bool = False
    """k is chosen anew where the soft phase ends."""


@dataclasses.dataclass(frozen=True)
class OneGate(Allocation):
    """A single trained split of w between all A and all B matrices."""

    mode: ClassVar[str] = "one_gate"

    def gates(self, groups: tuple[str, ...], budget: int, sharing: str) -> tuple[Gate, ...]:
        return (Gate("all", slice(0, budget)),)

    def parts(self, space: ParameterSpace, budget: int, sharing: str) -> tuple[Part, ...]:
        return tuple(Part(role, space.span(role), slice(0, budget), 0, role == "B") for role in ("A", "B"))


@dataclasses.dataclass(frozen=True)
class Choice:
    """The logits that were chosen, the criterion there, and the criterion of the trained split."""

    logits: Logits
    value: float
    trained_value: float


class VariantTrainer(Trainer):
    """A training of the library with a variant's start and choice of the gates."""

    def __init__(self, run: Run, variant: Variant, *, out: Path, progress: Progress) -> None:
        super().__init__(run, out=out, progress=progress)
        self.variant = variant
        self.start: tuple[float, ...] | None = None
        """gamma that the gates started from, where that was computed."""
        self.choice: Choice | None = None

    def _at_the_start(self) -> None:
        super()._at_the_start()
        if self.variant.start:
            gamma_G = start_gammas(self.run.subspace, start_gradients(self.run))
            set_logits(self.run.subspace, torch.logit(gamma_G).tolist())
            self.start = tuple(gamma_G.tolist())

    def _step(self, step: int) -> Tensor:
        if self.variant.choice and step == self.soft_steps:
            assert self.rate is not None
            subspace = self.run.subspace
            self.choice = choose_logits(logits_of(subspace), split_criterion(self.run, self.rate))
            set_logits(subspace, self.choice.logits)
        return super()._step(step)


def logits_of(subspace: Subspace) -> Logits:
    return tuple(float(subspace.gating_params[gate.group].detach()) for gate in subspace.gates)


@torch.no_grad()
def set_logits(subspace: Subspace, logits: list[float] | Logits) -> None:
    for gate, logit in zip(subspace.gates, logits, strict=True):
        subspace.gating_params[gate.group].fill_(logit)


# The start


def start_gradients(run: Run) -> Tensor:
    """Gradients (N x D) of the training loss at theta_0, of batches of training windows that no step sees."""
    settings, rows = run.settings, run.settings.training.micro_batch_sequences
    sampler = DocumentSampler(
        run.dataset.tokens("train"),
        run.dataset.eot_indices,
        run.windows,
        units=run.dataset.units("train"),
        eot_id=run.dataset.eot_id,
        shape=BatchShape(rows, rows, one_width=True),
        seed_parts=(run.spec.seed, "start of the gates"),
    )
    smoothing = parse_smoothing(settings.rate_phase.smoothing)
    gradients = []
    for batch in range(START_BATCHES):
        (windows,) = sampler.micro_batches(batch)
        inputs_NT, targets_NT, *weights = (torch.from_numpy(part).to(run.device) for part in windows)
        leaf = run.subspace.origin_D.detach().clone().requires_grad_()
        model = run.network.at(leaf)
        hidden_KC = model.hidden(inputs_NT, training=True).flatten(0, 1)
        loss, _ = document_loss(model, hidden_KC, targets_NT, DocumentWeights(*weights), smoothing)
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    return torch.stack(gradients)


def start_gammas(subspace: Subspace, gradients_ND: Tensor) -> Tensor:
    """B's share of what both roles gain (G), in [SMALLEST_START, 1 - SMALLEST_START]; 1/2 where neither does."""
    gains_G2 = torch.zeros(len(subspace.gates), 2, dtype=torch.float64)
    for gate, takes_first, gradients_NS in coordinate_gradients(subspace, gradients_ND):
        gains_G2[gate, int(takes_first)] += newton_gain(gradients_NS)
    total_G = gains_G2.sum(1)
    share_G = torch.where(total_G > 0.0, gains_G2[:, 1] / total_G, 0.5)
    return share_G.clamp(SMALLEST_START, 1.0 - SMALLEST_START)


def coordinate_gradients(subspace: Subspace, gradients_ND: Tensor) -> Iterator[tuple[int, bool, Tensor]]:
    """(gate, whether it is B's, P^T g (N x S)) of each part alone, as if it had all coordinates of its gate."""
    w_S = torch.zeros_like(subspace.subspace_params, requires_grad=True)
    for takes_first in (False, True):
        mask_GS = w_S.new_full((len(subspace.gates), subspace.largest_gate), float(takes_first))
        theta_D = subspace.theta(w_S, mask_GS)
        for part in subspace.parts:
            if part.gate is None or part.takes_first != takes_first:
                continue
            pulled = [
                torch.autograd.grad(theta_D[part.rows], w_S, g_D[part.rows], retain_graph=True)[0][part.coordinates]
                for g_D in gradients_ND
            ]
            yield part.gate, takes_first, torch.stack(pulled)


def newton_gain(gradients_NS: Tensor) -> float:
    """What a Newton step along each coordinate gains, with the variance of the gradient as curvature.

    Sum over coordinates of max(0, mean^2 - variance / N), the squared gradient less what its noise adds to it, over
    the mean variance of a coordinate. The maximum leaves noise a share of the sum, the same for A and B, which draws
    a start without a signal to 1/2. A role that no batch moves gains 0.
    """
    variance_S, mean_S = torch.var_mean(gradients_NS.double(), dim=0)
    scale = float(variance_S.mean())
    signal_S = (mean_S.square() - variance_S / len(gradients_NS)).clamp(min=0.0)
    return float(signal_S.sum()) / scale if scale > 0.0 else 0.0


# The choice


def choose_logits(trained: Logits, criterion: Callable[[Logits], float]) -> Choice:
    """The logits of the lowest criterion: all gates shifted alike or put to 1/2, then one gate after the other."""
    trained_value = criterion(trained)
    best, value = trained, trained_value
    candidates = [tuple(logit + shift for logit in trained) for shift in JOINT_SHIFTS]
    candidates.append((0.0,) * len(trained))
    for index in range(len(trained) + 1):
        for logits in candidates:
            if (found := criterion(logits)) < value:
                best, value = logits, found
        if index < len(trained):
            candidates = [(*best[:index], best[index] + shift, *best[index + 1 :]) for shift in SINGLE_SHIFTS]
    return Choice(best, value, trained_value)


def split_criterion(run: Run, rate: RatePhase) -> Callable[[Logits], float]:
    """The estimated bound of the hard split of any logits with the present w; before the rate phase the val loss.

    The loss is that of the estimate's val documents under the smoothing in the training loss, bits per token.
    """
    subspace, estimator = run.subspace, run.estimator()
    smoothing = parse_smoothing(rate.state.smoothing)
    rounded = rate.rounded() if rate.state.started else None
    w_S = rounded.w if rounded else subspace.subspace_params

    @torch.no_grad()
    def criterion(logits: Logits) -> float:
        split_G = hard_split(torch.sigmoid(torch.tensor(logits)), subspace.sizes_G.cpu())
        model = run.network.at(subspace.theta(w_S, subspace.split_masks(split_G)))
        if rounded is not None:
            return rate.estimate(rounded, model).bound_bits
        scores = score_documents(model, estimator.documents, estimator.rule, run.device)
        losses_U = estimator.units.means(scores.losses_DA([smoothing], run.dataset.vocab_size)[:, 0])
        return float(losses_U.mean())

    return criterion

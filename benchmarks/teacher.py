"""Do the gates of the learned allocation find a split that is known?

    python benchmarks/teacher.py decide         # teachers with a known split, five seeds: the table
    python benchmarks/teacher.py relaxations    # what makes the gates learn, and what does not
    python benchmarks/teacher.py sharing        # all of w for every group, or a part of its own
    python benchmarks/teacher.py splits         # every hard split of two tasks, trained

A teacher is the base model with its LoRA matrices moved, group by group only in B, only in A, or in a known mixture.
The student starts from the base model and sees the teacher's probabilities on random tokens. Every arm of a task has
the same base, initialization, batches and number of optimizer steps. Losses are the divergence KL(teacher, student) on
held-out tokens, in bits per token: 0 is the teacher itself.

Two kinds of teachers. In the subspace, theta* = theta_0 + P(m w*): some gates and some w reproduce it exactly, so its
split is the best one. Outside, every matrix that moves does so by white noise: d coordinates cannot follow it, and
which split is best is measured by trying all of them (`splits`).
"""

import argparse
import csv
import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from sublora import config
from sublora.models.adapted import AdaptedModel
from sublora.models.gpt import GPT
from sublora.models.lora import Adapters, initial_theta
from sublora.models.spaces import lora_space
from sublora.models.weights import random_weights
from sublora.subspace.allocations import hard_mask, mask_width, parse_allocation, soft_mask
from sublora.subspace.subspace import Subspace, SubspaceShape
from sublora.system.files import atomic_path
from sublora.system.streams import generator
from sublora.training.evaluation import GateSignal
from sublora.training.step import AdamW, learning_rate

MODEL = config.Model(kind="gpt2", n_layer=4, n_head=2, n_embd=32, context_length=16, init_std=0.15)
VOCABULARY, RANK, SCALE, SEQUENCES, HELD_OUT = 64, 4, 4.0, 16, 4
BUDGET, STEPS, LEARNING_RATE, WARMUP_STEPS = 400, 300, 0.03, 15
SNR_WINDOW_STEPS = 20
FIXED = ("fixed-0.2", "fixed-0.5", "fixed-0.8")
MOVED = 0.3
"""Standard deviation of the teacher's w; outside the subspace its matrices move by as much."""
RESULTS = Path(__file__).resolve().parent / "results"

Shares = tuple[float, ...]
"""B's share of the teacher's move in every group: layers 0, 1, ..., then the head."""
SHARES: dict[str, Shares] = {
    "all B": (1.0,) * 5,
    "all A": (0.0,) * 5,
    "B, A, B, A, B": (1.0, 0.0, 1.0, 0.0, 1.0),
    "A, B, A, B, A": (0.0, 1.0, 0.0, 1.0, 0.0),
    "0.8, 0.2, 0.8, 0.2, 0.8": (0.8, 0.2, 0.8, 0.2, 0.8),
    "half": (0.5,) * 5,
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What the student is to learn. `inside`: a teacher in the subspace; no shares: the base model is the teacher."""

    shares: str | None
    inside: bool
    seed: int
    init: str = "both_random"
    sharing: str = "shared"
    """For a teacher in the subspace: whether its groups use all of w*, or coordinates of their own."""
    steps: int = STEPS

    @property
    def label(self) -> str:
        where = "in the subspace" if self.inside else "outside"
        if self.inside and self.sharing == "per_layer":
            where = "in the subspace with own coordinates"
        teacher = f"{self.shares}, {where}" if self.shares else "labels drawn from the base"
        return teacher if self.init == "both_random" else f"{teacher}, {self.init}"


@dataclasses.dataclass(frozen=True)
class Gates:
    """How gates are trained: keys of settings.gating, and what was tried beside them."""

    learning_rate: float = 0.2
    mask_width_start: float = 0.25
    mask_width_end: float = 0.3
    soft_fraction: float = 0.8
    sharing: str = "shared"
    relaxation: str = "soft"
    """soft (the product's), straight-through (hard mask forward, soft backward) or concrete (logistic noise)."""
    constant_rate: bool = False
    a_scale: float = 1.0
    """Factor on the projections onto A: above 1 a step in w moves A further than B."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    loss_bits: float
    gamma: tuple[float, ...] = ()
    """Shares of the hard split at the end; empty without gates."""
    snr: tuple[float, ...] = ()
    """Median over gates of the gradient's signal-to-noise ratio, a window of steps each."""


class World:
    """A task's base model, teacher and batches: the same for every arm."""

    def __init__(self, task: Task) -> None:
        self.task = task
        lora = config.Lora(rank=RANK, alpha=16.0, dropout=0.0, targets=("query", "value", "head"), init=task.init)
        self.space = lora_space(MODEL, lora, VOCABULARY)
        self.base = GPT(MODEL, VOCABULARY)
        self.base.load(random_weights(MODEL, VOCABULARY, task.seed))
        self.start_D = initial_theta(self.space, task.seed, task.init)
        self.origin_D = torch.from_numpy(self.start_D) if task.init == "both_random" else None
        tokens = generator(task.seed, "tokens")
        shape = (SEQUENCES, MODEL.context_length)
        inputs = [torch.from_numpy(tokens.integers(VOCABULARY, size=shape)) for _ in range(task.steps + HELD_OUT)]
        teacher = self.teacher_theta()
        with torch.no_grad():
            self.batches = [(x, self.log_p(x, teacher)) for x in inputs]

    def module(self, arm: str, sharing: str = "shared") -> Subspace:
        shape = SubspaceShape(self.space, parse_allocation(arm), BUDGET, sharing=sharing)
        return Subspace(shape, self.start_D, functools.partial(generator, self.task.seed, "projection", 137))

    @torch.no_grad()
    def teacher_theta(self) -> Tensor:
        module, stream = self.module("learned", self.task.sharing), generator(self.task.seed, "teacher")
        if self.task.shares is None:
            return module.origin_D
        shares = SHARES[self.task.shares]
        if self.task.inside:
            w_d = torch.from_numpy((MOVED * stream.standard_normal(BUDGET)).astype(np.float32))
            return module.theta(w_d, module.split_masks(split_of(shares, module)))
        theta_D = module.origin_D.clone()
        for group, share in zip(self.space.groups, shares, strict=True):
            for factor, part in (("A", 1.0 - share), ("B", share)):
                span = self.space.span(factor, group)
                noise = torch.from_numpy(stream.standard_normal(span.stop - span.start))
                theta_D[span] += MOVED * (part * BUDGET / self.space.size) ** 0.5 * noise
        return theta_D

    def log_p(self, tokens_NT: Tensor, theta_D: Tensor) -> Tensor:
        """Log probabilities (N x T x V) of the next token, nats."""
        adapters = Adapters(self.space, theta_D, scale=SCALE, dtype=torch.float32, origin_D=self.origin_D)
        model = AdaptedModel(self.base, adapters)
        return model.differentiable_logits(model.hidden(tokens_NT)).log_softmax(-1)

    def training_loss(self, theta_D: Tensor, step: int) -> Tensor:
        """Cross-entropy in nats with the teacher's probabilities; with tokens drawn from them if it is the base."""
        tokens, teacher_NTV = self.batches[step]
        log_p_NTV = self.log_p(tokens, theta_D)
        if self.task.shares is not None:
            return -(teacher_NTV.exp() * log_p_NTV).sum(-1).mean()
        uniform = generator(self.task.seed, "labels", step).random((*tokens.shape, 1), dtype=np.float32)
        labels = (teacher_NTV.exp().cumsum(-1) < torch.from_numpy(uniform)).sum(-1, keepdim=True)
        return -log_p_NTV.gather(-1, labels.clamp(max=VOCABULARY - 1)).mean()

    @torch.no_grad()
    def divergence_bits(self, theta_D: Tensor) -> float:
        """KL(teacher, student) on the held-out batches, bits per token."""
        parts = [(t.exp() * (t - self.log_p(x, theta_D))).sum(-1).mean() for x, t in self.batches[-HELD_OUT:]]
        return float(torch.stack(parts).mean()) / math.log(2.0)


def train(world: World, arm: str, gates: Gates | None = None, *, split: Shares | None = None) -> Outcome:
    """Train an arm, an allocation's name; `split` trains the learned one with these gates, hard from the start."""
    how, steps = gates or Gates(), world.task.steps
    module = world.module(arm, how.sharing)
    gated = arm == "learned" and split is None
    parameters = list(module.gating_params.values()) if gated else []
    optimizer = AdamW(
        [{"params": [module.subspace_params]}, {"params": parameters}], lr=0.0, betas=(0.9, 0.999), eps=1e-6
    )
    signal, snr = GateSignal(parameters, torch.device("cpu")), []
    width = {"size": module.largest_gate, "start": how.mask_width_start, "end": how.mask_width_end}
    soft_steps = round(how.soft_fraction * steps) if gated else 0
    fixed_GS = None if split is None else module.split_masks(split_of(split, module))
    for step in range(steps):
        rates = {"steps": steps, "final": 0.02, "warmup_steps": WARMUP_STEPS}
        rate = learning_rate(step, peak=1.0, **rates)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate
        optimizer.param_groups[1]["lr"] = how.learning_rate * (1.0 if how.constant_rate else rate)
        now = mask_width(step, soft_steps=soft_steps, **width)
        if split is not None:
            mask_GS = fixed_GS
        elif how.relaxation == "soft" or now == 0.0:
            mask_GS = module.masks(now)
        else:
            mask_GS = RELAXATIONS[how.relaxation](module, now, step)
        optimizer.zero_grad()
        world.training_loss(stretched(module, mask_GS, how.a_scale), step).backward()
        signal.add()
        if gated and (step + 1) % SNR_WINDOW_STEPS == 0 and step < soft_steps:
            snr.append(statistics.median(value or 0.0 for value in signal.read()))
        torch.nn.utils.clip_grad_norm_([module.subspace_params, *parameters], 1.0)
        optimizer.step()
    gamma = (module.hard_split() / module.sizes_G).tolist() if gated else []
    mask_GS = module.masks(0.0) if split is None else fixed_GS
    return Outcome(world.divergence_bits(stretched(module, mask_GS, how.a_scale)), tuple(gamma), tuple(snr))


def split_of(shares: Shares, module: Subspace) -> Tensor:
    """Integers of the gates that give these shares to B."""
    return (torch.tensor(shares) * module.sizes_G).round().long()


def stretched(module: Subspace, mask_GS: Tensor | None, a_scale: float) -> Tensor:
    """theta of the module's w and any mask; A moves `a_scale` times as far as it would."""
    w_d = module.subspace_params
    theta_D = module.theta(w_d, mask_GS)
    if a_scale == 1.0:
        return theta_D
    space = module.shape.space
    return torch.cat([module.theta(a_scale * w_d, mask_GS)[space.span("A")], theta_D[space.span("B")]])


def straight_through(module: Subspace, width: float, step: int) -> Tensor:
    soft_GS = soft_mask(module.gamma() * module.sizes_G, module.largest_gate, width)
    hard_GS = hard_mask(module.hard_split(), soft_GS.shape[1], soft_GS.dtype)
    return soft_GS + (hard_GS - soft_GS).detach()


def concrete(module: Subspace, width: float, step: int) -> Tensor:
    """A relaxed Bernoulli draw for every coordinate (Maddison, Mnih & Teh 2017), temperature 1/2."""
    soft_GS = soft_mask(module.gamma() * module.sizes_G, module.largest_gate, width)
    noise = generator("concrete", step).logistic(size=tuple(soft_GS.shape)).astype(np.float32)
    return torch.sigmoid((soft_GS.logit(eps=1e-6) + torch.from_numpy(noise)) / 0.5)


RELAXATIONS: dict[str, Callable[[Subspace, float, int], Tensor]] = {
    "straight-through": straight_through,
    "concrete": concrete,
}


def right_sides(outcome: Outcome, shares: str) -> list[bool]:
    """Whether each gate ended on its teacher's side of 1/2."""
    return [(found > 0.5) == (true > 0.5) for found, true in zip(outcome.gamma, SHARES[shares], strict=True)]


def undecided(gamma_SG: np.ndarray) -> tuple[float, float, float, float]:
    """(mean gamma over seeds and gates, its 95 % interval by seeds, share of gates above 1/2)."""
    means = gamma_SG.mean(1)
    half = float(stats.t.ppf(0.975, len(means) - 1) * stats.sem(means))
    return float(means.mean()), float(means.mean()) - half, float(means.mean()) + half, float((gamma_SG > 0.5).mean())


# The studies


def decide(seeds: range) -> Iterator[dict[str, Any]]:
    """A row a task and seed: right sides, losses of the learned arm and of the others."""
    teachers = [(shares, True, "both_random") for shares in SHARES if shares != "half"]
    teachers += [(shares, False, "both_random") for shares in ("all B", "all A", "B, A, B, A, B")]
    # From B = 0 a teacher that moved only A is the base model itself.
    teachers += [(shares, True, "zero_b") for shares in ("all B", "0.8, 0.2, 0.8, 0.2, 0.8")]
    for (shares, inside, init), seed in itertools.product(teachers, seeds):
        world = World(Task(shares, inside, seed, init=init))
        learned = train(world, "learned")
        right = right_sides(learned, shares)
        sides = {"right": sum(right), "gates": len(right)}
        yield {"teacher": world.task.label, "seed": seed, **sides, **_columns(learned), **_other_arms(world)}
    controls = [("half", False, "both_random"), (None, False, "both_random"), (None, False, "zero_b")]
    for (shares, inside, init), seed in itertools.product(controls, seeds):
        world = World(Task(shares, inside, seed, init=init))
        yield {"teacher": f"control: {world.task.label}", "seed": seed, **_columns(train(world, "learned"))}


def _other_arms(world: World) -> dict[str, float]:
    losses = {f"{arm}_bits": train(world, arm).loss_bits for arm in (*FIXED, "uniform")}
    return {"best_fixed_bits": min(losses[f"{arm}_bits"] for arm in FIXED), **losses}


def relaxations(seeds: range) -> Iterator[dict[str, Any]]:
    """A row a way to train the gates, a task and a seed."""
    ways = {
        "annealed from d/4 (kept)": Gates(),
        "annealed from d": Gates(mask_width_start=1.0),
        "fixed width 1": Gates(mask_width_start=1.0 / BUDGET, mask_width_end=1.0),
        "fixed width d/4": Gates(mask_width_end=0.25 * BUDGET),
        "straight-through": Gates(relaxation="straight-through"),
        "concrete": Gates(relaxation="concrete"),
        "rate 0.01": Gates(learning_rate=0.01),
        "rate 0.05": Gates(learning_rate=0.05),
        "rate 0.8": Gates(learning_rate=0.8),
        "constant rate": Gates(constant_rate=True),
        "soft for 20 % of the steps": Gates(soft_fraction=0.2),
        "soft for 50 % of the steps": Gates(soft_fraction=0.5),
        "A moves twice as far": Gates(a_scale=2.0),
        "A moves half as far": Gates(a_scale=0.5),
    }
    tasks = [("B, A, B, A, B", True), ("B, A, B, A, B", False), (None, False)]
    for (shares, inside), seed in itertools.product(tasks, seeds):
        world = World(Task(shares, inside, seed))
        for name, gates in ways.items():
            outcome = train(world, "learned", gates)
            right = {"right": sum(right_sides(outcome, shares)), "gates": len(outcome.gamma)} if shares else {}
            yield {"way": name, "teacher": world.task.label, "seed": seed, **right, **_columns(outcome)}


def sharing(seeds: range) -> Iterator[dict[str, Any]]:
    """A row a teacher, a seed and a way to share w."""
    shares = "B, A, B, A, B"
    tasks = [(True, "shared"), (True, "per_layer"), (False, "shared")]
    for (inside, teacher), seed in itertools.product(tasks, seeds):
        world = World(Task(shares, inside, seed, sharing=teacher))
        others = _other_arms(world)
        for way in ("shared", "per_layer"):
            outcome = train(world, "learned", Gates(sharing=way))
            sides = {"right": sum(right_sides(outcome, shares)), "gates": len(outcome.gamma)}
            yield {"way": way, "teacher": world.task.label, "seed": seed, **sides, **_columns(outcome), **others}


def splits(seeds: range) -> Iterator[dict[str, Any]]:
    """A row a hard split, all 2^5 of them, and one for the learned gates, for two teachers outside the subspace."""
    for shares, seed in itertools.product(("all B", "B, A, B, A, B"), seeds):
        world = World(Task(shares, False, seed))
        yield {"teacher": world.task.label, "seed": seed, "split": "learned", **_columns(train(world, "learned"))}
        for split in itertools.product((0.0, 1.0), repeat=len(world.space.groups)):
            loss = train(world, "learned", split=split).loss_bits
            name = "".join("AB"[int(share)] for share in split)
            yield {"teacher": world.task.label, "seed": seed, "split": name, "loss_bits": loss}


def _columns(outcome: Outcome) -> dict[str, Any]:
    gamma = " ".join(f"{value:.3f}" for value in outcome.gamma)
    first = statistics.mean(outcome.snr[: len(outcome.snr) // 2]) if len(outcome.snr) > 1 else ""
    return {"loss_bits": outcome.loss_bits, "gamma": gamma, "snr_first_half": first}


def summarize(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
    """A line a group of rows: right sides, mean losses, and for controls how far gamma is from 1/2."""
    for key, group in itertools.groupby(
        sorted(rows, key=lambda r: [str(r[k]) for k in keys]), lambda r: [r[k] for k in keys]
    ):
        found = list(group)
        line = [" | ".join(map(str, key)), f"loss {_mean(found, 'loss_bits'):.4f}"]
        if "best_fixed_bits" in found[0]:
            no_worse = sum(row["loss_bits"] <= row["best_fixed_bits"] for row in found)
            line.append(f"best fixed {_mean(found, 'best_fixed_bits'):.4f}, no worse in {no_worse} of {len(found)}")
            line.append(f"uniform {_mean(found, 'uniform_bits'):.4f}")
        if "right" in found[0]:
            right, gates = (sum(row[name] for row in found) for name in ("right", "gates"))
            line.append(f"right side {right} of {gates} ({right / gates:.0%})")
        elif len(found) > 1:
            gamma_SG = np.array([[float(value) for value in row["gamma"].split()] for row in found])
            mean, low, high, above = undecided(gamma_SG)
            line.append(f"mean gamma {mean:.2f} [{low:.2f}, {high:.2f}], {above:.0%} on B's side")
        line.append(f"snr {_mean(found, 'snr_first_half'):.2f}")
        print("; ".join(line))


def _mean(rows: list[dict[str, Any]], column: str) -> float:
    return statistics.mean(float(row[column]) for row in rows)


STUDIES = {"decide": (decide, 5), "relaxations": (relaxations, 3), "sharing": (sharing, 3), "splits": (splits, 1)}
"""And how many seeds each is run with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--seeds", type=int, help="seeds 1 ... this (default: those of docs/allocation.md)")
    parser.add_argument("--out", type=Path, help="CSV file (default: benchmarks/results/teacher_{study}.csv)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study, count = STUDIES[given.study]
    rows = []
    for row in study(range(1, (given.seeds or count) + 1)):
        rows.append(row)
        print(*(f"{value:.4f}" if isinstance(value, float) else value for value in row.values()), sep=" | ", flush=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    path = given.out or RESULTS / f"teacher_{given.study}.csv"
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    print()
    if given.study == "splits":
        for row in sorted(rows, key=lambda row: (str(row["teacher"]), row["seed"], row["loss_bits"])):
            print(row["teacher"], row["seed"], row["split"], f"{row['loss_bits']:.4f}", sep=" | ")
    else:
        summarize(rows, ("teacher",) if given.study == "decide" else ("teacher", "way"))


if __name__ == "__main__":
    main()

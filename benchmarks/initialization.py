"""Why B learns first: gradients of A and B and the val loss, step by step, from either initialization.

    python benchmarks/initialization.py --config demo/config/config.yaml

With B = 0 the gradient of A, scale B' G, is exactly zero at the start and grows only as B does; with both random
(`lora.init: both_random`) A and B begin with gradients of the same size. Trains the fixed splits from both, on the
same base, batches and steps, without the rate phase; prints means over seeds, and writes a CSV file and a figure.
The data of the settings must be prepared.
"""

import argparse
import csv
import dataclasses
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sublora import config
from sublora.analysis.arms import Arm
from sublora.analysis.figures import style
from sublora.data.base_and_target import open_target
from sublora.data.dataset import TokenDataset
from sublora.losses.windows import ChunkSampler
from sublora.runs.build import build_run
from sublora.subspace.allocations import parse_allocation
from sublora.system.files import atomic_path
from sublora.training.evaluation import token_losses
from sublora.training.step import AdamW, learning_rate

INITS = {"zero_b": "B = 0", "both_random": "A and B random"}
LINES = {"zero_b": "-", "both_random": (0, (3, 1))}
FACTOR_COLOURS = {"A": style.CATEGORY_COLOURS[0], "B": style.CATEGORY_COLOURS[4]}
ALLOCATIONS = ("fixed-0.2", "fixed-0.5", "fixed-0.8")
SHOWN = "fixed-0.5"
"""The arm whose gradients are drawn."""
REFERENCE = "fixed-0.8"
"""The arm from which losses are counted in the figure."""
EARLY_STEPS = 10
"""Up to here every step is looked at."""
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Point:
    """The training after `step` steps; gradients are those of the next step, of all A or all B matrices."""

    init: str
    allocation: str
    seed: int
    step: int
    gradient_A: float
    gradient_B: float
    val_loss_bits: float


def curve(
    settings: config.Settings, spec: config.RunSpec, dataset: TokenDataset, root: Path, every: int
) -> list[Point]:
    """A training of w by the settings' optimizer, looked at before the first step and then at regular intervals."""
    training, context = settings.training, settings.model.context_length
    run = build_run(settings, spec, dataset, root, torch.device("cpu"))
    rows = training.tokens_per_step // context
    sampler = ChunkSampler(dataset.tokens("train"), context, rows, spec.seed, "train batches")
    w = run.subspace.subspace_params
    optimizer = AdamW([{"params": [w]}], lr=0.0, betas=training.betas, eps=training.epsilon)
    warmup_steps = max(1, round(training.warmup_fraction * training.steps))
    points = []
    for step in range(training.steps + 1):
        theta_D = run.subspace.theta(w)
        leaf_D = theta_D.detach().requires_grad_()
        tokens, targets = (torch.from_numpy(part) for part in sampler.batch(step))
        model = run.network.at(leaf_D)
        model.cross_entropy(model.hidden(tokens).flatten(0, 1), targets.flatten()).backward()
        if step <= EARLY_STEPS or step % every == 0:
            norms = [float(leaf_D.grad[run.network.space.span(factor)].norm()) for factor in "AB"]
            loss = token_losses(run, model)["val_loss_bits"]
            points.append(Point(settings.lora.init, spec.allocation, spec.seed, step, *norms, loss))
        if step == training.steps:
            return points
        rates = {"steps": training.steps, "peak": training.learning_rate, "final": training.final_learning_rate}
        optimizer.param_groups[0]["lr"] = learning_rate(step, **rates, warmup_steps=warmup_steps)
        optimizer.zero_grad()
        theta_D.backward(leaf_D.grad)
        torch.nn.utils.clip_grad_norm_([w], training.gradient_clip)
        optimizer.step()
    raise AssertionError("the last step returns")


@style.styled
def draw(points: list[Point]) -> Figure:
    """Gradient norms of A and B (left) and what other arms lose on the B-heavy one (right), means over seeds."""
    figure, (left, right) = style.panels_in(style.PAGE_INCHES, 2.3, columns=2)
    others = [allocation for allocation in ALLOCATIONS if allocation != REFERENCE]
    for init in INITS:
        for factor, colour in FACTOR_COLOURS.items():
            line(left, points, init, SHOWN, f"gradient_{factor}", colour)
        _, reference = mean_curve(points, init, REFERENCE, "val_loss_bits")
        for allocation in others:
            steps, losses = mean_curve(points, init, allocation, "val_loss_bits")
            colour = style.colour_of(arm(allocation))
            right.plot(steps[1:], (losses - reference)[1:], color=colour, linestyle=LINES[init])
    right.axhline(0.0, color=style.FAINT, linewidth=0.8, zorder=1)
    left.set_yscale("log")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("Training step")
    left.set_ylabel("Norm of the gradient (nats)")
    right.set_ylabel("Val loss (bits per token)")
    left.set_title(f"Gradients, {arm(SHOWN).label}; before step 1 that of A is 0 if B = 0", loc="left")
    right.set_title(f"Loss above that of {arm(REFERENCE).label}, same initialization", loc="left")
    handles = [Line2D([], [], color=c, label=f"Gradient of {f}") for f, c in FACTOR_COLOURS.items()]
    handles += [Line2D([], [], color=style.colour_of(arm(a)), label=arm(a).label) for a in others]
    handles += [Line2D([], [], color=style.INK, linestyle=LINES[i], label=text) for i, text in INITS.items()]
    style.add_legend(figure, handles)
    return figure


def arm(allocation: str) -> Arm:
    parsed = parse_allocation(allocation)
    return Arm(parsed.name, parsed.mode, parsed.ratio)


def line(axes: Axes, points: list[Point], init: str, allocation: str, column: str, colour: str) -> None:
    steps, means = mean_curve(points, init, allocation, column)
    axes.plot(steps[1:], means[1:], color=colour, linestyle=LINES[init])


def mean_curve(points: list[Point], init: str, allocation: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the mean of a column over seeds at each."""
    chosen = [point for point in points if (point.init, point.allocation) == (init, allocation)]
    steps = sorted({point.step for point in chosen})
    return np.array(steps), np.array([np.mean([getattr(p, column) for p in chosen if p.step == s]) for s in steps])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--root", type=Path, help="folder that holds data/ (default: the one above the settings')")
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--every", type=int, default=10, help="steps between looks")
    parser.add_argument("--figure", type=Path, default=REPOSITORY / "docs/images/allocation_init.png")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/results/initialization.csv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = config.load_settings(given.config)
    root = given.root or config.root_of(given.config)
    dataset = open_target(settings, root)
    points = []
    print("init | allocation | step | gradient of A | of B | val loss, bits")
    for init in INITS:
        changed = settings.model_copy(update={"lora": settings.lora.model_copy(update={"init": init})})
        for allocation in ALLOCATIONS:
            for seed in settings.grid.seeds:
                spec = config.RunSpec(budget=given.budget, allocation=allocation, seed=seed)
                points += curve(changed, spec, dataset, root, given.every)
            columns = [mean_curve(points, init, allocation, c) for c in ("gradient_A", "gradient_B", "val_loss_bits")]
            for index, step in enumerate(columns[0][0]):
                means = (f"{values[index]:.4f}" for _, values in columns)
                print(init, allocation, step, *means, sep=" | ", flush=True)
    with atomic_path(given.out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(Point)])
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in dataclasses.astuple(p)] for p in points)
    figure = draw(points)
    with atomic_path(given.figure) as temporary:
        figure.savefig(temporary, format="png", dpi=style.PNG_DPI, metadata={"Software": None})


if __name__ == "__main__":
    main()

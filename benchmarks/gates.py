"""Can the gates of the learned allocation be found in a better way, by the bound?

    python -m benchmarks.gates --seeds 2001 2002 2003 2004 --out FILE.csv    # --jobs 2: two processes side by side
    python -m benchmarks.gates summarize FILE.csv

Trains, scores and bounds the demo's network from `lora.init: both_random`, a row of the file for each variant, budget
and seed, written as it finishes; rows that are there are not run again. The variants:

    learned          a gate for each group, as they are
    one_gate         one gate for all groups
    start            gates start from the gains of A and B along their gradients at w = 0 instead of 1/2
    choice           at the end of the soft phase k is chosen on val documents, over a small grid
    start_choice     both
    uniform, fixed-0.2, fixed-0.5, fixed-0.8    without gates

All have the same settings and a grid of the same size, so the same bits name the arm. No variant owes more: the
message holds k, however it was found.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks import gate_summary
from benchmarks.gate_variants import OneGate, Variant, VariantTrainer
from benchmarks.study_rows import read_rows, write_rows
from sublora import config
from sublora.bounds.premises import headline_bound
from sublora.data.base_and_target import open_target
from sublora.runs.bound import bound_run
from sublora.runs.build import build_run
from sublora.runs.losses_file import read_losses
from sublora.runs.message import Message, read_message
from sublora.runs.score import score_run
from sublora.subspace import allocations
from sublora.system.device import use_device
from sublora.system.errors import UserError
from sublora.system.names import BOUNDS_NAME, CERTIFICATE_NAME, CHECKPOINT_NAME, LOSSES_NAME
from sublora.training import checkpoint
from sublora.training.reporting import Progress

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / "docs/studies/allocation/settings/demo.yaml"
ROOT = REPOSITORY / "demo"
BUDGETS = (500, 1000)
ALLOCATIONS = ("uniform", *gate_summary.FIXED, "learned")
VARIANTS = {
    "learned": Variant("learned"),
    "one_gate": Variant(OneGate.mode),
    "start": Variant("learned", start=True),
    "choice": Variant("learned", choice=True),
    "start_choice": Variant("learned", start=True, choice=True),
    **{name: Variant(name) for name in ("uniform", *gate_summary.FIXED)},
}
COLUMNS = (
    "variant",
    "budget",
    "seed",
    "bound_value",
    "test_loss_bits",
    "empirical_bpd",
    "code_bits",
    "gate_bits",
    "gate_bits_cost",
    "estimated_bound_bits",
    "gamma",
    "start_gamma",
    "choice_gain_bits",
    "seconds",
    "grid_runs",
)
"""gate_bits_cost: what the gates' bits add to bound_value. choice_gain_bits: the trained split's criterion minus that
of the chosen one. gamma: B's share in the final split, `group:share` for each gate. grid_runs: C pays for an index
below it."""

Row = dict[str, Any]
Key = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Study:
    """What all runs share."""

    settings: config.Settings
    """Those of the demo at the time of the study, from both_random."""
    root: Path
    """The folder that holds data/ and results/base/."""
    seeds: tuple[int, ...]
    budgets: tuple[int, ...] = BUDGETS

    @classmethod
    def of(cls, path: Path, root: Path, seeds: Sequence[int], budgets: Sequence[int] = BUDGETS) -> "Study":
        """Return the study of a settings file. UserError if it does not train for the message or repeats a seed."""
        settings = config.load_settings(path)
        if settings.message.quantizer != "entropy":
            raise UserError(f"{path}: message.quantizer is {settings.message.quantizer}, expected entropy")
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise UserError(f"--seeds: expected different numbers of at least 0, found {' '.join(map(str, seeds))}")
        lora = settings.lora.model_copy(update={"init": "both_random"})
        settings = settings.model_copy(update={"lora": lora})
        return cls(settings, root, tuple(seeds), tuple(budgets))

    def settings_of(self, variant: Variant) -> config.Settings:
        """With the study's grid; an allocation that is not in it takes the place of `learned`."""
        names = ALLOCATIONS if variant.allocation in ALLOCATIONS else (*ALLOCATIONS[:-1], variant.allocation)
        changes = {"budgets": self.budgets, "allocations": names, "seeds": self.seeds}
        return self.settings.model_copy(update={"grid": self.settings.grid.model_copy(update=changes)})

    @property
    def grid_runs(self) -> int:
        return len(self.budgets) * len(ALLOCATIONS) * len(self.seeds)


@dataclasses.dataclass(frozen=True)
class Task:
    """One run of a study."""

    variant: str
    budget: int
    seed: int

    @property
    def key(self) -> Key:
        return self.variant, str(self.budget), str(self.seed)


@contextlib.contextmanager
def one_gate_known() -> Iterator[None]:
    """Settings and certificates that name `one_gate` can be read within."""
    before = allocations.ALLOCATIONS
    allocations.ALLOCATIONS = (*before, OneGate)
    try:
        yield
    finally:
        allocations.ALLOCATIONS = before


def train_score_bound(study: Study, task: Task, out: Path) -> VariantTrainer:
    """Leave the files of a run in `out`, as the workflow does; returns the finished training."""
    variant, device = VARIANTS[task.variant], torch.device("cpu")
    settings = study.settings_of(variant)
    spec = config.RunSpec(budget=task.budget, allocation=variant.allocation, seed=task.seed)
    use_device(settings.compute, device)
    dataset = open_target(settings, study.root)
    run = build_run(settings, spec, dataset, study.root, device, dtype=settings.compute.dtype)
    training = settings.training
    progress = Progress(spec.name, steps=training.steps, tokens_per_step=training.tokens_per_step, quiet=True)
    trainer = VariantTrainer(run, variant, out=out, progress=progress)
    trainer.train()
    trainer.forget_state()
    # The lines with which scoring and bounding start say the same for every run.
    with contextlib.redirect_stderr(io.StringIO()):
        score_run(out, root=study.root)
        bound_run(out)
    return trainer


def measure(study: Study, task: Task) -> Row:
    """The row of a run."""
    started = time.monotonic()
    with one_gate_known(), tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        trainer = train_score_bound(study, task, out)
        record = json.loads((out / BOUNDS_NAME).read_text(encoding="utf-8"))
        message, trained = read_message(out / CERTIFICATE_NAME), checkpoint.load(out / CHECKPOINT_NAME)
        cost = gate_bits_cost(message, record["code_bits"], read_losses(out / LOSSES_NAME).of(message).losses_bits)
        groups, sizes = [gate.group for gate in message.gates], [gate.size for gate in message.gates]
    gamma = [k / size for k, size in zip(message.contents.gates, sizes, strict=True)]
    choice = trainer.choice
    row = {name: record[name] for name in ("bound_value", "test_loss_bits", "empirical_bpd", "code_bits")}
    return row | {
        "variant": task.variant,
        "budget": task.budget,
        "seed": task.seed,
        "gate_bits": message.payload.items["gates"],
        "gate_bits_cost": cost,
        "estimated_bound_bits": trained["estimated_bound_bits"],
        "gamma": shares(groups, gamma),
        "start_gamma": shares(groups, trainer.start) if trainer.start else "",
        "choice_gain_bits": choice.trained_value - choice.value if choice else "",
        "seconds": time.monotonic() - started,
        "grid_runs": study.grid_runs,
    }


def gate_bits_cost(message: Message, code_bits: float, losses_bits: Any) -> float:
    """The bound minus what it would be if the gates' bits were free, bits per token."""
    premises, loss_range = message.loss.premises, message.loss.range_of(message.smoothing)
    charged = [code_bits, code_bits - message.payload.items["gates"]]
    with_gates, without = (headline_bound(losses_bits, loss_range, bits, premises) for bits in charged)
    return with_gates - without


def shares(groups: Sequence[str], gamma: Sequence[float]) -> str:
    return " ".join(f"{group}:{share:.3f}" for group, share in zip(groups, gamma, strict=True))


def finished_rows(path: Path, study: Study) -> list[dict[str, str]]:
    """Rows that are there; UserError if they are of other columns, of a grid of another size, or of other seeds."""
    rows = read_rows(path, COLUMNS, fix="give another --out")
    known = {str(seed) for seed in study.seeds}
    if any(row["grid_runs"] != str(study.grid_runs) or row["seed"] not in known for row in rows):
        raise UserError(f"{path}: has rows of other --seeds, whose grid is another; give those seeds or another --out")
    return rows


def measured(study: Study, tasks: Sequence[Task], jobs: int) -> Iterator[Row]:
    """Rows as they finish, from `jobs` processes; with one job from this process."""
    if jobs == 1:
        yield from map(functools.partial(measure, study), tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(measure, study, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def run_study(study: Study, tasks: Sequence[Task], path: Path, *, jobs: int = 1) -> list[Row]:
    """Run what `path` does not hold yet and add it; returns all rows of the file."""
    rows: list[Row] = list(finished_rows(path, study))
    done = {(row["variant"], row["budget"], row["seed"]) for row in rows}
    missing = [task for task in tasks if task.key not in done]
    for count, row in enumerate(measured(study, missing, jobs), start=1):
        rows.append({key: f"{value:.8g}" if isinstance(value, float) else value for key, value in row.items()})
        write_rows(path, COLUMNS, rows)
        facts = f"bound {row['bound_value']:.4f}, test {row['test_loss_bits']:.4f}, {row['seconds']:.0f} s"
        name = f"{row['variant']} d{row['budget']} seed{row['seed']}"
        print(f"{count} of {len(missing)}: {name}: {facts} {row['gamma']}", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gates",
        description=__doc__.splitlines()[0],
        epilog="summarize FILE.csv prints the comparisons of a file.",
    )
    parser.add_argument("summarize", nargs="*", metavar="summarize FILE", help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, nargs="+", help="all seeds of the file: their number enters C")
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--budgets", type=int, nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side, a thread each (default: 1)")
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings (default: those of the study)")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of data/ and results/base/ (default: demo/)")
    given = parser.parse_args(arguments)
    try:
        if given.summarize:
            if len(given.summarize) != 2 or given.summarize[0] != "summarize":
                parser.error(f"expected summarize FILE.csv, found {' '.join(given.summarize)}")
            gate_summary.summarize(Path(given.summarize[1]))
            return
        if not given.seeds or given.out is None or given.jobs < 1:
            parser.error("give --seeds and --out, and --jobs of at least 1")
        study = Study.of(given.config, given.root, given.seeds)
        tasks = [Task(v, d, seed) for seed in given.seeds for d in given.budgets for v in given.variants]
        run_study(study, tasks, given.out, jobs=given.jobs)
    except UserError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()

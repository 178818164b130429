"""What few documents can certify: all n of them train a message, or some of the n are held out and test the network.

    python -m benchmarks.few_documents DEMO WORK FILE.csv    # a row for each run, written as it finishes

DEMO is the folder of the finished demo, which lends base and documents; WORK gets a folder for every n. Rows that are
in FILE.csv are not computed again. The plan is docs/studies/few_documents/plan.md, the figure that of
benchmarks/few_documents_figure.py; benchmarks/few_documents_prediction.py prints what `sublora adapt` expects.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml

from benchmarks.study_rows import read_rows, write_rows
from sublora import config
from sublora.bounds.anchor import AnchoredMixture, FailureShare, certified_gain_bits, excess_bound
from sublora.bounds.premises import BoundedLoss
from sublora.bounds.selection import choose_smoothing
from sublora.bounds.smoothing import DocumentMixture
from sublora.data.base_and_target import open_target, open_text_keys
from sublora.data.corpora import open_reader
from sublora.data.dataset import TokenDataset
from sublora.data.prepare import prepare_dataset
from sublora.data.units import Units
from sublora.losses.bounded import bounded_loss, judged_losses_DA
from sublora.losses.documents import score_documents
from sublora.runs.base_losses import write_base_losses
from sublora.runs.bound import bound_run
from sublora.runs.build import RunFolder, build_run
from sublora.runs.losses_file import read_losses
from sublora.runs.message import read_message
from sublora.runs.score import Predictor, held_out_units, record_documents, score_run
from sublora.runs.train import train_run
from sublora.system.device import claim_device
from sublora.system.errors import UserError
from sublora.system.files import atomic_path
from sublora.system.names import BASE_LOSSES_PATH, BOUNDS_NAME, CERTIFICATE_NAME, CHECKPOINT_NAME, LOSSES_NAME
from sublora.system.streams import generator

CHANGES = Path(__file__).resolve().parents[1] / "docs/studies/few_documents/settings.yaml"
TEXTS = "texts/functions.jsonl"
HELD_OUT_BUDGET = 2000
"""No message is paid for where documents are held out, so nothing speaks for a smaller d of the grid."""
MOST_HELD_OUT = 1000
"""Units held out: half of the n, and no more than these."""
HELD_OUT_DOCUMENTS = 1500
"""Documents of them that are scored, about: as many of each unit, drawn at random."""
CHANGED_SINCE = ("subspace", "message")
"""Sections of settings.yaml that say how the demo was when the study ran."""
COLUMNS = (
    *("cell", "unit", "n", "arm", "d", "seed", "n_trained", "m", "code_bits", "extra_bits", "smoothing"),
    *("gain", "gain_choice_paid", "gain_untuned", "test_gain", "excess", "excess_sd", "bound", "base_bound"),
    *("cpu_seconds", "data_hash"),
)
"""arm: message or held out. n_trained, m: units trained on, and scored for the gain. gain: certified_gain_bits, for a
run that was named beforehand; gain_choice_paid: for the best of its cell; gain_untuned: without the bits that the demo
owes for hand tuning on these documents. test_gain: mean gain over the base on the test documents. bits per byte."""

Arm = Literal["message", "held out"]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One n, with what follows from it."""

    unit: config.Unit
    n: int | None
    """None: all."""
    budgets: tuple[int, ...]
    """First the d that `sublora plan` chooses beforehand."""
    scored: int | Literal["all"]
    """Units whose losses the gain of a message follows from."""

    @property
    def name(self) -> str:
        return f"{self.unit}_{self.n or 'all'}"


SEEDS = (4001, 4002, 4003)
SEEDS_OF_THE_DEMO = (42, 123, 999)
CELLS = (
    Cell("document", 100, (50, 25), "all"),
    Cell("document", 300, (125, 50), "all"),
    Cell("document", 1000, (250, 500), "all"),
    Cell("document", 3000, (500, 1000), 600),
    Cell("document", 10_000, (1000, 2000), 600),
    Cell("source", 100, (50,), "all"),
    Cell("source", 300, (125,), 150),
    Cell("source", 1000, (250,), 150),
    Cell("source", None, (1000,), 150),
)
OF_ALL_DOCUMENTS = Cell("document", None, (2000, 1000), 400)
"""Six runs of the demo, with the settings that it had when the study ran."""


def cell_values(demo: dict[str, Any], cell: Cell, *, n_train: int | None, arm: Arm) -> dict[str, Any]:
    """Return the settings of a cell as plain values, from those of the demo and of settings.yaml."""
    values = {section: dict(keys) for section, keys in demo.items()}
    for section, keys in yaml.safe_load(CHANGES.read_text(encoding="utf-8")).items():
        values[section] |= keys
    values["grid"]["budgets"] = sorted(cell.budgets) if arm == "message" else [HELD_OUT_BUDGET]
    values["data"] |= {"unit": cell.unit} | ({} if n_train is None else {"train_documents": n_train})
    scored = cell.scored if arm == "message" else "all"
    values["scoring"] |= {"documents": scored, "base_documents": scored}
    if cell.unit == "source":
        # 50 documents would be of three or four sources.
        values["data"] |= {"corpus": values["data"]["corpus"] | {"unit_field": "source"}, "val_documents": 100}
        values["scoring"] |= {"val_documents": 100}
        values["rate_phase"] |= {"val_documents": 100}
    if arm == "held out":
        # No bit is paid for, so training prices none; it may stop early instead.
        values["message"] |= {"quantizer": "plain"}
        values["training"] |= {"eval_interval_steps": 50}
    return values


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A folder with settings, data and results of one cell and arm, which the workflow would take as it is."""

    root: Path
    settings: config.Settings

    @classmethod
    def make(cls, demo: Path, root: Path, values: dict[str, Any]) -> "Experiment":
        """Write the settings and prepare the data, unless they are there; what the demo has is linked."""
        path = root / "config/config.yaml"
        for folder in ("config", "data", "results"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        settings = config.load_settings(path)
        assert isinstance(settings.base, config.TrainedBase)
        # The demo has the documents of no cell but the one of all of them.
        for shared in (f"data/{settings.base.name}", f"data/{settings.data.name}", "results/base"):
            if (demo / shared).exists() and not (root / shared).exists():
                (root / shared).symlink_to((demo / shared).resolve())
        experiment = cls(root, settings)
        with contextlib.suppress(UserError):
            open_target(settings, root)
            return experiment
        prepare_dataset(settings.data, root, exclude=open_text_keys(settings, root))
        return experiment

    @property
    def config_path(self) -> Path:
        return self.root / "config/config.yaml"

    @property
    def dataset(self) -> TokenDataset:
        return open_target(self.settings, self.root)

    def trained(self, budget: int, seed: int) -> Path:
        """Train a run, unless it is trained; return its folder."""
        runs = self.settings.grid.runs()
        spec = next(each for each in runs if (each.budget, each.seed) == (budget, seed))
        out = self.root / "results/runs" / spec.name
        if not (out / CHECKPOINT_NAME).exists():
            train_run(self.settings, spec, root=self.root, out=out, settings_file=self.config_path)
        return out

    def bounded(self, budget: int, seed: int) -> Path:
        """Train, score and bound a run, as far as that is not done; return its folder."""
        self.write_base_losses()
        out = self.trained(budget, seed)
        if not (out / BOUNDS_NAME).exists():
            score_run(out, config_path=self.config_path, root=self.root)
            bound_run(out, config_path=self.config_path)
        return out

    def write_base_losses(self) -> None:
        """Score the base once for all runs, unless that is done."""
        if (self.root / BASE_LOSSES_PATH).exists():
            return
        spec = self.settings.grid.runs()[0]
        with claim_device(self.settings.compute) as device:
            run = build_run(self.settings, spec, self.dataset, self.root, device)
            assert run.loss.anchoring is not None
            write_base_losses(self.root / BASE_LOSSES_PATH, run, run.loss.anchoring)


def write_texts(demo: Path, path: Path) -> None:
    """Write the documents of the demo that are neither too short nor too long, with their source files."""
    data = config.load_settings(demo / "config/config.yaml").data
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        for batch in open_reader(data.corpus, demo).batches():
            texts = batch.read()
            for text, source in zip(texts.documents, texts.sources or [], strict=True):
                if data.min_characters <= len(text) <= (data.max_characters or len(text)):
                    handle.write(json.dumps({"text": text, "source": source}) + "\n")


def message_row(out: Path) -> Row:
    """Return the row of a run that was trained on all n units, scored and bounded."""
    record = json.loads((out / BOUNDS_NAME).read_text(encoding="utf-8"))
    message = read_message(out / CERTIFICATE_NAME)
    losses, mixture, loss = read_losses(out / LOSSES_NAME).of(message), message.mixture, message.loss
    assert mixture is not None and loss.anchoring is not None
    assert losses.excess_bits is not None and losses.test_excess_bits is not None
    untuned = record["code_bits"] - record["code_items"]["extra"]
    share = loss.anchoring.excess_share(loss.premises.m_units)
    return {
        "n": record["n_units"],
        "arm": "message",
        "d": record["run"]["budget"],
        "seed": record["run"]["seed"],
        "n_trained": record["n_units"],
        "m": record["m_units"],
        "code_bits": record["code_bits"],
        "extra_bits": record["code_items"]["extra"],
        "smoothing": record["smoothing"],
        "gain": record["certified_gain_bits"],
        "gain_choice_paid": record["certified_gain_all_runs_bits"],
        "gain_untuned": gain_of(losses.excess_bits, mixture, loss, record["n_units"], untuned, share),
        "test_gain": -float(losses.test_excess_bits.mean()),
        "excess": record["anchor"]["excess"],
        "excess_sd": record["anchor"]["excess_sd"],
        "bound": record["bound_value"],
        "base_bound": record["anchor"]["base_bound"],
        "data_hash": record["data_hash"],
    }


def gain_of(
    excess_U: np.ndarray, mixture: AnchoredMixture, loss: BoundedLoss, n: int, code_bits: float, share: FailureShare
) -> float:
    """Return the gain over the base that losses in excess of its own certify, bits per token."""
    excess_range = mixture.excess_range_bits(*loss.population)
    bound = excess_bound(excess_U, excess_range, n=n, code_bits=code_bits, share=share)
    return certified_gain_bits(bound, mixture.k0, loss.min_targets)


def held_out_documents(dataset: TokenDataset, held_out: int) -> tuple[np.ndarray, Units]:
    """Return documents of the last units of train, as many of each as the study scores, and their grouping."""
    units, most = dataset.units("train"), max(1, HELD_OUT_DOCUMENTS // held_out)
    rng = generator("held out of few documents", dataset.data_hash, held_out)
    drawn = [
        np.sort(rng.choice(documents_D, size=min(most, len(documents_D)), replace=False))
        for documents_D, _ in (units.take(np.array([u])) for u in range(len(units) - held_out, len(units)))
    ]
    starts_U = np.cumsum([0, *map(len, drawn[:-1])])
    return np.concatenate(drawn), Units(sum(map(len, drawn)), starts_U)


def held_out_row(experiment: Experiment, out: Path, dataset: TokenDataset) -> Row:
    """Return the row of a run that was trained on the first of the n units in `dataset` and is tested on the others."""
    n, n_trained = dataset.n_units, experiment.dataset.n_units
    folder, scoring = RunFolder.open(out, experiment.config_path, experiment.root), experiment.settings.scoring
    with claim_device(experiment.settings.compute) as device, torch.no_grad():
        # Val and test are those of every n; the training units after the first `n_trained` were not trained on.
        run = dataclasses.replace(folder.load(device), dataset=dataset)
        loss = bounded_loss(
            run.settings, vocab_size=dataset.vocab_size, n_units=n - n_trained, n_documents=n - n_trained
        )
        model = run.model_at(run.subspace.subspace_params)
        # The mixture is chosen on val, where nothing is paid for it.
        val = run.val_units
        scores = score_documents(model, val.documents, run.scoring_rule, device)
        judged_UA = val.units.means(judged_losses_DA(loss, scores, val.base_log_p_D))
        mixture = loss.mixtures[choose_smoothing(judged_UA, loss, code_bits=0.0)]
        predictor = Predictor(model, mixture, run.base())
        documents_D, units = held_out_documents(dataset, n - n_trained)
        excess_U = units.means(record_documents(run, predictor, "train", documents_D).excess_D)
        test_excess_U = held_out_units(run, predictor, "test", scoring.test_documents).excess_U
    row = {"n": n, "n_trained": n_trained, "d": run.spec.budget, "seed": run.spec.seed, "data_hash": dataset.data_hash}
    return (
        row
        | tested(excess_U, mixture, loss, run.settings.message.extra_bits)
        | {"test_gain": -float(test_excess_U.mean())}
    )


def tested(excess_U: np.ndarray, mixture: AnchoredMixture, loss: BoundedLoss, extra_bits: float) -> Row:
    """Return the entries of a row that follow from documents on which nothing was trained."""
    assert loss.anchoring is not None
    share, m = loss.anchoring.excess_share(None), len(excess_U)
    return {
        "arm": "held out",
        "m": m,
        "code_bits": extra_bits,
        "extra_bits": extra_bits,
        "smoothing": DocumentMixture(mixture.k).name,
        "gain": gain_of(excess_U, mixture, loss, m, extra_bits, share),
        "gain_untuned": gain_of(excess_U, mixture, loss, m, 0.0, share),
        "excess": float(excess_U.mean()),
        "excess_sd": float(excess_U.std()),
    }


@dataclasses.dataclass(frozen=True)
class Task:
    """A run, which becomes a row."""

    cell: Cell
    arm: Arm
    budget: int
    seed: int

    @property
    def key(self) -> tuple[str, ...]:
        return self.cell.name, self.arm, str(self.budget), str(self.seed)


@dataclasses.dataclass(frozen=True)
class Study:
    """All cells, in folders below `work`."""

    demo: Path
    work: Path

    def experiment(self, cell: Cell, arm: Arm, n_train: int | None) -> Experiment:
        """Return the folder of a cell and arm, made if it is not there."""
        demo = yaml.safe_load((self.demo / "config/config.yaml").read_text(encoding="utf-8"))
        if not (self.work / TEXTS).exists():
            write_texts(self.demo, self.work / TEXTS)
        root = self.work / (cell.name if arm == "message" else f"{cell.name}_held_out")
        return Experiment.make(self.demo, root, cell_values(demo, cell, n_train=n_train, arm=arm))

    def demo_at_the_time(self) -> Experiment:
        """Return the demo with the settings of settings.yaml that have changed in it since, in a folder of its own."""
        values = yaml.safe_load((self.demo / "config/config.yaml").read_text(encoding="utf-8"))
        changes = yaml.safe_load(CHANGES.read_text(encoding="utf-8"))
        for section in CHANGED_SINCE:
            values[section] = values.get(section, {}) | changes[section]
        return Experiment.make(self.demo, self.work / OF_ALL_DOCUMENTS.name, values)

    def row(self, task: Task) -> Row:
        """Compute a row."""
        cell = task.cell
        if cell is OF_ALL_DOCUMENTS:
            return self._row_of_the_demo(task)
        whole = self.experiment(cell, "message", cell.n)
        if task.arm == "message":
            return message_row(whole.bounded(task.budget, task.seed))
        dataset = whole.dataset
        n_train = dataset.n_units - min(dataset.n_units // 2, MOST_HELD_OUT)
        part = self.experiment(cell, "held out", n_train)
        return held_out_row(part, part.trained(task.budget, task.seed), dataset)

    def _row_of_the_demo(self, task: Task) -> Row:
        out = self.demo_at_the_time().bounded(task.budget, task.seed)
        row = message_row(out)
        if task.arm == "message":
            return row
        # Its test documents are as good as held out: they are not among the n.
        message = read_message(out / CERTIFICATE_NAME)
        test_excess_D = read_losses(out / LOSSES_NAME).of(message).test_excess_bits
        assert message.mixture is not None and test_excess_D is not None
        held_out = tested(test_excess_D, message.mixture, message.loss, row["extra_bits"])
        return {key: row[key] for key in ("n", "n_trained", "d", "seed", "test_gain", "data_hash")} | held_out


def all_tasks() -> Iterator[Task]:
    """Yield all runs in the order of the plan: seed by seed, and last what is left out first if time ends."""
    for seed in SEEDS_OF_THE_DEMO:
        yield from (Task(OF_ALL_DOCUMENTS, "message", budget, seed) for budget in OF_ALL_DOCUMENTS.budgets)
        yield Task(OF_ALL_DOCUMENTS, "held out", HELD_OUT_BUDGET, seed)
    for seed in SEEDS:
        for cell in CELLS:
            yield Task(cell, "message", cell.budgets[0], seed)
            yield Task(cell, "held out", HELD_OUT_BUDGET, seed)
    for seed in SEEDS:
        yield from (Task(cell, "message", budget, seed) for cell in CELLS for budget in cell.budgets[1:])


def run_study(study: Study, path: Path, *, cpu_minutes: float) -> None:
    """Compute the rows that `path` does not hold yet, until the runs of the study have taken that much CPU time."""
    rows = read_rows(path, COLUMNS, fix="give another")
    done = {(row["cell"], row["arm"], row["d"], row["seed"]) for row in rows}
    spent = sum(float(row["cpu_seconds"]) for row in rows)
    for task in all_tasks():
        if task.key in done:
            continue
        if spent >= 60.0 * cpu_minutes:
            print(f"{' '.join(task.key)}: left out, {spent / 60.0:.1f} CPU minutes are spent", flush=True)
            continue
        started = time.process_time()
        # The lines with which stages start say the same for every run.
        with contextlib.redirect_stderr(io.StringIO()):
            row = study.row(task)
        seconds = time.process_time() - started
        spent += seconds
        row |= {"cell": task.cell.name, "unit": task.cell.unit, "cpu_seconds": seconds}
        rows.append({key: _in_text(row.get(key, "")) for key in COLUMNS})
        write_rows(path, COLUMNS, rows)
        print(f"{' '.join(task.key)}: gain {row['gain']:.4f}, {seconds:.0f} s of {spent:.0f} s", flush=True)


def _in_text(value: object) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_documents", description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of the finished demo")
    parser.add_argument("work", type=Path, help="folder for the data and results of every n")
    parser.add_argument("csv", type=Path, help="file of the rows")
    parser.add_argument("--cpu-minutes", type=float, default=55.0, help="no run starts once these are spent")
    given = parser.parse_args(arguments)
    try:
        run_study(Study(given.demo, given.work), given.csv, cpu_minutes=given.cpu_minutes)
    except UserError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()

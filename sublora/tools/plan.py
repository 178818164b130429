"""The cost of a grid before it runs: GPU hours, disk space and waves of jobs, from measured throughput.

Nothing here is assumed: a number without a measurement is left open, with the command that would measure it.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from sublora import config
from sublora.data.dataset import TokenDataset
from sublora.data.tokenizers import TOKENIZERS
from sublora.losses import TOP_K
from sublora.losses.documents import NARROWEST
from sublora.losses.windows import WindowRule, padded_widths, sliding_windows
from sublora.runs.losses_file import read_losses
from sublora.runs.message_cost import MessageCost, message_cost
from sublora.runs.networks import trained_parameters
from sublora.runs.starts import foreign_setting
from sublora.system.errors import UserError
from sublora.system.files import absolute
from sublora.system.names import BOUNDS_NAME, CHECKPOINT_NAME, LOSSES_NAME
from sublora.tools.throughput import Throughput, dataset_if_prepared, measure_throughput
from sublora.training import checkpoint

SAMPLED_DOCUMENTS = 100_000
"""The number of training documents whose windows are counted; of more documents, evenly spaced ones are taken."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cost of the runs of a grid. Hours are those of one GPU; None without a measurement."""

    runs: int
    processes: int
    training_tokens: int
    """Training tokens of one run."""
    scoring_tokens: float | None
    """Tokens through the network to encode and score one run; None before the data are prepared."""
    training_hours: float
    scoring_hours: float | None
    data_bytes: int | None
    largest_run_bytes: int | None
    """The size of a run's files without compression; None if all documents are scored and are not prepared yet."""
    measured_run_bytes: list[int]
    """The size on disk of each finished run; runs with other settings do not count."""

    @property
    def gpu_hours(self) -> float | None:
        """GPU hours of all runs together."""
        return None if self.scoring_hours is None else self.runs * (self.training_hours + self.scoring_hours)

    def wall_hours(self, gpus: int) -> float | None:
        """Return the hours until the last run is scored, in waves of trainings, then of scorings, on `gpus` free GPUs.

        None without a measurement of scoring. UserError if the GPUs do not suffice for one training.
        """
        if self.scoring_hours is None:
            return None
        at_once = gpus // self.processes
        if at_once == 0:
            raise UserError(f"--gpus {gpus}: a training needs {self.processes} (compute.gpus_per_training)")
        trainings = math.ceil(self.runs / at_once) * self.training_hours / self.processes
        return trainings + math.ceil(self.runs / gpus) * self.scoring_hours


def make_plan(settings: config.Settings, root: Path, throughput: Throughput) -> Plan:
    """Return the cost of all runs of a settings file at a throughput; reads data and finished runs below `root`."""
    # Tokens of one run, for training and for scoring.
    training = settings.training
    tokens = training.steps * training.tokens_per_step
    dataset = dataset_if_prepared(settings, root)
    scored = None if dataset is None else scoring_tokens(settings, dataset)
    scoring_hours = None if scored is None or not throughput.scoring else scored / throughput.scoring / 3600
    documents = scored_count(settings, dataset)
    # Hours and sizes; finished runs give sizes that were measured.
    folders = [root / "results/runs" / run.name for run in settings.grid.runs()]
    return Plan(
        runs=len(folders),
        processes=settings.compute.gpus_per_training,
        training_tokens=tokens,
        scoring_tokens=scored,
        training_hours=tokens / throughput.training / 3600,
        scoring_hours=scoring_hours,
        data_bytes=None if dataset is None else sum((dataset.folder / name).stat().st_size for name in dataset.files),
        largest_run_bytes=None if documents is None else largest_run_bytes(settings, documents),
        measured_run_bytes=[
            disk_bytes(folder)
            for run, folder in zip(settings.grid.runs(), folders, strict=True)
            if (folder / BOUNDS_NAME).exists() and foreign_setting(folder, settings.for_run(run)) is None
        ],
    )


def scored_count(settings: config.Settings, dataset: TokenDataset | None) -> int | None:
    """Return the number of training units that a run scores; None if these are all and nothing says how many."""
    wanted = settings.scoring.documents
    if wanted != "all":
        return wanted
    return settings.data.train_documents if dataset is None else dataset.n_units


def scoring_tokens(settings: config.Settings, dataset: TokenDataset) -> float:
    """Return the positions, padding included, that go through the network to encode and score a run.

    These are val three times, the scored part of train, and test. Units are drawn later, so their number of tokens is
    the expectation over the training units.
    """
    rule = WindowRule(settings.model.context_length, settings.scoring.sliding_window)

    def through_the_network(lengths: np.ndarray) -> float:
        return float(padded_widths(sliding_windows(lengths + 1, rule).length, rule.context_length, NARROWEST).sum())

    # Whole val and test documents; of train the expected number per drawn unit.
    train = dataset.document_lengths("train")
    sample = train[:: max(1, len(train) // SAMPLED_DOCUMENTS)]
    val, test = (
        dataset.document_lengths(split)[dataset.leading_units(split, count)[0]]
        for split, count in (("val", settings.scoring.val_documents), ("test", settings.scoring.test_documents))
    )
    documents = (scored_count(settings, dataset) or 0) * len(train) / dataset.n_units
    documents += settings.scoring.sources or 0
    drawn = through_the_network(sample) / len(sample) * documents
    return 3 * through_the_network(val) + drawn + through_the_network(test)


def largest_run_bytes(settings: config.Settings, documents: int) -> int:
    """Return the size of a run's files if losses.npz, with that many documents, were not compressed; largest budget."""
    scoring, training = settings.scoring, settings.training
    # Per scored document index, loss, log p, number of targets and top-k errors; per held-out document the loss.
    losses = documents * (8 + 8 + 8 + 8 + 4 * len(TOP_K)) + 8 * (2 * scoring.val_documents + scoring.test_documents)
    losses += 16 * (scoring.sources or 0)
    evaluations = math.ceil(training.steps / training.eval_interval_steps)
    traces = math.ceil(training.steps / settings.gating.trace_interval_steps)
    # One row of metrics.csv, and one of gating_trace.csv per gate, in characters.
    history = evaluations * 120 + traces * 55 * (settings.model.n_layer + 1)
    parameters = 4 * max(dimensions(settings), default=0)
    settings_twice = 2 * len(json.dumps(settings.model_dump(mode="json")))
    return losses + history + 2 * parameters + settings_twice + 16384


def dimensions(settings: config.Settings) -> list[int]:
    """Return d of every kind of run, in the grid's order, except where only a model's files tell the number."""
    known = TOKENIZERS.get(settings.data.tokenizer)
    return [d for d, _ in _dimensions_with_settings(settings, None if known is None else known.vocab_size)]


def message_costs(settings: config.Settings, dataset: TokenDataset) -> list[MessageCost]:
    """Return what the message of each kind of run will cost."""
    return [message_cost(own, d, dataset) for d, own in _dimensions_with_settings(settings, dataset.vocab_size)]


def _dimensions_with_settings(settings: config.Settings, vocab_size: int | None) -> list[tuple[int, config.Settings]]:
    found: dict[int, config.Settings] = {}
    for spec in settings.grid.runs():
        own = settings.for_run(spec)
        parameters = trained_parameters(own, vocab_size)
        if spec.budget != config.ALL or parameters is not None:
            found.setdefault(spec.dimension(parameters), own)
    return list(found.items())


def disk_bytes(folder: Path) -> int:
    """Return what `du` counts: the blocks of every file below a folder, in bytes."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def throughput_of_run(folder: Path, settings: config.Settings) -> Throughput:
    """Return the throughput of a finished run of the same network.

    UserError if the network is another one or the run is not finished.
    """
    # Speed depends on the network and the device, which must be the same.
    loaded = checkpoint.load(folder / CHECKPOINT_NAME)
    trained, run = checkpoint.settings_of(loaded, folder / CHECKPOINT_NAME)
    for section in ("model", "lora", "compute"):
        if getattr(trained, section) != getattr(settings, section):
            raise UserError(
                f"{folder}: its {section} settings differ from those to plan for, so its speed says nothing; "
                "give a run of the same network, or leave --run out to measure here"
            )
    # Seconds of the training, and of encoding and scoring if the documents are here.
    provenance = loaded["provenance"]
    processes = trained.compute.gpus_per_training
    rate = trained.training.steps * trained.training.tokens_per_step / provenance["seconds"] / processes
    scoring = None
    if (folder / LOSSES_NAME).exists():
        seconds = read_losses(folder / LOSSES_NAME).provenance.seconds
        dataset = dataset_if_prepared(trained, absolute(folder).parents[2])
        if dataset is not None:
            scoring = scoring_tokens(trained, dataset) / (seconds.encode + seconds.score)
    return Throughput(rate, scoring, f"{run.name}, measured on {provenance['gpu'] or 'a CPU'}")


def print_plan(
    config_path: Path,
    *,
    run: Path | None = None,
    tokens_per_second: float | None = None,
    scoring_tokens_per_second: float | None = None,
    gpus: int | None = None,
) -> None:
    """Print the cost of a settings file's grid, with throughput as given, of a finished run, or measured here."""
    # Find the throughput.
    settings, root = config.load_settings(config_path), config.root_of(config_path)
    if tokens_per_second is not None:
        throughput = Throughput(tokens_per_second, scoring_tokens_per_second, "as given")
    elif run is not None:
        throughput = throughput_of_run(run, settings)
    else:
        throughput = measure_throughput(settings, root)
    plan = make_plan(settings, root, throughput)
    # Hours of training and scoring.
    table = Table("what", "one run", f"{plan.runs} runs", "from")
    unit = "GPU hours" if settings.compute.device == "cuda" else "CPU process hours"
    table.add_row(
        f"training, {unit}",
        f"{plan.training_hours:.3g}",
        f"{plan.runs * plan.training_hours:.3g}",
        f"{plan.training_tokens:,} tokens at {throughput.training:,.0f} tokens/s",
    )
    table.add_row(f"scoring, {unit}", *_scoring_cells(plan, throughput))
    total = plan.gpu_hours
    table.add_row(
        "both", "" if total is None else f"{total / plan.runs:.3g}", "" if total is None else f"{total:.3g}", ""
    )
    if gpus is not None:
        hours = plan.wall_hours(gpus)
        table.add_row(
            f"hours, {gpus} at once", "", "" if hours is None else f"{hours:.3g}", "without time in the queue"
        )
    # What is made once: the base and the data.
    if isinstance(settings.base, config.TrainedBase):
        tokens = settings.base.steps * settings.base.tokens_per_step
        table.add_row("base, once", "", "not measured", f"{tokens:,} tokens, every weight trained")
    data = "open" if plan.data_bytes is None else _megabytes(plan.data_bytes)
    prepared = "files of data/" if plan.data_bytes is not None else "known after: sublora prepare"
    table.add_row("prepared data", "", data, f"{prepared}{settings.data.name}" if plan.data_bytes else prepared)
    # Space for the results, jobs and messages.
    table.add_row(
        "results, at most",
        "open" if plan.largest_run_bytes is None else _megabytes(plan.largest_run_bytes),
        "open" if plan.largest_run_bytes is None else _megabytes(plan.largest_run_bytes * plan.runs),
        "numbers to be stored, uncompressed",
    )
    if sizes := plan.measured_run_bytes:
        per_run = sum(sizes) / len(sizes)
        text = f"measured on the {len(sizes)} finished runs"
        table.add_row("results, on disk", _megabytes(per_run), _megabytes(per_run * plan.runs), text)
    table.add_row("jobs", "2", f"{2 * plan.runs}", f"training ({plan.processes} GPU), scoring (1 GPU)")
    for row in _message_rows(settings, root):
        table.add_row(*row)
    Console(width=140).print(table)
    print(f"throughput of one GPU or process: {throughput.source}")


def _message_rows(settings: config.Settings, root: Path) -> list[tuple[str, str, str, str]]:
    """Return the rows of the table with each message's cost, and the bound that it leaves."""
    dataset = dataset_if_prepared(settings, root)
    if dataset is None:
        return [("message", "open", "", "known after: sublora prepare")]
    return [
        (
            f"message, d = {cost.dimension:,}",
            f"{cost.bits:,.0f} bits",
            "",
            f"about; with a loss of 0 the bound is {cost.lowest_bound_bits:.2f} (guessing {cost.guessing_bits:.2f})",
        )
        for cost in message_costs(settings, dataset)
    ]


def _scoring_cells(plan: Plan, throughput: Throughput) -> tuple[str, str, str]:
    if plan.scoring_tokens is None:
        return "open", "open", "needs the documents' lengths: sublora prepare"
    if plan.scoring_hours is None or throughput.scoring is None:
        return "open", "open", f"{plan.scoring_tokens:,.0f} tokens; give --scoring-tokens-per-second"
    source = f"{plan.scoring_tokens:,.0f} tokens at {throughput.scoring:,.0f} tokens/s"
    return f"{plan.scoring_hours:.3g}", f"{plan.runs * plan.scoring_hours:.3g}", source


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.3g} MB"

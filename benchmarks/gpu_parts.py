"""The parts of `make gpu`: which commands each of them runs, and what of their results it notes."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import yaml

from benchmarks import gpu_folder
from benchmarks.gpu_folder import ROOT
from benchmarks.gpu_session import CommandFailed, Part, Session
from sublora.config import load_settings, parse_settings
from sublora.system.errors import UserError
from sublora.system.files import read_json, write_bytes
from sublora.system.names import BOUNDS_NAME, CHECKPOINT_NAME, LOSSES_NAME, METRICS_NAME

SETTINGS = ROOT / "config" / "gpt2_small.yaml"
BUDGET, SEED = 1000, 42
SAFETY = 0.8
"""Share of the measured speed that a training is planned with: evaluations and estimates of the bound come on top."""
START_SECONDS = 25.0
"""What a stage takes before its work: imports, the base's weights, the compiled functions from their cache."""
PADDING = 1.5
"""Positions per token where windows are padded to one of a few widths."""
STEPS_WITHOUT_TIMING = 300
SHORT_STEPS, SHORT_SAVES, KILLED_AT = 24, 8, 12
"""The training that is killed and resumed, and whose certificate is verified."""
TOY_PATIENCE = 40.0
"""Factor of the limits of the rehearsal: starting a process may take as long as a part's work on a GPU."""
SMALL = {"documents": 100, "sources": 25, "val_documents": 50, "test_documents": 50}
"""Documents scored for the certificate that is verified on the CPU as well, where scoring takes long."""

TOY_BUDGET, TOY_STEPS = 40, 20
TOY: dict[str, dict[str, Any]] = {
    "grid": {"budgets": [TOY_BUDGET]},
    "data": {
        "name": "toy",
        "corpus": {
            "kind": "markov",
            "symbols": 6,
            "concentration": 1.0,
            "documents": 300,
            "min_length": 40,
            "max_length": 100,
            "seed": 3,
        },
        "tokenizer": "bytes",
        "val_documents": 60,
        "test_documents": 60,
        "workers": 1,
    },
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 16, "init_std": 0.05},
    "training": {"tokens_per_step": 128, "micro_batch_sequences": 4, "eval_sequences": 16},
    "compute": {"dtype": "float32", "threads": 1, "scoring_batch_tokens": 1024},
    "scoring": {"documents": 120, "sources": None, "sliding_window": 10, "val_documents": 60, "test_documents": 60},
}
"""Changes of SETTINGS for the rehearsal; its speeds and losses say nothing."""
QUOTED = ("empirical_bpd", "bound_value", "bound_all_runs", "bound_held_out", "test_loss_bits", "code_bits")
"""Numbers of bounds.json that the results repeat, beside that of `by_source`."""
VERDICT = ("verdict", "scored_on", "differs_in", "bounds_from_own_losses")
"""Keys of a verdict that the results repeat."""


# Settings and data


def dataset(session: Session) -> Path:
    """Return the folder of the tokens."""
    return session.folder / "data" / settings_of(session, {}).data.name


def make_toy_tokens(folder: Path) -> None:
    """Draw the text of the rehearsal and pack it, as `make gpu-folder` packs the real one."""
    from sublora.data.prepare import prepare_dataset

    archive = folder / gpu_folder.TOKENS
    if not archive.exists():
        values = load_settings(SETTINGS).model_dump(mode="json")
        settings = parse_settings(_merged(values, TOY), source="toy")
        prepare_dataset(settings.data, folder)
        gpu_folder.pack_tokens(folder / "data" / settings.data.name, archive)
        shutil.rmtree(folder / "data")


def settings_of(session: Session, changes: dict[str, dict[str, Any]]) -> Any:
    """Return SETTINGS for this machine, with changes."""
    values = load_settings(SETTINGS).model_dump(mode="json")
    machine: dict[str, dict[str, Any]] = {
        "compute": {
            "device": session.device,
            "compile": session.device == "cuda" and session.machine.get("compiler") is not None,
            "threads": min(values["compute"]["threads"], os.cpu_count() or 1),
        },
        "training": {"micro_batch_sequences": session.machine.get("micro_batch_sequences", 60)},
    }
    return parse_settings(
        _merged(_merged(_merged(values, machine), TOY if session.toy else {}), changes), source=str(SETTINGS)
    )


def write_settings(session: Session, name: str, changes: dict[str, dict[str, Any]]) -> Path:
    """Write `settings_of` into the folder's config/; return the file."""
    path = session.folder / "config" / f"{name}.yaml"
    values = settings_of(session, changes).model_dump(mode="json")
    write_bytes(path, yaml.safe_dump(values, sort_keys=False).encode())
    return path


def _merged(values: dict[str, Any], changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return values | {section: values[section] | keys for section, keys in changes.items()}


def steps_of_training(session: Session) -> int:
    """Return how many steps the trainings take: as asked for, as an earlier call began them, or as the time allows."""
    path = session.folder / "config" / "runs.yaml"
    if session.steps is not None:
        return session.steps
    if path.exists():
        return load_settings(path).training.steps
    if session.toy:
        return TOY_STEPS
    settings, rows = load_settings(SETTINGS), session.parts.get("timing", {}).get("rows", {})
    step, scoring = (rows.get(name, {}) for name in ("training step, bfloat16", "scoring, float32"))
    if "product" not in step:
        return STEPS_WITHOUT_TIMING
    seconds = session.seconds_left - 2 * START_SECONDS
    if "product" in scoring:
        wanted = settings.scoring
        documents = wanted.documents + 2 * wanted.val_documents + wanted.test_documents + (wanted.sources or 0)
        positions_per_second = scoring["product"]["tokens_per_second"] * scoring["window_positions"] / scoring["tokens"]
        meta = read_json(dataset(session) / "meta.json", missing="", fix="unpack it again")
        train = meta["splits"]["train"]
        seconds -= documents * PADDING * train["tokens"] / train["documents"] / positions_per_second
    steps = SAFETY * seconds * step["product"]["tokens_per_second"] / settings.training.tokens_per_step
    return max(SHORT_STEPS, min(int(steps), settings.training.steps))


def intervals(steps: int) -> dict[str, dict[str, Any]]:
    """Return the settings of a training of this many steps: it looks and saves at least eight times."""
    most = load_settings(SETTINGS)

    def at_most(interval: int, parts: int) -> int:
        return max(1, min(interval, steps // parts))

    training = most.training
    return {
        "training": {
            "steps": steps,
            "eval_interval_steps": at_most(training.eval_interval_steps, 8),
            "save_interval_steps": at_most(training.save_interval_steps, 8),
        },
        "gating": {"trace_interval_steps": at_most(most.gating.trace_interval_steps, 8)},
        "rate_phase": {"choice_interval_steps": at_most(most.rate_phase.choice_interval_steps, 16)},
    }


def run_of(session: Session, allocation: str, where: str) -> tuple[list[str], Path]:
    """Return the options that name a run, and its folder below results/."""
    budget = TOY_BUDGET if session.toy else BUDGET
    options = ["--budget", str(budget), "--allocation", allocation, "--seed", str(SEED)]
    return options, session.folder / "results" / where / f"d{budget}_{allocation}_seed{SEED}"


# The parts


def device(session: Session) -> None:
    """What the machine is."""
    try:
        session.measure("device", "--device", session.device)
    finally:
        entry = session.parts[session.part]
        about_the_part = ("outcome", "started", "limit_seconds")
        session.machine = {key: entry.pop(key) for key in list(entry) if key not in about_the_part}


def tests(session: Session) -> None:
    """tests/test_gpu.py."""
    command = ("-m", "pytest", "-v", "-p", "no:cacheprovider", "--color=no", "tests/test_gpu.py")
    try:
        session.call(*command, cwd=ROOT)
    finally:
        found = re.findall(r"::(\S+) (PASSED|FAILED|SKIPPED|ERROR)", session.output())
        outcomes = {name: outcome.lower() for name, outcome in found}
        counts = {each: list(outcomes.values()).count(each) for each in ("passed", "failed", "error", "skipped")}
        session.note({"counts": counts, "tests": outcomes})
    if session.device == "cuda" and counts["skipped"]:
        raise CommandFailed(f"{counts['skipped']} tests were skipped")


def timing(session: Session) -> None:
    """A training step and scoring beside the plain reference, in both types."""
    session.measure("timing", "--device", session.device, *(["--toy"] if session.toy else []))


def uniform(session: Session) -> None:
    """Training, message, scores and bound with one projection for all adapters."""
    _make_run(session, "uniform")


def learned(session: Session) -> None:
    """The same with a learned split."""
    _make_run(session, "learned")


def _make_run(session: Session, allocation: str) -> None:
    """Run the stages that an earlier call has not finished."""
    steps = steps_of_training(session)
    settings = write_settings(session, "runs", intervals(steps))
    options, folder = run_of(session, allocation, "runs")
    session.note({"run": folder.name, "steps": steps})
    if not (folder / CHECKPOINT_NAME).exists():
        try:
            session.sublora("train", "--config", settings, *options, "--out", folder)
        finally:
            session.note({"last_line_of_the_training": session.last_line()})
    with open(folder / METRICS_NAME, encoding="utf-8", newline="") as handle:
        *_, last = csv.DictReader(handle)
    session.note({key: float(last[key]) for key in ("tokens_per_second", "seconds", "val_loss_bits") if last[key]})
    if not (folder / LOSSES_NAME).exists():
        session.sublora("score", folder, "--config", settings)
    if not (folder / BOUNDS_NAME).exists():
        session.sublora("bound", folder, "--config", settings)
    record = json.loads((folder / BOUNDS_NAME).read_text())
    quoted = {key: record[key] for key in QUOTED if key in record}
    session.note({"bounds": quoted | {"by_source": record.get("by_source"), "seconds": record["seconds"]}})


def resume(session: Session) -> None:
    """A short training without a break, and the same one killed and resumed: the same bytes."""
    settings = _short_settings(session)
    options, straight = run_of(session, "learned", "straight")
    _, broken = run_of(session, "learned", "broken")
    for folder in (straight, broken):
        shutil.rmtree(folder, ignore_errors=True)
    session.sublora("train", "--config", settings, *options, "--out", straight)
    deadly = ("--config", settings, *options, "--at", str(KILLED_AT), "--out", broken)
    session.call("-m", "benchmarks.gpu_measure", "killed", *deadly, expected=-signal.SIGKILL)
    session.sublora("train", "--config", settings, *options, "--out", broken)
    if f"resuming at step {SHORT_SAVES}" not in session.output():
        raise CommandFailed(f"the killed training was not resumed at step {SHORT_SAVES}")
    if not session.measure("same", straight, broken)["same_bytes"]:
        raise CommandFailed("the resumed training ended with other bytes")


def verify(session: Session) -> None:
    """The certificate of the short training, which rests on few documents, verified on the device and on the CPU."""
    settings, (_, folder) = _short_settings(session), run_of(session, "learned", "straight")
    if not (folder / CHECKPOINT_NAME).exists():
        raise CommandFailed("the part resume has not finished its training")
    session.sublora("score", folder, "--config", settings)
    session.sublora("bound", folder, "--config", settings)
    for where in dict.fromkeys((session.device, "cpu")):
        verdict = folder / f"verdict_{where}.json"
        verdict.unlink(missing_ok=True)
        try:
            session.sublora("verify", folder, "--config", settings, "--device", where, "--json", verdict)
        finally:
            if verdict.exists():
                found = json.loads(verdict.read_text())
                session.note({f"verdict_on_{where}": {key: found[key] for key in VERDICT if key in found}})


def _short_settings(session: Session) -> Path:
    """Write the settings of the short training; how many documents a bound rests on reaches the training, too."""
    changes = intervals(SHORT_STEPS)
    changes["training"] |= {"eval_interval_steps": SHORT_STEPS, "save_interval_steps": SHORT_SAVES}
    changes["scoring"] = {key: value for key, value in SMALL.items() if not (session.toy and key == "sources")}
    return write_settings(session, "short", changes)


PARTS = (
    Part("device", 25.0, device, whole=True),
    Part("tests", 80.0, tests),
    Part("timing", 90.0, timing),
    Part("uniform", None, uniform),
    Part("resume", 60.0, resume),
    Part("verify", 75.0, verify),
    Part("learned", None, learned),
)


def chosen(names: list[str] | None, *, toy: bool = False) -> list[Part]:
    """Return the parts of these names, or all, by worth; the machine is always measured. UserError for another name."""
    known = [part.name for part in PARTS]
    if unknown := [name for name in names or () if name not in known]:
        raise UserError(f"--parts: no part {', '.join(unknown)}; there are {', '.join(known)}")
    parts = [part for part in PARTS if names is None or part.name in ("device", *names)]
    slower = TOY_PATIENCE if toy else 1.0
    return [dataclasses.replace(part, seconds=part.seconds and slower * part.seconds) for part in parts]

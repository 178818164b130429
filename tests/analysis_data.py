"""Made-up but plausible results: records, histories and gates of any grid, and yardsticks, nothing trained."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from conftest import TINY, demo_values, merged

from sublora import config
from sublora.bounds.record import RECORD_FORMAT
from sublora.coding.certificate import write_certificate
from sublora.coding.payload import Payload
from sublora.config import Grid, RunSpec, Settings
from sublora.system.streams import generator
from sublora.system.versions import NUMERICS_VERSIONS
from sublora.yardsticks.record import YARDSTICKS_FORMAT, Row, Yardsticks, write_yardsticks

VOCAB_SIZE = 257
N_DOCUMENTS = 17000
M_DOCUMENTS = 1000
TEST_DOCUMENTS = 900
DATA_HASH = "d2" * 32
INDEPENDENCE = {
    "training_cutoff": "2019-12, <by its authors>",
    "document_dates": "2024 & later",
    "how_checked": "by the dates of the commits",
}
PARAMETERS = {"lora-identity": 5_400, "weights-identity": 210_000}
"""D of what is trained without a subspace."""
MODEL_PARAMETERS = {"1x2x16": 8_800, "4x2x64": 225_000, "gpt2": 85_000_000}
YARDSTICKS = {"unigram": (5.42, 5.55), "bigram": (4.98, 5.31), "order3": (4.47, 4.53), "frozen_base": (5.13, 5.2)}
"""(loss on test documents, bound) in bits per token. Bounds of the runs of SMALL lie between 5.1 and 5.4."""
SMALL = Grid(
    budgets=(1000, 2000),
    allocations=("uniform", "fixed-0.2", "fixed-0.5", "fixed-0.8", "learned"),
    seeds=(42, 123, 999),
)
LARGE = Grid(
    budgets=(500, 1000, 2000, 8000),
    allocations=("uniform", *(f"fixed-{ratio}" for ratio in (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)), "learned"),
    seeds=(1, 2, 3),
)
MANY_ARMS = LARGE.model_copy(update={"budgets": (2000, 8000)})


def write_results(
    folder: Path,
    grid: Grid = SMALL,
    *,
    layers: int = 4,
    steps: int = 600,
    all_scored: bool = False,
    anchored: bool = False,
) -> list[Path]:
    """Run directories with bounds.json, losses.npz, metrics.csv and gating_trace.csv, in the grid's order.

    all_scored: the records are of bounds from all n documents, none drawn. anchored: of bounds anchored on the base.
    """
    runs, directories = grid.runs(), []
    for run in runs:
        directory = folder / run.name
        directory.mkdir(parents=True)
        made = record(run, layers=layers, sweep=len(runs), all_scored=all_scored)
        test_losses = losses_of_test(run.name, made["test_loss_bits"])
        if anchored:
            made |= anchor_of(made)
            # The mixture loses at most a little more than its anchor, on any document.
            of_base = losses_of_test("frozen_base", YARDSTICKS["frozen_base"][0])
            test_losses = np.minimum(test_losses, of_base + made["anchor"]["excess_upper"])
            made["test_loss_bits"] = float(test_losses.mean())
        (directory / "bounds.json").write_text(json.dumps(made))
        np.savez(directory / "losses.npz", test_losses_bits=test_losses)
        gamma = final_gamma(run, layers)
        _write_metrics(directory / "metrics.csv", run, steps)
        _write_gates(directory / "gating_trace.csv", run, gamma if run.mode == "learned" else {}, steps)
        directories.append(directory)
    return directories


def settings_of(grid: Grid, **changes: dict) -> Settings:
    """The tiny settings with this grid and further keys of sections."""
    changes = {"grid": grid.model_dump(mode="json"), "lora": {"rank": 16, "alpha": 8.0}} | changes
    return config.parse_settings(merged(merged(demo_values(), TINY), changes), source="made up")


def certify_results(folders: list[Path], settings: Settings, numerics: Mapping[str, int] = NUMERICS_VERSIONS) -> None:
    """Give runs of `write_results` a certificate.bin, of nothing, that says which settings made them."""
    runs = {run.name: run for run in settings.grid.runs()}
    for folder in folders:
        made_with = settings.for_run(runs[folder.name]).model_dump(mode="json")
        path = folder / "certificate.bin"
        write_certificate(path, {"settings": made_with, "numerics_versions": dict(numerics)}, Payload(b"", 0, {}))
        made = json.loads((folder / "bounds.json").read_text())
        made["certificate_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "bounds.json").write_text(json.dumps(made))


def write_yardsticks_of(
    folder: Path,
    losses_and_bounds: Mapping[str, tuple[float, float]] = YARDSTICKS,
    settings: Settings | None = None,
) -> Path:
    """yardsticks.json with the given (loss on test documents, bound) of each model, beside guessing.

    Of the base of a run below the folder, else of seed 42.
    """
    records = sorted(folder.rglob("bounds.json"))
    base_sha256 = json.loads(records[0].read_text())["base"]["sha256"] if records else random_base_sha256(42)
    guess, guesses = math.log2(VOCAB_SIZE), (math.log2(VOCAB_SIZE),) * 2
    message_bits = {"guessing": 0.0, "unigram": 1288.0, "bigram": 9123.0, "order3": 0.0, "frozen_base": 3.0}
    rows = {}
    for name, (loss, bound) in {"guessing": guesses, **losses_and_bounds}.items():
        estimated = name != "guessing"
        rows[name] = Row(
            bound_bits=bound,
            inequality="betting_subsampled" if estimated else None,
            smoothing="document(8)" if estimated else None,
            loss_range_bits=[0.0 if estimated else guess, guess],
            empirical_loss_bits=loss - 0.02 if estimated else guess,
            val_loss_bits=loss + 0.01 if estimated else guess,
            test_loss_bits=loss,
            test_losses_bits=losses_of_test(name, loss).tolist() if estimated else [],
            code_bits=message_bits[name],
            code_bits_items={"model": message_bits[name]},
            n=N_DOCUMENTS,
            m=M_DOCUMENTS if estimated else None,
            delta=0.05 if estimated else None,
            delta_sample=0.045 if estimated else None,
            seconds=1.5 if estimated else 0.0,
        )
    path = folder / "yardsticks.json"
    made_with = {} if settings is None else config.stage_settings(settings, "yardsticks")
    facts = {"format": YARDSTICKS_FORMAT, "data_hash": DATA_HASH, "base_sha256": base_sha256, "settings": made_with}
    write_yardsticks(path, Yardsticks(**facts, rows=rows))
    return path


def losses_of_test(model: str, mean: float) -> np.ndarray:
    """Losses of the test documents with this mean; what is hard for one model is hard for all."""
    shared, own = (
        generator("analysis data", "test documents", name).uniform(-1.0, 1.0, size=TEST_DOCUMENTS)
        for name in ("all", model)
    )
    losses = 0.5 * shared + 0.2 * own
    return losses - losses.mean() + mean


def record(run: RunSpec, *, layers: int = 4, sweep: int = 30, all_scored: bool = False) -> dict:
    """A bounds.json in which everything adds up."""
    noise = generator("analysis data", run.name).normal(size=8)
    budget = _dimension(run)
    shared = generator("analysis data", "base", run.seed).normal()
    loss = _loss_bits(run) + 0.03 * shared + 0.01 * noise[0]
    gates = {group: round(value * budget) for group, value in final_gamma(run, layers).items()}
    gates = gates if run.mode == "learned" else {}
    code_items = {
        "codebook": 176.0,
        "counts": 110.0,
        "symbols": float(round((2.35 + 0.04 * noise[1] + 0.05 * (run.ratio or 0.4)) * budget)),
        "gates": float(len(gates) * math.ceil(math.log2(budget + 1))),
        "smoothing": 3.0,
        "length": 21.0,
        "arm": float(math.ceil(math.log2(sweep))),
        "extra": 0.0,
    }
    code_bits = sum(code_items.values())
    added = 0.12 + 0.02 * noise[2]
    empirical = loss + added + 0.02
    unit = math.sqrt(code_bits / 4500.0)
    if all_scored:
        bounds = {
            "hoeffding": empirical + 3.1 * unit,
            "kl_inverse": empirical + 2.0 * unit,
            "empirical_bernstein": empirical + 1.3 * unit,
            "betting": empirical + 0.8 * unit + 0.01 * noise[3],
            "betting_closed_form": empirical + 0.82 * unit + 0.01 * noise[3],
        }
    else:
        bounds = {
            "hoeffding_subsampled": empirical + 3.2 * unit,
            "kl_inverse_subsampled": empirical + 2.1 * unit,
            "betting_subsampled": empirical + 0.85 * unit + 0.01 * noise[3],
        }
    suffix = "" if all_scored else "_subsampled"
    headline = bounds[f"betting{suffix}"]
    return {
        "format": RECORD_FORMAT,
        "run": {
            "name": run.name,
            "budget": budget,
            "allocation": run.allocation,
            "mode": run.mode,
            "ratio": run.ratio,
            "seed": run.seed,
        }
        | _compared(run),
        "bound_value": headline,
        "bound_inequality": f"betting{suffix}",
        "bound_hoeffding": bounds[f"hoeffding{suffix}"],
        "bound_all_runs": headline if all_scored else headline + 0.01,
        "bound_strict": None,
        "settings_bits": None,
        "settings_reference": None,
        "bound_strict_absent": "made up",
        "bound_held_out": empirical + 0.09,
        "bound_held_out_all_runs": empirical + 0.11,
        "bounds": bounds,
        "score_tolerance_bits": 1e-5,
        "by_source": {},
        "bound_direct": headline,
        "certified_gain_bits": None,
        "certified_gain_all_runs_bits": None,
        "anchor": {},
        "empirical_bpd": empirical,
        "kl_divergence": code_bits * math.log(2.0),
        "compressed_size_bits": 8 * math.ceil((code_bits - code_items["arm"]) / 8),
        "code_bits": code_bits,
        "code_items": code_items,
        "smoothing": "document(8)",
        "lower_bits": 0.0144,
        "upper_bits": 14.65,
        "vacuous_bits": math.log2(VOCAB_SIZE),
        "vocab_size": VOCAB_SIZE,
        "min_targets": 201,
        "unit": "document",
        "n_units": N_DOCUMENTS,
        "m_units": N_DOCUMENTS if all_scored else M_DOCUMENTS,
        "n_documents": N_DOCUMENTS,
        "m_documents": N_DOCUMENTS if all_scored else M_DOCUMENTS,
        "test_units": TEST_DOCUMENTS,
        "sweep_size": sweep,
        "delta": 0.05,
        "delta_sample": 0.0 if all_scored else 0.045,
        "val_loss_bits": empirical + 0.01,
        "val_loss_unquantized_bits": empirical + 0.01 - added,
        "test_loss_bits": empirical + 0.015,
        "gates": gates,
        "gamma": {group: value / budget for group, value in gates.items()},
        "topk_errors": {"1": 0.8, "10": 0.35, "100": 0.02},
        "topk_bounds": {"1": 0.9, "10": 0.5, "100": 0.15},
        "seconds": {"train": 11.0, "encode": 0.2, "score": 3.0, "bound": 0.1},
        "peak_memory_mib": {"train": 400.0, "score": 380.0},
        "versions": {"sublora": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "python": "3.11"},
        "gpu": None,
        "commit": None,
        "slurm_job_ids": {"train": None, "score": None},
        "base": {
            "kind": "random",
            "sha256": random_base_sha256(run.seed),
            "independence": None,
        },
        "data_hash": DATA_HASH,
        "certificate_sha256": hashlib.sha256(run.name.encode()).hexdigest(),
    }


def random_base_sha256(seed: int) -> str:
    return hashlib.sha256(f"base {seed}".encode()).hexdigest()


def anchor_of(made: Mapping[str, Any]) -> dict[str, Any]:
    """What an anchor changes in a record: the base is trained, and the bound a sum of two."""
    base_loss, base_bound = 5.13, 5.2
    excess = made["empirical_bpd"] - base_loss
    excess_bound = excess + 0.25 * (made["bound_value"] - made["empirical_bpd"])
    chosen = excess_bound + 0.01
    return {
        "bound_value": base_bound + excess_bound,
        "bound_direct": made["bound_value"],
        "bound_all_runs": base_bound + chosen,
        "certified_gain_bits": -excess_bound - 1e-5,
        "certified_gain_all_runs_bits": -chosen - 1e-5,
        "anchor": {
            "k0": 12,
            "base_loss": base_loss,
            "base_bound": base_bound,
            "excess": excess,
            "excess_bound": excess_bound,
            "excess_bound_all_runs": chosen,
            "excess_sd": 0.15,
            "excess_upper": 0.04,
            "base_units": 8000,
            "delta_base": 0.01,
            "delta_base_sample": 0.009,
            "delta_excess_sample": 0.036,
        },
        "base": {"kind": "trained", "sha256": hashlib.sha256(b"base").hexdigest(), "independence": None},
    }


def final_gamma(run: RunSpec, layers: int) -> dict[str, float]:
    """Gates that rise with depth, and a head that prefers B."""
    noise = generator("analysis data", "gates", run.name).normal(size=layers + 1)
    values = {str(layer): 0.36 + 0.22 * layer / max(1, layers - 1) + 0.06 * noise[layer] for layer in range(layers)}
    return values | {"head": 0.63 + 0.04 * noise[layers]}


def _loss_bits(run: RunSpec) -> float:
    by_mode = {"uniform": 4.50, "learned": 4.47}
    arm = by_mode.get(run.mode, 4.48) if run.ratio is None else 4.49 + 0.9 * (run.ratio - 0.55) ** 2
    return arm - 0.08 * math.log2(_dimension(run) / 1000.0)


def _dimension(run: RunSpec) -> int:
    return run.dimension(PARAMETERS.get(run.trained or ""))


def _compared(run: RunSpec) -> dict:
    """What a record says of a run in a grid that compares networks."""
    facts = {key: value for key, value in (("trained", run.trained), ("size", run.size)) if value is not None}
    return facts if run.size is None else facts | {"model_parameters": MODEL_PARAMETERS[run.size]}


def _write_metrics(path: Path, run: RunSpec, steps: int) -> None:
    final = _loss_bits(run)
    lines = [
        "step,tokens_seen,learning_rate,train_loss_bits,train_eval_loss_bits,val_loss_bits,gradient_norm,"
        "tokens_per_second,seconds"
    ]
    for step in range(50, steps + 1, 50):
        noise = generator("analysis data", "metrics", run.name, step).normal(scale=0.01, size=2)
        val = final + 3.2 * math.exp(-step / 60.0) + 0.25 * math.exp(-step / 250.0) + noise[0]
        train = val - 0.04 + noise[1]
        lines.append(f"{step},{step * 1024},0.01,{train + 0.02:.7g},{train:.7g},{val:.7g},0.7,50000,{step / 50:.7g}")
    path.write_text("\n".join(lines) + "\n")


def _write_gates(path: Path, run: RunSpec, gamma: dict[str, float], steps: int) -> None:
    lines = ["step,mask_width,group,gamma,gradient_snr"]
    soft, budget = 0.8 * steps, _dimension(run)
    for step in range(50, steps + 1, 50):
        width = 0.0 if step > soft else 0.25 * budget * (1.2 / budget) ** (step / soft)
        for group, final in gamma.items():
            wander = 0.02 * float(generator("analysis data", "trace", run.name, group, step).normal())
            value = final if width == 0.0 else 0.5 + (final - 0.5) * step / soft + wander * (1.0 - step / soft)
            snr = "" if width == 0.0 else f"{1.0 + wander:.7g}"
            lines.append(f"{step},{width:.7g},{group},{float(np.clip(value, 0.0, 1.0)):.7g},{snr}")
    path.write_text("\n".join(lines) + "\n")

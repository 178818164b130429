"""The plain and the entropy scheme side by side: empirical loss, C and bound of the same arms.

    python benchmarks/quantizers.py --config demo/config/config.yaml                     # the whole grid
    python benchmarks/quantizers.py --config demo/config/config.yaml --budget 1000 --allocation uniform --seed 42

Trains, scores and bounds every run twice, once with each `message.quantizer` and the same number of steps, into
results/quantizers/ beside the settings' data/, and prints a table. Finished runs of the same settings are kept.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from sublora import config
from sublora.data.base_and_target import open_target
from sublora.runs.bound import bound_run
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.system.names import BOUNDS_NAME, CHECKPOINT_NAME
from sublora.training import checkpoint

QUANTIZERS = ("plain", "entropy")


def record_of(settings: config.Settings, run: config.RunSpec, root: Path, out: Path) -> dict[str, Any]:
    """bounds.json of a run, from training on; taken from the folder if it is there and of these settings."""
    wanted = settings.model_dump(mode="json")
    finished = out / BOUNDS_NAME
    if not finished.exists() or checkpoint.load(out / CHECKPOINT_NAME)["settings"] != wanted:
        train_run(settings, run, root=root, out=out)
        score_run(out, root=root)
        bound_run(out)
    return json.loads(finished.read_text(encoding="utf-8"))


def compare(settings: config.Settings, runs: list[config.RunSpec], root: Path) -> list[dict[str, dict[str, Any]]]:
    """A record by each quantizer for every run."""
    rows = []
    for run in runs:
        row = {}
        for quantizer in QUANTIZERS:
            message = settings.message.model_copy(update={"quantizer": quantizer})
            out = root / "results" / "quantizers" / quantizer / run.name
            row[quantizer] = record_of(settings.model_copy(update={"message": message}), run, root, out)
        rows.append(row)
        print(line_of(row), flush=True)
    return rows


def line_of(row: dict[str, dict[str, Any]]) -> str:
    cells = [f"{row['plain']['run']['name']:28}"]
    for quantizer in QUANTIZERS:
        record = row[quantizer]
        cells.append(f"{record['empirical_bpd']:6.3f} {record['code_bits']:6.0f} {record['bound_value']:6.3f}")
    gain = row["plain"]["bound_value"] - row["entropy"]["bound_value"]
    share = row["entropy"]["code_bits"] / row["plain"]["code_bits"]
    return " | ".join([*cells, f"{gain:6.3f} {share:5.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--budget", type=int, action="append", help="only these budgets (repeatable)")
    parser.add_argument("--allocation", action="append", help="only these allocations (repeatable)")
    parser.add_argument("--seed", type=int, action="append", help="only these seeds (repeatable)")
    given = parser.parse_args()
    settings, root = config.load_settings(given.config), config.root_of(given.config)
    open_target(settings, root)
    runs = [
        run
        for run in settings.grid.runs()
        if run.budget in (given.budget or [run.budget])
        and run.allocation in (given.allocation or [run.allocation])
        and run.seed in (given.seed or [run.seed])
    ]
    print(f"{'':28} | plain: loss, C, bound  | entropy: same          | gain, C ratio")
    rows = compare(settings, runs, root)
    gains = [row["plain"]["bound_value"] - row["entropy"]["bound_value"] for row in rows]
    shares = [row["entropy"]["code_bits"] / row["plain"]["code_bits"] for row in rows]
    print(f"bound lower by {statistics.median(gains):.3f} bits in the median, {min(gains):.3f} at least")
    print(f"C at {statistics.median(shares):.2f} of plain's in the median, {max(shares):.2f} at most")


if __name__ == "__main__":
    main()

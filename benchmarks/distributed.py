"""The loss curves of a training on one and on two processes (gloo, CPU): how far are they apart?

Prints a Markdown table for 200 steps of a small network, dropout included. float32 sums in another order are the only
difference between them, and training lets it grow slowly.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from sublora import config
from sublora.data.prepare import prepare_dataset
from sublora.runs.train import train_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from conftest import write_settings  # noqa: E402
from test_training_distributed import settings_path, start  # noqa: E402
from test_training_loop import rows_of  # noqa: E402

CASES = (("uniform", "plain"), ("learned", "plain"), ("learned", "entropy"))
TRAINING = {"steps": 200, "eval_interval_steps": 20}
COLUMNS = ("train_loss_bits", "val_loss_bits", "gradient_norm")


def differences(folder: Path, allocation: str, quantizer: str) -> list[float]:
    """Largest relative difference of each of COLUMNS over all evaluations."""
    prepare_dataset(config.load_settings(write_settings(folder)).data, folder)
    changes = {"message": {"quantizer": quantizer}, "training": TRAINING}
    one, two = (settings_path(folder / str(k), folder, k, **changes) for k in (1, 2))
    run = config.RunSpec(budget=40, allocation=allocation, seed=1)
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        train_run(config.load_settings(one), run, root=one.parents[1], out=one.parents[1] / "out")
    with start(two, allocation) as process:
        if process.wait():
            raise RuntimeError((folder / "2/log.txt").read_text())
    rows = zip(*(rows_of(path.parents[1] / "out/metrics.csv") for path in (one, two)), strict=True)
    pairs = [{name: (float(a[name]), float(b[name])) for name in COLUMNS} for a, b in rows]
    return [max(abs(pair[name][0] - pair[name][1]) / abs(pair[name][0]) for pair in pairs) for name in COLUMNS]


def main() -> None:
    print("| allocation | quantizer | " + " | ".join(COLUMNS) + " |\n" + "| --- " * (2 + len(COLUMNS)) + "|")
    for allocation, quantizer in CASES:
        folder = Path(tempfile.mkdtemp())
        try:
            values = differences(folder, allocation, quantizer)
        finally:
            shutil.rmtree(folder)
        print(f"| {allocation} | {quantizer} | " + " | ".join(f"{value:.1e}" for value in values) + " |", flush=True)


if __name__ == "__main__":
    main()

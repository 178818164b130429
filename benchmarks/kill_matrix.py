"""kill -9 at a step, for every allocation and quantizer: does the next start end with the same bytes?

Prints a Markdown table; `python benchmarks/kill_matrix.py docs/cluster.md` also puts it there, between its two
markers. Each cell is one training killed and started again, compared with an uninterrupted one: weights of the best
checkpoint, history and gates. Exit status 1 if any differs.
"""

import os
import sys
import tempfile
from pathlib import Path

from sublora import config
from sublora.runs.train import train_run
from sublora.system.files import write_bytes
from sublora.training import checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))
from conftest import write_settings  # noqa: E402
from killing import exit_status, outcome, start_in_child  # noqa: E402

ALLOCATIONS = ("uniform", "fixed-0.2", "fixed-0.5", "fixed-0.8", "learned")
QUANTIZERS = ("plain", "entropy")
STEPS = (0, 3, 4, 9, 14, 17, 19)
"""Steps, of 20, at which a training is killed, with saves after 4, 8, 12 and 16; 0 is the first step."""
SAVED = (5, 14)
"""In the save that follows this step: the new state is written and has not yet taken the old one's name."""
MARKERS = ("<!-- kill matrix: python benchmarks/kill_matrix.py docs/cluster.md -->", "<!-- end of kill matrix -->")


def cell(settings: config.Settings, run: config.RunSpec, root: Path, wanted: object, step: int, saving: bool) -> str:
    """What became of one killed training: steps done twice if all bytes agree, else 'differs'."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        out = Path(folder)
        status = exit_status(start_in_child(settings, run, root=root, out=out, kill_at_step=step, while_saving=saving))
        if status != -9:
            raise RuntimeError(f"{run.name} ended with status {status} instead of being killed at step {step}")
        states = [checkpoint.load(path)["history"]["step"] for path in (out / "state").glob("*.pt")]
        died_at = step - step % 4 + 4 if saving else step
        if exit_status(start_in_child(settings, run, root=root, out=out)) or outcome(out) != wanted:
            return "**differs**"
        return f"same, {died_at - max(states, default=0)}"


def rows(root: Path) -> list[list[str]]:
    path = write_settings(root)
    table = []
    for quantizer in QUANTIZERS:
        changes = {"message": {"quantizer": quantizer}, "lora": {"dropout": 0.2}, "rate_phase": {"val_documents": 20}}
        settings = config.load_settings(write_settings(root, changes))
        if not (root / "data").exists():
            from sublora.data.prepare import prepare_dataset

            prepare_dataset(settings.data, root)
        for allocation in ALLOCATIONS:
            run = config.RunSpec(budget=40, allocation=allocation, seed=1)
            with tempfile.TemporaryDirectory(dir=root) as whole:
                # In this process, so that its children need not import anything any more.
                train_run(settings, run, root=root, out=Path(whole))
                wanted = outcome(Path(whole))
            moments = [(step, False) for step in STEPS] + [(step, True) for step in SAVED]
            table.append([allocation, quantizer, *(cell(settings, run, root, wanted, *moment) for moment in moments)])
    path.unlink()
    return table


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as null:
        stderr, sys.stderr = sys.stderr, null
        try:
            table = rows(Path(folder))
        finally:
            sys.stderr = stderr
    header = ["allocation", "quantizer", *(f"step {step}" for step in STEPS), *(f"saving after {s}" for s in SAVED)]
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *table)]
    print("\n".join(lines))
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        before, rest = path.read_text(encoding="utf-8").split(MARKERS[0])
        after = rest.split(MARKERS[1])[1]
        text = f"{before}{MARKERS[0]}\n\n" + "\n".join(lines) + f"\n\n{MARKERS[1]}{after}"
        write_bytes(path, text.encode())
    sys.exit(any("**differs**" in row for row in table))


if __name__ == "__main__":
    main()

"""What the workflow itself costs: planning, and running every job with nothing in it.

Uses the toy workflow of the tests. Prints seconds; `python benchmarks/workflow.py FILE` also writes them as JSON.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sublora.files import write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from workflow.toy import Toy  # noqa: E402

ALLOCATIONS = ["uniform", "fixed-0.2", "fixed-0.5", "fixed-0.8", "learned"]


def seconds(toy: Toy, *arguments: str) -> float:
    """Wall time of one call of Snakemake, the start of Python and the imports included."""
    environment = os.environ | {"PATH": f"{toy.root / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    start = time.perf_counter()
    command = [sys.executable, "-m", "snakemake", *arguments]
    subprocess.run(command, cwd=toy.root, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        toy = Toy.build(Path(folder) / "toy")
        toy.write_settings(grid={"budgets": [1000, 2000], "allocations": ALLOCATIONS, "seeds": [42, 123, 999]})
        measured["plan 30 runs"] = seconds(toy, "--dry-run", "--quiet")
        measured["run 30 runs of empty jobs"] = seconds(toy, "--quiet")
        measured["find 30 runs finished"] = seconds(toy, "--quiet")
        toy = Toy.build(Path(folder) / "large")
        toy.write_settings(
            grid={"budgets": list(range(1000, 2200, 200)), "allocations": ALLOCATIONS, "seeds": list(range(100))}
        )
        measured["plan 3000 runs"] = seconds(toy, "--dry-run", "--quiet")
    for name, value in measured.items():
        print(f"{name:28} {value:6.1f} s")
    if len(sys.argv) > 1:
        write_json(Path(sys.argv[1]), measured)


if __name__ == "__main__":
    main()

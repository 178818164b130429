"""What the workflow itself costs: planning, and running every job with nothing in it. Uses the tests' toy workflow."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow.toy import Toy

TESTS = Path(__file__).resolve().parents[1] / "tests"
ALLOCATIONS = ["uniform", "fixed-0.2", "fixed-0.5", "fixed-0.8", "learned"]


def run() -> dict[str, Any]:
    """Seconds by what was done; the start of Python and the imports included."""
    sys.path.insert(0, str(TESTS))
    from workflow.toy import Toy

    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        toy = Toy.build(Path(folder) / "toy")
        toy.write_settings(grid={"budgets": [1000, 2000], "allocations": ALLOCATIONS, "seeds": [42, 123, 999]})
        measured["plan 30 runs"] = _seconds(toy, "--dry-run", "--quiet")
        measured["run 30 runs of empty jobs"] = _seconds(toy, "--quiet")
        measured["find 30 runs finished"] = _seconds(toy, "--quiet")
        toy = Toy.build(Path(folder) / "large")
        toy.write_settings(
            grid={"budgets": list(range(1000, 2200, 200)), "allocations": ALLOCATIONS, "seeds": list(range(100))}
        )
        measured["plan 3000 runs"] = _seconds(toy, "--dry-run", "--quiet")
    return {"seconds": measured}


def _seconds(toy: "Toy", *arguments: str) -> float:
    """Wall time of one call of Snakemake."""
    environment = os.environ | {"PATH": f"{toy.root / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    start = time.perf_counter()
    command = [sys.executable, "-m", "snakemake", *arguments]
    subprocess.run(command, cwd=toy.root, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start

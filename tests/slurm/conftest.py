"""A SLURM cluster for all tests of this folder, and working copies of the workflow on it."""

import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, lacking, write_settings
from workflow.toy import FAKE_SUBLORA

from slurm.cluster import Cluster, why_not

SNAKEMAKE = Path(__file__).with_name("snakemake_that_asks_often.py")
TIME_LIMIT_SECONDS = 600
"""A guard against waiting for ever, on whatever machine."""
GRID = {"budgets": [40, 60], "allocations": ["uniform", "learned"], "seeds": [1]}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if "SUBLORA_TEST_SLURM" not in os.environ:
        pytest.skip("`make test-slurm` runs the tests on a real SLURM")
    if reason := why_not():
        lacking(reason)
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as started:
        yield started


@dataclasses.dataclass(frozen=True)
class Workspace:
    """A working copy of the workflow whose jobs go to the cluster."""

    root: Path
    cluster: Cluster

    @classmethod
    def build(cls, root: Path, cluster: Cluster, **changes: dict[str, Any]) -> "Workspace":
        """The tiny settings with changes of sections, and four runs."""
        root.mkdir()
        for part in ("workflow", "profiles"):
            shutil.copytree(REPOSITORY / part, root / part)
        write_settings(root, {"grid": GRID} | changes)
        space = cls(root, cluster)
        space.change_profile("now+{60 *", "now+{2 *")  # seconds that a resubmission waits for
        return space

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Snakemake with profiles/slurm; its output is appended to snakemake.txt."""
        own = self.root / "bin"
        path = os.pathsep.join([str(own), str(Path(sys.executable).parent), self.cluster.environment["PATH"]])
        command = [sys.executable, str(SNAKEMAKE), "--profile", "profiles/slurm", *arguments]
        with open(self.root / "snakemake.txt", "ab") as output:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env=self.cluster.environment | {"PATH": path, "OMP_NUM_THREADS": "1"} | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def run(self, *arguments: str, **environment: str) -> int:
        """Exit status of Snakemake; killed after TIME_LIMIT_SECONDS."""
        with self.start(*arguments, **environment) as process:
            try:
                return process.wait(TIME_LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise

    def pretend(self) -> "Workspace":
        """Jobs that write a line into each file instead of training."""
        (self.root / "bin").mkdir()
        (self.root / "bin/sublora").write_text(FAKE_SUBLORA)
        (self.root / "bin/sublora").chmod(0o755)
        return self

    def change_profile(self, old: str, new: str) -> None:
        profile = self.root / "profiles/slurm/config.yaml"
        text = profile.read_text()
        assert old in text
        profile.write_text(text.replace(old, new))

    @property
    def output(self) -> str:
        return (self.root / "snakemake.txt").read_text()

    def folder(self, name: str) -> Path:
        return self.root / "results" / "runs" / name

    def jobs(self, rule: str | None = None) -> list[dict[str, str]]:
        """The cluster's jobs that were submitted from here, of all rules or of one, first to last."""
        mine = [job for job in self.cluster.jobs() if Path(job["WorkDir"]) == self.root]
        return [job for job in mine if rule is None or re.match(rf"rule_{rule}(_|$)", job.get("Comment", ""))]

    def log(self, path: str) -> str:
        """The text of a log, empty before it is there."""
        found = self.root / "logs" / path
        return found.read_text() if found.exists() else ""

    def wait_for(self, what: Callable[[], Any], seconds: float = TIME_LIMIT_SECONDS) -> Any:
        """The first true value of a condition."""
        deadline = time.monotonic() + seconds
        while not (value := what()):
            late = time.monotonic() > deadline or "Exiting because a job execution failed" in self.output
            assert not late, f"not within {seconds} s\n{self.output}\n{self.cluster.logs()}"
            time.sleep(0.1)
        return value


@pytest.fixture
def workspace(cluster: Cluster, tmp_path: Path) -> Callable[..., Workspace]:
    """`Workspace.build` on the cluster."""
    return functools.partial(Workspace.build, tmp_path / "work", cluster)

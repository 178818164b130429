"""`make gpu`, rehearsed on a CPU: its parts and their limits, what travels, and the whole script at toy size."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY))  # `benchmarks` is not installed

from benchmarks import __main__ as command
from benchmarks import gpu_folder, gpu_parts, gpu_session
from benchmarks.gpu_session import CommandFailed, Part, Session
from sublora.system.errors import UserError

MACHINE = {"name": "test", "gpu": None, "cpu": "a CPU", "cores": 2, "threads": 2, "versions": {"torch": "2.7"}}


def session_in(folder: Path, minutes: float = 1.0) -> Session:
    return Session(folder, folder / "results", "cpu", minutes, toy=True)


def results_of(session: Session) -> dict:
    return json.loads((session.out / "test-toy.json").read_text())


def first_part(session: Session) -> None:
    session.machine = dict(MACHINE)


# The session


@pytest.mark.slow
def test_a_part_that_fails_or_is_stopped_leaves_what_it_had_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_session, "GRACE_SECONDS", 2.0)
    saving = "signal.signal(signal.SIGUSR1, lambda *_: exit(print('saved')))"
    waiting = f"import signal, time; {saving}; print('waits'); time.sleep(60)"

    def stopped(session: Session) -> None:
        session.note({"measured": 1})
        session.call("-c", waiting)

    def failing(session: Session) -> None:
        session.note({"measured": 2})
        session.call("-c", "raise SystemExit('no such thing')")

    def last(session: Session) -> None:
        session.call("-c", "print('well')")

    parts = [Part("device", 5.0, first_part), Part("timing", 3.0, stopped), Part("tests", 5.0, failing)]
    session = session_in(tmp_path)
    gpu_session.run_parts(session, [*parts, Part("uniform", None, last)])
    found = results_of(session)["gpu"]["parts"]
    assert found["timing"]["outcome"] == "stopped at its limit of 3 s" and found["timing"]["measured"] == 1
    assert (tmp_path / "logs/timing.log").read_text() == "waits\nsaved\n"  # as a training saves its state
    assert found["tests"]["outcome"] == "failed: exit status 1: no such thing" and found["tests"]["measured"] == 2
    assert found["uniform"]["outcome"] == found["device"]["outcome"] == "done"
    assert "| tests | failed: exit status 1: no such thing |" in (session.out / "test-toy.md").read_text()
    assert (tmp_path / gpu_folder.RUNS).exists()


def test_what_a_command_started_ends_with_it(tmp_path):
    """Such as the compiler's workers, which would go on in the next part's time."""
    child = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    session = session_in(tmp_path)
    session.part, session.deadline = "tests", time.monotonic() + 20
    session.call("-c", child)
    identity = int(session.output())
    status = Path(f"/proc/{identity}/status")
    for _ in range(100):
        if not status.exists() or "zombie" in status.read_text():
            return
        time.sleep(0.02)
    pytest.fail("the child of a command that ended goes on")


def test_results_of_earlier_calls_and_of_make_bench_are_kept(tmp_path):
    session = session_in(tmp_path)
    session.out.mkdir()
    before = {"parts": {"coding": {}}, "gpu": {"parts": {"tests": {"outcome": "done", "seconds": 3.0}}}}
    (session.out / "test-toy.json").write_text(json.dumps(before))
    gpu_session.run_parts(session, [Part("device", 5.0, first_part)])
    found = results_of(session)
    assert found["parts"] == before["parts"] and set(found["gpu"]["parts"]) == {"tests", "device"}
    assert command._kept(session.out / "test-toy.json") == {"gpu": found["gpu"]}
    (session.out / "test-toy.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        session.write()


def test_a_machine_without_the_device_ends_the_call_in_one_line(tmp_path):
    def device(session: Session) -> None:
        raise CommandFailed("no usable GPU")

    with pytest.raises(UserError, match="device: failed: no usable GPU"):
        gpu_session.run_parts(session_in(tmp_path), [Part("device", 5.0, device), Part("tests", 5.0, first_part)])


def test_the_limits_add_up_and_leave_most_of_a_long_call_to_the_trainings():
    parts = list(gpu_parts.PARTS)
    for minutes in (0.5, 9.0, 120.0):
        assert sum(gpu_session.limits(parts, 60.0 * minutes)) == pytest.approx(60.0 * minutes)
    by_name = {
        minutes: dict(zip((p.name for p in parts), gpu_session.limits(parts, 60.0 * minutes), strict=True))
        for minutes in (1.0, 30.0, 120.0)
    }
    assert by_name[30.0]["tests"] == by_name[120.0]["tests"] > by_name[1.0]["tests"]
    assert by_name[120.0]["uniform"] == by_name[120.0]["learned"] > 3000.0
    # Nothing goes on without the first part, so it is not shortened.
    assert by_name[1.0]["device"] == by_name[120.0]["device"] == 25.0
    assert by_name[1.0]["uniform"] == pytest.approx(35.0 * (1.0 - gpu_session.SHARE_OF_FIXED_PARTS) / 2)


def test_parts_are_chosen_by_name():
    assert [part.name for part in gpu_parts.chosen(["learned", "uniform"])] == ["device", "uniform", "learned"]
    with pytest.raises(UserError, match="no part training; there are device, tests"):
        gpu_parts.chosen(["training"])


def test_the_trainings_take_the_steps_that_the_time_allows(tmp_path):
    session = Session(tmp_path, tmp_path / "results", "cuda", 9.0)
    meta = tmp_path / "data/oci/meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"splits": {"train": {"tokens": 13_400, "documents": 100}}}))
    session.deadline = time.monotonic() + 250.0
    assert gpu_parts.steps_of_training(session) == gpu_parts.STEPS_WITHOUT_TIMING
    step = {"product": {"tokens_per_second": 614_400.0}}
    session.parts["timing"] = {"rows": {"training step, bfloat16": step}}
    assert gpu_parts.steps_of_training(session) == pytest.approx(0.8 * 200.0 * 10.0, abs=10)
    # 24,000 documents of 134 tokens, in windows padded by half, are scored at the speed that was measured.
    scoring = {"product": {"tokens_per_second": 10_000.0}, "window_positions": 500, "tokens": 50}
    session.parts["timing"]["rows"]["scoring, float32"] = scoring
    assert gpu_parts.steps_of_training(session) == pytest.approx(
        0.8 * (200.0 - 24_000 * 134 * 1.5 / 1e5) * 10.0, abs=10
    )
    # A later call goes on with what an earlier one began, whatever it has time for.
    gpu_parts.write_settings(session, "runs", gpu_parts.intervals(700))
    assert gpu_parts.steps_of_training(session) == 700


# What travels


def test_tokens_travel_in_one_file(tiny_root, tmp_path):
    source, archive = tiny_root / "data/markov", tmp_path / "tokens.tar.xz"
    gpu_folder.pack_tokens(source, archive)
    first = archive.read_bytes()
    gpu_folder.pack_tokens(source, archive)
    assert archive.read_bytes() == first
    target = tmp_path / "data/markov"
    gpu_folder.unpack_tokens(archive, target)
    for path in target.iterdir():
        assert path.read_bytes() == (source / path.name).read_bytes()
    # A file that was changed since is refused, and so is a damaged archive.
    changed = bytearray((target / "val.bin").read_bytes())
    changed[0] ^= 1
    (target / "val.bin").write_bytes(changed)
    with pytest.raises(UserError, match=r"val\.bin: sha256"):
        gpu_folder.unpack_tokens(archive, target)
    archive.write_bytes(first[: len(first) // 2])
    with pytest.raises(UserError, match="damaged"):
        gpu_folder.unpack_tokens(archive, tmp_path / "data/other")
    assert not (tmp_path / "data/other").exists()
    with pytest.raises(UserError, match="no such file; run `make gpu-folder`"):
        gpu_folder.unpack_tokens(tmp_path / "none", tmp_path / "data/other")


def test_tokens_that_are_too_many_to_travel_are_refused(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_folder, "MOST_BYTES_OF_TOKENS", 1000)
    with pytest.raises(UserError, match="expected at most 1,000"):
        gpu_folder.pack_tokens(tiny_root / "data/markov", tmp_path / "tokens.tar.xz")


def test_runs_travel_there_and_back(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    state = here / "results/runs/d40_uniform_seed42/state/0123.pt"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"state")
    (here / "config").mkdir()
    (here / "config/runs.yaml").write_text("grid: {}\n")
    gpu_folder.pack_runs(here)
    there.mkdir()
    (here / gpu_folder.RUNS).rename(there / gpu_folder.RUNS)
    gpu_folder.unpack_runs(there)
    assert (there / state.relative_to(here)).read_bytes() == b"state"
    # Runs that are there already are not replaced.
    (there / state.relative_to(here)).write_bytes(b"newer")
    gpu_folder.unpack_runs(there)
    assert (there / state.relative_to(here)).read_bytes() == b"newer"


@pytest.mark.slow
def test_packages_that_are_lacking_come_from_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_folder, "CARRIED", {"toy-package": ("toy-package",)})
    monkeypatch.setattr(gpu_folder, "_minimum", lambda name: "1.2")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match="no wheels of toy-package, which .* lacks; where"):
        gpu_folder.use_packages(tmp_path)
    write_wheel(tmp_path / "wheels", "1.1")
    with pytest.raises(UserError, match="too old"):
        gpu_folder.use_packages(tmp_path)
    write_wheel(tmp_path / "wheels", "1.3")
    assert gpu_folder.use_packages(tmp_path) == ["toy_package-1.3"]
    # It is there now, also for the next call.
    (tmp_path / "wheels").rename(tmp_path / "gone")
    assert gpu_folder.use_packages(tmp_path) == ["toy_package-1.3"]


def write_wheel(folder: Path, version: str) -> None:
    for old in folder.glob("*"):
        old.unlink()
    folder.mkdir(exist_ok=True)
    facts = f"toy_package-{version}.dist-info"
    with zipfile.ZipFile(folder / f"toy_package-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy_package.py", "")
        wheel.writestr(f"{facts}/METADATA", f"Metadata-Version: 2.1\nName: toy-package\nVersion: {version}\n")
        wheel.writestr(f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{facts}/RECORD", "")


def test_every_package_that_travels_is_locked_and_has_a_minimum():
    locked = {gpu_folder._canonical(line.partition("==")[0]) for line in (REPOSITORY / "requirements.lock").open()}
    for name, wheels in gpu_folder.CARRIED.items():
        assert gpu_folder._minimum(name) and {gpu_folder._canonical(wheel) for wheel in wheels} <= locked


# The whole


BLOCKER = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)
"""
NOT_NEEDED = {"datasets", "huggingface_hub", "matplotlib", "pandas", "peft", "pyarrow", "scipy", "seaborn", "sklearn"}
NOT_NEEDED |= {"snakemake", "statsmodels", "tensorboardX", "tiktoken", "tokenizers", "transformers"}
"""A machine with a torch of its own need not have these."""


@pytest.mark.slow
def test_the_whole_script_on_a_cpu(tmp_path):
    """Every part at toy size, started as `make gpu` starts it, in a Python that has little beside torch."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(blocked=NOT_NEEDED))
    folder, out = tmp_path / "gpu", tmp_path / "results"

    def call(*options: str) -> dict:
        options = ("--device", "cpu", "--toy", "--folder", str(folder), "--out", str(out), *options)
        command = [sys.executable, str(REPOSITORY / "benchmarks/gpu.py"), *options]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        outcome = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert outcome.returncode == 0, outcome.stderr
        (path,) = out.glob("*.json")
        return json.loads(path.read_text())["gpu"]

    found = call("--minutes", "600")
    parts = found["parts"]
    assert {name: part["outcome"] for name, part in parts.items()} == dict.fromkeys(
        [part.name for part in gpu_parts.PARTS], "done"
    )
    # What each part leaves.
    assert found["machine"]["matmul_peak_flop_per_second"]["float32"] > 0
    assert parts["tests"]["counts"]["skipped"] > 3 and parts["tests"]["counts"]["failed"] == 0
    assert len(parts["timing"]["rows"]) == 4
    for row in parts["timing"]["rows"].values():
        assert row["product"]["tokens_per_second"] > 0 < row["reference"]["memory_mib"]
    for name in ("uniform", "learned"):
        assert parts[name]["steps"] == gpu_parts.TOY_STEPS
        assert 0 < parts[name]["bounds"]["empirical_bpd"] < parts[name]["bounds"]["bound_value"]
    assert parts["verify"]["verdict_on_cpu"]["verdict"] == "verified"
    assert parts["resume"]["same_bytes"] is True
    (page,) = out.glob("*.md")
    assert "verified" in page.read_text() and "| d40_learned_seed42 | 20 |" in page.read_text()
    # On another machine with the runs that came back nothing is trained or scored again.
    checkpoint = folder / "results/runs/d40_uniform_seed42/best_ckpt.pt"
    trained = checkpoint.read_bytes()
    shutil.rmtree(folder / "results")
    again = call("--minutes", "600", "--parts", "uniform")["parts"]
    assert checkpoint.read_bytes() == trained and again["uniform"]["bounds"] == parts["uniform"]["bounds"]
    assert again["tests"] == parts["tests"]

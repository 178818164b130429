"""A light installation: bounds and code need numpy and the range coder, `sublora certify` a few small packages more."""

import functools
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import numpy as np
import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sublora.system import provenance

CORE = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
BLOCKER = """
import sys
blocked = set({blocked!r})
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def closure(texts: list[str]) -> set[str]:
    """The distributions that these requirements install here."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in texts]
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        if name in found or (need.marker is not None and not need.marker.evaluate({"extra": ""})):
            continue
        try:
            waiting += map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            continue
        found.add(name)
    return found


@functools.cache
def distributions() -> dict[str, set[str]]:
    """Module to the distributions that bring it."""
    return {module: {canonicalize_name(n) for n in names} for module, names in packages_distributions().items()}


def run_with(texts: list[str], code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python in which only what these requirements install can be imported."""
    present = closure(texts) | {"sublora"}
    blocked = {module for module, names in distributions().items() if not names & present}
    program = BLOCKER.format(blocked=sorted(blocked)) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)


NEED_PYDANTIC = ("sublora.bounds.record", "sublora.bounds.run_bounds")


def test_bounds_and_code_need_numpy_and_the_range_coder_alone() -> None:
    code = """
        import pkgutil, importlib, numpy as np, sublora, sublora.bounds, sublora.coding
        for package in (sublora.bounds, sublora.coding):
            for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
                if module.name not in NEED_PYDANTIC:
                    importlib.import_module(module.name)
        from sublora.coding.quantizer import quantize_entropy
        from sublora.coding.payload import MessageContents, PayloadContext, read_payload, write_payload
        context = PayloadContext(50, "entropy", 1, (), 4)
        contents = MessageContents(quantize_entropy(np.linspace(-2, 2, 50), 0.5), (), 3)
        payload = write_payload(contents, context)
        assert read_payload(payload.data, context)[0].smoothing_index == 3
        losses = np.linspace(0.1, 0.3, 500)
        assert sublora.certify(losses, code_bits=payload.bits, n=500, lower=0, upper=1).value < 1
        """
    outcome = run_with(["numpy", "constriction"], f"NEED_PYDANTIC = {NEED_PYDANTIC}\n" + textwrap.dedent(code))
    assert outcome.returncode == 0, outcome.stderr
    # The typed record of a run is checked by pydantic; no inequality, no code and no `certify` needs it.
    imports = f"import {', '.join(NEED_PYDANTIC)}"
    assert run_with(["numpy", "constriction", "pydantic"], imports).returncode == 0


def test_a_name_of_the_library_says_which_extra_it_needs() -> None:
    code = """
        import sublora
        try:
            sublora.wrap
        except ImportError as error:
            print(error)
        """
    expected = "sublora.wrap needs torch, which is not installed: pip install 'sublora[train]'\n"
    assert run_with(CORE, code).stdout == expected


COMMAND_LINE = "from sublora.cli import main; main()"
OPTIONS = ["--code-bits", 10, "--n", 500, "--lower", 0, "--upper", 1]


@pytest.mark.slow
def test_certify_runs_in_a_light_installation(tmp_path) -> None:
    np.save(tmp_path / "losses.npy", np.linspace(0.1, 0.3, 500))
    outcome = run_with(CORE, COMMAND_LINE, "certify", tmp_path / "losses.npy", *OPTIONS)
    assert outcome.returncode == 0 and "quote this one" in outcome.stdout, outcome.stderr
    # A run's bound, from its certificate and losses, needs no network either.
    assert run_with(CORE, "import sublora.runs.bound").returncode == 0


@pytest.mark.parametrize("command", ["encode", "certify"])
def test_commands_say_which_extra_they_need(tmp_path, command) -> None:
    path = tmp_path / "losses.parquet"
    path.write_bytes(b"PAR1")
    outcome = run_with(CORE, COMMAND_LINE, command, path, *(OPTIONS if command == "certify" else []))
    assert outcome.returncode == 2 and outcome.stderr.count("\n") == 1, outcome.stderr
    assert outcome.stderr.endswith("pip install 'sublora[train]'\n"), outcome.stderr


def test_a_stage_records_the_versions_of_the_packages_that_there_are(monkeypatch) -> None:
    """`sublora[train]` brings no scipy, and a bound needs no torch."""

    def version_of(name: str) -> str:
        if name in ("scipy", "torch"):
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(provenance, "version", version_of)
    facts = provenance.Provenance.of_this_process()
    assert facts.versions_of("torch", "numpy", "scipy", "constriction") == {"numpy": "1.0", "constriction": "1.0"}

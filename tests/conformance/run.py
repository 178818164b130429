"""Try a verifier on every case of the conformance set.

    python tests/conformance/run.py                              this checkout's `sublora verify`, in one process
    VERIFY="docker run ... sublora verify" python tests/conformance/run.py     any other command

The command is called in a case's folder with the arguments that case.json lists and `--json FILE`. Its exit status must
be the expected one. If it writes FILE, the verdict, the comparisons that failed and the quoted bounds are compared as
well. Exit status 1 if any case differs.
"""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CASES = Path(__file__).resolve().parent / "cases"
BOUND_TOLERANCE_BITS = 1e-3
"""How far a quoted bound may be from the expected one: two machines round differently."""

Verifier = Callable[[Path, list[str]], int]
"""From a working directory and arguments to an exit status."""


def in_this_process(folder: Path, arguments: list[str]) -> int:
    """Run `sublora verify` without a new process, which would import torch each time."""
    from sublora import cli

    before = sys.argv
    sys.argv = ["sublora", "verify", *arguments]
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
            cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def by_command(command: str) -> Verifier:
    """Return a verifier that runs a command."""

    def verify(folder: Path, arguments: list[str]) -> int:
        return subprocess.run([*shlex.split(command), *arguments], cwd=folder, stdout=subprocess.DEVNULL).returncode

    return verify


def complaints(case: Path, verify: Verifier) -> list[str]:
    """Return what a verifier gets wrong in a case; empty if nothing."""
    expected: dict[str, Any] = json.loads((case / "case.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "verdict.json"
        status = verify(case, [*expected["arguments"], "--json", str(path)])
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    wrong = []
    if status != expected["exit_status"]:
        wrong.append(f"exit status {status}, expected {expected['exit_status']}")
    if found and found.get("verdict") != expected["verdict"]:
        wrong.append(f"verdict {found.get('verdict')}, expected {expected['verdict']} ({found.get('reason', '')})")
    if found and (missing := sorted(set(expected["differs_in"]) - set(found.get("differs_in", [])))):
        wrong.append(f"does not differ in {', '.join(missing)}, but in {', '.join(found.get('differs_in', []))}")
    for key, value in expected.get("bounds_from_own_losses", {}).items() if found else ():
        quoted = found.get("bounds_from_own_losses", {}).get(key)
        same = quoted == value if None in (quoted, value) else abs(quoted - value) <= BOUND_TOLERANCE_BITS
        if not same:
            wrong.append(f"{key} {quoted}, expected {value}")
    return wrong


def main() -> int:
    command = os.environ.get("VERIFY")
    verify = by_command(command) if command else in_this_process
    folders = sorted(path.parent for path in CASES.glob("*/case.json"))
    failed = 0
    for folder in folders:
        wrong = complaints(folder, verify)
        failed += bool(wrong)
        print(f"{'FAILED' if wrong else 'ok    '}  {folder.name}{': ' if wrong else ''}{'; '.join(wrong)}", flush=True)
    print(f"{len(folders)} cases, {failed} failed")
    return 1 if failed or not folders else 0


if __name__ == "__main__":
    sys.exit(main())

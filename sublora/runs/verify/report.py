"""What `sublora verify --json FILE` writes, as one typed record per verdict, and the JSON schema of the file.

`python -m sublora.runs.verify.report` prints docs/verdict.schema.json; `make schema` writes it, and a test compares
them. Text that comes from a claim stands in it with control characters escaped.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from sublora.system.errors import EXIT_BAD_INPUT, EXIT_FAULT, UserError, printable
from sublora.system.files import read_json, user_line, write_json
from sublora.system.validation import Strict

REPORT_FORMAT: Literal[1] = 1
VERIFIED: Literal[0] = 0
REFUSED: Literal[1] = 1
"""Exit statuses of a claim that was checked; the others are those of every command."""


class Report(Strict):
    """The keys that every verdict has."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    format: Literal[1] = REPORT_FORMAT
    """Version of this file's format."""
    verdict: str
    exit_status: int
    """That of the command."""


class ComparedValue(Strict):
    """One comparison of a claimed value with a computed or expected one."""

    name: str
    claimed: str
    recomputed: str
    """What was found by this verification, or what the reader asked for."""
    tolerance: float | None
    """How far apart two numbers may be; null: both must be equal."""
    agrees: bool


class Checked(Report):
    """A claim that was checked, with everything that the verdict rests on."""

    source: str
    """The folder or the certificate that was named on the command line."""
    run: str
    """Name of the run that the certificate is of."""
    certificate_sha256: str
    """Hash of the bytes that were checked."""
    differs_in: list[str]
    """Names of the comparisons that failed; empty if and only if the claim was verified."""
    bounds_from_own_losses: dict[str, float | None]
    """Bounds, the numbers to quote, and what they follow from, from the verifier's own losses, bits per token; null:
    there is no such bound. Empty if the claim was refused before anything was scored."""
    held_out_on_trust: dict[str, float]
    """Loss and bound on the test documents of the claim's data, scored by the verifier. They mean something only if
    nothing was chosen on these documents, which no file can show; not part of the verdict."""
    scored_on: str
    """Device that scored; empty if nothing was scored."""
    premises: dict[str, str]
    """Settings that must have been fixed before the documents were seen, as the certificate has them."""
    taken_on_trust: list[str]
    """What nobody can compute from the files, in words."""
    claimed_not_checked: dict[str, str]
    """What the files claim and this verification could not compute; no bound depends on it."""
    checks: list[ComparedValue]
    """Every comparison, in order."""


class VerifiedClaim(Checked):
    """Every comparison agrees."""

    verdict: Literal["verified"] = "verified"
    exit_status: Literal[0] = VERIFIED


class RefusedClaim(Checked):
    """At least one comparison differs."""

    verdict: Literal["refused"] = "refused"
    exit_status: Literal[1] = REFUSED


class UncheckedClaim(Report):
    """The claim could not be checked: a file is missing, damaged or of another version, or an option is wrong."""

    verdict: Literal["cannot be checked"] = "cannot be checked"
    exit_status: Literal[2] = EXIT_BAD_INPUT
    reason: str


class FailedVerification(Report):
    """The verification itself failed, or was killed before it ended: it says nothing about the claim."""

    verdict: Literal["failed"] = "failed"
    exit_status: Literal[3] = EXIT_FAULT
    reason: str


AnyReport = Annotated[
    VerifiedClaim | RefusedClaim | UncheckedClaim | FailedVerification, Field(discriminator="verdict")
]
ANY_REPORT: TypeAdapter[AnyReport] = TypeAdapter(AnyReport)
UNFINISHED = FailedVerification(reason="the verification has not ended: it is still running, or it was killed")
"""What the file holds until there is a verdict, so that no earlier one stays in it."""


def write_verdict(path: Path, report: AnyReport) -> None:
    """Write the report as JSON; UserError if the file cannot be written."""
    write_json(path, report.model_dump(mode="json"))


@contextlib.contextmanager
def recorded(path: Path | None) -> Iterator[None]:
    """Write to `path` why there is no verdict, if the block ends in an error; None: write nothing.

    From the start of the block the file says that the verification has not ended. UserError if it cannot be written, or
    is there already and is not a verdict.
    """
    if path is None:
        yield
        return
    if not _may_be_replaced(path):
        raise UserError(f"--json {path}: exists and is not a verdict of this command; name another file")
    write_verdict(path, UNFINISHED)
    try:
        yield
    except Exception as error:  # raised again: sublora.cli.main prints it
        line = user_line(error)
        if line is None:
            write_verdict(path, FailedVerification(reason=printable(f"{type(error).__name__}: {error}", 2000)))
        else:
            write_verdict(path, UncheckedClaim(reason=printable(line)))
        raise


def _may_be_replaced(path: Path) -> bool:
    """Return whether there is no such file, or an empty one, or a verdict."""
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return True
    try:
        found = read_json(path, missing="", fix="")
    except UserError:
        return False
    return isinstance(found, dict) and "verdict" in found


def verdict_schema_text() -> str:
    """Return the JSON schema of the file, indented, ending in a newline."""
    schema: dict[str, Any] = ANY_REPORT.json_schema(mode="serialization")
    facts = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Verdict of sublora verify --json",
    }
    return json.dumps(facts | schema, indent=2) + "\n"


if __name__ == "__main__":
    print(verdict_schema_text(), end="")

"""The result of a verification: shown on a terminal, as JSON, and as an exit status."""

import dataclasses
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from sublora.runs.verify.checks import Check
from sublora.runs.verify.report import REFUSED, VERIFIED, ComparedValue, RefusedClaim, VerifiedClaim
from sublora.system.errors import printable

LONGEST_CELL = 160
LONGEST_FACT = 2000
"""Longest premise shown in full: a premise must not be cut off."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line: rich would exit with status 1, which means that a claim is refused."""
        raise BrokenPipeError


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Every comparison, the verifier's own bounds, and all that the verdict rests on without having checked it."""

    source: str
    run: str
    certificate_sha256: str
    """Hash of the bytes that were decoded."""
    checks: tuple[Check, ...]
    bounds: dict[str, float | None] = dataclasses.field(default_factory=dict)
    """Bounds from the verifier's own losses, bits per token; empty if the claim was refused before it was scored."""
    held_out: dict[str, float] = dataclasses.field(default_factory=dict)
    """Loss and bound on the test documents of the claim's data; they presuppose that w was not chosen on these."""
    scored_on: str = ""
    premises: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings that the bounds presuppose, as the claim states them."""
    trusted: tuple[str, ...] = ()
    """What nobody can compute from the files."""
    unchecked: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the files say of machines and versions."""

    def with_checks(self, *checks: Check) -> "Verdict":
        return dataclasses.replace(self, checks=(*self.checks, *checks))

    def with_bounds(self, bounds: dict[str, float | None]) -> "Verdict":
        return dataclasses.replace(self, bounds=self.bounds | bounds)

    @property
    def wrong(self) -> list[str]:
        """Names of the comparisons that failed."""
        return [check.name for check in self.checks if not check.agrees]

    @property
    def verified(self) -> bool:
        return not self.wrong

    @property
    def exit_status(self) -> int:
        return VERIFIED if self.verified else REFUSED

    def sentence(self) -> str:
        """The verdict in one line."""
        if not self.verified:
            return f"{printable(self.source)}: NOT verified, differs in: {printable(', '.join(self.wrong))}"
        quoted = ", ".join(
            f"{name} {value:.4f}"
            for name, value in self.bounds.items()
            if value is not None and name.startswith("bound")
        )
        whose = f"{printable(self.source)}: verified, run {printable(self.run)}"
        return f"{whose}; bits per token, from the verifier's own losses: {quoted}"

    def report(self) -> VerifiedClaim | RefusedClaim:
        """Return what --json writes; text of the claim is escaped here too."""
        facts: dict[str, Any] = {
            "source": printable(self.source),
            "run": printable(self.run),
            "certificate_sha256": self.certificate_sha256,
            "differs_in": [printable(name) for name in self.wrong],
            "bounds_from_own_losses": self.bounds,
            "held_out_on_trust": self.held_out,
            "scored_on": self.scored_on,
            "premises": {printable(key): printable(value) for key, value in self.premises.items()},
            "taken_on_trust": [printable(text) for text in self.trusted],
            "claimed_not_checked": {printable(key): printable(value) for key, value in self.unchecked.items()},
            "checks": [
                ComparedValue(
                    name=printable(check.name),
                    claimed=_shown(check.claimed),
                    recomputed=_shown(check.recomputed),
                    tolerance=check.tolerance,
                    agrees=check.agrees,
                )
                for check in self.checks
            ],
        }
        return VerifiedClaim(**facts) if self.verified else RefusedClaim(**facts)

    def print(self) -> None:
        """Print the whole verdict. Text from a file reaches the terminal as plain characters only."""
        console = _Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False, highlight=False)
        table = _table("recomputed", "claimed", "found", "tolerance", "")
        for check in self.checks:
            tolerance = "exact" if check.tolerance is None else f"{check.tolerance:.1g}"
            verdict = "ok" if check.agrees else "DIFFERS"
            name = printable(check.name, LONGEST_CELL)
            table.add_row(name, _shown(check.claimed), _shown(check.recomputed), tolerance, verdict)
        console.print(table)
        for title, facts in (
            ("premise: must have been fixed before the documents were seen", self.premises),
            ("claimed, not checked", self.unchecked),
        ):
            if facts:
                table = _table(title, "")
                for key, value in facts.items():
                    table.add_row(printable(key, LONGEST_CELL), _shown(value, LONGEST_FACT))
                console.print(table)
        if self.trusted:
            print("taken on trust:")
            for text in self.trusted:
                print(f"- {printable(text)}")
        for title, numbers in (
            (f"found by this verification, {self.scored_on}", self.bounds),
            ("held out: only if w was not chosen on the test documents", self.held_out),
        ):
            if numbers:
                table = _table(title, "bits")
                for key, number in numbers.items():
                    table.add_row(key, "absent" if number is None else f"{number:.6f}")
                console.print(table)
        print(self.sentence())


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _shown(value: Any, limit: int = LONGEST_CELL) -> str:
    return printable(f"{value:.7g}" if isinstance(value, float) else value, limit)

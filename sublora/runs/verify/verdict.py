"""The result of a verification, shown on a terminal, as JSON, and as an exit status; and in words what it rests on."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sublora import config
from sublora.config.marks import claim_settings, premises
from sublora.data.base_and_target import base_data, open_text_keys
from sublora.data.dataset import TokenDataset, dataset_folder
from sublora.data.dataset_files import META_FILE
from sublora.runs.message import Message
from sublora.runs.verify.checks import Check, environment_facts
from sublora.runs.verify.files import Claim, Options
from sublora.runs.verify.report import REFUSED, VERIFIED, ComparedValue, RefusedClaim, VerifiedClaim
from sublora.system.errors import printable


def premises_of(message: Message, options: Options) -> dict[str, Any]:
    """Return the settings that must have been fixed beforehand for the bounds to hold, as the certificate has them.

    Those that mean most come first. Where the verifier has given the settings that they expect, these have been
    compared, and the others are left out.
    """
    values = claim_settings(message.settings)
    facts = {key: values[key] for key in premises()}
    if options.config_path is None:
        facts |= values
    facts |= {"base sha256": message.header.base_sha256}
    base = message.settings.base
    if isinstance(base, config.PretrainedBase):
        facts |= {f"base.independence.{key}": value for key, value in base.independence.model_dump().items()}
    return facts


def unchecked_facts(message: Message, claimed: dict[str, Any]) -> dict[str, Any]:
    """Return what certificate and bounds.json say about machines, versions and durations."""
    header = message.header
    encoded = {f"encoded with {name}": value for name, value in header.environment.items()}
    numerics = {f"numerics of {stage}": v for stage, v in header.numerics_versions.items() if stage != "score"}
    return environment_facts(claimed) | encoded | numerics


def settings_checks(settings: config.Settings, spec: config.RunSpec, expected_path: Path | None) -> list[Check]:
    """Compare the settings that the bound rests on with those that the verifier expects."""
    if expected_path is None:
        return []
    wanted = config.load_settings(expected_path).for_run(spec)
    found, expected = claim_settings(settings), claim_settings(wanted)
    keys = sorted(found.keys() | expected.keys())
    differing = [key for key in keys if found.get(key) != expected.get(key)]
    checks = [Check(f"settings: {key}", str(found.get(key)), str(expected.get(key))) for key in differing]
    return [Check(f"settings that differ from {expected_path}", 0, len(differing)), *checks]


def trusted_premises(message: Message, options: Options) -> list[str]:
    """List the premises that no file can show."""
    expected = options.config_path
    fixed = "the premises" if expected is None else f"the settings of {expected}"
    grouped = message.settings.data.unit != "document"
    kind = "units" if grouped else "documents"
    trusted = [
        f"that the n {kind} are independent draws from the population that the claim speaks of, each text counted once",
        f"that {fixed} were fixed before the documents were seen (bound_strict charges them instead, but not the "
        "choice of population and base: it holds for those that you named beforehand)",
    ]
    if message.settings.scoring.sources is not None:
        trusted.append(
            "for bound_by_source: which documents are of one source file, and that files are independent draws"
        )
    if grouped:
        trusted += [
            "that documents of one source are in one unit: which source they are from is not in the tokens",
            "that units are independent although a text that several sources share is in only one of them",
        ]
    if message.loss.premises.m_units is not None and options.redraw is None:
        trusted.append(
            "that no other messages were made until a draw of documents was lucky (--redraw N --nonce TEXT draws anew)"
        )
    trusted.append(
        "for bound_held_out and test_loss_bits: that nothing, w included, was chosen on the test documents "
        "(--test-data DIR bounds the loss from documents of your own)"
    )
    if message.settings.base.kind != "random":
        trusted.append(one_base(message, options))
    if message.settings.base.kind == "pretrained":
        trusted.append("that the base was fixed without the n documents: its independence is stated, not shown")
    if message.settings.base.kind == "trained":
        trusted.append("that the base was trained on its own corpus alone: its training is not repeated")
    trusted.append("nothing of the training of w: the bound holds however the message was found")
    return trusted


def one_base(message: Message, options: Options) -> str:
    """Say that one base is assumed, and which numbers hold where that is doubted.

    Weights that differ by a millionth are another base with other draws, and bound_strict charges settings, not bases.
    """
    sha256 = message.header.base_sha256
    text = f"that one base, {sha256[:12]}..., was fixed before the documents were seen"
    if options.base_sha256 is None:
        text += " (--base-sha256 compares it with the one you expect)"
    drawn = message.loss.premises.m_units is not None
    if message.loss.anchoring is not None:
        drawn = drawn or message.loss.anchoring.base_documents is not None
    if drawn and options.redraw is None:
        text += (
            "; bound_strict assumes it as well, since who tries many bases can pick a lucky draw: --redraw draws anew"
        )
    return text


def texts_of_the_base(message: Message, claim: Claim, dataset: TokenDataset) -> tuple[list[Check], list[str]]:
    """Check that the texts of a trained base's corpus were left out; without that corpus this is a premise.

    A dataset without a trained base must not have been made without some texts: it would be another population.
    """
    settings = message.settings
    if settings.base.kind != "trained":
        return [Check("texts left out of the data", None, dataset.excluded_texts)], []
    if claim.data is None or claim.root is not None:
        root = claim.data_root(settings.data)
        if (dataset_folder(root, base_data(settings)) / META_FILE).exists():
            keys = open_text_keys(settings, root).sha256
            return [Check("texts of the base's corpus left out of the data", dataset.excluded_texts, keys)], []
    left_out = [Check("texts left out of the data", True, dataset.excluded_texts is not None)]
    return left_out, ["that the texts left out of the data are those of the base's corpus, whose data are not here"]


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

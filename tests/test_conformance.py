"""The conformance set: this verifier gives the expected verdicts, and the set is what its script makes."""

import json
from pathlib import Path

import pytest
from conformance.forge import CASES, FORGERIES, write_cases, write_list
from conformance.run import by_command, complaints, in_this_process

LARGEST_SET_BYTES = 1_000_000
REASONS = {
    "key-twice": "a key occurs twice",
    "truncated-certificate": "truncated",
    "byte-flipped": "checksum does not match",
    "padding-flipped": "the payload is not the one that its contents are encoded as",
    "k-outside-the-grid": "smoothing index 7 of a grid of 5",
    "other-format": "certificate format 4",
    "other-numerics": "version 99 of the numerics",
}
"""Why a case cannot be checked."""


def expected(case: Path) -> dict:
    return json.loads((case / "case.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [made.name for made in FORGERIES])
def test_this_verifier_gives_the_expected_verdict(name):
    assert complaints(CASES / name, in_this_process) == []


@pytest.mark.parametrize("made", [made for made in FORGERIES if made.exit_status == 2], ids=lambda made: made.name)
def test_a_case_that_cannot_be_checked_names_the_forgery(made, capfd):
    in_this_process(CASES / made.name, expected(CASES / made.name)["arguments"])
    assert REASONS[made.name.removeprefix(f"{made.family}-")] in capfd.readouterr().err


@pytest.mark.parametrize(("command", "status"), [("true", 0), ("false", 1)])
def test_a_verifier_that_always_says_the_same_fails(command, status):
    wrong = {made.name for made in FORGERIES if complaints(CASES / made.name, by_command(command))}
    assert wrong == {made.name for made in FORGERIES if made.exit_status != status} and wrong


def test_the_set_is_small_and_complete():
    folders = {path.parent.name for path in CASES.glob("*/case.json")}
    assert folders == {made.name for made in FORGERIES}, "run `make conformance`"
    assert sum(path.stat().st_size for path in CASES.rglob("*") if path.is_file()) < LARGEST_SET_BYTES
    assert {made.exit_status for made in FORGERIES} == {0, 1, 2}
    # The bounds that are quoted say something: guessing costs 8 bits.
    for family in ("direct", "anchored"):
        assert expected(CASES / f"{family}-honest")["bounds_from_own_losses"]["bound_value"] < 7.0


@pytest.mark.slow
def test_the_set_is_what_its_script_makes(tmp_path):
    """Certificates and data byte for byte on any machine; losses and bounds are compared by the verifier."""
    write_cases(tmp_path)
    write_list(tmp_path)
    assert (tmp_path / "README.md").read_text() == (CASES / "README.md").read_text(), "run `make conformance`"
    for made in FORGERIES:
        own, new = CASES / made.name, tmp_path / made.name
        files = {path.relative_to(own) for path in own.rglob("*") if path.is_file()}
        assert files == {path.relative_to(new) for path in new.rglob("*") if path.is_file()}
        for path in sorted(files - {Path(name) for name in ("losses.npz", "bounds.json", "case.json")}):
            assert (own / path).read_bytes() == (new / path).read_bytes(), f"{made.name}/{path}: run `make conformance`"
        bounds = [expected(case).pop("bounds_from_own_losses", {}) for case in (own, new)]
        assert bounds[0] == pytest.approx(bounds[1], abs=1e-3)
        assert complaints(new, in_this_process) == []

"""Attacks on the files of a claim: keys edited, added or left out, text that acts on a terminal, other spellings."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks import RUN, Prover, flip_payload_bit, honest_runs

from sublora.runs.verify.files import Claim
from sublora.runs.verify.report import recorded
from sublora.runs.verify.verify import verify_and_print
from sublora.system.errors import UserError
from sublora.system.versions import NUMERICS_VERSIONS
from sublora.training import checkpoint


@pytest.fixture(scope="module")
def honest(honest_root, tmp_path_factory) -> Path:
    return honest_runs(honest_root, tmp_path_factory.mktemp("attacks") / "root")


@pytest.fixture
def prover(honest, tmp_path) -> Prover:
    return Prover.of(honest, tmp_path / "root", RUN)


def nested(path: tuple[str, ...], value: object) -> Callable[[dict], None]:
    def edit(claim: dict) -> None:
        for key in path[:-1]:
            claim = claim[key]
        claim[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (nested(("data_hash",), "0" * 64), "data hash in bounds.json"),
        (nested(("certificate_sha256",), "0" * 64), "certificate sha256"),
        (nested(("bound_value",), 1.0), "bound_value"),
        (nested(("bound_value",), float("nan")), "bound_value"),
        (nested(("bound_value",), True), "bound_value"),
        (nested(("bound_value",), 10**400), "bound_value"),
        (nested(("bound_strict",), 0.1), "bound_strict"),
        (nested(("code_items", "symbols"), 1), "code_items.symbols"),
        (nested(("gates", "0"), 0), "gates.0"),
        (nested(("base", "kind"), "pretrained"), "base.kind"),
        (nested(("run", "name"), "d60_learned_seed1"), "run.name"),
        (nested(("val_loss_unquantized_bits",), 0.1), "val_loss_unquantized_bits"),
        (nested(("n_documents",), 10**6), "n_documents"),
        (nested(("peer_reviewed",), True), "peer_reviewed"),
        (nested(("nothing",), {}), "nothing"),
        (nested(("bounds", "better"), 0.1), "bounds.better"),
        (nested(("bounds.betting_subsampled",), 0.1), "bounds.betting_subsampled"),
        (nested(("versions", "auditor"), "1.0"), "versions.auditor"),
        (lambda claim: claim.pop("test_loss_bits"), "test_loss_bits"),
        (lambda claim: claim.pop("gpu"), "gpu"),
        (lambda claim: claim["versions"].pop("torch"), "versions.torch"),
    ],
)
def test_keys_of_the_claim_edited_added_or_left_out(prover, edit, reason):
    prover.edit_claim(edit)
    prover.refused(reason)


def test_the_published_numbers_edited(prover):
    numbers = checkpoint.load(prover.path / "bounds_metrics.pt")
    checkpoint.save(prover.path / "bounds_metrics.pt", numbers | {"bound_value": 0.1})
    prover.refused("bounds_metrics.pt says what bounds.json says")


def test_a_key_twice_in_the_claim(prover):
    text = (prover.path / "bounds.json").read_text()
    (prover.path / "bounds.json").write_text('{"bound_value": 0.1, ' + text.lstrip()[1:])
    with pytest.raises(UserError, match="a key occurs twice"):
        prover.verdict()


NASTY = "\x1b[2J\x1b]0;owned\x07[bold red]verified[/bold red] \r\n\u202e :warning: [link=file:///etc]"


def test_nothing_in_a_claim_acts_on_the_terminal(prover, capsys):
    """Versions, commit and GPU are shown as claimed, never as right, and as plain characters."""
    prover.reseal(lambda header: header["environment"].update({"torch": NASTY, NASTY: "1"}))
    prover.bound()

    def edit(claim: dict) -> None:
        claim["gpu"], claim["commit"], claim[NASTY] = NASTY, NASTY, NASTY
        claim["versions"]["torch"] = {NASTY: [NASTY]}

    prover.edit_claim(edit)
    json_path = prover.root / "verdict.json"
    assert verify_and_print(Claim.of(prover.path, root=prover.root), json_path=json_path) == 1
    for text in (capsys.readouterr().out, json_path.read_text()):
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text) and "[bold red]" in text
    facts = json.loads(json_path.read_text())
    assert "gpu" in facts["claimed_not_checked"] and not any(check["name"] == "gpu" for check in facts["checks"])


# Numerics of the bound


def drop_an_inequality(claim: dict) -> None:
    claim["bounds"].pop("kl_inverse_subsampled")


def test_bounds_of_another_version_of_the_numerics_cannot_be_checked(prover):
    """As if another release knew an inequality less."""
    prover.reseal(lambda header: header["numerics_versions"].update(bound=99))
    prover.bound()
    prover.edit_claim(drop_an_inequality)
    json_path = prover.root / "verdict.json"
    with (
        pytest.raises(UserError, match=r"bounds\.json: differs in bounds\.kl_inverse_subsampled") as error,
        recorded(json_path),
    ):
        verify_and_print(Claim.of(prover.path, root=prover.root), json_path=json_path)
    own = NUMERICS_VERSIONS["bound"]
    assert f"version 99 of the numerics of the bound, this package has {own}; " in str(error.value)
    assert json.loads(json_path.read_text())["exit_status"] == 2


def test_an_inequality_left_out_by_this_version_is_refused(prover):
    prover.edit_claim(drop_an_inequality)
    prover.refused("bounds.kl_inverse_subsampled")


def test_bounds_that_were_computed_again_are_verified_whatever_version_encoded(prover):
    """The workflow computes bounds again where their numerics changed, and leaves the certificate as it is."""
    prover.reseal(lambda header: header["numerics_versions"].update(bound=NUMERICS_VERSIONS["bound"] - 1))
    prover.bound()
    assert prover.verdict().verified


def test_losses_that_give_no_bounds_are_refused_whatever_version_encoded(prover):
    prover.reseal(lambda header: header["numerics_versions"].update(bound=99))
    prover.bound()
    prover.edit_losses(lambda arrays: arrays.pop("test_losses_bits"))
    prover.refused("arrays of losses.npz")


def test_bounds_of_another_certificate_are_refused_whatever_version_encoded(prover):
    prover.reseal(lambda header: header["numerics_versions"].update(bound=99))
    prover.refused("certificate sha256")


# The certificate


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header.update(more=1),
        lambda header: header.pop("projection_sha256"),
        lambda header: header.update(n_documents="240"),
        lambda header: header.update(n_documents=True),
        lambda header: header["run"].update(allocation="fixed-2"),
        lambda header: header["settings"].update(more={}),
        lambda header: header["settings"]["lora"].update(rank=1.5),
        lambda header: header["numerics_versions"].update(score=99),
        lambda header: header["numerics_versions"].pop("score"),
        lambda header: header["environment"].update(torch=1),
    ],
)
def test_headers_that_are_none_cannot_be_checked(prover, edit):
    prover.reseal(edit)
    with pytest.raises(UserError, match=r"certificate\.bin: "):
        prover.verdict()


def test_a_payload_written_in_another_way(prover):
    """The padding behind the last bit would be a free choice among certificates."""
    path = prover.path / "certificate.bin"
    assert prover.claim()["compressed_size_bits"] % 8, "there is padding"
    flip_payload_bit(path, 1)
    with pytest.raises(UserError, match="the payload is not the one that its contents are encoded as"):
        prover.verdict()


@pytest.mark.parametrize("place", range(2, 8))
def test_every_other_payload_is_refused(prover, place):
    flip_payload_bit(prover.path / "certificate.bin", place)
    try:
        prover.refused()
    except UserError as error:
        assert "certificate.bin: " in str(error)

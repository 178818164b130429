"""`sublora verify`: what an honest claim comes to, wherever its files lie and whatever machine checks it.

Dishonest claims are in test_attacks.py.
"""

import errno
import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from attacks import Prover
from conftest import REPOSITORY, TINY, write_settings

from sublora import cli, config
from sublora.data.prepare import prepare_all
from sublora.runs.base import make_base
from sublora.runs.bound import bound_run
from sublora.runs.message import read_message
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify.files import Claim, Options
from sublora.runs.verify.report import verdict_schema_text
from sublora.runs.verify.verify import verify_claim, verify_run
from sublora.system.errors import UserError

SPEC = config.RunSpec(budget=40, allocation="learned", seed=1)
OPTIMIZATION = {key: value for key, value in TINY["training"].items() if key in config.Optimization.model_fields} | {
    "steps": 4,
    "eval_interval_steps": 2,
    "save_interval_steps": 2,
    "log_interval_steps": 1,
    "learning_rate": 0.01,
}
TRAINED_BASE = {
    "kind": "trained",
    "name": "apart",
    "corpus": TINY["data"]["corpus"] | {"seed": 4, "documents": 60},
    "min_characters": 1,
    "val_documents": 20,
    "seed": 1,
    "threads": 1,
    "final_learning_rate": 0.001,
    "warmup_fraction": 0.1,
    "betas": [0.9, 0.95],
    "epsilon": 1.0e-8,
    "weight_decay": 0.1,
    "gradient_clip": 1.0,
}


def finished(root: Path, changes: dict) -> Path:
    """Folder of a run below `root` that is trained, scored and bounded; prepares what is not there."""
    config_path = write_settings(root, changes)
    settings = config.load_settings(config_path)
    if not (root / "data" / settings.data.name).exists():
        prepare_all(settings, root)
    if settings.base.kind == "trained":
        make_base(settings, root=root)
    out = root / "results" / "runs" / SPEC.name
    train_run(settings, SPEC, root=root, out=out)
    score_run(out, config_path=config_path)
    bound_run(out, config_path=config_path)
    return out


@pytest.fixture(scope="module", params=["plain", "entropy"])
def honest(tiny_root, tmp_path_factory, request):
    root = tmp_path_factory.mktemp("verify") / "root"
    shutil.copytree(tiny_root, root)
    return finished(root, {"message": {"quantizer": request.param}})


@pytest.fixture
def run(honest, tmp_path):
    """A copy to tamper with."""
    shutil.copytree(honest.parents[2], tmp_path / "root")
    return tmp_path / "root" / "results" / "runs" / honest.name


def call(monkeypatch, capfd, *arguments: object) -> tuple[int, str]:
    """Exit status and output of `sublora verify ...`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["sublora", "verify", *map(str, arguments)])
    try:
        cli.main()
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    captured = capfd.readouterr()
    return status, captured.out + captured.err


def test_an_honest_run_is_verified_with_and_without_its_checkpoint(run, monkeypatch, capfd):
    claim = json.loads((run / "bounds.json").read_text())
    for before_quantization in ("checked", "not checked"):
        json_path = run / "verdict.json"
        status, output = call(monkeypatch, capfd, run, "--json", json_path)
        assert status == 0 and "DIFFERS" not in output and "taken on trust" in output
        verdict = json.loads(json_path.read_text())
        assert verdict["verdict"] == "verified" and not verdict["differs_in"]
        for key in ("bound_value", "bound_all_runs", "bound_strict"):
            assert verdict["bounds_from_own_losses"][key] == pytest.approx(claim[key], abs=1e-9)
        names = {check["name"] for check in verdict["checks"]}
        shown = any("val_loss_unquantized_bits" in name for name in verdict["claimed_not_checked"])
        assert shown == (before_quantization == "not checked")
        assert ("val_loss_unquantized_bits, re-scored" in names) == (before_quantization == "checked")
        (run / "best_ckpt.pt").unlink(missing_ok=True)


def valid(path: Path) -> dict[str, Any]:
    """What --json wrote, after a comparison with the schema that is published."""
    found = json.loads(path.read_text(encoding="utf-8"))
    schema = json.loads((REPOSITORY / "docs/verdict.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(found)
    return found


def test_exit_statuses_and_the_schema_of_every_verdict(run, monkeypatch, capfd):
    json_path = run / "verdict.json"
    assert call(monkeypatch, capfd, run, "--json", json_path)[0] == 0
    found = valid(json_path)
    assert (found["verdict"], found["exit_status"], found["differs_in"]) == ("verified", 0, [])
    assert found["certificate_sha256"] == hashlib.sha256((run / "certificate.bin").read_bytes()).hexdigest()
    # Refused: 1.
    claim = json.loads((run / "bounds.json").read_text())
    (run / "bounds.json").write_text(json.dumps(claim | {"bound_value": 1.0}))
    status, output = call(monkeypatch, capfd, run, "--json", json_path)
    assert status == 1 and "NOT verified, differs in: bound_value" in output
    found = valid(json_path)
    assert (found["verdict"], found["exit_status"], found["differs_in"][0]) == ("refused", 1, "bound_value")
    # Bad input: 2, whether it is a file, an option, or nothing at all.
    (run / "bounds.json").unlink()
    status, output = call(monkeypatch, capfd, run, "--json", json_path)
    assert status == 2 and "bounds.json: no such file" in output
    assert valid(json_path)["verdict"] == "cannot be checked"
    for arguments in ([], [run, "--redraw", 5], [run, "--redraw", 0, "--nonce", "x"]):
        json_path.write_text("")
        assert call(monkeypatch, capfd, *arguments, "--json", json_path)[0] == 2
        assert valid(json_path)["exit_status"] == 2 and valid(json_path)["reason"]


@pytest.mark.parametrize("error", [ZeroDivisionError("at \x1b[2J"), EOFError("early"), MemoryError(), RecursionError()])
def test_a_fault_of_the_package_is_neither_refused_nor_bad_input(honest, tmp_path, monkeypatch, capfd, error):
    """And what an earlier verification wrote does not stay."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sublora.runs.verify.verify.data_checks", fail)
    json_path = tmp_path / "verdict.json"
    json_path.write_text('{"verdict": "verified", "exit_status": 0}')
    status, output = call(monkeypatch, capfd, honest, "--json", json_path)
    assert status == 3 and "Traceback" in output and "\x1b" not in output
    assert output.rstrip().endswith("error: a fault of sublora, not of its input; please report the lines above")
    found = valid(json_path)
    assert (found["verdict"], found["exit_status"]) == ("failed", 3)
    assert type(error).__name__ in found["reason"] or "a file ended early" in found["reason"]


def test_an_error_of_the_operating_system_is_bad_input(honest, tmp_path, monkeypatch, capfd):
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "train.bin")

    monkeypatch.setattr("sublora.runs.verify.verify.data_checks", fail)
    json_path = tmp_path / "verdict.json"
    status, output = call(monkeypatch, capfd, honest, "--json", json_path)
    assert status == 2 and "error: train.bin: Permission denied" in output and "Traceback" not in output
    assert valid(json_path)["reason"].startswith("train.bin: Permission denied")


def test_a_verification_that_is_interrupted_or_killed_leaves_no_verdict(honest, tmp_path, monkeypatch, capfd):
    json_path = tmp_path / "verdict.json"
    json_path.write_text('{"verdict": "verified", "exit_status": 0}')

    def interrupted(*_: object, **__: object) -> None:
        assert valid(json_path)["verdict"] == "failed"
        raise KeyboardInterrupt

    monkeypatch.setattr("sublora.runs.verify.verify.data_checks", interrupted)
    assert call(monkeypatch, capfd, honest, "--json", json_path)[0] == 130
    assert "has not ended" in valid(json_path)["reason"]


def test_a_verdict_that_nobody_reads_is_not_a_refusal(honest, monkeypatch):
    """As in `sublora verify DIR | head -n 1`, where rich would exit with status 1."""
    verdict = verify_run(honest)

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        verdict.print()


def test_the_verdict_replaces_no_other_file(run, monkeypatch, capfd):
    before = (run / "bounds.json").read_bytes()
    status, output = call(monkeypatch, capfd, run, "--json", run / "bounds.json")
    assert status == 2 and "bounds.json: exists and is not a verdict of this command" in output
    assert (run / "bounds.json").read_bytes() == before


def test_the_published_schema_is_the_one_of_the_records():
    assert (REPOSITORY / "docs/verdict.schema.json").read_text() == verdict_schema_text(), "run `make schema`"


@pytest.mark.parametrize("name", ["certificate.bin", "losses.npz", "bounds.json"])
def test_missing_and_damaged_files_are_named(run, name):
    path = run / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=name):
        verify_run(run)
    path.unlink()
    with pytest.raises(UserError, match=f"{name}: no such"):
        verify_run(run)


@pytest.mark.parametrize("place", [3, 200, -60, -1])
def test_flipped_byte_is_refused(run, place):
    path = run / "certificate.bin"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"certificate.bin: "):
        verify_run(run)


def test_other_data_are_refused(run):
    """Damaged files, files made with other settings, and other files made with the same settings."""
    train_bin = run.parents[2] / "data" / "markov" / "train.bin"
    original = train_bin.read_bytes()
    train_bin.write_bytes(original[:100] + b"\x01" + original[101:])
    with pytest.raises(UserError, match=r"train\.bin"):
        verify_run(run)
    prover = Prover(run.parents[2], run.name)
    header_hash = read_message(run / "certificate.bin").header.data_hash
    tokens = prover.tokens("train")
    tokens[1] ^= 1
    prover.rewrite_data(train=tokens)
    prover.reseal(lambda header: header.update(data_hash=header_hash))
    assert "data hash" in verify_run(run).wrong


def test_other_init_and_sharing_go_the_whole_way(tiny_root, tmp_path):
    """B random, and 40 coordinates divided among three groups: 13, 13 and 14, so a gate costs 4 bits and not 6."""
    shutil.copytree(tiny_root, tmp_path / "root")
    changes = {"lora": {"init": "both_random"}, "gating": {"sharing": "per_layer"}, "message": {"quantizer": "entropy"}}
    out = finished(tmp_path / "root", changes)
    record = json.loads((out / "bounds.json").read_text())
    assert record["code_items"]["gates"] == 12
    sizes = {"0": 13, "1": 13, "head": 14}
    assert record["gamma"] == {group: record["gates"][group] / size for group, size in sizes.items()}
    (out / "best_ckpt.pt").unlink()
    assert verify_run(out).verified


def test_all_documents_scored_and_a_draw_of_the_verifiers_own(tiny_root, tmp_path):
    """Nothing is drawn by the prover, so nothing about the draw is taken on trust."""
    shutil.copytree(tiny_root, tmp_path / "root")
    out = finished(tmp_path / "root", {"scoring": {"documents": "all"}})
    verdict = verify_run(out)
    assert verdict.verified and not any("lucky" in text for text in verdict.trusted)
    # The demo's and the full reference draw documents, which is another inequality.
    assert verdict.bounds["bound_strict"] is None
    redrawn = verify_run(out, options=Options(redraw=200, nonce="this afternoon"))
    assert redrawn.bounds["bound_redraw"] > redrawn.bounds["bound_value"]


def test_a_redraw_hangs_on_the_nonce(honest):
    bounds = [
        verify_run(honest, options=Options(redraw=30, nonce=nonce)).bounds["bound_redraw"] for nonce in ("a", "a", "b")
    ]
    assert bounds[0] == bounds[1] != bounds[2]


def test_a_certificate_can_be_mailed(honest, tmp_path, monkeypatch, capfd):
    """Three files anywhere, and the verifier's own data under another name."""
    mail, data = tmp_path / "mail", tmp_path / "my data"
    mail.mkdir()
    for name, new in (("certificate.bin", "c"), ("losses.npz", "l"), ("bounds.json", "b")):
        shutil.copy(honest / name, mail / new)
    shutil.copytree(honest.parents[2] / "data" / "markov", data)
    monkeypatch.chdir(tmp_path)
    files = ["--certificate", mail / "c", "--bounds", mail / "b", "--losses", mail / "l"]
    status, output = call(monkeypatch, capfd, *files, "--data", data)
    assert status == 0, output
    with pytest.raises(UserError, match="no data/markov in any folder above it"):
        verify_claim(Claim.of(certificate=mail / "c", bounds=mail / "b", losses=mail / "l"))


def test_a_base_from_a_file(tmp_path):
    """Its weights must be those that the certificate names; its own data need not be here."""
    changes = {"base": TRAINED_BASE | OPTIMIZATION, "message": {"quantizer": "entropy"}}
    root = tmp_path / "root"
    root.mkdir()
    out = finished(root, changes)
    here = verify_run(out)
    assert here.verified, here.wrong
    mail = tmp_path / "mail"
    mail.mkdir()
    for name in ("certificate.bin", "losses.npz", "bounds.json"):
        shutil.copy(out / name, mail / name)
    certificate, data = mail / "certificate.bin", root / "data/markov"
    with pytest.raises(UserError, match=r"name the base's weights with --base"):
        verify_claim(Claim.of(certificate=certificate, data=data))
    base = shutil.copy(root / "results/base/base.safetensors", tmp_path / "weights")
    mailed = verify_claim(Claim.of(certificate=certificate, data=data, base=base))
    assert mailed.verified, mailed.wrong
    assert not any("base's corpus" in text for text in here.trusted)
    assert any("base's corpus" in text for text in mailed.trusted)
    # The prover's base beside the certificate does not stand in for the verifier's own.
    shutil.copy(base, out / "base.safetensors")
    changes["base"] = changes["base"] | {"seed": 2}
    make_base(config.load_settings(write_settings(root, changes)), root=root)
    assert verify_run(out).wrong == ["base weights"]


def test_a_certificate_of_a_bfloat16_training_on_a_gpu_is_verified_on_a_cpu(tiny_root, tmp_path, monkeypatch, capfd):
    """Trained in bfloat16 here; the header says that it was on a GPU. Scores are float32 on both sides."""
    shutil.copytree(tiny_root, tmp_path / "root")
    out = finished(tmp_path / "root", {"compute": {"dtype": "bfloat16"}})
    (out / "best_ckpt.pt").unlink()
    prover = Prover(tmp_path / "root", out.name)
    prover.set(compute={"device": "cuda", "compile": True})
    claim = prover.bound()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="score again with --device cpu"):
        verify_run(out)
    json_path = tmp_path / "verdict.json"
    status, output = call(monkeypatch, capfd, out, "--device", "cpu", "--json", json_path)
    verdict = json.loads(json_path.read_text())
    assert status == 0, output
    assert verdict["scored_on"] == "cpu"
    assert verdict["bounds_from_own_losses"]["bound_value"] == pytest.approx(claim["bound_value"], abs=1e-5)


def test_settings_that_the_verifier_expects(honest, tmp_path):
    """Settings that do not touch the claim may differ; those that do are named."""
    root = honest.parents[2]
    expected = tmp_path / "config" / "config.yaml"
    quantizer = read_message(honest / "certificate.bin").settings.message.quantizer
    write_settings(tmp_path, {"message": {"quantizer": quantizer}, "training": {"steps": 7}, "compute": {"threads": 2}})
    assert verify_run(honest, root=root, options=Options(config_path=expected)).verified
    write_settings(tmp_path, {"message": {"quantizer": quantizer}, "lora": {"alpha": 9.0}, "bound": {"delta": 0.1}})
    verdict = verify_run(honest, root=root, options=Options(config_path=expected))
    named = [name for name in verdict.wrong if name.startswith("settings: ")]
    assert named == ["settings: bound.delta", "settings: lora.alpha"] and not verdict.bounds

"""`sublora verify`: agrees with an honest run, and refuses every kind of tampering with its reason."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from conftest import write_settings

from sublora import config
from sublora.coding.certificate import read_certificate
from sublora.data.prepare import prepare_dataset
from sublora.errors import UserError
from sublora.runs.bound import bound_run
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify import verify_and_print, verify_run


@pytest.fixture(scope="module", params=["plain", "entropy"])
def honest(tiny_root, tmp_path_factory, request):
    root = tmp_path_factory.mktemp("verify") / "root"
    shutil.copytree(tiny_root, root)
    config_path = write_settings(root, {"message": {"quantizer": request.param}})
    run = config.RunSpec(budget=40, allocation="learned", seed=1)
    out = root / "results" / "runs" / run.name
    train_run(config.load_settings(config_path), run, root=root, out=out)
    score_run(out, config_path=config_path)
    bound_run(out)
    return out


@pytest.fixture
def run(honest, tmp_path):
    """A copy to tamper with, without the checkpoint: nothing but certificate, losses, claim and data is needed."""
    shutil.copytree(honest.parents[2], tmp_path / "root")
    copied = tmp_path / "root" / "results" / "runs" / honest.name
    (copied / "best_ckpt.pt").unlink()
    return copied


def differing(path) -> set[str]:
    return {check.name for check in verify_run(path) if not check.agrees}


def edit_claim(path, **changes) -> None:
    claim = json.loads((path / "bounds.json").read_text())
    (path / "bounds.json").write_text(json.dumps(claim | changes))


def test_honest_run_is_verified_without_its_checkpoint(run, capsys):
    assert verify_and_print(run)
    output = capsys.readouterr().out
    assert "code_bits" in output and "bound_value, re-scored" in output and "DIFFERS" not in output


def test_other_init_and_sharing_go_the_whole_way(tiny_root, tmp_path):
    """B random, and 40 coordinates divided among three groups: 13, 13 and 14, so a gate costs 4 bits and not 6."""
    shutil.copytree(tiny_root, tmp_path / "root")
    changes = {"lora": {"init": "both_random"}, "gating": {"sharing": "per_layer"}, "message": {"quantizer": "entropy"}}
    settings = config.load_settings(write_settings(tmp_path / "root", changes))
    run = config.RunSpec(budget=40, allocation="learned", seed=1)
    out = tmp_path / "root" / "results" / "runs" / run.name
    train_run(settings, run, root=tmp_path / "root", out=out)
    score_run(out)
    record = json.loads(bound_run(out).read_text())
    assert record["code_items"]["gates"] == 12
    sizes = {"0": 13, "1": 13, "head": 14}
    assert record["gamma"] == {group: record["gates"][group] / size for group, size in sizes.items()}
    (out / "best_ckpt.pt").unlink()
    assert verify_and_print(out)


@pytest.mark.parametrize(
    "changes",
    [
        {"bound_value": 1.0},
        {"code_bits": 10.0},
        {"test_loss_bits": 0.5},
        {"smoothing": "token(0.123)"},
        {"n_documents": 10**6},
    ],
)
def test_edited_claim_is_found(run, changes, capsys):
    edit_claim(run, **changes)
    assert set(changes) <= differing(run)
    assert not verify_and_print(run) and "NOT verified" in capsys.readouterr().out


def test_missing_key_is_found(run):
    claim = json.loads((run / "bounds.json").read_text())
    del claim["gates"]
    (run / "bounds.json").write_text(json.dumps(claim))
    assert {"gates.0", "gates.head"} <= differing(run)


@pytest.mark.parametrize("place", [3, 200, -60, -1])
def test_flipped_byte_is_refused(run, place):
    path = run / "certificate.bin"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"certificate.bin: "):
        verify_run(run)


def test_truncated_certificate_is_refused(run):
    path = run / "certificate.bin"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"certificate.bin: "):
        verify_run(run)


def test_other_message_under_a_fresh_checksum_is_found(run):
    """Flip a payload bit and seal the file again: other documents are drawn, and the claim does not fit."""
    path = run / "certificate.bin"
    payload_bytes = len(read_certificate(path).payload_bytes)
    data = bytearray(path.read_bytes()[:-32])
    data[-(payload_bytes // 2)] ^= 4
    path.write_bytes(bytes(data) + hashlib.sha256(data).digest())
    try:
        names = differing(run)
    except UserError as error:
        assert "certificate.bin" in str(error)
    else:
        assert {"certificate sha256", "scored documents"} <= names


def test_replaced_losses_are_found(run):
    """Losses made smaller, with a bound computed honestly from them, do not survive scoring again."""
    with np.load(run / "losses.npz") as archive:
        arrays = dict(archive)
    arrays["losses_bits"] = arrays["losses_bits"] - 0.3
    np.savez_compressed(run / "losses.npz", **arrays)
    claim = json.loads((run / "bounds.json").read_text())
    claim["bound_value"] -= 0.3
    claim["empirical_bpd"] -= 0.3
    (run / "bounds.json").write_text(json.dumps(claim))
    names = differing(run)
    assert "largest difference of a scored document's loss" in names and "bound_value, re-scored" in names


@pytest.mark.parametrize(("name", "of"), [("val_losses_bits", "val"), ("test_losses_bits", "test")])
def test_replaced_held_out_losses_are_found(run, name, of):
    """Together with the claim that follows from them."""
    with np.load(run / "losses.npz") as archive:
        arrays = dict(archive)
    arrays[name] = arrays[name] - 0.3
    np.savez_compressed(run / "losses.npz", **arrays)
    key = f"{of}_loss_bits"
    edit_claim(run, **{key: json.loads((run / "bounds.json").read_text())[key] - 0.3})
    names = differing(run)
    assert {f"largest difference of a {of} document's loss", f"{key}, re-scored"} <= names


@pytest.mark.parametrize("name", ["losses_bits", "val_losses_bits", "test_losses_bits"])
def test_documents_left_out_are_found(run, name):
    """The worst documents dropped from the file, with a claim computed from the rest."""
    with np.load(run / "losses.npz") as archive:
        arrays = dict(archive)
    kept = np.sort(np.argsort(arrays[name])[:-5])
    parts = (
        ("indices", "losses_bits", "log_p_nats", "target_counts", "topk_errors") if name == "losses_bits" else [name]
    )
    for part in parts:
        arrays[part] = arrays[part][kept]
    np.savez_compressed(run / "losses.npz", **arrays)
    bound_run(run)
    assert f"number of {name}" in differing(run)


def test_other_documents_than_the_drawn_ones_are_found(run):
    """Losses of the documents with the smallest loss stand for all, indices and claim in accord with them."""
    with np.load(run / "losses.npz") as archive:
        arrays = dict(archive)
    best = np.resize(np.argsort(arrays["losses_bits"])[:25], 50)
    for part in ("indices", "losses_bits", "log_p_nats", "target_counts", "topk_errors"):
        arrays[part] = arrays[part][best]
    np.savez_compressed(run / "losses.npz", **arrays)
    bound_run(run)
    assert {"scored documents", "bound_value, re-scored"} <= differing(run)


def test_other_or_damaged_data_are_refused(run):
    root = run.parents[2]
    train_bin = root / "data" / "markov" / "train.bin"
    original = train_bin.read_bytes()
    train_bin.write_bytes(original[:100] + b"\x01" + original[101:])
    with pytest.raises(UserError, match=r"train\.bin"):
        verify_run(run)
    settings = config.load_settings(write_settings(root, {"data": {"shuffle_seed": 9}}))
    prepare_dataset(settings.data, root)
    with pytest.raises(UserError, match="data"):
        verify_run(run)


def test_missing_files_are_named(run):
    (run / "bounds.json").write_text("{")
    with pytest.raises(UserError, match=r"bounds.json: not valid JSON"):
        verify_run(run)
    (run / "bounds.json").unlink()
    with pytest.raises(UserError, match=r"bounds.json: no such file"):
        verify_run(run)

"""From a checkpoint to a bound: files, determinism, and what is refused."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import write_settings

from sublora import config
from sublora.bounds.inequalities import betting, betting_subsampled, hoeffding, hoeffding_subsampled
from sublora.bounds.smoothing import SCORE_TOLERANCE_BITS, DocumentMixture, parse_smoothing
from sublora.runs.bound import bound_run, read_losses
from sublora.runs.build import RunFolder, find_root
from sublora.runs.message import read_message
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify.verify import verify_run
from sublora.system.errors import UserError
from sublora.training import checkpoint

ALLOCATIONS = ["uniform", "fixed-0.8", "learned"]


@pytest.fixture(scope="module")
def experiment(tiny_root, tmp_path_factory):
    """A copy of the tiny folder with three runs trained, scored and bounded."""
    root = tmp_path_factory.mktemp("experiment") / "root"
    shutil.copytree(tiny_root, root)
    config_path = root / "config" / "config.yaml"
    for allocation in ALLOCATIONS:
        run = config.RunSpec(budget=40, allocation=allocation, seed=1)
        out = root / "results" / "runs" / run.name
        train_run(config.load_settings(config_path), run, root=root, out=out)
        score_run(out, config_path=config_path)
        bound_run(out, config_path=config_path)
    return root


def folder(root, allocation="learned"):
    return root / "results" / "runs" / f"d40_{allocation}_seed1"


def copy_of(root, tmp_path, allocation="learned"):
    shutil.copytree(root, tmp_path / "root")
    return folder(tmp_path / "root", allocation)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_record_follows_from_the_files(experiment, allocation):
    """bounds.json, recomputed here from certificate and losses with the formulas alone."""
    path = folder(experiment, allocation)
    record = json.loads((path / "bounds.json").read_text())
    message = read_message(path / "certificate.bin")
    header, contents, payload = message.header, message.contents, message.payload
    losses = read_losses(path / "losses.npz").arrays
    values = losses["losses_bits"]
    smoothing = parse_smoothing(message.settings.scoring.smoothing[contents.smoothing_index])
    lower, upper = smoothing.loss_range_bits(header.vocab_size, message.settings.data.min_tokens + 1)
    assert (record["smoothing"], record["lower_bits"], record["upper_bits"]) == (smoothing.name, lower, upper)
    code_bits = payload.bits + message.settings.message.extra_bits + math.ceil(math.log2(20))  # 2 x 5 x 2 runs
    assert record["data_hash"] == header.data_hash
    assert record["code_bits"] == code_bits == sum(record["code_items"].values())
    assert record["compressed_size_bits"] == payload.bits
    assert record["kl_divergence"] == pytest.approx(code_bits * math.log(2))
    assert record["empirical_bpd"] == pytest.approx(values.mean())
    common = {"lower": lower, "upper": upper, "code_bits": code_bits, "n": header.n_documents, "delta": 0.05}
    assert record["bound_hoeffding"] == pytest.approx(
        min(hoeffding_subsampled(values, **common) + SCORE_TOLERANCE_BITS, upper)
    )
    bound = betting_subsampled(values, **common, delta_sample=0.045)
    assert record["bound_value"] == pytest.approx(bound + SCORE_TOLERANCE_BITS)
    assert record["bound_value"] == record["bounds"][record["bound_inequality"]] > record["empirical_bpd"]
    saved = torch.load(path / "bounds_metrics.pt", weights_only=True)
    assert all(saved[key] == record[key] for key in saved if key != "format")
    assert set(record["gamma"]) == ({"0", "1", "head"} if allocation == "learned" else set())
    assert record["vacuous_bits"] == pytest.approx(math.log2(257))


SPLITS = {"losses_bits": ("train", 50), "val_losses_bits": ("val", 20), "test_losses_bits": ("test", 20)}


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_every_array_is_of_the_documents_it_names(experiment, allocation):
    """Shapes and types; and the message's losses follow from ln P and the number of targets alone."""
    path = folder(experiment, allocation)
    message, losses = read_message(path / "certificate.bin"), read_losses(path / "losses.npz").arrays
    with np.load(path / "losses.npz", allow_pickle=False) as archive:
        stored = {name: archive[name].dtype for name in archive.files}
    assert all(stored[name] == np.float64 for name in (*SPLITS, "val_losses_unquantized_bits", "log_p_nats"))
    assert {name: losses[name].shape for name in SPLITS} == {name: (count,) for name, (_, count) in SPLITS.items()}
    assert losses["val_losses_unquantized_bits"].shape == (20,) and losses["topk_errors"].shape == (50, 3)
    dataset = RunFolder.open(path).dataset
    lengths = dataset.document_lengths("train")[losses["indices"]]
    np.testing.assert_array_equal(losses["target_counts"], lengths + 1)
    assert isinstance(message.smoothing, DocumentMixture)
    k, log_p, targets = message.smoothing.k, losses["log_p_nats"], losses["target_counts"]
    network, guessing = log_p + math.log1p(-(2.0**-k)), -k * math.log(2) - targets * math.log(257)
    expected = -np.logaddexp(network, guessing) / math.log(2) / targets
    np.testing.assert_allclose(losses["losses_bits"], expected, rtol=1e-12)
    assert log_p.max() < 0.0 and np.ptp(losses["losses_bits"]) > 0.01


def test_scores_are_float32_whatever_a_training_computes_in(experiment, tmp_path):
    """The same checkpoint under settings that train in bfloat16, and read at other numbers of tokens at once."""
    path = copy_of(experiment, tmp_path)
    before = read_losses(path / "losses.npz").arrays
    for compute in ({"dtype": "bfloat16"}, {"scoring_batch_tokens": 97}):
        given = checkpoint.load(path / "best_ckpt.pt")
        given["settings"]["compute"] |= compute
        checkpoint.save(path / "best_ckpt.pt", given)
        score_run(path, root=tmp_path / "root")
        after = read_losses(path / "losses.npz").arrays
        for name in ("indices", "target_counts"):
            np.testing.assert_array_equal(after[name], before[name])
        for name in ("losses_bits", "val_losses_bits", "val_losses_unquantized_bits", "test_losses_bits"):
            assert np.abs(after[name] - before[name]).max() < SCORE_TOLERANCE_BITS / 10
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_document_drawn_twice_has_the_same_row_twice(experiment):
    losses = read_losses(folder(experiment) / "losses.npz").arrays
    distinct, first, place = np.unique(losses["indices"], return_index=True, return_inverse=True)
    assert len(distinct) < len(losses["indices"])
    for name in ("losses_bits", "log_p_nats", "target_counts", "topk_errors"):
        np.testing.assert_array_equal(losses[name], losses[name][first][place])


@pytest.mark.parametrize("quantizer", ["plain", "entropy"])
def test_all_documents_can_be_scored_without_a_draw(tiny_root, tmp_path, quantizer):
    """m = n, each document once, the full-sample inequality at full delta; and a stranger verifies it."""
    root = tmp_path / "root"
    shutil.copytree(tiny_root, root)
    changes = {"scoring": {"documents": "all"}, "message": {"quantizer": quantizer}}
    config_path = write_settings(root, changes)
    spec = config.RunSpec(budget=40, allocation="learned", seed=1)
    out = folder(root)
    train_run(config.load_settings(config_path), spec, root=root, out=out)
    score_run(out, config_path=config_path)
    record = json.loads(bound_run(out, config_path=config_path).read_text())
    losses, dataset = read_losses(out / "losses.npz").arrays, RunFolder.open(out).dataset
    n = dataset.n_documents
    np.testing.assert_array_equal(losses["indices"], np.arange(n))
    np.testing.assert_array_equal(losses["target_counts"], dataset.document_lengths("train") + 1)
    assert record["m_documents"] == record["n_documents"] == len(losses["losses_bits"]) == n
    assert record["bound_inequality"] == "betting" and record["delta_sample"] == 0.0
    assert not any("subsampled" in name for name in record["bounds"])
    bounds = {"lower": record["lower_bits"], "upper": record["upper_bits"]}
    common = {"code_bits": record["code_bits"], "n": n, "delta": 0.05}
    for key, inequality in (("bound_value", betting), ("bound_hoeffding", hoeffding)):
        bound = inequality(losses["losses_bits"], **bounds, **common)
        assert record[key] == pytest.approx(min(bound + SCORE_TOLERANCE_BITS, record["upper_bits"]))
    assert record["bound_all_runs"] == record["bound_value"]  # no draw to choose among
    (out / "best_ckpt.pt").unlink()
    assert verify_run(out).verified


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_scoring_again_gives_the_same_certificate_and_losses(experiment, tmp_path, allocation):
    path = copy_of(experiment, tmp_path, allocation)
    before = (path / "certificate.bin").read_bytes(), read_losses(path / "losses.npz").arrays
    score_run(path)
    assert (path / "certificate.bin").read_bytes() == before[0]
    after = read_losses(path / "losses.npz").arrays
    assert after.keys() == before[1].keys()
    for name in after.keys() - {"provenance"}:
        np.testing.assert_array_equal(after[name], before[1][name])


def test_scored_model_is_the_decoded_one(experiment, tmp_path):
    """Scoring does not depend on the float parameters once the certificate is written."""
    path = copy_of(experiment, tmp_path)
    contents = read_message(path / "certificate.bin").contents
    trained = checkpoint.load(path / "best_ckpt.pt")["raw_model"]["subspace_params"].numpy()
    decoded = contents.weights.values()
    assert decoded.shape == trained.shape and not np.array_equal(decoded, trained)
    assert len(np.unique(decoded)) <= 11 < len(np.unique(trained))


def test_losses_stay_within_the_range_of_their_smoothing(experiment):
    for allocation in ALLOCATIONS:
        path = folder(experiment, allocation)
        losses, message = read_losses(path / "losses.npz").arrays, read_message(path / "certificate.bin")
        lower, upper = message.loss.ranges[message.contents.smoothing_index]
        for name in (*SPLITS, "val_losses_unquantized_bits"):
            assert lower <= losses[name].min() <= losses[name].max() <= upper


def test_run_of_another_config_is_refused(experiment, tmp_path):
    path = copy_of(experiment, tmp_path)
    other = write_settings(tmp_path / "root", {"training": {"steps": 21}})
    with pytest.raises(UserError, match="another config: training.steps is 20 in the checkpoint, 21 in the settings"):
        score_run(path, config_path=other)
    other = write_settings(tmp_path / "root", {"bound": {"delta": 0.1}})
    with pytest.raises(UserError, match="written with other settings: bound"):
        bound_run(path, config_path=other)


def test_other_data_are_refused(experiment, tmp_path):
    from sublora.data.prepare import prepare_dataset

    path = copy_of(experiment, tmp_path)
    settings = config.load_settings(write_settings(tmp_path / "root", {"data": {"shuffle_seed": 1}}))
    prepare_dataset(settings.data, tmp_path / "root")
    with pytest.raises(UserError, match="data"):
        score_run(path)


def test_missing_and_damaged_files_are_named(experiment, tmp_path):
    path = copy_of(experiment, tmp_path)
    losses = path / "losses.npz"
    losses.write_bytes(losses.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"losses.npz: damaged .*; score the run again"):
        bound_run(path)
    losses.unlink()
    with pytest.raises(UserError, match=r"losses.npz: no such file; score the run first"):
        bound_run(path)
    (path / "best_ckpt.pt").unlink()
    with pytest.raises(UserError, match=r"best_ckpt.pt: no such checkpoint; train the run first"):
        score_run(path)


def test_changed_base_weights_are_noticed(experiment, tmp_path):
    path = copy_of(experiment, tmp_path)
    loaded = checkpoint.load(path / "best_ckpt.pt")
    checkpoint.save(path / "best_ckpt.pt", loaded | {"base_sha256": "0" * 64})
    with pytest.raises(UserError, match="the base.s weights hash to"):
        RunFolder.open(path).load(torch.device("cpu"))


def test_root_is_found_above_the_run(experiment, tmp_path, monkeypatch):
    assert find_root(folder(experiment), "markov") == experiment.resolve()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no data/nothing in any folder above it"):
        find_root(folder(experiment), "nothing")

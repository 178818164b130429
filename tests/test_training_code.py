"""Training for the code: batches that weigh documents alike, the quantizer's gradients, prices, choices and resume."""

import contextlib

import numpy as np
import pytest
import torch
from conftest import TINY, demo_values, merged

from sublora import config
from sublora.bounds.selection import Sampling, estimated_bound, loss_range
from sublora.coding.entropy import ideal_message_bits, nearest_step_index, quantize_entropy, step_of
from sublora.coding.payload import MessageContents, write_payload
from sublora.data.dataset import TokenDataset
from sublora.device import claim_device
from sublora.errors import UserError
from sublora.nn.language_model import build, tensors_sha256
from sublora.scoring.documents import score_documents
from sublora.stages.message import payload_context, read_message
from sublora.stages.run_directory import RunDirectory
from sublora.stages.score import score_run
from sublora.stages.train import train_run
from sublora.training import checkpoint
from sublora.training.bound_estimate import BoundEstimator
from sublora.training.rate_phase import straight_through, symbol_bits, with_noise
from sublora.training.document_batches import DocumentSampler
from sublora.training.loop import Trainer

ENTROPY = {
    "message": {"quantizer": "entropy"},
    "gating": {"soft_fraction": 0.4},
    "rate_phase": {"fraction": 0.7, "noise_fraction": 0.4, "val_documents": 10, "val_windows": 2},
}


def settings_with(changes: dict | None = None) -> config.Settings:
    return config.parse_settings(merged(merged(merged(demo_values(), TINY), ENTROPY), changes or {}), source="tiny")


def train(root, out, allocation="uniform", changes=None) -> dict:
    run = config.RunSpec(budget=40, allocation=allocation, seed=1)
    return checkpoint.load(train_run(settings_with(changes), run, root=root, out=out))


def sampler(tokens, ends, *, context=4, stride=3, windows=6) -> DocumentSampler:
    return DocumentSampler(
        tokens, ends, eot_id=99, context_length=context, stride=stride, windows_per_step=windows, seed_parts=(1, "x")
    )


# Batches


def test_batches_weigh_every_target_by_its_share_of_its_document():
    """Averaged over many steps: 1 / (documents x targets of the document) for each target of each document."""
    lengths = [2, 5, 11]  # without end-of-text: shorter than a window, a little longer, several windows
    tokens, value = [], 0
    for length in lengths:
        tokens += [*range(value, value + length), 99]
        value += length
    ends = np.cumsum(np.array(lengths) + 1) - 1
    drawn, steps = sampler(np.array(tokens, dtype=np.uint16), ends, windows=32), 600
    share = np.zeros(100)
    for step in range(steps):
        inputs, targets, weights = drawn.batch(step)
        assert weights.sum() == pytest.approx(1.0, abs=1e-5)
        np.add.at(share, targets, weights / steps)
        scored = weights > 0
        first_of_a_document = np.isin(targets, [0, 2, 7])
        ordinary = scored & ~first_of_a_document & (targets != 99)
        assert (inputs[ordinary] == targets[ordinary] - 1).all()
        assert (inputs[scored & first_of_a_document] == 99).all()
    expected = np.concatenate([np.full(n, 1 / (3 * (n + 1))) for n in lengths])
    assert share[: len(expected)] == pytest.approx(expected, rel=0.12)
    assert share[99] == pytest.approx(sum(1 / (3 * (n + 1)) for n in lengths), rel=0.12)


def test_batches_depend_on_the_step_alone():
    tokens, ends = np.arange(40, dtype=np.uint16), np.array([19, 39])
    ahead = [sampler(tokens, ends).batch(step) for step in range(3)]
    again = sampler(tokens, ends).batch(2)
    assert all(np.array_equal(a, b) for a, b in zip(ahead[2], again, strict=True))
    assert not np.array_equal(ahead[1][1], again[1])


def test_all_windows_together_are_what_scoring_measures(tiny_root):
    """With a window for every target the estimator's losses are those of `score_documents`."""
    longest = 200
    settings = settings_with({"rate_phase": {"val_documents": 6, "val_windows": longest}})
    dataset = TokenDataset.open(tiny_root, settings.data)
    model = build(settings, config.RunSpec(budget=40, allocation="uniform", seed=1), 257, torch.device("cpu"))
    torch.nn.init.normal_(model.subspace.subspace_params, generator=torch.Generator().manual_seed(1))
    adapters = model.adapters(model.subspace().detach())
    documents = [dataset.document("val", i) for i in range(6)]
    exact = score_documents(
        model.base,
        adapters,
        documents,
        eot_id=dataset.eot_id,
        stride=settings.scoring.sliding_window,
        smoothing=settings.scoring.smoothing,
        batch_tokens=512,
    ).losses_DA
    estimated = BoundEstimator(settings, dataset, torch.device("cpu")).losses(model.base, adapters)
    for i, document in enumerate(documents):
        # Targets are spread evenly, so a document of T targets is covered exactly when T divides their number.
        tolerance = 1e-5 if longest % (len(document) + 1) == 0 else 0.02
        assert estimated[i] == pytest.approx(exact[i], rel=tolerance)


# Quantizer and prices


def test_straight_through_rounds_forwards_and_passes_gradients_backwards():
    w = torch.tensor([0.24, -0.26, 0.76, -3.1], requires_grad=True)
    used, _ = straight_through(w, 0.5)
    assert torch.equal(used, torch.tensor([0.0, -0.5, 1.0, -3.0]))
    upstream = torch.tensor([1.0, -2.0, 3.0, 0.5])
    used.backward(upstream)
    assert torch.equal(w.grad, upstream)


def test_noise_gives_the_step_the_gradient_of_its_noise():
    w, log_step = torch.tensor([0.3, -1.2, 0.0], requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    noise = torch.tensor([0.5, -0.25, 0.1])
    used, _ = with_noise(w, log_step.exp(), noise)
    assert torch.allclose(used, w + log_step.exp() * noise)
    used.sum().backward()
    assert torch.allclose(w.grad, torch.ones(3))
    # d used / d log step = step x noise: w itself does not scale with the step.
    assert torch.allclose(log_step.grad, log_step.detach().exp() * noise.sum(), atol=1e-6)


@pytest.mark.parametrize("spread", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("d", [1000, 2000])
def test_bits_of_the_objective_are_those_of_the_message(spread, d):
    """Within 3 percent of the payload that is written, for sparse and for dense symbols."""
    w = np.random.default_rng(3).laplace(scale=spread, size=d)
    weights = quantize_entropy(w, 1.0)
    settings = settings_with()
    context = payload_context(settings, config.RunSpec(budget=d, allocation="uniform", seed=1))
    written = write_payload(MessageContents(weights, (), 0), context)
    bits = float(symbol_bits(torch.from_numpy(weights.symbols.astype(np.float64)), weights.symbols))
    assert bits == pytest.approx(written.items["symbols"], rel=0.03)
    assert ideal_message_bits(weights) == pytest.approx(written.bits - written.items["smoothing"], rel=0.005)


def test_bits_pull_every_coefficient_towards_zero():
    symbols = np.random.default_rng(0).laplace(scale=0.8, size=500)
    exact = torch.tensor(symbols, requires_grad=True)
    symbol_bits(exact, np.round(exact.detach().numpy()).astype(np.int64)).backward()
    assert (exact.grad * torch.sign(exact.detach()) > 0).all()


# The phase in training


@pytest.mark.parametrize(
    ("allocation", "killed_at"), [("learned", 5), ("learned", 9), ("uniform", 13), ("learned", 19)]
)
def test_killed_training_resumes_to_the_same_bytes(tiny_root, tmp_path, monkeypatch, allocation, killed_at):
    """Before the phase (step 6), under noise, at the change to rounding (step 12), and while rounding."""
    changes = {"lora": {"dropout": 0.1}}
    whole = train(tiny_root, tmp_path / "whole", allocation, changes)

    class Killed(Exception):
        pass

    original = Trainer._step

    def step_or_die(self, step):
        if step == killed_at:
            raise Killed
        return original(self, step)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(Trainer, "_step", step_or_die)
        train(tiny_root, tmp_path / "parts", allocation, changes)
    assert list((tmp_path / "parts" / "state").glob("*.pt"))
    resumed = train(tiny_root, tmp_path / "parts", allocation, changes)
    assert tensors_sha256(resumed["raw_model"]) == tensors_sha256(whole["raw_model"])
    same = ("step", "quantization_step", "code_bits", "estimated_bound_bits", "val_loss_bits", "digest")
    assert {key: resumed[key] for key in same} == {key: whole[key] for key in same}


def test_the_kept_model_is_quantized_with_a_step_of_the_message_and_the_best_estimate(tiny_root, tmp_path):
    kept = train(tiny_root, tmp_path)
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    assert [bool(row["code_bits"]) for row in rows] == [int(row["step"]) > 6 for row in rows]
    rounding = [float(row["estimated_bound_bits"]) for row in rows if int(row["step"]) > 12]
    assert kept["estimated_bound_bits"] == pytest.approx(min(rounding), rel=1e-6)
    assert kept["quantization_step"] == step_of(nearest_step_index(kept["quantization_step"]))


def test_encoding_is_at_least_as_good_as_training_measured(tiny_root, tmp_path):
    """The message is decoded, measured on the val windows, and compared with the checkpoint's own estimate."""
    kept = train(tiny_root, tmp_path)
    score_run(tmp_path, root=tiny_root)
    _, contents, payload = read_message(tmp_path / "certificate.bin")
    directory = RunDirectory.open(tmp_path, None, tiny_root)
    with claim_device(directory.settings.compute) as device:
        model = directory.build_model(device)
        with torch.no_grad():
            model.subspace.subspace_params.copy_(torch.from_numpy(contents.weights.values()))
            adapters = model.adapters(model.subspace())
        estimator = BoundEstimator(directory.settings, directory.dataset, device)
        losses = estimator.losses(model.base, adapters)
    estimate = estimator.estimate(losses, payload.bits)
    assert estimate.bound_bits <= kept["estimated_bound_bits"] + 0.003  # the coder's ending: up to 2 bits


def test_exchange_rate_keeps_the_estimated_bound(tiny_root):
    """Paying 10 bits more and losing 10 x exchange less in every document changes nothing to first order."""
    settings = settings_with()
    dataset = TokenDataset.open(tiny_root, settings.data)
    estimator = BoundEstimator(settings, dataset, torch.device("cpu"))
    losses = np.random.default_rng(5).uniform(4.5, 5.5, (30, len(settings.scoring.smoothing)))
    estimate = estimator.estimate(losses, 100.0)
    lower, upper = loss_range(settings.scoring.smoothing[estimate.smoothing_index], 257)
    common = {"lower": lower, "upper": upper, "sampling": Sampling.of(settings, dataset.n_documents)}
    column = losses[:, estimate.smoothing_index]
    before = estimated_bound(column, code_bits=100.0, **common)
    moved = estimated_bound(column - 0.1 * estimate.exchange_bits, code_bits=100.1, **common)
    alone = estimated_bound(column, code_bits=100.1, **common)
    assert alone - before > 0
    assert abs(moved - before) < 0.02 * (alone - before)


def test_weights_that_are_not_finite_stop_the_training(tiny_root, tmp_path, monkeypatch):
    original = Trainer._step

    def explode(self, step):
        if step == 15:
            with torch.no_grad():
                self.model.subspace.subspace_params.fill_(float("nan"))
        return original(self, step)

    monkeypatch.setattr(Trainer, "_step", explode)
    with pytest.raises(UserError, match="the loss is not finite at step 15; the state before is kept in"):
        train(tiny_root, tmp_path)


# The plain scheme beside it


def test_plain_training_does_not_read_the_rate_phase(tiny_root, tmp_path):
    plain = {"message": {"quantizer": "plain"}}
    first = train(tiny_root, tmp_path / "a", changes=plain)
    second = train(tiny_root, tmp_path / "b", changes=plain | {"rate_phase": {"fraction": 0.2, "rate_factor": 9.0}})
    assert tensors_sha256(first["raw_model"]) == tensors_sha256(second["raw_model"])
    assert first["digest"] == second["digest"]
    assert "quantization_step" not in first


def test_a_plain_checkpoint_is_not_encoded_by_the_entropy_scheme(tiny_root, tmp_path):
    kept = train(tiny_root, tmp_path, changes={"message": {"quantizer": "plain"}})
    with pytest.raises(UserError, match=r"message\.quantizer is 'plain' in the checkpoint, 'entropy' in the settings"):
        checkpoint.check_settings(kept, settings_with(), tmp_path / "best_ckpt.pt")


def test_rounds_of_the_phase_hang_on_what_the_bound_reads():
    entropy, plain = settings_with(), settings_with({"message": {"quantizer": "plain"}})
    for change in ({"bound": {"delta": 0.1}}, {"scoring": {"documents": 40}}, {"rate_phase": {"rate_factor": 9.0}}):
        assert config.stage_settings(settings_with(change), "train") != config.stage_settings(entropy, "train")
        changed = settings_with({"message": {"quantizer": "plain"}} | change)
        assert config.stage_settings(changed, "train") == config.stage_settings(plain, "train")

"""The rate phase: the quantizer's gradients, prices, choices and resume."""

import contextlib

import numpy as np
import pytest
import torch
from conftest import TINY, build_on, demo_values, merged

from sublora import config
from sublora.bounds.selection import estimated_bound
from sublora.bounds.smoothing import parse_smoothing
from sublora.coding.payload import MessageContents, write_payload
from sublora.coding.quantizer import ideal_message_bits, nearest_step_index, quantize_entropy, step_of
from sublora.runs.build import RunFolder
from sublora.runs.message import payload_context, read_message
from sublora.runs.score import Predictor, record_documents, score_run
from sublora.runs.train import train_run
from sublora.system.device import claim_device
from sublora.system.digests import tensors_sha256
from sublora.system.errors import UserError
from sublora.training import checkpoint
from sublora.training.loop import Trainer
from sublora.training.quantization import straight_through, symbol_bits, with_noise
from sublora.training.reporting import Progress
from sublora.training.resumable import BeforeStep
from sublora.training.run import Run

ENTROPY = {
    "message": {"quantizer": "entropy"},
    "gating": {"soft_fraction": 0.4},
    "rate_phase": {"fraction": 0.7, "noise_fraction": 0.4, "val_documents": 10},
}


def settings_with(changes: dict | None = None) -> config.Settings:
    return config.parse_settings(merged(merged(merged(demo_values(), TINY), ENTROPY), changes or {}), source="tiny")


def train(root, out, allocation="uniform", changes=None, before_step: BeforeStep | None = None) -> dict:
    run = config.RunSpec(budget=40, allocation=allocation, seed=1)
    return checkpoint.load(train_run(settings_with(changes), run, root=root, out=out, before_step=before_step))


def untrained(root, changes: dict | None = None) -> Run:
    return build_on(root, settings_with(changes), config.RunSpec(budget=40, allocation="uniform", seed=1))


def test_the_estimator_measures_what_scoring_measures(tiny_root):
    """Losses of the first val documents, whole, under every candidate; at most those there are."""
    run = untrained(tiny_root, {"rate_phase": {"val_documents": 6}})
    model = run.decoded(np.random.default_rng(1).standard_normal(40), ())
    losses_DA = run.estimator().losses(model)
    assert losses_DA.shape == (6, len(run.loss.candidates))
    for a, candidate in enumerate(run.loss.candidates):
        exact = record_documents(run, Predictor(model, candidate), "val", np.arange(6)).losses_D
        np.testing.assert_allclose(losses_DA[:, a], exact, rtol=1e-5)
    assert len(untrained(tiny_root, {"rate_phase": {"val_documents": 31}}).estimator().documents) == 30


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
def test_killed_training_resumes_to_the_same_bytes(tiny_root, tmp_path, allocation, killed_at):
    """Before the phase (step 6), under noise, at the change to rounding (step 12), and while rounding."""
    changes = {"lora": {"dropout": 0.1}}
    whole = train(tiny_root, tmp_path / "whole", allocation, changes)

    class Killed(Exception):
        pass

    def die(step: int) -> None:
        if step == killed_at:
            raise Killed

    with contextlib.suppress(Killed):
        train(tiny_root, tmp_path / "parts", allocation, changes, die)
    assert list((tmp_path / "parts" / "state").glob("*.pt"))
    resumed = train(tiny_root, tmp_path / "parts", allocation, changes)
    assert tensors_sha256(resumed["raw_model"].items()) == tensors_sha256(whole["raw_model"].items())
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
    message = read_message(tmp_path / "certificate.bin")
    folder = RunFolder.open(tmp_path, None, tiny_root)
    with claim_device(folder.settings.compute) as device:
        run = folder.load(device)
        estimator = run.estimator()
        losses = estimator.losses(run.decoded(message.contents.weights.values(), message.contents.gates))
    estimate = estimator.estimate(losses, message.payload.bits)
    ending = 2 * estimate.exchange_bits  # the coder's ending takes up to 2 bits, each worth this much of the bound
    assert estimate.bound_bits <= kept["estimated_bound_bits"] + ending


@pytest.mark.parametrize("documents", [50, "all"])
def test_exchange_rate_keeps_the_estimated_bound(tiny_root, documents):
    """Paying 10 bits more and losing 10 x exchange less in every document changes nothing to first order."""
    run = untrained(tiny_root, {"scoring": {"documents": documents}})
    estimator = run.estimator()
    losses_DA = np.random.default_rng(5).uniform(4.5, 5.5, (30, len(run.loss.candidates)))
    estimate = estimator.estimate(losses_DA, 100.0)
    common = {"loss_range": run.loss.ranges[estimate.smoothing_index], "premises": run.loss.premises}
    column = losses_DA[:, estimate.smoothing_index]
    before = estimated_bound(column, code_bits=100.0, **common)
    moved = estimated_bound(column - 0.1 * estimate.exchange_bits, code_bits=100.1, **common)
    alone = estimated_bound(column, code_bits=100.1, **common)
    assert before == estimate.bound_bits and alone - before > 0
    assert abs(moved - before) < 0.02 * (alone - before)


def test_the_smoothing_is_the_one_with_the_smallest_estimate(tiny_root):
    """Token smoothing and mixtures side by side, chosen in training by estimates and in the message for good."""
    names = ("token(0.5)", "document(1)", "token(0.01)", "document(16)")
    run = untrained(tiny_root, {"scoring": {"smoothing": names}})
    model = run.decoded(np.random.default_rng(1).standard_normal(40), ())
    losses_DA = run.estimator().losses(model)
    bounds = [
        estimated_bound(losses_D, candidate.loss_range_bits(257, 2), code_bits=80.0, premises=run.loss.premises)
        for losses_D, candidate in zip(losses_DA.T, map(parse_smoothing, names), strict=True)
    ]
    estimate = run.estimator().estimate(losses_DA, 80.0)
    assert (estimate.smoothing_index, estimate.bound_bits) == (int(np.argmin(bounds)), min(bounds))
    assert len(set(np.round(bounds, 3))) == 4


def test_weights_that_are_not_finite_stop_the_training(tiny_root, tmp_path):
    run = build_on(tiny_root, settings_with(), config.RunSpec(budget=40, allocation="uniform", seed=1))

    def explode(step: int) -> None:
        if step == 15:
            run.subspace.subspace_params.data.fill_(float("nan"))

    progress = Progress("x", steps=20, tokens_per_step=128, quiet=True)
    with pytest.raises(UserError, match="the loss is not finite at step 15; the state before is kept in"):
        Trainer(run, out=tmp_path, progress=progress, before_step=explode).train()


# The plain scheme beside it


def test_plain_training_does_not_read_the_rate_phase(tiny_root, tmp_path):
    plain = {"message": {"quantizer": "plain"}}
    first = train(tiny_root, tmp_path / "a", changes=plain)
    second = train(tiny_root, tmp_path / "b", changes=plain | {"rate_phase": {"fraction": 0.2, "rate_factor": 9.0}})
    assert tensors_sha256(first["raw_model"].items()) == tensors_sha256(second["raw_model"].items())
    assert first["digest"] == second["digest"]
    assert "quantization_step" not in first


def test_a_plain_checkpoint_is_not_encoded_by_the_entropy_scheme(tiny_root, tmp_path):
    """Nor the other way round; the key that decides which others count is the one that is named."""
    plain = {"message": {"quantizer": "plain"}}
    for own, other in ((plain, {}), ({}, plain)):
        kept = train(tiny_root, tmp_path / str(len(own)), changes=own)
        found, wanted = (settings_with(changes).message.quantizer for changes in (own, other))
        with pytest.raises(
            UserError, match=rf"message\.quantizer is '{found}' in the checkpoint, '{wanted}' in the settings"
        ):
            path = tmp_path / "best_ckpt.pt"
            checkpoint.check_settings(checkpoint.settings_of(kept, path)[0], settings_with(other), path)


def test_rounds_of_the_phase_hang_on_what_the_bound_reads():
    entropy, plain = settings_with(), settings_with({"message": {"quantizer": "plain"}})
    for change in ({"bound": {"delta": 0.1}}, {"scoring": {"documents": 40}}, {"rate_phase": {"rate_factor": 9.0}}):
        assert config.stage_settings(settings_with(change), "train") != config.stage_settings(entropy, "train")
        changed = settings_with({"message": {"quantizer": "plain"}} | change)
        assert config.stage_settings(changed, "train") == config.stage_settings(plain, "train")

"""What only a GPU can show; skipped on machines without a GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, demo_values, merged

from sublora import config
from sublora.bounds.smoothing import DocumentMixture, TokenSmoothing
from sublora.losses.documents import score_documents
from sublora.runs.build import build_run
from sublora.runs.train import train_run
from sublora.runs.verify.checks import LOSS_TOLERANCE_BITS
from sublora.system.digests import tensors_sha256
from sublora.tools.throughput import RandomTokens
from sublora.training import checkpoint
from sublora.training.exchange import Prefetcher
from sublora.training.run import Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
VOCABULARY = 101
RUN = config.RunSpec(budget=60, allocation="learned", seed=1)


def settings_with(**compute: object) -> config.Settings:
    changes = {
        "model": {"n_embd": 64, "context_length": 64},
        "compute": {"device": "cuda", **compute},
        "lora": {"dropout": 0.2},
        "training": {"tokens_per_step": 512},
        "scoring": {"sliding_window": 10},
    }
    return config.parse_settings(merged(merged(demo_values(), TINY), changes), source="tiny")


def run_on(device: torch.device, **compute: object) -> Run:
    run = build_run(settings_with(**compute), RUN, RandomTokens(VOCABULARY), Path(), device)
    values = torch.randn(RUN.budget, generator=torch.Generator().manual_seed(0))
    run.subspace.subspace_params.data.copy_(values)
    return run


def loss_and_gradient(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(VOCABULARY, (4, 49), generator=torch.Generator().manual_seed(1)).to(run.device)
    w_d = run.subspace.subspace_params
    model = run.model_at(w_d, mask_width=5.0)
    loss = model.cross_entropy(model.hidden(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), smoothing=0.1)
    loss.backward()
    return loss.detach().cpu(), w_d.grad.cpu()


@pytest.mark.parametrize("use_compiler", [False, True])
def test_loss_and_gradient_equal_those_of_the_cpu(use_compiler):
    expected_loss, expected_gradient = loss_and_gradient(run_on(CPU))
    loss, gradient = loss_and_gradient(run_on(GPU, compile=use_compiler))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-6)


def test_document_losses_equal_those_of_the_cpu():
    rng = np.random.default_rng(0)
    documents = [rng.integers(VOCABULARY - 1, size=length) for length in (1, 5, 63, 64, 65, 200, 7)]
    scored = []
    for device, use_compiler in ((CPU, False), (GPU, True)):
        run = run_on(device, compile=use_compiler)
        with torch.no_grad():
            model = run.model_at(run.subspace.subspace_params)
        scores = score_documents(model, documents, run.scoring_rule, device)
        scored.append(scores.losses_DA((TokenSmoothing(0.01), TokenSmoothing(0.5), DocumentMixture(4)), VOCABULARY))
    np.testing.assert_allclose(scored[1], scored[0], rtol=0.0, atol=LOSS_TOLERANCE_BITS)


def test_prefetched_batches_are_those_asked_for():
    def of(scale: int):
        return lambda step: [(np.full((2, 3), scale * step), np.full(2, float(step)))]

    first, second = of(1), of(10)
    prefetcher = Prefetcher(GPU)
    for assemble, step, expected in ((first, 4, 4), (first, 5, 5), (first, 2, 2), (second, 3, 30), (second, 4, 40)):
        ((inputs, weights),) = prefetcher.micro_batches(assemble, step)
        assert inputs.device.type == "cuda" and torch.equal(inputs.cpu(), torch.full((2, 3), expected))
        assert torch.equal(weights.cpu(), torch.full((2,), float(step)).double())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_training_gives_the_same_bytes(tiny_root, tmp_path, dtype):
    settings = settings_with(compile=True, deterministic=True, dtype=dtype)
    digests = set()
    for name in "ab":
        path = train_run(settings, RUN, root=tiny_root, out=tmp_path / name)
        digests.add(tensors_sha256(checkpoint.load(path)["raw_model"].items()))
    assert len(digests) == 1

"""The training loss of documents seen through one window: its gradient and value against the exact mixture's.

Reference: float64 log-probabilities of all targets by autograd through a plain softmax, put together as
sublora.bounds.smoothing defines the mixture. Shape legend as in sublora/losses/documents.py.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, build_on, demo_values, merged
from torch import Tensor

from sublora import config
from sublora.bounds.smoothing import DocumentMixture, TokenSmoothing
from sublora.losses.documents import DocumentWeights, document_loss, score_documents
from sublora.models.head import head_cross_entropy, head_target_scores
from sublora.runs.build import RunFolder
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.system.streams import generator
from sublora.training.rate_phase import training_documents
from sublora.training.run import Run

VOCABULARY, WIDTH, CONTEXT = 12, 6, 8


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """The part of a language model that losses need: logits = hidden W'."""

    weight_VC: Tensor
    vocab_size: int = VOCABULARY
    context_length: int = CONTEXT

    def hidden(self, tokens_NT: Tensor, *, training: bool = False) -> Tensor:
        raise NotImplementedError

    def cross_entropy(
        self,
        hidden_KC: Tensor,
        targets_K: Tensor,
        *,
        position_weights_K: Tensor | None = None,
        smoothing: float = 0.0,
        training: bool = False,
    ) -> Tensor:
        return head_cross_entropy(
            hidden_KC,
            self.weight_VC,
            None,
            None,
            targets_K,
            position_weights_K=position_weights_K,
            smoothing=smoothing,
        )

    def target_scores(self, hidden_KC: Tensor, targets_K: Tensor) -> tuple[Tensor, Tensor]:
        return head_target_scores(hidden_KC, self.weight_VC, None, None, targets_K)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    hidden_NTC: Tensor
    targets_NT: Tensor
    documents: DocumentWeights


def batch_of(counts: list[int], totals: list[int] | None = None, seed: int = 0) -> Batch:
    """Windows that score `counts` targets, the last ones of a row in place of padding, of documents of `totals`."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(counts), CONTEXT)
    scored_NT = torch.arange(CONTEXT) < torch.tensor(counts)[:, None]
    weights_NT = scored_NT / torch.tensor(counts)[:, None] / len(counts)
    return Batch(
        torch.randn(*shape, WIDTH, generator=draw),
        torch.randint(VOCABULARY, shape, generator=draw),
        DocumentWeights(weights_NT, torch.tensor(totals or counts, dtype=torch.float32)),
    )


def found_loss(batch: Batch, weight_VC: Tensor, smoothing: object) -> tuple[Tensor, float]:
    """Gradient for the weight, and the value."""
    leaf = weight_VC.detach().clone().requires_grad_()
    hidden_KC = batch.hidden_NTC.flatten(0, 1)
    loss, value = document_loss(Head(leaf), hidden_KC, batch.targets_NT, batch.documents, smoothing)
    loss.backward()
    assert not value.requires_grad
    return leaf.grad, float(value)


def log_p_of(batch: Batch, leaf_VC: Tensor) -> Tensor:
    """float64 (N x T), nats."""
    log_p_NTV = (batch.hidden_NTC.double() @ leaf_VC.T).log_softmax(-1)
    return log_p_NTV.gather(-1, batch.targets_NT[..., None])[..., 0]


def exact_mixture(batch: Batch, weight_VC: Tensor, k: int) -> tuple[Tensor, float]:
    """The same of the mean over documents of -ln q / T, q = (1 - e) P + e V^-T, where windows hold whole documents."""
    leaf = weight_VC.detach().double().requires_grad_()
    scored_NT = batch.documents.weights_NT > 0
    targets_N = scored_NT.sum(1)
    assert torch.equal(targets_N.float(), batch.documents.targets_N)
    log_p_N = (log_p_of(batch, leaf) * scored_NT).sum(1)
    network_N = log_p_N + math.log1p(-(2.0**-k))
    guessing_N = -k * math.log(2) - targets_N * math.log(VOCABULARY)
    loss = (-torch.logaddexp(network_N, guessing_N) / targets_N).mean()
    loss.backward()
    return leaf.grad, float(loss.detach())


def assert_alike(found: tuple[Tensor, float], wanted: tuple[Tensor, float]) -> None:
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=1e-4, atol=1e-6 * float(wanted[0].abs().max()))
    assert found[1] == pytest.approx(wanted[1], rel=1e-5)


def random_weight(scale: float) -> Tensor:
    return scale * torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(3))


def pointing_at_targets(batch: Batch, scale: float) -> Batch:
    """Hidden states for which scale x eye-like weights favour (or, negative, shun) the targets."""
    return dataclasses.replace(batch, hidden_NTC=scale * basis()[batch.targets_NT])


def basis() -> Tensor:
    """Vectors (V x C) of length one, each nearest to itself."""
    return F.normalize(torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(5)), dim=1)


# Documents that fit into their window


@pytest.mark.parametrize("scale", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 4, 16, 64])
def test_gradient_and_value_are_those_of_the_exact_mixture(scale, k):
    """From networks like guessing to ones much worse, so that responsibilities of all sizes occur."""
    batch, weight = batch_of([1, 3, 8, 5]), random_weight(scale)
    assert_alike(found_loss(batch, weight, DocumentMixture(k)), exact_mixture(batch, weight, k))


def test_value_is_the_loss_that_is_bounded():
    batch, weight = batch_of([2, 8, 7]), random_weight(0.3)
    with torch.no_grad():
        log_p_NT = log_p_of(batch, weight.double())
    counts = batch.documents.targets_N.long().tolist()
    log_p_S = torch.cat([row[:count] for row, count in zip(log_p_NT, counts, strict=True)]).numpy()
    losses_D = DocumentMixture(3).document_losses_bits(log_p_S, np.cumsum([0, *counts]), VOCABULARY)
    assert found_loss(batch, weight, DocumentMixture(3))[1] == pytest.approx(losses_D.mean() * math.log(2), rel=1e-5)


@pytest.mark.parametrize("smoothing", [None, TokenSmoothing(0.1), TokenSmoothing(0.5)])
def test_without_a_mixture_it_is_the_mean_over_targets(smoothing):
    a = 0.0 if smoothing is None else smoothing.a
    batch, weight = batch_of([2, 8, 7]), random_weight(0.7)
    leaf = weight.double().requires_grad_()
    smoothed_NT = -((1 - a) * log_p_of(batch, leaf).exp() + a / VOCABULARY).log()
    loss = (smoothed_NT * batch.documents.weights_NT).sum()
    loss.backward()
    assert_alike(found_loss(batch, weight, smoothing), (leaf.grad, float(loss.detach())))


def test_a_network_far_better_than_guessing_has_the_plain_cross_entropy():
    batch = pointing_at_targets(batch_of([8, 8, 6]), 20.0)
    mixture, plain = (found_loss(batch, basis(), smoothing) for smoothing in (DocumentMixture(16), None))
    assert float(plain[0].abs().max()) > 1e-3
    torch.testing.assert_close(mixture[0], plain[0], rtol=1e-4, atol=0)
    # The prior's price is all that differs: -ln(1 - e) / T.
    price = -math.log1p(-(2.0**-16)) * np.mean([1 / 8, 1 / 8, 1 / 6])
    assert mixture[1] - plain[1] == pytest.approx(price, abs=1e-6)


def test_a_network_far_worse_than_guessing_has_no_gradient_and_the_loss_of_guessing():
    batch = pointing_at_targets(batch_of([8, 8, 6]), -20.0)
    mixture, plain = (found_loss(batch, basis(), smoothing) for smoothing in (DocumentMixture(4), None))
    assert float(mixture[0].abs().max()) < 1e-12 * float(plain[0].abs().max())
    guessing = math.log(VOCABULARY) + 4 * math.log(2) * np.mean([1 / 8, 1 / 8, 1 / 6])
    assert mixture[1] == pytest.approx(guessing, rel=1e-6) and plain[1] > 5.0 * guessing


def test_each_document_has_a_responsibility_of_its_own():
    """One that the network knows and one that it does not: the gradient is that of the first alone."""
    known, unknown = (pointing_at_targets(batch_of([8]), scale) for scale in (10.0, -10.0))
    both = Batch(
        torch.cat([known.hidden_NTC, unknown.hidden_NTC]),
        torch.cat([known.targets_NT, unknown.targets_NT]),
        DocumentWeights(
            torch.cat([part.documents.weights_NT for part in (known, unknown)]) / 2,
            torch.cat([part.documents.targets_N for part in (known, unknown)]),
        ),
    )
    together, alone = (found_loss(batch, basis(), DocumentMixture(8))[0] for batch in (both, known))
    torch.testing.assert_close(together, alone / 2, rtol=1e-5, atol=1e-9)


# Documents longer than their window


@pytest.mark.parametrize("scale", [0.1, 0.5])
def test_longer_documents_are_judged_by_the_mean_of_their_window_times_their_length(scale):
    """r = sigmoid(T mean ln p + ln((1 - e) / e) + T ln V), from the definition in NumPy's float64."""
    totals, k = [20, 8, 300], 6
    batch, weight = batch_of([8, 8, 3], totals), random_weight(scale)
    leaf = weight.double().requires_grad_()
    scored_NT = batch.documents.weights_NT > 0
    mean_N = (log_p_of(batch, leaf) * scored_NT).sum(1) / scored_NT.sum(1)
    log_p_D, targets_D = mean_N.detach().numpy() * totals, np.array(totals)
    r_D = DocumentMixture(k).responsibility(log_p_D, targets_D, VOCABULARY)
    (-torch.from_numpy(r_D) * mean_N).mean().backward()
    value = DocumentMixture(k).losses_bits(log_p_D, targets_D, VOCABULARY).mean() * math.log(2)
    assert_alike(found_loss(batch, weight, DocumentMixture(k)), (leaf.grad, float(value)))


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_micro_batches_add_up(pieces):
    """Weights are shares of the whole batch, so losses and gradients of its parts sum to the batch's."""
    batch, weight = batch_of([8, 3, 5, 8], [30, 3, 5, 11]), random_weight(0.2)
    rows = [slice(i, i + 4 // pieces) for i in range(0, 4, 4 // pieces)]
    parts = [
        Batch(
            batch.hidden_NTC[part],
            batch.targets_NT[part],
            DocumentWeights(batch.documents.weights_NT[part], batch.documents.targets_N[part]),
        )
        for part in rows
    ]
    found = [found_loss(part, weight, DocumentMixture(2)) for part in parts]
    whole = found_loss(batch, weight, DocumentMixture(2))
    torch.testing.assert_close(sum(gradient for gradient, _ in found), whole[0])
    assert sum(value for _, value in found) == pytest.approx(whole[1], rel=1e-6)


@pytest.mark.parametrize("k", [1, 8, 64])
@pytest.mark.parametrize("vocab_size", [2, 257, 50_257])
def test_prior_odds_and_responsibility_are_one_definition(k, vocab_size):
    """NumPy and torch, scalars and arrays."""
    rng = np.random.default_rng(k)
    targets_D = rng.integers(1, 2000, 50)
    log_p_D = -targets_D * math.log(vocab_size) - k + rng.normal(scale=20.0, size=50)
    log_p_D = np.minimum(log_p_D, 0.0)
    mixture = DocumentMixture(k)
    odds_D = log_p_D + mixture.log_prior_odds(targets_D, vocab_size)
    expected = mixture.responsibility(log_p_D, targets_D, vocab_size)
    np.testing.assert_allclose(torch.sigmoid(torch.from_numpy(odds_D)).numpy(), expected, rtol=1e-9)
    in_torch = mixture.log_prior_odds(torch.from_numpy(targets_D).double(), vocab_size)
    np.testing.assert_allclose(in_torch.numpy(), mixture.log_prior_odds(targets_D, vocab_size), rtol=1e-15)
    one = mixture.log_prior_odds(int(targets_D[0]), vocab_size)
    assert one == pytest.approx(-math.log(2.0**-k / (1 - 2.0**-k)) + targets_D[0] * math.log(vocab_size), rel=1e-12)
    if k < 64:  # above, 1 - e is 1 in float64
        assert mixture.log_prior == math.log(1.0 - 2.0**-k) < 0.0


# On a trained run


@pytest.fixture(scope="module")
def trained(tiny_root, tmp_path_factory) -> Run:
    """A run of 60 steps whose documents take several windows each, its w that of its message."""
    changes = {
        "training": {"steps": 60},
        "grid": {"budgets": [60, 300]},
        "message": {"quantizer": "entropy"},
        "model": {"init_std": 0.3},
    }
    settings = config.parse_settings(merged(merged(demo_values(), TINY), changes), source="trained")
    spec = config.RunSpec(budget=300, allocation="uniform", seed=1)
    out = tmp_path_factory.mktemp("windowed")
    train_run(settings, spec, root=tiny_root, out=out)
    score_run(out, root=tiny_root)
    return RunFolder.open(out, root=tiny_root).load(torch.device("cpu"))


def test_responsibilities_from_windows_are_near_those_of_whole_documents(trained):
    """The bias of the training's r: documents of 60 to 100 targets, seen through windows of 16 that score 10 to 16."""
    dataset, mixture = trained.dataset, DocumentMixture(4)
    with torch.no_grad():
        model = trained.model_at(trained.subspace.subspace_params)
    sampler = training_documents(trained)
    estimated = []
    for step in range(20):
        for piece in sampler.micro_batches(step):
            inputs, targets, weights, counts = map(torch.from_numpy, piece)
            with torch.no_grad():
                log_p_K, _ = model.target_scores(model.hidden(inputs).flatten(0, 1), targets.flatten())
            window_N = (log_p_K.view_as(weights) * weights).sum(1) / weights.sum(1) * counts
            estimated.append(mixture.responsibility(window_N.numpy(), counts.numpy(), dataset.vocab_size))
    documents = [dataset.document("train", i) for i in range(dataset.n_documents)]
    scores = score_documents(model, documents, trained.scoring_rule, trained.device)
    exact_D = mixture.responsibility(scores.document_log_p_D(), scores.counts_D, dataset.vocab_size)
    r_N = np.concatenate(estimated)
    assert ((r_N >= 0.0) & (r_N <= 1.0)).all()
    assert exact_D.mean() > 0.99 and r_N.mean() > 0.98
    assert abs(r_N.mean() - exact_D.mean()) < 0.02


@pytest.mark.parametrize("context", [128, 256])
def test_the_objective_is_the_document_loss_at_the_smoothing_in_force(tiny_root, context):
    """The gradient of a step of the run itself, by autograd through logits of whole documents that fit a window.

    A context twice as long as every document is left half out, which changes nothing.
    """
    changes = {
        "message": {"quantizer": "entropy"},
        "model": {"context_length": context, "init_std": 0.2},
        "training": {"tokens_per_step": 8 * context},
        "scoring": {"sliding_window": context},
        "rate_phase": {"smoothing": "document(3)"},
    }
    from sublora.training.rate_phase import RatePhase
    from sublora.training.step import Objective

    settings = config.parse_settings(merged(merged(demo_values(), TINY), changes), source="objective")
    run = build_on(tiny_root, settings, config.RunSpec(budget=40, allocation="uniform", seed=1))
    w_d = run.subspace.subspace_params
    w_d.data.copy_(torch.from_numpy(generator("objective").standard_normal(40).astype(np.float32)))
    rate = RatePhase(run)
    value = Objective(run, rate.sampler.micro_batches, rate=rate).gradient(0, 0.0, [w_d])
    found = w_d.grad.clone()
    model, losses, seen = run.model_at(w_d), [], set()
    for piece in rate.sampler.micro_batches(0):
        inputs, targets, weights, counts = map(torch.from_numpy, piece)
        assert (counts <= inputs.shape[1]).all()
        seen.add(inputs.shape[1])
        logits = model.differentiable_logits(model.hidden(inputs).flatten(0, 1)).double()
        log_p_NT = logits.log_softmax(-1).gather(-1, targets.flatten()[:, None]).view_as(weights)
        log_p_N = (log_p_NT * (weights > 0)).sum(1)
        network_N = log_p_N + math.log(1 - 2.0**-3)
        guessing_N = -3 * math.log(2) - counts.double() * math.log(257)
        losses.append(-torch.logaddexp(network_N, guessing_N) / counts)
    assert seen == {128}
    loss = torch.cat(losses).mean()
    (expected,) = torch.autograd.grad(loss, w_d)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()))
    assert float(value) == pytest.approx(float(loss.detach()), rel=1e-5)

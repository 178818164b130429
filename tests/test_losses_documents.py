"""Sliding windows and document losses against a token-by-token reference."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from sublora.bounds.smoothing import SCORE_TOLERANCE_BITS, DocumentMixture, TokenSmoothing
from sublora.losses import TOP_K
from sublora.losses import documents as documents_module
from sublora.losses.documents import ScoringRule, TargetScores, score_documents
from sublora.losses.windows import WindowRule, sliding_windows, windows_of_targets
from sublora.models import head
from sublora.models.adapted import AdaptedModel
from sublora.models.gpt import GPT
from sublora.models.lora import Adapters
from sublora.models.spaces import lora_space
from sublora.models.weights import random_weights, weight_shapes

VOCABULARY, EOT, CONTEXT, STRIDE = 60, 59, 16, 10
SMOOTHING = (TokenSmoothing(0.01), TokenSmoothing(0.5), DocumentMixture(1), DocumentMixture(8))


@pytest.fixture
def model(tiny_settings) -> AdaptedModel:
    base = GPT(tiny_settings.model, VOCABULARY)
    weights = random_weights(tiny_settings.model, VOCABULARY, 1)
    base.load({name: value * (5 if value.ndim == 2 else 1) for name, value in weights.items()})
    space = lora_space(tiny_settings.model, tiny_settings.lora, VOCABULARY)
    theta = 0.3 * torch.randn(space.size, generator=torch.Generator().manual_seed(0))
    return AdaptedModel(base, Adapters(space, theta, scale=4.0, dtype=torch.float32))


def scored(model: AdaptedModel, documents: list[np.ndarray], batch_tokens: int) -> TargetScores:
    rule = ScoringRule(WindowRule(CONTEXT, STRIDE), EOT, batch_tokens)
    return score_documents(model, documents, rule, torch.device("cpu"))


def sample(lengths: list[int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, EOT, length).astype(np.uint16) for length in lengths]


@pytest.mark.parametrize("stride", [1, 5, 10, 16])
def test_each_target_is_scored_once_in_a_window_that_does_not_depend_on_the_length(stride):
    """Window i starts at i x stride; only the last one may score fewer targets than the stride, its context cut."""
    counts = np.arange(1, 60)
    windows = sliding_windows(counts, WindowRule(CONTEXT, stride))
    for document, count in enumerate(counts):
        mine = windows.document == document
        stops = windows.start[mine] + windows.length[mine]
        pairs = zip(stops, windows.scored[mine], strict=True)
        seen = [position for stop, scored in pairs for position in range(stop - scored, stop)]
        assert seen == list(range(count))
        assert (windows.length[mine] <= CONTEXT).all() and (windows.start[mine] >= 0).all()
        assert (windows.start[mine] == stride * np.arange(mine.sum())).all()
        assert (windows.length[mine][:-1] == CONTEXT).all()
        assert windows.length[mine][-1] == count - windows.start[mine][-1]
        assert windows.scored[mine][0] == min(count, CONTEXT)
        later = windows.scored[mine][1:]
        assert (later[:-1] == stride).all() and (later >= 1).all() and (later <= stride).all()


@pytest.mark.parametrize("stride", [1, 5, 10, 16])
def test_the_context_of_a_target_is_the_same_however_the_document_goes_on(stride):
    """Start of the window that scores target t, for all lengths of the document above t."""
    rule, longest = WindowRule(CONTEXT, stride), 70
    for target in range(longest - 1):
        counts = np.arange(target + 1, longest)
        places = np.arange(len(counts))
        found = windows_of_targets(places, np.full(len(counts), target), counts, rule)
        assert len(np.unique(found.start)) == 1
        seen = target + 1 - found.start[0]
        assert min(target + 1, CONTEXT - stride + 1) <= seen <= CONTEXT


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_the_window_of_a_target_is_the_one_that_scores_it(stride):
    """`windows_of_targets` and `sliding_windows` are one geometry."""
    rule = WindowRule(CONTEXT, stride)
    counts = np.arange(1, 60)
    windows = sliding_windows(counts, rule)
    for row in range(len(windows.document)):
        document, stop = windows.document[row], windows.start[row] + windows.length[row]
        targets = np.arange(stop - windows.scored[row], stop)
        repeated = np.full(len(targets), document)
        found = windows_of_targets(repeated, targets, counts[repeated], rule)
        for values, expected in ((found.start, windows.start), (found.length, windows.length)):
            assert (values == expected[row]).all()
        assert (found.scored == windows.scored[row]).all()


def reference(model: AdaptedModel, document: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability and rank of every target, one forward pass per token."""
    inputs = np.concatenate([[EOT], document]).astype(np.int64)
    targets = np.concatenate([document, [EOT]]).astype(np.int64)
    p, ranks = [], []
    for position, target in enumerate(targets):
        start = math.ceil(max(0, position + 1 - CONTEXT) / stride) * stride
        context = torch.from_numpy(inputs[start : position + 1])[None]
        logits = model.differentiable_logits(model.hidden(context)[0, -1:])[0]
        p.append(float(logits.softmax(0)[target]))
        ranks.append(int((logits >= logits[target]).sum()) - 1)
    return np.array(p), np.array(ranks)


@pytest.mark.parametrize("batch_tokens", [16, 100000])
def test_document_losses_equal_the_reference(model, monkeypatch, batch_tokens):
    monkeypatch.setitem(head.LOGITS_AT_ONCE, "cpu", 7 * VOCABULARY)
    texts = sample([0, 1, 15, 16, 17, 40])
    got = scored(model, texts, batch_tokens)
    assert list(got.counts_D) == [1, 2, 16, 17, 18, 41]
    losses_DA, topk_errors_DK = got.losses_DA(SMOOTHING, VOCABULARY), got.topk_errors_DK()
    for row, text in enumerate(texts):
        p, ranks = reference(model, text, stride=STRIDE)
        losses = [-np.log2((1 - each.a) * p + each.a / VOCABULARY).mean() for each in SMOOTHING[:2]]
        for mixture in SMOOTHING[2:]:
            e = Fraction(1, 2**mixture.k)
            q = (1 - e) * math.prod(map(Fraction, p)) + e * Fraction(1, VOCABULARY ** len(p))
            losses.append((math.log2(q.denominator) - math.log2(q.numerator)) / len(p))
        np.testing.assert_allclose(losses_DA[row], losses, rtol=1e-5)
        np.testing.assert_allclose(topk_errors_DK[row], [(ranks >= k).mean() for k in TOP_K])
        own = slice(got.offsets[row], got.offsets[row + 1])
        np.testing.assert_allclose(got.log_p_S[own], np.log(p), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 5, 10, 16])
def test_a_target_is_predicted_from_its_past_alone(model, stride):
    """ln p of target t of a document is that of target t of every longer document: else it would know the length.

    The closing end-of-text of the shorter one is the only target that is not the longer one's.
    """
    whole = sample([60])[0]
    rule = ScoringRule(WindowRule(CONTEXT, stride), EOT, 128)
    device = torch.device("cpu")
    full = score_documents(model, [whole], rule, device)
    lengths = range(len(whole))
    prefixes = score_documents(model, [whole[:length] for length in lengths], rule, device)
    assert np.ptp(full.log_p_S) > 1.0
    for row, length in enumerate(lengths):
        own = slice(prefixes.offsets[row], prefixes.offsets[row] + length)
        np.testing.assert_allclose(prefixes.log_p_S[own], full.log_p_S[:length], rtol=0, atol=2e-5)
    # And another continuation changes nothing before it.
    other = whole.copy()
    other[37:] = (other[37:] + 1) % EOT
    changed = score_documents(model, [other], rule, device)
    np.testing.assert_allclose(changed.log_p_S[:37], full.log_p_S[:37], rtol=0, atol=2e-5)
    assert np.abs(changed.log_p_S[37:] - full.log_p_S[37:]).max() > 0.1


@pytest.mark.parametrize("stride", [5, 16])
def test_predictions_sum_to_one_over_documents(model, stride):
    """sum over x of P(x, end) + P(x, y, ...) = P(x): the probabilities of what may follow a prefix sum to one."""
    prefix = sample([CONTEXT + 3])[0]
    rule = ScoringRule(WindowRule(CONTEXT, stride), EOT, 4096)
    longer = [np.append(prefix, token).astype(np.uint16) for token in range(EOT)]
    scores = score_documents(model, [prefix, *longer], rule, torch.device("cpu"))
    last = [scores.log_p_S[scores.offsets[1] - 1]]
    last += [scores.log_p_S[scores.offsets[row + 2] - 2] for row in range(EOT)]
    assert np.exp(last).sum() == pytest.approx(1.0, abs=1e-5)


def test_nothing_crosses_documents(model):
    texts = sample([30, 12, 25])
    together = scored(model, texts, 64).losses_DA(SMOOTHING, VOCABULARY)
    for row, text in enumerate(texts):
        alone = scored(model, [text], 64).losses_DA(SMOOTHING, VOCABULARY)
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-5)


def test_impossible_stride_is_refused():
    with pytest.raises(ValueError, match="stride 17 must lie between 1 and the context length 16"):
        WindowRule(16, 17)


def losses_bits(model: AdaptedModel, documents: list[np.ndarray], batch_tokens: int = 128) -> np.ndarray:
    """Losses of documents in fixed shapes, documents x smoothings."""
    rule = ScoringRule(WindowRule(CONTEXT, STRIDE), EOT, batch_tokens, fixed_shapes=True)
    return score_documents(model, documents, rule, torch.device("cpu")).losses_DA(SMOOTHING, VOCABULARY)


def test_in_fixed_shapes_a_loss_does_not_depend_on_the_other_documents(model):
    """Alone, in any company and order, and read at any number of tokens at once."""
    documents = sample([1, 3, 7, 9, 15, 16, 17, 25, 40, 41, 70, 5, 5, 33])
    reference = losses_bits(model, documents)
    alone = np.concatenate([losses_bits(model, [document]) for document in documents])
    assert np.abs(alone - reference).max() < SCORE_TOLERANCE_BITS / 10
    for seed in range(5):
        some = np.random.default_rng(seed).permutation(len(documents))[: 3 + 2 * seed]
        together = losses_bits(model, [documents[i] for i in some], batch_tokens=32 << seed)
        assert np.abs(together - reference[some]).max() < SCORE_TOLERANCE_BITS / 10


def test_fixed_shapes_depend_on_nothing_but_the_rule_and_a_window_s_length(model, monkeypatch):
    shapes = []
    monkeypatch.setattr(documents_module, "NARROWEST", 4)
    hidden = AdaptedModel.hidden
    monkeypatch.setattr(AdaptedModel, "hidden", lambda self, x: shapes.append(tuple(x.shape)) or hidden(self, x))
    losses_bits(model, sample([1, 2, 6, 15, 16, 30]))
    losses_bits(model, sample([30] * 20))
    losses_bits(model, sample([2] * 50))
    assert set(shapes) == {(32, 4), (16, 8), (8, 16)}


def test_rounding_in_float32_is_far_below_the_tolerance(model, tiny_settings):
    """Against the same network in float64, and against every batch that is not of a fixed shape."""
    documents = sample([1, 9, 16, 30, 70, 200])
    base = GPT(tiny_settings.model, VOCABULARY, dtype=torch.float64)
    base.load({name: model.backbone.weight(name).numpy() for name in weight_shapes(tiny_settings.model, VOCABULARY)})
    space = lora_space(tiny_settings.model, tiny_settings.lora, VOCABULARY)
    theta = 0.3 * torch.randn(space.size, generator=torch.Generator().manual_seed(0))
    adapters = Adapters(space, theta, scale=4.0, dtype=torch.float64)
    exact = losses_bits(AdaptedModel(base, adapters), documents)
    found = losses_bits(model, documents)
    assert 0 < np.abs(found - exact).max() < SCORE_TOLERANCE_BITS / 5
    for batch_tokens in (1, 64, 4096):
        free = scored(model, documents, batch_tokens).losses_DA(SMOOTHING, VOCABULARY)
        assert np.abs(found - free).max() < SCORE_TOLERANCE_BITS / 10

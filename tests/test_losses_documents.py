"""Sliding windows and document losses against a token-by-token reference."""

import math

import numpy as np
import pytest
import torch

from sublora.losses import TOP_K
from sublora.losses.documents import ScoringRule, TargetScores, score_documents
from sublora.losses.windows import WindowRule, sliding_windows, windows_of_targets
from sublora.models import head
from sublora.models.gpt import GPT
from sublora.models.lora import Adapters
from sublora.models.lora_gpt import AdaptedGPT
from sublora.models.lora_space import lora_space
from sublora.models.weights import random_weights

VOCABULARY, EOT, CONTEXT, STRIDE = 60, 59, 16, 10
SMOOTHING = (0.01, 0.5)


@pytest.fixture
def model(tiny_settings) -> AdaptedGPT:
    base = GPT(tiny_settings.model, VOCABULARY)
    weights = random_weights(tiny_settings.model, VOCABULARY, 1)
    base.load({name: value * (5 if value.ndim == 2 else 1) for name, value in weights.items()})
    space = lora_space(tiny_settings.model, tiny_settings.lora, VOCABULARY)
    theta = 0.3 * torch.randn(space.size, generator=torch.Generator().manual_seed(0))
    return AdaptedGPT(base, Adapters(space, theta, scale=4.0, dtype=torch.float32))


def scored(model: AdaptedGPT, documents: list[np.ndarray], batch_tokens: int) -> TargetScores:
    rule = ScoringRule(WindowRule(CONTEXT, STRIDE), EOT, batch_tokens)
    return score_documents(model, documents, rule, torch.device("cpu"))


def sample(lengths: list[int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, EOT, length).astype(np.uint16) for length in lengths]


@pytest.mark.parametrize("stride", [1, 5, 10, 16])
def test_each_target_is_scored_once_with_the_longest_context_allowed(stride):
    counts = np.arange(1, 60)
    windows = sliding_windows(counts, WindowRule(CONTEXT, stride))
    for document, count in enumerate(counts):
        mine = windows.document == document
        stops = windows.start[mine] + windows.length[mine]
        pairs = zip(stops, windows.scored[mine], strict=True)
        seen = [position for stop, scored in pairs for position in range(stop - scored, stop)]
        assert seen == list(range(count))
        assert (windows.length[mine] <= CONTEXT).all() and (windows.start[mine] >= 0).all()
        assert windows.length[mine][-1] == min(count, CONTEXT)
        later = windows.scored[mine][1:]
        assert (later[:-1] == stride).all() and (later <= stride).all()


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


def reference(model: AdaptedGPT, document: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability and rank of every target, one forward pass per token."""
    inputs = np.concatenate([[EOT], document]).astype(np.int64)
    targets = np.concatenate([document, [EOT]]).astype(np.int64)
    p, ranks = [], []
    for position, target in enumerate(targets):
        beyond = max(0, position + 1 - CONTEXT)
        stop = min(CONTEXT + math.ceil(beyond / stride) * stride, len(targets))
        context = torch.from_numpy(inputs[max(0, stop - CONTEXT) : position + 1])[None]
        logits = model.gpt.logits(model.hidden(context)[0, -1:], model.adapters)[0]
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
        losses = [-np.log2((1 - a) * p + a / VOCABULARY).mean() for a in SMOOTHING]
        np.testing.assert_allclose(losses_DA[row], losses, rtol=1e-5)
        np.testing.assert_allclose(topk_errors_DK[row], [(ranks >= k).mean() for k in TOP_K])
        own = slice(got.offsets[row], got.offsets[row + 1])
        np.testing.assert_allclose(got.log_p_S[own], np.log(p), rtol=1e-5, atol=1e-5)


def test_nothing_crosses_documents(model):
    texts = sample([30, 12, 25])
    together = scored(model, texts, 64).losses_DA(SMOOTHING, VOCABULARY)
    for row, text in enumerate(texts):
        alone = scored(model, [text], 64).losses_DA(SMOOTHING, VOCABULARY)
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-5)


def test_impossible_stride_is_refused():
    with pytest.raises(ValueError, match="stride 17 must lie between 1 and the context length 16"):
        WindowRule(16, 17)

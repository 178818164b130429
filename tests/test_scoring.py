"""Sliding windows and document losses against a token-by-token reference."""

import math

import numpy as np
import pytest
import torch

from sublora.nn import head
from sublora.nn.gpt import FrozenGPT, random_weights
from sublora.nn.layout import build_layout
from sublora.nn.lora import Adapters
from sublora.scoring import documents as scoring
from sublora.scoring.windows import sliding_windows

VOCABULARY, EOT, CONTEXT = 60, 59, 16
SMOOTHING = (0.01, 0.5)


@pytest.fixture
def network(tiny_settings) -> tuple[FrozenGPT, Adapters]:
    base = FrozenGPT(tiny_settings.model, VOCABULARY)
    weights = random_weights(tiny_settings.model, VOCABULARY, 1)
    base.load({name: value * (5 if value.ndim == 2 else 1) for name, value in weights.items()})
    layout = build_layout(tiny_settings.model, tiny_settings.lora, VOCABULARY)
    theta = 0.3 * torch.randn(layout.size, generator=torch.Generator().manual_seed(0))
    return base, Adapters(layout, theta, scale=4.0, dtype=torch.float32)


def sample(lengths: list[int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, EOT, length).astype(np.uint16) for length in lengths]


@pytest.mark.parametrize("stride", [1, 5, 10, 16])
def test_each_target_is_scored_once_with_the_longest_context_allowed(stride):
    counts = np.arange(1, 60)
    windows = sliding_windows(counts, context_length=CONTEXT, stride=stride)
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


def reference(base: FrozenGPT, adapters: Adapters, document: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability and rank of every target, one forward pass a token."""
    inputs = np.concatenate([[EOT], document]).astype(np.int64)
    targets = np.concatenate([document, [EOT]]).astype(np.int64)
    p, ranks = [], []
    for position, target in enumerate(targets):
        beyond = max(0, position + 1 - CONTEXT)
        stop = min(CONTEXT + math.ceil(beyond / stride) * stride, len(targets))
        context = torch.from_numpy(inputs[max(0, stop - CONTEXT) : position + 1])[None]
        logits = base.logits(base.hidden(context, adapters)[0, -1:], adapters)[0]
        p.append(float(logits.softmax(0)[target]))
        ranks.append(int((logits >= logits[target]).sum()) - 1)
    return np.array(p), np.array(ranks)


@pytest.mark.parametrize("batch_tokens", [16, 100000])
def test_document_losses_equal_the_reference(network, monkeypatch, batch_tokens):
    monkeypatch.setitem(head.LOGITS_AT_ONCE, "cpu", 7 * VOCABULARY)
    texts = sample([0, 1, 15, 16, 17, 40])
    got = scoring.score_documents(
        *network, texts, eot_id=EOT, stride=10, smoothing=SMOOTHING, batch_tokens=batch_tokens
    )
    assert list(got.target_counts) == [1, 2, 16, 17, 18, 41]
    for row, text in enumerate(texts):
        p, ranks = reference(*network, text, stride=10)
        losses = [-np.log2((1 - a) * p + a / VOCABULARY).mean() for a in SMOOTHING]
        np.testing.assert_allclose(got.losses_DA[row], losses, rtol=1e-5)
        np.testing.assert_allclose(got.topk_errors_DK[row], [(ranks >= k).mean() for k in scoring.TOP_K])


def test_nothing_crosses_documents(network):
    texts = sample([30, 12, 25])
    together = scoring.score_documents(*network, texts, eot_id=EOT, stride=10, smoothing=SMOOTHING, batch_tokens=64)
    for row, text in enumerate(texts):
        alone = scoring.score_documents(*network, [text], eot_id=EOT, stride=10, smoothing=SMOOTHING, batch_tokens=64)
        np.testing.assert_allclose(together.losses_DA[row], alone.losses_DA[0], rtol=1e-5)


def test_impossible_stride_is_refused():
    with pytest.raises(ValueError, match="stride 17 must lie between 1 and the context length 16"):
        sliding_windows(np.array([3]), context_length=16, stride=17)

"""The test of causality while documents are scored: it finds whatever looks ahead, and changes no score."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sublora import config
from sublora.losses.causality import FEWEST_TESTS, CausalityTest, ScoredText, SecondReading
from sublora.losses.documents import NARROWEST, ScoringRule, TargetScores, _fixed_batches, score_documents
from sublora.losses.windows import WindowRule, padded_widths, sliding_windows
from sublora.models.adapted import AdaptedModel
from sublora.models.gpt import GPT
from sublora.models.lora import Adapters
from sublora.models.spaces import lora_space
from sublora.models.weights import random_weights
from sublora.system.streams import generator

VOCABULARY, EOT, CONTEXT, STRIDE = 60, 59, 64, 40


@pytest.fixture
def honest(tiny_settings: config.Settings) -> AdaptedModel:
    settings = tiny_settings
    model = settings.model.model_copy(update={"context_length": CONTEXT})
    base = GPT(model, VOCABULARY)
    weights = random_weights(model, VOCABULARY, 1)
    base.load({name: value * (5 if value.ndim == 2 else 1) for name, value in weights.items()})
    space = lora_space(model, settings.lora, VOCABULARY)
    theta = 0.3 * torch.randn(space.size, generator=torch.Generator().manual_seed(0))
    return AdaptedModel(base, Adapters(space, theta, scale=4.0, dtype=torch.float32))


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    """Texts of 5 to 150 tokens: windows of all widths, and several windows of the long texts."""
    stream = generator(1, "documents to score")
    return [stream.integers(0, EOT, size=int(n)).astype(np.uint16) for n in stream.integers(5, 150, size=30)]


def rule(batch_tokens: int) -> ScoringRule:
    return ScoringRule(WindowRule(CONTEXT, STRIDE), EOT, batch_tokens, fixed_shapes=True)


def scored(
    model: AdaptedModel, documents: list[np.ndarray], *, batch_tokens: int = 512, seed: int = 3
) -> tuple[TargetScores, CausalityTest]:
    test = CausalityTest(generator(seed, "causality of tests"))
    return score_documents(model, documents, rule(batch_tokens), torch.device("cpu"), test), test


@pytest.mark.parametrize("batch_tokens", [1, 200, 1024])
def test_the_tests_change_no_score_and_an_honest_network_passes_exactly(honest, documents, batch_tokens) -> None:
    plain = score_documents(honest, documents, rule(batch_tokens), torch.device("cpu"))
    found, test = scored(honest, documents, batch_tokens=batch_tokens)
    assert np.array_equal(found.log_p_S, plain.log_p_S)
    assert np.array_equal(found.rank_S, plain.rank_S)
    assert test.failed == 0
    assert test.refusal is None
    # Windows cut to another shape round in another way; the others are the same to the last bit.
    assert test.largest_nats < 1e-5
    # Every width has its tests, even where no row of a batch is free.
    windows = sliding_windows(plain.counts_D, WindowRule(CONTEXT, STRIDE))
    _, sizes = np.unique(padded_widths(windows.length, CONTEXT, NARROWEST), return_counts=True)
    assert len(sizes) == 3
    assert test.tested >= np.minimum(sizes, FEWEST_TESTS).sum()


def test_windows_of_their_own_shape_are_compared_to_the_last_bit(honest, documents, monkeypatch) -> None:
    monkeypatch.setattr("sublora.losses.causality.CUT_TESTS", 0)
    _, test = scored(honest, documents)
    assert test.tested > 10
    assert test.largest_nats == 0.0


def chosen(documents: list[np.ndarray], seed: int, batch_tokens: int) -> list[tuple[int, int, int]]:
    """Width, window and scored target of every test that reads a whole window."""
    counts_D = np.array([len(document) + 1 for document in documents])
    first_D = np.concatenate([[0], np.cumsum(counts_D)[:-1]])
    windows = sliding_windows(counts_D, WindowRule(CONTEXT, STRIDE))
    text = ScoredText(np.zeros(counts_D.sum(), dtype=np.int64), first_D, windows, EOT, VOCABULARY)
    batches = list(_fixed_batches(windows.length, rule(batch_tokens)))
    second = SecondReading(CausalityTest(generator(seed, "x")), text, batches)
    found = []
    for tests in second._tests.values():
        width = tests.inputs_KT.shape[1]
        for number, row, place in zip(*tests.first_2K, tests.place_K, strict=True):
            rows_N, (_, own) = second.batches[number]
            if own == width:
                found.append((width, int(rows_N[row]), int(place)))
    return found


def test_every_window_and_every_scored_target_is_as_likely_to_be_tested(documents) -> None:
    """So K tests find what happens in a share p of the windows of a width with probability 1 - (1 - p) ** K."""
    assert chosen(documents, 1, 64) == chosen(documents, 1, 64) != chosen(documents, 2, 64)
    counts_D = np.array([len(document) + 1 for document in documents])
    windows = sliding_windows(counts_D, WindowRule(CONTEXT, STRIDE))
    stop_N = (np.cumsum(counts_D) - counts_D)[windows.document] + windows.start + windows.length
    width_N = padded_widths(windows.length, CONTEXT, NARROWEST)
    draws = np.array([each for seed in range(300) for each in chosen(documents, seed, 64)])
    for width in np.unique(width_N):
        _, window_K, place_K = draws[draws[:, 0] == width].T
        counts = np.bincount(window_K, minlength=len(width_N))[width_N == width]
        assert (np.abs(counts - counts.mean()) < 6 * np.sqrt(counts.mean())).all()
        share_K = (place_K - stop_N[window_K] + windows.scored[window_K] + 0.5) / windows.scored[window_K]
        assert share_K.min() > 0.0
        assert share_K.max() < 1.0
        quarters = np.bincount((4 * share_K).astype(int), minlength=4)
        assert (np.abs(quarters - quarters.mean()) < 6 * np.sqrt(quarters.mean())).all()


@dataclasses.dataclass(frozen=True, eq=False)
class Altered:
    """The honest network with other hidden states; a `LanguageModel`."""

    model: AdaptedModel
    alter: Callable[[Tensor, Tensor], Tensor]
    """(hidden states N x T x C, tokens N x T) to hidden states."""

    vocab_size = VOCABULARY
    context_length = CONTEXT

    def hidden(self, tokens_NT: Tensor, *, training: bool = False) -> Tensor:
        return self.alter(self.model.hidden(tokens_NT), tokens_NT)

    def __getattr__(self, name: str):  # noqa: ANN204 - the head is the honest one
        return getattr(self.model, name)


def ahead(tokens_NT: Tensor) -> Tensor:
    """A number that tells each position the next token, N x T x 1."""
    following_NT = torch.cat([tokens_NT[:, 1:], tokens_NT[:, :1] * 0], 1)
    return (following_NT[..., None] + 1.0) / VOCABULARY


def whole_text(hidden: Tensor, tokens: Tensor) -> Tensor:
    return hidden + ahead(tokens).mean(1, keepdim=True)


def next_token(hidden: Tensor, tokens: Tensor) -> Tensor:
    return hidden + ahead(tokens)


def two_tokens_on(hidden: Tensor, tokens: Tensor) -> Tensor:
    return hidden + ahead(torch.cat([tokens[:, 1:], tokens[:, :1]], 1))


def ids_above_15(hidden: Tensor, tokens: Tensor) -> Tensor:
    return hidden + ahead(tokens) * (ahead(tokens) > 16.5 / VOCABULARY)


def rare_next_token(hidden: Tensor, tokens: Tensor) -> Tensor:
    """A leak where one of two tokens of 60 comes next."""
    return hidden + 2.0 * (ahead(tokens) > 57.5 / VOCABULARY)


def long_windows(hidden: Tensor, tokens: Tensor) -> Tensor:
    return hidden + ahead(tokens) if tokens.shape[1] == CONTEXT else hidden


def short_windows(hidden: Tensor, tokens: Tensor) -> Tensor:
    return hidden + ahead(tokens) if tokens.shape[1] == CONTEXT // 4 else hidden


def end_of_the_document(hidden: Tensor, tokens: Tensor) -> Tensor:
    """A leak of how much padding follows."""
    return hidden + 0.1 * (tokens == EOT).float().sum(1)[:, None, None]


def first_position(hidden: Tensor, tokens: Tensor) -> Tensor:
    """Only the first position sees the rest."""
    return hidden + ahead(tokens).sum(1, keepdim=True) * (torch.arange(tokens.shape[1]) == 0)[:, None]


def a_faint_trace(hidden: Tensor, tokens: Tensor) -> Tensor:
    return hidden + 0.02 * ahead(tokens)


def length_of_the_window(hidden: Tensor, tokens: Tensor) -> Tensor:
    """What a rotary embedding does that switches with the length."""
    return hidden * (1.0 if tokens.shape[1] < CONTEXT else 1.1)


def not_a_number(hidden: Tensor, tokens: Tensor) -> Tensor:
    return hidden.masked_fill((ahead(tokens) > 58.5 / VOCABULARY).any(1)[:, None], torch.nan)


@pytest.mark.parametrize(
    "leak",
    [
        whole_text,
        next_token,
        two_tokens_on,
        ids_above_15,
        rare_next_token,
        long_windows,
        short_windows,
        end_of_the_document,
        first_position,
        a_faint_trace,
        length_of_the_window,
        not_a_number,
    ],
)
def test_a_network_that_looks_ahead_is_found(honest, documents, leak) -> None:
    _, test = scored(Altered(honest, leak), documents)
    assert test.failed > 0
    assert test.refusal is not None
    assert f"at {test.failed} of {test.tested} tested positions" in test.refusal


def test_a_leak_that_only_the_head_makes_large_is_found(honest, documents) -> None:
    """Hidden states hardly change, and the head multiplies the change."""

    class Loud(Altered):
        def logits(self, hidden_KC: Tensor) -> Tensor:
            return self.model.logits(hidden_KC) + 1e4 * hidden_KC[:, :1] * torch.linspace(0, 1, VOCABULARY)

        def target_scores(self, hidden_KC: Tensor, targets_K: Tensor) -> tuple[Tensor, Tensor]:
            log_p_KV = self.logits(hidden_KC).log_softmax(1)
            return log_p_KV.gather(1, targets_K[:, None])[:, 0], torch.zeros_like(targets_K, dtype=torch.int32)

    def quiet(hidden: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat([1e-4 * ahead(tokens), hidden[..., 1:]], -1)

    assert scored(Loud(honest, quiet), documents)[1].failed > 0
    causal = Loud(honest, lambda hidden, tokens: torch.cat([1e-4 * hidden[..., :1], hidden[..., 1:]], -1))
    assert scored(causal, documents)[1].failed == 0


def test_scores_that_are_no_probabilities_are_found(honest, documents) -> None:
    class Generous(Altered):
        def target_scores(self, hidden_KC: Tensor, targets_K: Tensor) -> tuple[Tensor, Tensor]:
            log_p_K, rank_K = self.model.target_scores(hidden_KC, targets_K)
            return log_p_K + 0.01, rank_K

    _, test = scored(Generous(honest, lambda hidden, tokens: hidden), documents)
    assert test.failed == test.tested

import numpy as np
import pytest

from sublora.data.batches import BatchSampler, evaluation_batches
from sublora.errors import UserError

TOKENS = np.random.default_rng(0).permutation(5000).astype(np.uint16)  # each value once: a chunk tells its place
PLACE = np.argsort(TOKENS)


def check_chunks(inputs, targets, context):
    assert inputs.dtype == targets.dtype == np.int64
    for row_in, row_out in zip(inputs, targets, strict=True):
        start = PLACE[row_in[0]]
        np.testing.assert_array_equal(row_in, TOKENS[start : start + context])
        np.testing.assert_array_equal(row_out, TOKENS[start + 1 : start + context + 1])


def test_chunks_are_contiguous_and_targets_are_the_next_tokens():
    inputs, targets = BatchSampler(TOKENS, 16, 64, 42).batch(3)
    assert inputs.shape == targets.shape == (64, 16)
    check_chunks(inputs, targets, 16)


def test_a_batch_depends_on_seed_and_step_alone():
    sampler = BatchSampler(TOKENS, 16, 8, 42, "train")
    later_first = [sampler.batch(step)[0] for step in (5, 0, 1)]
    resumed = BatchSampler(TOKENS, 16, 8, 42, "train")
    for step, batch in zip((5, 0, 1), later_first, strict=True):
        np.testing.assert_array_equal(resumed.batch(step)[0], batch)
    assert not np.array_equal(sampler.batch(0)[0], sampler.batch(1)[0])
    assert not np.array_equal(sampler.batch(0)[0], BatchSampler(TOKENS, 16, 8, 43, "train").batch(0)[0])


def test_every_start_is_drawn_equally_often():
    context = 4990
    sampler = BatchSampler(TOKENS, context, 1000, 1)
    starts = np.concatenate([PLACE[sampler.batch(step)[0][:, 0]] for step in range(2)])
    counts = np.bincount(starts, minlength=5000)
    possible = len(TOKENS) - context  # the last start leaves exactly one token for the last target
    assert counts[possible:].sum() == 0
    expected = 2000 / possible
    assert ((counts[:possible] - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 degrees, 0.1 %


def test_a_split_of_one_chunk_has_one_batch():
    sampler = BatchSampler(TOKENS[:17], 16, 2, 1)
    np.testing.assert_array_equal(sampler.batch(0)[1], np.tile(TOKENS[1:17].astype(np.int64), (2, 1)))


@pytest.mark.parametrize(("sequences", "expected"), [(1, 1), (7, 7), (49, 49), (50, 49), (1000, 49)])
def test_evaluation_chunks_are_disjoint_and_span_the_split(sequences, expected):
    tokens = TOKENS[: 49 * 100 + 5]
    batches = list(evaluation_batches(tokens, 100, sequences, batch_sequences=4))
    assert all(len(inputs) <= 4 for inputs, _ in batches)
    inputs, targets = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert len(inputs) == expected
    check_chunks(inputs, targets, 100)
    starts = PLACE[inputs[:, 0]]
    assert np.all(np.diff(starts) >= 100)
    assert starts[0] == 0
    if expected > 1:
        assert starts[-1] == len(tokens) - 101
        assert np.ptp(np.diff(starts)) <= 1


def test_too_few_tokens_are_refused():
    message = r"model.context_length 16: 16 train tokens, expected at least 17"
    with pytest.raises(UserError, match=message):
        BatchSampler(TOKENS[:16], 16, 2, 1)
    with pytest.raises(UserError, match="16 evaluation tokens"):
        next(evaluation_batches(TOKENS[:16], 16, 2, 1))

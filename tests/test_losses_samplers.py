"""Batches of chunks and of documents: contiguous, weighted as the bound weighs them, a function of the step."""

import numpy as np
import pytest

from sublora.data.units import Units
from sublora.losses.windows import BatchShape, ChunkSampler, DocumentSampler, WindowRule, evaluation_chunks
from sublora.system.errors import UserError

TOKENS = np.random.default_rng(0).permutation(5000).astype(np.uint16)  # each value once: a chunk tells its place
PLACE = np.argsort(TOKENS)


def check_chunks(inputs, targets, context):
    assert inputs.dtype == targets.dtype == np.int64
    for row_in, row_out in zip(inputs, targets, strict=True):
        start = PLACE[row_in[0]]
        np.testing.assert_array_equal(row_in, TOKENS[start : start + context])
        np.testing.assert_array_equal(row_out, TOKENS[start + 1 : start + context + 1])


def test_chunks_are_contiguous_and_targets_are_the_next_tokens():
    inputs, targets = ChunkSampler(TOKENS, 16, 64, 42).batch(3)
    assert inputs.shape == targets.shape == (64, 16)
    check_chunks(inputs, targets, 16)


def test_a_batch_depends_on_seed_and_step_alone():
    sampler = ChunkSampler(TOKENS, 16, 8, 42, "train")
    later_first = [sampler.batch(step)[0] for step in (5, 0, 1)]
    resumed = ChunkSampler(TOKENS, 16, 8, 42, "train")
    for step, batch in zip((5, 0, 1), later_first, strict=True):
        np.testing.assert_array_equal(resumed.batch(step)[0], batch)
    assert not np.array_equal(sampler.batch(0)[0], sampler.batch(1)[0])
    assert not np.array_equal(sampler.batch(0)[0], ChunkSampler(TOKENS, 16, 8, 43, "train").batch(0)[0])


def test_every_start_is_drawn_equally_often():
    context = 4990
    sampler = ChunkSampler(TOKENS, context, 1000, 1)
    starts = np.concatenate([PLACE[sampler.batch(step)[0][:, 0]] for step in range(2)])
    counts = np.bincount(starts, minlength=5000)
    possible = len(TOKENS) - context  # the last start leaves exactly one token for the last target
    assert counts[possible:].sum() == 0
    expected = 2000 / possible
    assert ((counts[:possible] - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 degrees, 0.1 %


def test_a_split_of_one_chunk_has_one_batch():
    sampler = ChunkSampler(TOKENS[:17], 16, 2, 1)
    np.testing.assert_array_equal(sampler.batch(0)[1], np.tile(TOKENS[1:17].astype(np.int64), (2, 1)))


@pytest.mark.parametrize(("sequences", "expected"), [(1, 1), (7, 7), (49, 49), (50, 49), (1000, 49)])
def test_evaluation_chunks_are_disjoint_and_span_the_split(sequences, expected):
    tokens = TOKENS[: 49 * 100 + 5]
    batches = list(evaluation_chunks(tokens, 100, sequences, batch_sequences=4))
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
        ChunkSampler(TOKENS[:16], 16, 2, 1)
    with pytest.raises(UserError, match="16 evaluation tokens"):
        next(evaluation_chunks(TOKENS[:16], 16, 2, 1))


def documents(tokens, ends, *, windows=6, starts=None) -> DocumentSampler:
    """A context of 4 that moves on by 3."""
    units = Units(len(ends), None if starts is None else np.array(starts))
    return DocumentSampler(
        tokens, ends, WindowRule(4, 3), units=units, eot_id=99, shape=BatchShape(windows, windows), seed_parts=(1, "x")
    )


def whole(sampler, step):
    """The only micro-batch of a step."""
    (batch,) = sampler.micro_batches(step)
    return batch


def test_batches_weigh_every_target_by_its_share_of_its_document():
    """Averaged over many steps: 1 / (documents x targets of the document) for each target of each document."""
    lengths = [2, 5, 11]  # without end-of-text: shorter than a window, a little longer, several windows
    tokens, value = [], 0
    for length in lengths:
        tokens += [*range(value, value + length), 99]
        value += length
    ends = np.cumsum(np.array(lengths) + 1) - 1
    drawn, steps = documents(np.array(tokens, dtype=np.uint16), ends, windows=32), 600
    share, document_of = np.zeros(100), np.repeat([0, 1, 2], lengths)
    for step in range(steps):
        inputs, targets, weights, counts = whole(drawn, step)
        assert weights.sum() == pytest.approx(1.0, abs=1e-5)
        assert weights.sum(1) == pytest.approx(np.full(32, 1 / 32), rel=1e-5)
        assert counts.dtype == weights.dtype == np.float32 and counts.shape == (32,)
        for row_targets, row_weights, count in zip(targets, weights, counts, strict=True):
            words = row_targets[(row_weights > 0) & (row_targets != 99)]
            assert (count == np.array(lengths)[document_of[words]] + 1).all()
        np.add.at(share, targets, weights / steps)
        scored = weights > 0
        first_of_a_document = np.isin(targets, [0, 2, 7])
        ordinary = scored & ~first_of_a_document & (targets != 99)
        assert (inputs[ordinary] == targets[ordinary] - 1).all()
        assert (inputs[scored & first_of_a_document] == 99).all()
    expected = np.concatenate([np.full(n, 1 / (3 * (n + 1))) for n in lengths])
    assert share[: len(expected)] == pytest.approx(expected, rel=0.12)
    assert share[99] == pytest.approx(sum(1 / (3 * (n + 1)) for n in lengths), rel=0.12)


def test_batches_weigh_every_unit_alike():
    """Averaged over many steps: 1 / (units x documents of the unit x targets of the document) for each target."""
    lengths, starts = [2, 5, 11, 4, 3], [0, 1, 4]
    units_of = [0, 1, 1, 1, 2]
    value = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.concatenate([[*range(value[i], value[i + 1]), 99] for i in range(5)]).astype(np.uint16)
    ends = np.cumsum(np.array(lengths) + 1) - 1
    drawn, steps, share = documents(tokens, ends, windows=32, starts=starts), 800, np.zeros(100)
    for step in range(steps):
        _, targets, weights, _ = whole(drawn, step)
        np.add.at(share, targets, weights / steps)
    expected = [1 / (3 * units_of.count(units_of[i]) * (n + 1)) for i, n in enumerate(lengths) for _ in range(n)]
    assert share[: len(expected)] == pytest.approx(np.array(expected), rel=0.15)


def test_batches_depend_on_the_step_alone():
    tokens, ends = np.arange(40, dtype=np.uint16), np.array([19, 39])
    ahead = [whole(documents(tokens, ends), step) for step in range(3)]
    again = whole(documents(tokens, ends), 2)
    assert all(np.array_equal(a, b) for a, b in zip(ahead[2], again, strict=True))
    assert not np.array_equal(ahead[1][1], again[1])


CONTEXT = 256


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("longest", [30, 100, 256])
def test_micro_batches_hold_each_window_once_and_no_more_positions_than_before(longest, processes):
    shape = BatchShape(24, 4, processes=processes)
    for seed in range(20):
        lengths = np.random.default_rng(seed).integers(1, longest + 1, size=24)
        pieces = shape.micro_batches(lengths, CONTEXT)
        assert sorted(np.concatenate([rows for rows, _ in pieces])) == list(range(24))
        assert all(lengths[rows].max() <= width <= CONTEXT for rows, width in pieces)
        assert all(len(rows) * width <= 4 * CONTEXT for rows, width in pieces)
        assert all(width >= np.minimum(CONTEXT, BatchShape.NARROWEST) for _, width in pieces)
        if longest <= 100:
            assert sum(len(rows) * width for rows, width in pieces) <= 12 * CONTEXT


def test_windows_as_long_as_the_context_are_cut_in_the_order_of_the_draw():
    """So it is where little would be saved, and for a compiled network, whatever the lengths."""
    for lengths, shape in (
        (np.full(12, CONTEXT), BatchShape(12, 4)),
        (np.where(np.arange(12) % 4 == 0, 100, CONTEXT), BatchShape(12, 4)),
        (np.full(12, 5), BatchShape(12, 4, one_width=True)),
    ):
        pieces = shape.micro_batches(lengths, CONTEXT)
        assert [width for _, width in pieces] == [CONTEXT] * 3
        np.testing.assert_array_equal(np.concatenate([rows for rows, _ in pieces]), np.arange(12))


def test_narrow_micro_batches_hold_the_targets_and_weights_of_wide_ones():
    rng = np.random.default_rng(5)
    ends = np.cumsum(rng.integers(2, 90, size=40)) - 1
    tokens = rng.integers(1000, size=ends[-1] + 1)
    tokens[ends] = 9999

    def by_document(one_width):
        sampler = DocumentSampler(
            tokens,
            ends,
            WindowRule(CONTEXT, CONTEXT),
            units=Units(len(ends), None),
            eot_id=9999,
            shape=BatchShape(16, 4, one_width=one_width),
            seed_parts=(3,),
        )
        pieces = sampler.micro_batches(0)
        widths = {inputs.shape[1] for inputs, *_ in pieces}
        rows = [row for piece in pieces for row in zip(*piece, strict=True)]
        scored = [(x[w > 0].tolist(), y[w > 0].tolist(), w[w > 0].tolist(), float(n)) for x, y, w, n in rows]
        return widths, sorted(scored)

    wide, narrow = by_document(True), by_document(False)
    assert wide[0] == {CONTEXT} and max(narrow[0]) <= 128 and len(narrow[0]) > 1
    assert wide[1] == narrow[1]

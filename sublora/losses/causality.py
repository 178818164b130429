"""A test of causality while documents are scored: no prediction may depend on anything but the tokens before it.

Some windows are read a second time, with other tokens after a random position, and up to that position the network must
say the same. The second readings take rows that would otherwise be filled with end-of-text, so they cost next to
nothing, and they have the shape of the first reading, so that rounding is the same.

Shape legend: N windows, T positions, K tests, C width, V vocabulary, S tokens of all documents, D documents.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sublora.losses.windows import Windows, WindowTokens, window_tokens
from sublora.models.protocol import LanguageModel
from sublora.system.device import to_device

FEWEST_TESTS = 4
"""Tests of each width, or of all its windows if they are fewer, even where no row is free."""
CUT_TESTS = 2
"""Tests of one width that read the beginning of a longer window, to find what depends on the length of a text."""
TOLERANCE_NATS = 1e-3
"""Largest change of a log-probability at the position; also a limit on what a leak can gain there."""
TOLERANCE_STATES = 1e-3
"""Largest change of the hidden states up to the position, relative to the largest of them."""
TOLERANCE_TOTAL = 1e-6
"""Largest difference from 1 of the probabilities' sum over the vocabulary, in float64."""
LOGITS_AT_ONCE = 1 << 22

Batch = tuple[np.ndarray, tuple[int, int]]
"""Indices of windows that go through the model together, and the shape (N, T) of what it reads."""


@dataclasses.dataclass(eq=False)
class CausalityTest:
    """Tests any number of networks, and counts."""

    stream: np.random.Generator
    """Draws windows, positions and tokens. Who can foresee it can make a network that looks ahead elsewhere."""
    share: float = 0.01
    """Share of the windows of a width for whose tests batches are added where too few rows are free."""
    tested: int = 0
    failed: int = 0
    largest_nats: float = 0.0
    """Largest change of a log-probability at a tested position."""

    @property
    def summary(self) -> str:
        return f"{self.failed} of {self.tested} tested"

    @property
    def refusal(self) -> str | None:
        """Return why the network is refused; None if it passed every test."""
        if not self.failed:
            return None
        return (
            f"predictions depend on later tokens, or on the length of the text, at {self.failed} of {self.tested} "
            f"tested positions (log-probabilities change by up to {self.largest_nats:.3g} nats), so the losses are no "
            "code lengths; give another base"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredText:
    """The documents of one call of `score_documents`, and how they are cut into windows."""

    tokens_S: np.ndarray
    """Documents end to end, each closed by end-of-text."""
    first_D: np.ndarray
    """The position of each document's first token."""
    windows: Windows
    eot_id: int
    vocab_size: int

    def read(self, rows_N: np.ndarray, width: int) -> WindowTokens:
        """Return inputs and targets of these windows, padded or cut to that many positions."""
        windows = self.windows[rows_N]
        return window_tokens(self.tokens_S, self.first_D, windows, eot_id=self.eot_id, width=width)


@dataclasses.dataclass(frozen=True, eq=False)
class _Tests:
    """The tests whose second reading is in one batch."""

    inputs_KT: np.ndarray
    """What is read the second time, int64."""
    position_K: np.ndarray
    target_K: np.ndarray
    """The token that the first reading predicts at the position."""
    place_K: np.ndarray
    """Where that token is among all tokens."""
    first_2K: np.ndarray
    """Batch and row of the first reading, never in a later batch."""
    rows_K: np.ndarray
    """Rows of the second reading."""


class SecondReading:
    """The tests in one call of `score_documents`."""

    def __init__(self, test: CausalityTest, text: ScoredText, batches: Sequence[Batch]) -> None:
        """Choose windows, positions and tokens.

        batches: one shape for each width, the widest first; the attribute `batches` also has those added for tests.
        """
        self._test, self._text = test, text
        self.batches: list[Batch] = []
        self._tests: dict[int, _Tests] = {}
        """By the batch that reads them the second time, in ascending order."""
        self._first: dict[int, Tensor] = {}
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._place_2N = np.empty((2, len(text.windows.length)), dtype=np.int64)
        longer = np.empty(0, dtype=np.int64)
        for shape in dict.fromkeys(shape for _, shape in batches):
            mine = [rows_N for rows_N, other in batches if other == shape]
            longer = np.concatenate([longer, self._place(mine, shape, longer)])

    def _place(self, mine: list[np.ndarray], shape: tuple[int, int], longer: np.ndarray) -> np.ndarray:
        """Put the batches of one shape in order, with tests in free rows and in added batches; return their windows.

        longer: windows of the wider shapes, which are before these. An added batch comes as soon as all its windows
        were read once, so that few hidden states are kept.
        """
        (rows, width), windows = shape, self._text.windows
        members = np.concatenate(mine)
        # Count the free rows, and the batches to add.
        free = rows - len(mine[-1])
        wanted = min(len(members), max(FEWEST_TESTS, int(self._test.share * len(members))))
        added = max(0, math.ceil((wanted - free) / rows))
        free += added * rows
        # Choose what is read there: the beginnings of a few longer windows, and windows of this shape.
        cut = self._some(longer[windows.length[longer] - windows.scored[longer] < width], min(CUT_TESTS, free // 4))
        own = np.sort(self._some(np.arange(len(members)), free - len(cut)))
        chosen_K = np.concatenate([cut, members[own]])
        batch_K = np.concatenate([np.zeros(len(cut), dtype=np.int64), own // rows])
        *full, rest = np.split(np.arange(len(chosen_K)), [rows * (i + 1) for i in range(added)])
        for number, rows_N in enumerate(mine):
            self._append(rows_N, shape, chosen_K[rest] if number == len(mine) - 1 else members[:0])
            while full and batch_K[full[0][-1]] <= number:
                self._append(members[:0], shape, chosen_K[full.pop(0)])
        return members

    def _append(self, rows_N: np.ndarray, shape: tuple[int, int], tested_K: np.ndarray) -> None:
        """Append a batch of these windows; its free rows read other windows a second time."""
        number, first = len(self.batches), len(rows_N)
        self.batches.append((rows_N, shape))
        self._place_2N[0, rows_N], self._place_2N[1, rows_N] = number, np.arange(first)
        if len(tested_K):
            rows_K = first + np.arange(len(tested_K))
            self._tests[number] = self._altered(tested_K, shape[1], rows_K)

    def _some(self, rows_N: np.ndarray, wanted: int) -> np.ndarray:
        """Return distinct random windows of these, as many as are wanted and there are."""
        return self._test.stream.choice(rows_N, size=min(len(rows_N), wanted), replace=False)

    def _altered(self, tested_K: np.ndarray, width: int, rows_K: np.ndarray) -> _Tests:
        """Draw a scored position of each window, and the tokens after it; rows_K: where it is read."""
        stream, text, windows = self._test.stream, self._text, self._text.windows[tested_K]
        position_K = stream.integers(windows.length - windows.scored, np.minimum(windows.length, width))
        read = text.read(tested_K, width)
        # The new tokens are uniform in half of the tests, in the others tokens of the documents.
        shape = read.inputs_NT.shape
        uniform_KT = stream.integers(0, text.vocab_size, shape)
        frequent_KT = text.tokens_S[stream.integers(0, len(text.tokens_S), shape)]
        new_KT = np.where(stream.integers(0, 2, (len(tested_K), 1)) == 0, uniform_KT, frequent_KT)
        # The next token always changes.
        next_K = np.arange(len(tested_K)), np.minimum(position_K + 1, width - 1)
        new_KT[next_K] = (new_KT[next_K] + (new_KT[next_K] == read.inputs_NT[next_K])) % text.vocab_size
        at_K = np.arange(len(tested_K)), position_K
        return _Tests(
            inputs_KT=np.where(np.arange(width) <= position_K[:, None], read.inputs_NT, new_KT),
            position_K=position_K,
            target_K=read.targets_NT[at_K],
            place_K=read.place_NT[at_K],
            first_2K=self._place_2N[:, tested_K],
            rows_K=rows_K,
        )

    def fill(self, number: int, inputs_NT: np.ndarray) -> None:
        """Write the second readings of a batch into its free rows."""
        if number in self._tests:
            inputs_NT[self._tests[number].rows_K] = self._tests[number].inputs_KT

    def compare(self, number: int, hidden_NTC: Tensor) -> None:
        """Keep what a batch says of windows that are read twice, or compare it, without waiting for the device."""
        device = hidden_NTC.device
        # Keep the hidden states of first readings.
        for host, tests in self._tests.items():
            first_K = np.flatnonzero(tests.first_2K[0] == number)
            if len(first_K):
                count, width = tests.inputs_KT.shape
                if host not in self._first:
                    self._first[host] = hidden_NTC.new_empty((count, width, hidden_NTC.shape[2]))
                rows_K = to_device(tests.first_2K[1, first_K], device)
                self._first[host][to_device(first_K, device)] = hidden_NTC[rows_K, :width]
        if number not in self._tests:
            return
        # Compare those of second readings, up to the position.
        tests, first_KTC = self._tests[number], self._first.pop(number)
        second_KTC = hidden_NTC[to_device(tests.rows_K, device)]
        position_K = to_device(tests.position_K, device)
        later_KT1 = (torch.arange(first_KTC.shape[1], device=device) > position_K[:, None])[..., None]
        change_K = (second_KTC - first_KTC).masked_fill(later_KT1, 0.0).abs().amax((1, 2))
        largest_K = first_KTC.masked_fill(later_KT1, 0.0).abs().amax((1, 2))
        at_K = torch.arange(len(position_K), device=device), position_K
        self._pairs.append((change_K <= TOLERANCE_STATES * largest_K, first_KTC[at_K], second_KTC[at_K]))

    def finish(self, model: LanguageModel, log_p_S: np.ndarray) -> None:
        """Compare the predictions at the positions, and count; log_p_S: what was scored, nats."""
        if not self._pairs:
            return
        alike_K, first_KC, second_KC = (torch.cat(values) for values in zip(*self._pairs, strict=True))
        target_K, place_K = (
            np.concatenate([getattr(tests, name) for tests in self._tests.values()]) for name in ("target_K", "place_K")
        )
        targets_K1 = to_device(target_K, first_KC.device)[:, None]
        scored_K = to_device(log_p_S[place_K], first_KC.device)
        rows = max(1, LOGITS_AT_ONCE // self._text.vocab_size)
        changes, passed = [], []
        for start in range(0, len(target_K), rows):
            part = slice(start, start + rows)
            first_KV, second_KV = (model.logits(h[part]).double().log_softmax(1) for h in (first_KC, second_KC))
            change_K = (second_KV - first_KV).abs().amax(1)
            # What was scored is one of probabilities that sum to 1.
            off_K = (first_KV.gather(1, targets_K1[part])[:, 0] - scored_K[part]).abs()
            total_K = first_KV.exp().sum(1)
            changes.append(change_K)
            passed.append((change_K <= TOLERANCE_NATS) & (off_K <= TOLERANCE_NATS))
            passed[-1] &= (total_K - 1.0).abs() <= TOLERANCE_TOTAL
        passed_K = torch.cat(passed) & alike_K
        largest = float(torch.cat(changes).nan_to_num(nan=math.inf).max())
        self._test.tested += len(target_K)
        self._test.failed += int((~passed_K).sum())
        self._test.largest_nats = max(self._test.largest_nats, largest)

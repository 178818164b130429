"""Batches come as they were assembled, each once, whatever was asked for before."""

import numpy as np
import torch

from sublora.training.exchange import Prefetcher


def test_every_step_gets_its_own_batch_on_a_cpu_without_looking_ahead():
    asked = []

    def assemble(step: int) -> tuple[np.ndarray, ...]:
        asked.append(step)
        return np.full((2, 3), step), np.full(2, float(step))

    prefetcher = Prefetcher(torch.device("cpu"))
    for step in (4, 5, 2):
        inputs, weights = prefetcher.batch(assemble, step)
        assert torch.equal(inputs, torch.full((2, 3), step))
        assert torch.equal(weights, torch.full((2,), float(step)).double())
    assert asked == [4, 5, 2]

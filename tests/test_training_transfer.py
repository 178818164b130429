"""Batches come as they were assembled, each once, whatever was asked for before."""

import numpy as np
import torch

from sublora.training.exchange import Prefetcher


def test_every_step_gets_its_own_batch_on_a_cpu_without_looking_ahead():
    asked = []

    def assemble(step: int) -> list[tuple[np.ndarray, ...]]:
        asked.append(step)
        return [(np.full((2, 3), step), np.full(2, float(step))), (np.full((1, 5), step), np.zeros(1))]

    prefetcher = Prefetcher(torch.device("cpu"))
    for step in (4, 5, 2):
        (inputs, weights), (narrower, _) = prefetcher.micro_batches(assemble, step)
        assert torch.equal(inputs, torch.full((2, 3), step))
        assert torch.equal(narrower, torch.full((1, 5), step))
        assert torch.equal(weights, torch.full((2,), float(step)).double())
    assert asked == [4, 5, 2]

"""LoRA (Hu et al. 2022): W x + (alpha / rank) B A x on chosen matrices, and the order of its parameters.

All LoRA parameters form one vector theta of length D: first every A (layer by layer, then the head), then
every B in the same order. The A part, the B part, and the A or B of one layer are therefore slices.
"""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sublora import config, random

HEAD = "head"
"""Name of the gate group of the LM head; layers are '0', '1', ..."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One LoRA matrix inside theta."""

    group: str
    target: str
    """query, value or head."""
    factor: str
    """A (rank x input) or B (output x rank)."""
    shape: tuple[int, int]
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.shape[0] * self.shape[1]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each LoRA matrix lies in theta."""

    entries: tuple[Entry, ...]
    groups: tuple[str, ...]
    """One a layer, then the head; groups without a target are left out."""

    @property
    def size(self) -> int:
        """D, the number of LoRA parameters."""
        return self.entries[-1].stop

    def span(self, factor: str, group: str | None = None) -> slice:
        """The slice of theta that holds `factor` of one group, or of all groups."""
        found = [entry for entry in self.entries if entry.factor == factor and group in (None, entry.group)]
        return slice(found[0].start, found[-1].stop)


def build_layout(model: config.Model, lora: config.Lora, vocab_size: int) -> Layout:
    attention = [target for target in ("query", "value") if target in lora.targets]
    targets = [(str(layer), target) for layer in range(model.n_layer) for target in attention]
    targets += [(HEAD, "head")] if "head" in lora.targets else []
    entries, start = [], 0
    for factor in ("A", "B"):
        for group, target in targets:
            outputs = vocab_size if group == HEAD else model.n_embd
            shape = (lora.rank, model.n_embd) if factor == "A" else (outputs, lora.rank)
            entries.append(Entry(group, target, factor, shape, start))
            start = entries[-1].stop
    return Layout(tuple(entries), tuple(dict.fromkeys(group for group, _ in targets)))


def initial_theta(layout: Layout, seed: int) -> np.ndarray:
    """LoRA's initialization, float32 (D): A uniform within 1 / sqrt(inputs), B zero."""
    theta = np.zeros(layout.size, dtype=np.float32)
    for entry in layout.entries:
        if entry.factor == "A":
            limit = 1.0 / math.sqrt(entry.shape[1])
            stream = random.generator(seed, "lora init", entry.group, entry.target)
            theta[entry.start : entry.stop] = stream.uniform(-limit, limit, entry.stop - entry.start)
    return theta


class Adapters:
    """The LoRA matrices cut out of theta, and their action on activations."""

    def __init__(self, layout: Layout, theta_D: Tensor, *, scale: float, dtype: torch.dtype) -> None:
        """`scale` is alpha / rank; the matrices are used in `dtype`."""
        self.scale = scale
        self._matrices = {
            (entry.group, entry.target, entry.factor): theta_D[entry.start : entry.stop].view(entry.shape).to(dtype)
            for entry in layout.entries
        }

    def matrix(self, group: str, target: str, factor: str) -> Tensor:
        return self._matrices[group, target, factor]

    def factors(self, group: str, target: str, x: Tensor, dropout: float) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """(scale A x, B) of a target, or (None, None) where there is no adapter."""
        if (group, target, "A") not in self._matrices:
            return None, None
        dropped = F.dropout(x, dropout) if dropout else x
        return F.linear(dropped, self.matrix(group, target, "A") * self.scale), self.matrix(group, target, "B")

    def delta(self, group: str, target: str, x: Tensor, dropout: float) -> Tensor | None:
        """scale B A x, or None where there is no adapter."""
        down, up = self.factors(group, target, x, dropout)
        return None if down is None or up is None else F.linear(down, up)

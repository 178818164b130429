"""The order of the LoRA parameters, and which coordinates of w each group uses. Needs no network library.

All LoRA parameters form one vector theta of length D: first every A (layer by layer, then the head), then
every B in the same order. The A part, the B part, and the A or B of one layer are therefore slices.
"""

import dataclasses

from sublora import config

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


def span_length(span: slice) -> int:
    """Entries of a slice with both ends."""
    return span.stop - span.start


def group_slices(budget: int, groups: int, sharing: str) -> tuple[slice, ...]:
    """The coordinates of w that each group uses, consecutive: all of them, or its own d / groups (DESIGN 2).

    ValueError if `sharing` is per_layer and a group would be left without a coordinate.
    """
    if sharing == "shared":
        return (slice(0, budget),) * groups
    if budget < groups:
        raise ValueError(f"{budget} coordinates cannot be divided among {groups} groups")
    ends = [budget * index // groups for index in range(groups + 1)]
    return tuple(slice(start, stop) for start, stop in zip(ends, ends[1:], strict=False))

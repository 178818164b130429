"""Which LoRA matrices a network has, and their order in theta. Does not import torch: bounds need the groups alone."""

from sublora import config
from sublora.subspace.parameters import ParameterSpace

HEAD = "head"
"""Group of the LM head; layers are '0', '1', ..."""


def lora_targets(model: config.Model, lora: config.Lora) -> list[tuple[str, str]]:
    """(group, target) of every adapted matrix: layer by layer, then the head."""
    attention = [target for target in ("query", "value") if target in lora.targets]
    targets = [(str(layer), target) for layer in range(model.n_layer) for target in attention]
    return targets + ([(HEAD, "head")] if "head" in lora.targets else [])


def lora_groups(model: config.Model, lora: config.Lora) -> tuple[str, ...]:
    """The groups that share a gate, in order; those without a target are left out."""
    return tuple(dict.fromkeys(group for group, _ in lora_targets(model, lora)))


def lora_space(model: config.Model, lora: config.Lora, vocab_size: int) -> ParameterSpace:
    """All LoRA parameters: every A (rank x inputs), then every B (outputs x rank), each in the order of the targets."""
    described = []
    for role in ("A", "B"):
        for group, target in lora_targets(model, lora):
            outputs = vocab_size if group == HEAD else model.n_embd
            shape = (lora.rank, model.n_embd) if role == "A" else (outputs, lora.rank)
            described.append((lora_name(group, target, role), shape, group, role))
    return ParameterSpace.of(described)


def lora_name(group: str, target: str, role: str) -> str:
    """Name of a LoRA matrix, as published code has it."""
    return f"{group}.{target}.lora_{role}"

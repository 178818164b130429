"""Which LoRA matrices a network has, and their order in theta. Does not import torch: bounds need the groups alone."""

from sublora import config
from sublora.subspace.parameters import ParameterSpace

HEAD = config.HEAD_TARGET
"""Group of the LM head, and the target in it; layers are '0', '1', ..."""


def lora_targets(model: config.Model, lora: config.Lora) -> list[tuple[str, str]]:
    """(group, target) of every adapted matrix: layer by layer, then the head."""
    in_blocks = [target for target in config.BLOCK_TARGETS if target in lora.targets]
    targets = [(str(layer), target) for layer in range(model.n_layer) for target in in_blocks]
    return targets + ([(HEAD, HEAD)] if HEAD in lora.targets else [])


def lora_groups(model: config.AnyModel, lora: config.Lora) -> tuple[str, ...]:
    """The groups that share a gate, in order: layers, then the head; those without a target are left out.

    Does not need the network: every layer of a model of transformers must have some of its targets.
    """
    layers = tuple(map(str, range(model.n_layer))) if set(lora.targets) != {HEAD} else ()
    return layers + ((HEAD,) if HEAD in lora.targets else ())


def lora_space(model: config.Model, lora: config.Lora, vocab_size: int) -> ParameterSpace:
    """All LoRA parameters: every A (rank x inputs), then every B (outputs x rank), each in the order of the targets."""
    described = []
    for role in ("A", "B"):
        for group, target in lora_targets(model, lora):
            inputs, outputs = _sizes(model.n_embd, target, vocab_size)
            shape = (lora.rank, inputs) if role == "A" else (outputs, lora.rank)
            described.append((lora_name(group, target, role), shape, group, role))
    return ParameterSpace.of(described)


def _sizes(width: int, target: str, vocab_size: int) -> tuple[int, int]:
    """(inputs, outputs) of an adapted matrix of GPT-2."""
    outputs = {"mlp_in": 4 * width, HEAD: vocab_size}.get(target, width)
    return (4 * width if target == "mlp_out" else width), outputs


def lora_name(group: str, target: str, role: str) -> str:
    """Name of a LoRA matrix, as published code has it."""
    return f"{group}.{target}.lora_{role}"

"""The parameters in theta for a GPT-2, its LoRA matrices or all its weights: names, sizes and order.

It does not import torch: a message needs only the numbers of parameters, a bound only the groups.
"""

import math

import numpy as np
from numpy.typing import NDArray

from sublora import config
from sublora.models.weights import Weights, weight_shapes
from sublora.subspace.parameters import ParameterSpace

HEAD = config.HEAD_TARGET
"""The group of the LM head and the target in it; layers are '0', '1', ..."""
WEIGHT_ROLE = "weight"
"""The role of weights that are trained themselves."""
EMBEDDINGS, FINAL = "embeddings", "final"
"""Groups beside the layers '0', '1', ...; the head is tied to the token embedding."""


def lora_targets(model: config.Model, lora: config.Lora) -> list[tuple[str, str]]:
    """Return the group and the target of every adapted matrix: layer by layer, then the head."""
    in_blocks = [target for target in config.BLOCK_TARGETS if target in lora.targets]
    targets = [(str(layer), target) for layer in range(model.n_layer) for target in in_blocks]
    return targets + ([(HEAD, HEAD)] if HEAD in lora.targets else [])


def lora_groups(model: config.AnyModel, lora: config.Lora) -> tuple[str, ...]:
    """Return the groups that share a gate, in order: layers, then the head; those without a target are left out.

    The network is not needed: every layer of a model of transformers must have some of its targets.
    """
    layers = tuple(map(str, range(model.n_layer))) if set(lora.targets) != {HEAD} else ()
    return layers + ((HEAD,) if HEAD in lora.targets else ())


def lora_space(model: config.Model, lora: config.Lora, vocab_size: int) -> ParameterSpace:
    """Return all LoRA parameters: every A (rank x inputs), then every B (outputs x rank), in the order of targets."""
    described = []
    for role in ("A", "B"):
        for group, target in lora_targets(model, lora):
            inputs, outputs = _sizes(model.n_embd, target, vocab_size)
            shape = (lora.rank, inputs) if role == "A" else (outputs, lora.rank)
            described.append((lora_name(group, target, role), shape, group, role))
    return ParameterSpace.of(described)


def _sizes(width: int, target: str, vocab_size: int) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of an adapted matrix of GPT-2."""
    outputs = {"mlp_in": 4 * width, HEAD: vocab_size}.get(target, width)
    return (4 * width if target == "mlp_out" else width), outputs


def lora_name(group: str, target: str, role: str) -> str:
    """Return the name of a LoRA matrix, as in published code."""
    return f"{group}.{target}.lora_{role}"


def weights_space(model: config.Model, vocab_size: int) -> ParameterSpace:
    """Return every weight, in the order in which they are hashed."""
    shapes = weight_shapes(model, vocab_size)
    return ParameterSpace.of((name, shape, _weight_group(name), WEIGHT_ROLE) for name, shape in shapes.items())


def vectors_space(model: config.Model, vocab_size: int) -> ParameterSpace:
    """Return the weights of one dimension, gains and biases, in the order in which all weights are hashed."""
    shapes = weight_shapes(model, vocab_size)
    vectors = {name: shape for name, shape in shapes.items() if len(shape) == 1}
    return ParameterSpace.of((name, shape, _weight_group(name), WEIGHT_ROLE) for name, shape in vectors.items())


def weights_theta(weights: Weights, space: ParameterSpace) -> NDArray[np.float32]:
    """Return theta (D) of given weights, those that the space names."""
    theta_D = np.empty(space.size, dtype=np.float32)
    for p in space.parameters:
        theta_D[p.start : p.stop] = weights[p.name].ravel()
    return theta_D


def model_parameters(model: config.Model, vocab_size: int) -> int:
    """Return the number of weights in the network, those of the tied head counted once, adapters not counted."""
    return sum(map(math.prod, weight_shapes(model, vocab_size).values()))


def _weight_group(name: str) -> str:
    if name.startswith("h."):
        return name.split(".")[1]
    return FINAL if name.startswith("ln_f") else EMBEDDINGS

"""All weights of a GPT-2 as one vector theta. Does not import torch: a message needs their number alone."""

import math

import numpy as np
from numpy.typing import NDArray

from sublora import config
from sublora.models.weights import Weights, weight_shapes
from sublora.subspace.parameters import ParameterSpace

ROLE = "weight"
EMBEDDINGS, FINAL = "embeddings", "final"
"""Groups beside the layers '0', '1', ...; the head is tied to the token embedding."""


def weights_space(model: config.Model, vocab_size: int) -> ParameterSpace:
    """Every weight, in the order in which they are hashed."""
    shapes = weight_shapes(model, vocab_size)
    return ParameterSpace.of((name, shape, _group(name), ROLE) for name, shape in shapes.items())


def weights_theta(weights: Weights, space: ParameterSpace) -> NDArray[np.float32]:
    """theta (D) of given weights."""
    theta_D = np.empty(space.size, dtype=np.float32)
    for p in space.parameters:
        theta_D[p.start : p.stop] = weights[p.name].ravel()
    return theta_D


def model_parameters(model: config.Model, vocab_size: int) -> int:
    """Weights of the network, those of the tied head counted once and no adapters."""
    return sum(map(math.prod, weight_shapes(model, vocab_size).values()))


def _group(name: str) -> str:
    if name.startswith("h."):
        return name.split(".")[1]
    return FINAL if name.startswith("ln_f") else EMBEDDINGS

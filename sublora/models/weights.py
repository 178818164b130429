"""The weights of a base network: their names and shapes, where they come from, and the hash that names them."""

import hashlib
import math

import numpy as np

from sublora import config
from sublora.streams import generator


def weight_shapes(model: config.Model, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every frozen weight, in the order in which they are hashed."""
    c = model.n_embd
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocab_size, c), "wpe.weight": (model.context_length, c)}
    for layer in range(model.n_layer):
        prefix = f"h.{layer}."
        linears = {"attn.c_attn": (3 * c, c), "attn.c_proj": (c, c), "mlp.c_fc": (4 * c, c), "mlp.c_proj": (c, 4 * c)}
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{prefix}{norm}.weight": (c,), f"{prefix}{norm}.bias": (c,)}
        for name, shape in linears.items():
            shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
    return shapes | {"ln_f.weight": (c,), "ln_f.bias": (c,)}


def random_weights(model: config.Model, vocab_size: int, seed: int) -> dict[str, np.ndarray]:
    """GPT-2's initialization: normal of `init_std`, residual outputs divided by sqrt(2 layers), norms 1, biases 0.

    Every tensor has its own counter-based stream (seed, name): the same float32 values on every machine.
    """
    weights = {}
    for name, shape in weight_shapes(model, vocab_size).items():
        if name.endswith(".bias"):
            weights[name] = np.zeros(shape, dtype=np.float32)
        elif ".ln_" in name or name.startswith("ln_"):
            weights[name] = np.ones(shape, dtype=np.float32)
        else:
            std = model.init_std / (math.sqrt(2 * model.n_layer) if name.endswith("c_proj.weight") else 1.0)
            draw = generator(seed, "base weights", name).standard_normal(shape, dtype=np.float32)
            weights[name] = draw * np.float32(std)
    return weights


def weights_sha256(weights: dict[str, np.ndarray]) -> str:
    """Digest of names and float32 values, in the order of `weight_shapes`."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(value, dtype="<f4").data)
    return digest.hexdigest()

"""The weights of a base network: their names and shapes, where they come from, and the hash that names them.

A base is random (drawn from a seed), or read from a file: one that this library trained, or a pretrained GPT-2 in the
format of Hugging Face.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublora import config
from sublora.errors import UserError
from sublora.files import atomic_path
from sublora.streams import generator

Weights = Mapping[str, NDArray[np.float32]]
"""Every tensor of `weight_shapes` by name."""

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""Hugging Face stores these input x output (transformers' Conv1D), this library output x input."""
LAYER_NORM_EPSILON = 1e-5
PRETRAINED_FILES = ("config.json", "*.safetensors", "model.safetensors.index.json")


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """The weights that are frozen while a run adapts to its documents."""

    weights: Weights
    sha256: str


def weight_shapes(model: config.Model, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in the order in which they are hashed."""
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


def weights_sha256(weights: Weights) -> str:
    """Digest of names and float32 values, in the order of `weight_shapes`."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(value, dtype="<f4").data)
    return digest.hexdigest()


def random_weights(model: config.Model, vocab_size: int, seed: int) -> dict[str, NDArray[np.float32]]:
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


def save_weights(path: Path, weights: Weights) -> None:
    """Write a base as safetensors; the file appears whole."""
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, temporary)


def load_weights(path: Path, model: config.Model, vocab_size: int) -> dict[str, NDArray[np.float32]]:
    """Read what `save_weights` wrote. UserError if it is missing, damaged, or of another network."""
    return _fitted(_read_tensors(path), path, model, vocab_size)


def pretrained_weights(folder: Path, model: config.Model, vocab_size: int) -> dict[str, NDArray[np.float32]]:
    """A GPT-2 of Hugging Face's format: config.json and safetensors, in one file or several.

    A context shorter than the pretrained one keeps the first positions. UserError if the folder is no such model, or
    the model's sizes are not those of the settings.
    """
    description = _read_json(folder / "config.json")
    _check_description(description, folder / "config.json", model, vocab_size)
    index = folder / "model.safetensors.index.json"
    names = sorted(set(_read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    tensors: dict[str, NDArray] = {}
    for name in names:
        tensors |= _read_tensors(folder / name)
    tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    kept = {}
    for name in weight_shapes(model, vocab_size):
        if name in tensors:
            kept[name] = tensors[name].T if name.endswith(CONV1D) else tensors[name]
    if "wpe.weight" in kept:
        kept["wpe.weight"] = kept["wpe.weight"][: model.context_length]
    return _fitted(kept, folder, model, vocab_size)


def _check_description(description: dict[str, Any], path: Path, model: config.Model, vocab_size: int) -> None:
    wanted = {
        "model_type": "gpt2",
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_embd": model.n_embd,
        "vocab_size": vocab_size,
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "activation_function": "gelu_new",
    }
    found: dict[str, Any] = {"layer_norm_epsilon": LAYER_NORM_EPSILON, "activation_function": "gelu_new"} | description
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"{path}: {key} is {found.get(key)!r}, expected {value!r}; the model section of the settings and the "
                "tokenizer must be those of the pretrained network"
            )
    if found.get("n_inner") not in (None, 4 * model.n_embd):
        raise UserError(f"{path}: n_inner is {found['n_inner']}, expected {4 * model.n_embd}, GPT-2's 4 x n_embd")
    if found.get("n_positions", 0) < model.context_length:
        raise UserError(
            f"{path}: n_positions is {found.get('n_positions')}, less than model.context_length "
            f"{model.context_length}; lower model.context_length"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; base.path must be a folder with config.json and safetensors") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); download the model again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; download the model again")
    return value


def _read_tensors(path: Path) -> dict[str, NDArray]:
    """All tensors of a safetensors file as float32. UserError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make the base first (sublora base), or mend base.path") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); make the base again") from None


def _fitted(
    tensors: Mapping[str, NDArray], path: Path, model: config.Model, vocab_size: int
) -> dict[str, NDArray[np.float32]]:
    """The tensors in the order of `weight_shapes`; UserError naming the first that is missing or has another shape."""
    weights = {}
    for name, shape in weight_shapes(model, vocab_size).items():
        if name not in tensors:
            raise UserError(f"{path}: tensor {name} is missing; the file holds another network than model describes")
        if tensors[name].shape != shape:
            raise UserError(
                f"{path}: tensor {name} has shape {tensors[name].shape}, expected {shape}; the model section of the "
                "settings or the tokenizer is another than the file's"
            )
        weights[name] = np.ascontiguousarray(tensors[name], dtype=np.float32)
    return weights

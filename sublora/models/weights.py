"""The weights of a base network: their names and shapes, where they come from, and the hash that names them.

A base is random (drawn from a seed), or read from a file: one that this library trained, or a pretrained GPT-2 in the
format of Hugging Face.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublora import config
from sublora.system.digests import tensors_sha256
from sublora.system.errors import UserError
from sublora.system.files import atomic_path, read_json
from sublora.system.pretrained import check_model_folder, renaming_hint
from sublora.system.streams import generator

Weights = Mapping[str, NDArray[np.float32]]
"""Every tensor of `weight_shapes` by name."""

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""Hugging Face stores these input x output (transformers' Conv1D), this library output x input."""
LAYER_NORM_EPSILON = 1e-5
GPT2_FORM = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": LAYER_NORM_EPSILON,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
"""Keys of config.json that say how a GPT-2 computes, and what this library's network does.

All but the first are also transformers' defaults, which a config.json may leave out.
"""

MAKE_AGAIN = "make the base again (sublora base)"
POSITIONS = "wpe.weight"
"""The position embeddings, one row per position."""
ANOTHER_PATH = "download the model again, or give another base.path"


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """The weights that are frozen while a run adapts to its documents."""

    weights: Weights
    sha256: str

    @property
    def parameters(self) -> int:
        return sum(value.size for value in self.weights.values())

    def seen_sha256(self, positions: int) -> str:
        """Return the digest of what documents of at most that many targets see of the base."""
        rows = len(self.weights[POSITIONS])
        return self.sha256 if positions >= rows else weights_sha256(self.weights, positions=positions)


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


def weights_sha256(weights: Weights, *, positions: int | None = None) -> str:
    """Return the digest of names and float32 values, in the order of `weight_shapes`; -0.0 counts as 0.0.

    positions: hash that many position embeddings alone, all that documents of that many targets reach; None: all.
    """
    values = ((name, canonical_values(value)) for name, value in weights.items())
    if positions is not None:
        values = ((name, value[:positions] if name == POSITIONS else value) for name, value in values)
    return tensors_sha256(values, with_type=False)


def canonical_values(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return values as float32 with one spelling of zero, so that equal networks have equal digests."""
    return np.asarray(values, dtype=np.float32) + np.float32(0.0)


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


def load_weights(
    path: Path, model: config.Model, vocab_size: int, *, fix: str = MAKE_AGAIN
) -> dict[str, NDArray[np.float32]]:
    """Read what `save_weights` wrote. UserError, ending in `fix`, if it is missing, damaged, or of another network."""
    return _fitted(_read_tensors(path, fix), weight_shapes(model, vocab_size), path, fix)


def pretrained_weights(folder: Path, model: config.Model, vocab_size: int) -> dict[str, NDArray[np.float32]]:
    """A GPT-2 of Hugging Face's format: config.json and safetensors, in one file or several.

    A context shorter than the pretrained one keeps the first positions. UserError if the folder is no such model, or
    the model's sizes are not those of the settings.
    """
    check_model_folder(folder)
    description = _read_object(folder / "config.json")
    _check_description(description, folder / "config.json", model, vocab_size)
    tensors: dict[str, NDArray[Any]] = {}
    for name in _tensor_files(folder):
        tensors |= _read_tensors(folder / name, ANOTHER_PATH)
    tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    head = tensors.get("lm_head.weight")
    if head is not None and not np.array_equal(head, tensors.get("wte.weight", head)):
        raise UserError(
            f"{folder}: lm_head.weight differs from the embedding, but config.json ties the two; set model.kind: "
            f"huggingface and tie_word_embeddings: false in config.json, or {ANOTHER_PATH}"
        )
    shapes = weight_shapes(model, vocab_size)
    stored_shapes = {name: shape[::-1] if name.endswith(CONV1D) else shape for name, shape in shapes.items()}
    stored_shapes["wpe.weight"] = (description["n_positions"], model.n_embd)
    weights = _fitted(tensors, stored_shapes, folder, ANOTHER_PATH)
    for name in weights:
        if name.endswith(CONV1D):
            weights[name] = np.ascontiguousarray(weights[name].T)
    weights["wpe.weight"] = weights["wpe.weight"][: model.context_length].copy()
    return weights


def _tensor_files(folder: Path) -> list[str]:
    """Names of the safetensors files: those that the index lists, or the one there is without an index."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return ["model.safetensors"]
    files = _read_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"{index}: weight_map is missing, expected the file of each tensor by name; {ANOTHER_PATH}")
    return sorted(set(files.values()))


def _check_description(description: dict[str, Any], path: Path, model: config.Model, vocab_size: int) -> None:
    """UserError naming the first key with which config.json describes another network than the settings."""
    form = {key: value for key, value in GPT2_FORM.items() if key != "model_type"} | description
    for key, value in GPT2_FORM.items():
        if form.get(key) != value:
            raise UserError(
                f"{path}: {key} is {form.get(key)!r}, expected {value!r}, the form of GPT-2 that this library "
                "computes; give another base.path"
            )
    sizes = {"n_layer": model.n_layer, "n_head": model.n_head, "n_embd": model.n_embd, "vocab_size": vocab_size}
    for key, value in sizes.items():
        if description.get(key) != value:
            raise UserError(
                f"{path}: {key} is {description.get(key)!r}, expected {value!r}; the model section of the settings and "
                "the tokenizer must be those of the pretrained network"
            )
    inner, positions = description.get("n_inner"), description.get("n_positions")
    if inner not in (None, 4 * model.n_embd):
        raise UserError(f"{path}: n_inner is {inner!r}, expected {4 * model.n_embd}, 4 n_embd; give another base.path")
    if not isinstance(positions, int) or positions < model.context_length:
        raise UserError(
            f"{path}: n_positions is {positions!r}, expected at least model.context_length {model.context_length}; "
            "lower model.context_length"
        )


def _read_object(path: Path) -> dict[str, Any]:
    missing = "; base.path must be a folder with config.json and safetensors"
    value = read_json(path, missing=missing, fix=ANOTHER_PATH)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; {ANOTHER_PATH}")
    return value


def _read_tensors(path: Path, fix: str) -> dict[str, NDArray[Any]]:
    """All tensors of a safetensors file as float32. UserError, ending in `fix`, if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {fix}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); {fix}") from None


def _fitted(
    tensors: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], path: Path, fix: str
) -> dict[str, NDArray[np.float32]]:
    """The tensors in the order of `shapes`; UserError naming the first that is missing or has another shape."""
    weights = {}
    hint = renaming_hint([name for name in shapes if name not in tensors], tensors.keys() - shapes.keys())
    for name, shape in shapes.items():
        if name not in tensors:
            raise UserError(f"{path}: tensor {name} is missing, expected one of shape {shape}; {hint or fix}")
        if tensors[name].shape != shape:
            raise UserError(
                f"{path}: tensor {name} has shape {tensors[name].shape}, expected {shape} by the model section of the "
                f"settings and the tokenizer; {fix}"
            )
        weights[name] = canonical_values(np.ascontiguousarray(tensors[name]))
    return weights

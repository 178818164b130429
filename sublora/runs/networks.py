"""Which network the settings describe: its base from and to a file, and the base with what is trained in place."""

import types
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
import torch
from numpy.typing import NDArray

from sublora import config
from sublora.data.tokenizers import tokenizer_facts
from sublora.models.adapted import Backbone, WeightsNetwork, cores_network, lora_network
from sublora.models.gpt import DTYPES, GPT
from sublora.models.protocol import Network
from sublora.models.spaces import (
    lora_space,
    lora_targets,
    model_parameters,
    vectors_space,
    weights_space,
    weights_theta,
)
from sublora.models.weights import (
    MAKE_AGAIN,
    Base,
    load_weights,
    pretrained_weights,
    random_weights,
    save_weights,
    weights_sha256,
)
from sublora.system.device import free_memory_bytes
from sublora.system.errors import UserError

if TYPE_CHECKING:
    from sublora.models.huggingface import HuggingFaceBackbone, HuggingFaceBase

AnyBase = Union[Base, "HuggingFaceBase"]

BYTES_PER_WEIGHT, BYTES_PER_TRAINED = 8, 12
"""Bytes of memory for each weight (in the base and in the network), and for each trained parameter (theta, its start,
its place in the projection)."""
CERTIFIED_DTYPE = "float32"
"""The type in which everything that is reported is computed, whatever `compute.dtype` says.

The predictor of a certificate is the network with the float32 weights that the hash of its base names, computed in
float32: neither rounded weights nor a device's reduced products are part of its definition.
"""


def random_base(settings: config.Settings, vocab_size: int, seed: int) -> Base:
    """The base that is drawn from a seed. UserError if it does not fit into memory."""
    _check_memory(settings, vocab_size)
    weights = random_weights(gpt2(settings), vocab_size, seed)
    return Base(weights, weights_sha256(weights))


def read_base(path: Path, settings: config.Settings, vocab_size: int, *, fix: str = MAKE_AGAIN) -> AnyBase:
    """A base from the file that `write_base` wrote. UserError, ending in `fix`, if it is not there or damaged."""
    if isinstance(settings.model, config.HuggingFaceModel):
        return huggingface().load_huggingface_base(path, fix=fix)
    weights = load_weights(path, gpt2(settings), vocab_size, fix=fix)
    return Base(weights, weights_sha256(weights))


def write_base(path: Path, base: AnyBase) -> None:
    """base.safetensors; the file appears whole."""
    if isinstance(base, Base):
        save_weights(path, base.weights)
    else:
        huggingface().save_base(path, base)


def import_base(folder: Path, settings: config.Settings) -> AnyBase:
    """A pretrained base from a folder in the format of Hugging Face. UserError if the settings do not fit it."""
    if isinstance(settings.model, config.HuggingFaceModel):
        return huggingface().read_pretrained(folder)
    weights = pretrained_weights(folder, gpt2(settings), tokenizer_facts(settings.data.tokenizer, folder).vocab_size)
    return Base(weights, weights_sha256(weights))


def make_network(
    settings: config.Settings,
    base: AnyBase,
    *,
    vocab_size: int,
    seed: int,
    device: torch.device,
    dtype: str = CERTIFIED_DTYPE,
) -> tuple[Network, NDArray[np.float32]]:
    """(the base with what is trained in place, theta at the start), on the device; seed: of the LoRA matrices.

    dtype: what the network computes in, a training's `compute.dtype`. UserError if it does not fit into memory.
    """
    compute_type = DTYPES[dtype]
    _check_memory(settings, vocab_size)
    backbone: Backbone
    if not isinstance(base, Base):
        backbone = adapted = _huggingface_backbone(settings, base, vocab_size, device, compute_type)
        space = adapted.space
    elif settings.subspace.adapt in ("weights", "vectors"):
        return weights_network(settings, base, vocab_size=vocab_size, device=device, dtype=dtype)
    else:
        model = gpt2(settings)
        gpt = GPT(model, vocab_size, dtype=compute_type, use_compiler=settings.compute.compile)
        gpt.load(base.weights)
        backbone = gpt.to(device)
        space = lora_space(model, settings.lora, vocab_size)
    if settings.subspace.adapt == "cores":
        return cores_network(backbone, space, settings.lora, base_sha256=base.sha256)
    return lora_network(backbone, space, settings.lora, base_sha256=base.sha256, seed=seed)


def _huggingface_backbone(
    settings: config.Settings,
    base: "HuggingFaceBase",
    vocab_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> "HuggingFaceBackbone":
    """The base on the device. UserError if the data were tokenized for another vocabulary."""
    model = settings.model
    if not isinstance(model, config.HuggingFaceModel):
        raise TypeError(f"model.kind {model.kind} does not describe a model of transformers")
    use_compiler = settings.compute.compile
    kind = huggingface().HuggingFaceBackbone
    backbone = kind(base, model, settings.lora, device=device, dtype=dtype, use_compiler=use_compiler)
    if len(backbone.head_VC) != vocab_size:
        raise UserError(
            f"the pretrained model predicts {len(backbone.head_VC)} tokens, data/{settings.data.name} was made with a "
            f"vocabulary of {vocab_size}; set data.tokenizer: base and prepare the data again"
        )
    return backbone


def huggingface() -> "types.ModuleType":
    """The module for models of transformers, imported where one is used."""
    import sublora.models.huggingface

    return sublora.models.huggingface


def weights_network(
    settings: config.Settings, base: Base, *, vocab_size: int, device: torch.device, dtype: str
) -> tuple[Network, NDArray[np.float32]]:
    """(a GPT-2 whose weights, all or the vectors among them, are theta, those of the base), on the device."""
    model = gpt2(settings)
    gpt = GPT(model, vocab_size, dtype=DTYPES[dtype], use_compiler=settings.compute.compile)
    if settings.subspace.adapt == "weights":
        space = weights_space(model, vocab_size)
    else:
        # What is not trained stays that of the base.
        space = vectors_space(model, vocab_size)
        gpt.load(base.weights)
    network = WeightsNetwork(gpt.to(device), space, base.sha256)
    return network, weights_theta(base.weights, space)


def _check_memory(settings: config.Settings, vocab_size: int) -> None:
    """UserError if a GPT-2 of these sizes, whose settings may be a stranger's, does not fit into memory.

    The sizes of a model of transformers are in its own file, which is as large as the model.
    """
    model = settings.model
    if not isinstance(model, config.Model):
        return
    weights, trained = model_parameters(model, vocab_size), trained_parameters(settings, vocab_size) or 0
    needed, free = BYTES_PER_WEIGHT * weights + BYTES_PER_TRAINED * trained, free_memory_bytes()
    if needed > free:
        raise UserError(
            f"model: {weights:,} weights and {trained:,} trained parameters take about {needed / 2**30:,.1f} GiB, this "
            f"process can take {free / 2**30:,.1f} GiB; use a machine with more memory"
        )


def trained_parameters(settings: config.Settings, vocab_size: int | None) -> int | None:
    """D, the number of entries of theta; None if the sizes are in the network's own files, or V is not given."""
    if not isinstance(settings.model, config.Model) or vocab_size is None:
        return None
    if settings.subspace.adapt == "weights":
        return model_parameters(settings.model, vocab_size)
    if settings.subspace.adapt == "vectors":
        return vectors_space(settings.model, vocab_size).size
    if settings.subspace.adapt == "cores":
        return len(lora_targets(settings.model, settings.lora)) * settings.lora.rank**2
    return lora_space(settings.model, settings.lora, vocab_size).size


def gpt2(settings: config.Settings) -> config.Model:
    """The sizes of a GPT-2. TypeError for another kind of network."""
    if not isinstance(settings.model, config.Model):
        raise TypeError(f"model.kind {settings.model.kind} has no sizes of its own")
    return settings.model

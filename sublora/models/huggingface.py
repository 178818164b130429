"""A causal language model of transformers as the frozen base.

The backbone runs as transformers has it, with adapters hooked onto its linear maps. The head is computed by this
library, a chunk of positions at a time, so the logits of all positions are never held. That is right for models whose
logits are the last hidden states times one matrix, which is checked when a model is read, like its causality; which
architectures are causal is in `sublora.models.architectures`.

Shape legend: N sequences, T positions, K scored positions, C width, V vocabulary.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sublora import config
from sublora.models.architectures import (
    ATTENTION,
    OTHER_ATTENTION,
    known_architecture,
    quiet_transformers,
    values_and_defaults,
)
from sublora.models.linear_maps import Attachment, LinearMap, linear_map_space, linear_maps, sizes
from sublora.models.lora import Adapters
from sublora.models.spaces import HEAD, lora_groups
from sublora.system.digests import json_sha256, tensors_sha256
from sublora.system.errors import UserError, printable
from sublora.system.files import atomic_path, read_json
from sublora.system.pretrained import ANOTHER_PATH, LOCAL, check_loaded, check_model_folder, gguf_files
from sublora.system.versions import BASE_FORMAT

MAKE_AGAIN = "make the base again (sublora base)"
CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len")
"""Where an architecture has its longest context; MPT uses the second."""
PROBE_TOKENS = 8
HEAD_TOLERANCE = 1e-3
"""Largest difference, relative to the largest logit, between the model's own logits and hidden states times W."""


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFaceBase:
    """A pretrained causal language model: what it computes, and its tensors in the type of their file."""

    architecture: dict[str, Any]
    """The keys of config.json that decide what the model computes, each with its value (`known_architecture`)."""
    tensors: Mapping[str, Tensor]
    """By their names in the state dict; one name for tensors that are tied."""

    @functools.cached_property
    def sha256(self) -> str:
        """Return the digest, in hexadecimal, of what the model computes in float32.

        It covers the architecture, and names, shapes and float32 values of the tensors, in whatever type they are
        stored; -0.0 counts as 0.0, and a key with the value that transformers gives it anyway is left out.
        """
        values = ((name, tensor.float() + 0.0) for name, tensor in sorted(self.tensors.items()))
        return tensors_sha256(values, after=_chosen_sha256(self.architecture))

    def seen_sha256(self, positions: int) -> str:
        """Return the digest of what documents of at most that many targets see of the base: all of it."""
        return self.sha256

    @property
    def parameters(self) -> int:
        return sum(value.numel() for value in self.tensors.values())


_NO_DEFAULT = object()


def config_sha256(facts: Mapping[str, Any]) -> str:
    """Return the digest of a config.json as far as it decides what its model computes, causal or not.

    UserError for a `model_type` that transformers does not have.
    """
    return _chosen_sha256(values_and_defaults(facts, fix=MAKE_AGAIN)[0])


def _chosen_sha256(architecture: Mapping[str, Any]) -> str:
    """Return the digest of known keys whose values differ from the defaults of transformers."""
    _, defaults = values_and_defaults(architecture, fix=MAKE_AGAIN)
    chosen = {key: value for key, value in architecture.items() if defaults.get(key, _NO_DEFAULT) != value}
    return json_sha256(_one_spelling(chosen))


def _one_spelling(value: Any) -> Any:
    """Return a plain JSON value with whole numbers as such: 10000.0 and 10000 are one number."""
    if isinstance(value, dict):
        return {key: _one_spelling(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_one_spelling(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_pretrained(folder: Path) -> HuggingFaceBase:
    """A model of a local folder: config.json and safetensors, or one .gguf file, whose weights are dequantized.

    UserError if the folder is no such model, lacks some of its tensors, its architecture is not a listed one, or its
    logits are not the last hidden states times one matrix.
    """
    from safetensors import SafetensorError

    transformers = quiet_transformers()
    check_model_folder(folder)
    found = gguf_files(folder)
    if not (folder / "config.json").exists() and len(found) != 1:
        raise UserError(
            f"{folder}: expected config.json and safetensors, or one .gguf file, found "
            f"{', '.join(found) or 'neither'}; {ANOTHER_PATH}"
        )
    if not found:
        # Before any weights are read; what the file says counts, even where transformers would not follow it.
        facts = read_json(folder / "config.json", missing="", fix=ANOTHER_PATH)
        known_architecture(facts if isinstance(facts, dict) else {}, fix=ANOTHER_PATH)
    gguf = {"gguf_file": found[0]} if found else {}
    options: dict[str, Any] = {} if gguf else {"use_safetensors": True}
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", output_loading_info=True, **LOCAL, **gguf, **options
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder}: transformers cannot read a causal language model ({reason}); {ANOTHER_PATH}"
        ) from None
    check_loaded(info, folder)
    # Packed weights are refused above; those of a .gguf file have been unpacked.
    facts = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    base = HuggingFaceBase(known_architecture(facts, fix=ANOTHER_PATH), _without_ties(model))
    _check_form(build_module(base, torch.float32), folder)
    return base


def save_base(path: Path, base: HuggingFaceBase) -> None:
    """Write a base as one safetensors file with the architecture in its metadata; the file appears whole."""
    from safetensors.torch import save_file

    metadata = {"format": str(BASE_FORMAT), "architecture": json.dumps(base.architecture, sort_keys=True)}
    with atomic_path(path) as temporary:
        save_file({name: value.contiguous() for name, value in base.tensors.items()}, temporary, metadata=metadata)


def load_huggingface_base(path: Path, *, fix: str = MAKE_AGAIN) -> HuggingFaceBase:
    """Read what `save_base` wrote. UserError, ending in `fix`, if it is missing, damaged, or no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("architecture")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        architecture = json.loads(text or "null")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {fix}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); {fix}") from None
    if not isinstance(architecture, dict) or "model_type" not in architecture:
        raise UserError(f"{path}: has no architecture in its metadata, it is the base of another kind; {fix}")
    return HuggingFaceBase(known_architecture(architecture, fix=fix), tensors)


def build_module(base: HuggingFaceBase, dtype: torch.dtype) -> nn.Module:
    """The model with its weights in this type, frozen. UserError if architecture and tensors do not fit."""
    return _built(base, _configuration(base), dtype)


def _configuration(base: HuggingFaceBase) -> Any:
    """The configuration object of transformers, from the listed keys of the architecture (`known_architecture`) alone.

    UserError if they make none.
    """
    transformers = quiet_transformers()
    facts = known_architecture(base.architecture, fix=MAKE_AGAIN)
    try:
        # The id of padding computes nothing, and the default one may lie outside the vocabulary.
        return transformers.AutoConfig.for_model(facts.pop("model_type"), **facts, pad_token_id=None)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise _unbuildable(base, error) from None


def _unbuildable(base: HuggingFaceBase, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"base: transformers cannot build {base.architecture.get('model_type')} ({reason})")


def _built(base: HuggingFaceBase, configuration: Any, dtype: torch.dtype) -> nn.Module:
    """The model of a configuration object, with the weights of the base."""
    transformers = quiet_transformers()
    try:
        kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(configuration)]
        module, info = kind.from_pretrained(
            None, config=configuration, state_dict=dict(base.tensors), dtype=dtype, output_loading_info=True
        )
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise _unbuildable(base, error) from None
    # Every tensor of the model must be in the file: transformers would draw it at random. And the other way round.
    if info["missing_keys"]:
        raise UserError(f"base: tensor {min(info['missing_keys'])} is missing; {MAKE_AGAIN}")
    loaded = module.state_dict()
    spare = sorted(name for name in base.tensors if name not in loaded)
    if spare:
        raise UserError(f"base: the model has no tensor {printable(spare[0], 80)}; {MAKE_AGAIN}")
    attention, kind = module.config._attn_implementation, base.architecture["model_type"]
    if attention != ATTENTION and kind not in OTHER_ATTENTION:
        raise UserError(f"base: transformers computes attention by {attention}, expected {ATTENTION}; {MAKE_AGAIN}")
    return cast(nn.Module, module.requires_grad_(False).eval())


def _without_ties(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with the first name of every tensor that has several."""
    by_place: dict[tuple[int, tuple[int, ...]], str] = {}
    tensors = {}
    for name, value in model.state_dict().items():
        if by_place.setdefault((value.data_ptr(), tuple(value.shape)), name) == name or not value.numel():
            tensors[name] = value
    return tensors


@torch.no_grad()
def _check_form(module: nn.Module, folder: Path) -> None:
    """UserError if logits are not hidden states times W, or a position sees what comes after it."""
    head = head_of(module)
    vocab_size = module.get_parameter("weight").shape[0] if head is None else head.get_parameter("weight").shape[0]
    tokens_NT = torch.arange(2 * PROBE_TOKENS).view(2, PROBE_TOKENS) % vocab_size
    tokens_NT[1, :-1] = tokens_NT[0, :-1]  # the two differ in their last token alone
    if head is None or getattr(head, "bias", None) is not None:
        raise UserError(f"{folder}: its head is not one matrix without a bias; {ANOTHER_PATH}")
    hidden = _backbone(module)(input_ids=tokens_NT, use_cache=False).last_hidden_state
    logits = module(input_ids=tokens_NT, use_cache=False).logits
    scale = float(logits.abs().max())
    if float((logits - hidden @ head.get_parameter("weight").T).abs().max()) > HEAD_TOLERANCE * scale:
        raise UserError(f"{folder}: its logits are not its last hidden states times one matrix; {ANOTHER_PATH}")
    if float((logits[0, :-1] - logits[1, :-1]).abs().max()) > HEAD_TOLERANCE * scale:
        raise UserError(f"{folder}: a position's logits depend on tokens after it; {ANOTHER_PATH}")


def head_of(module: nn.Module) -> nn.Module | None:
    """The linear map from hidden states to logits."""
    return cast(Any, module).get_output_embeddings()


def _backbone(module: nn.Module) -> nn.Module:
    return cast(Any, module).base_model


def _name_of_text_network(module: nn.Module, backbone: nn.Module) -> str:
    """Return where the names of maps begin that read tokens: "", unless the model reads images or sound as well."""
    settings = cast(Any, module).config
    if settings.get_text_config() is settings:
        return ""
    text = cast(Any, module).get_decoder()
    return next((f"{name}." for name, found in backbone.named_modules() if found is text and name), "")


class HuggingFaceBackbone:
    """A frozen model of transformers up to its last hidden states, adapters hooked onto its linear maps."""

    def __init__(
        self,
        base: HuggingFaceBase,
        model: config.HuggingFaceModel,
        lora: config.Lora,
        *,
        device: torch.device,
        dtype: torch.dtype,
        use_compiler: bool = False,
    ) -> None:
        """UserError if the settings do not fit the model: its layers, its context, the names of its linear maps."""
        configuration = _configuration(base)
        _check_sizes(configuration, model)
        module = _built(base, configuration, dtype).to(device)
        self.context_length, self.dtype, self.use_compiler = model.context_length, dtype, use_compiler
        self.head_VC = cast(nn.Module, head_of(module)).get_parameter("weight").detach()
        self.maps = _adapted_maps(module, model, lora)
        self.space = linear_map_space(self.maps, lora.rank)
        """The LoRA matrices, as parts of theta."""
        self._module = module
        self._attachment = Attachment(module, [each for each in self.maps if each.group != HEAD])
        backbone = _backbone(module)
        self._backbone = torch.compile(backbone) if use_compiler else backbone

    def hidden(self, tokens_NT: Tensor, adapters: Adapters | None = None, *, dropout: float = 0.0) -> Tensor:
        """Final hidden states (N x T x C) for token ids; `dropout` acts on the input of every adapter."""
        found = {} if adapters is None else {each.name: adapters.pair(each.group, each.target) for each in self.maps}
        pairs = {name: pair for name, pair in found.items() if pair is not None}
        self._attachment.use(pairs, dropout=dropout)
        return cast(Tensor, self._backbone(input_ids=tokens_NT, use_cache=False).last_hidden_state)

    def target_weight(self, group: str, target: str) -> Tensor:
        """Return the frozen weight (outputs x inputs) of an adapted linear map."""
        found = next(each for each in self.maps if (each.group, each.target) == (group, target))
        if found.group == HEAD:
            return self.head_VC
        layer = self._module.get_submodule(found.name)
        weight = layer.get_parameter("weight").detach()
        return weight if isinstance(layer, nn.Linear) else weight.T


def _adapted_maps(module: nn.Module, model: config.HuggingFaceModel, lora: config.Lora) -> tuple[LinearMap, ...]:
    """The maps that `lora.targets` name, layer by layer, then the head. UserError if a layer has none of them."""
    patterns = [target for target in lora.targets if target != HEAD]
    backbone = _backbone(module)
    prefix = next(name for name, found in module.named_modules() if found is backbone)
    try:
        # Within the backbone: there a pattern never fits the head.
        found = linear_maps(backbone, patterns) if patterns else ()
    except ValueError as error:
        raise UserError(f"lora.targets: {error}") from None
    # The part of a model that reads images or sound does nothing for text.
    inside = _name_of_text_network(module, backbone)
    maps = [dataclasses.replace(each, name=f"{prefix}.{each.name}") for each in found if each.name.startswith(inside)]
    if HEAD in lora.targets:
        head = cast(nn.Module, head_of(module))
        maps.append(LinearMap(HEAD, *sizes(head), group=HEAD, target=HEAD))
    groups, expected = tuple(dict.fromkeys(each.group for each in maps)), lora_groups(model, lora)
    if groups != expected:
        lacking = [group for group in expected if group not in groups] or [g for g in groups if g not in expected]
        raise UserError(
            f"lora.targets {', '.join(lora.targets)}: expected linear maps in every one of {model.n_layer} layers and "
            f"nowhere else, layer {lacking[0]} differs; name other targets"
        )
    return tuple(maps)


def _check_sizes(configuration: Any, model: config.HuggingFaceModel) -> None:
    """UserError if layers or context of the run's settings are not those of the configuration object."""
    # A model that reads images or sound as well has the sizes of its language model in a part of its own.
    text = configuration.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    if layers != model.n_layer:
        raise UserError(f"model.n_layer is {model.n_layer}, the pretrained model has {layers} layers; give that number")
    longest = next((getattr(text, key) for key in CONTEXT_KEYS if isinstance(getattr(text, key, None), int)), None)
    if longest is not None and longest < model.context_length:
        raise UserError(
            f"model.context_length is {model.context_length}, the pretrained model was made for at most {longest} "
            "positions; lower it"
        )

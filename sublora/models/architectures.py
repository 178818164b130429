"""The causal architectures of transformers that may be a base, by name, and the keys that describe each of them.

A base that somebody else supplies comes with a description of its network, and transformers has keys by which attention
looks ahead, code is fetched, or positions depend on how long the whole text is. So a network is built from the listed
keys alone, and whatever could make a prediction depend on more than the tokens before it is refused by name.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from sublora.system.errors import UserError, printable
from sublora.system.pretrained import import_transformers

WITHOUT_EFFECT = re.compile(
    r".*dropout|.*pdrop|summary_.*|(bos|eos|pad)_token_id|initializer_range|use_cache|pretraining_tp"
)
"""Keys of an architecture that say nothing of what a frozen model computes."""
_SHAPE = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    hidden_act max_position_embeddings tie_word_embeddings rope_parameters rope_theta rope_scaling"""
_WINDOW = "sliding_window use_sliding_window max_window_layers layer_types"
CAUSAL_KEYS: dict[str, frozenset[str]] = {
    name: frozenset(keys.split())
    for name, keys in {
        "cohere": f"{_SHAPE} logit_scale layer_norm_eps attention_bias use_qk_norm head_dim",
        "falcon": f"""{_SHAPE} num_ln_in_parallel_attn layer_norm_epsilon num_kv_heads alibi new_decoder_architecture
            multi_query parallel_attn bias ffn_hidden_size activation""",
        "gemma": f"{_SHAPE} head_dim rms_norm_eps attention_bias hidden_activation use_bidirectional_attention",
        "gemma3_text": f"""{_SHAPE} {_WINDOW} head_dim hidden_activation rms_norm_eps attention_bias
            query_pre_attn_scalar final_logit_softcapping attn_logit_softcapping use_bidirectional_attention
            rope_local_base_freq sliding_window_pattern _sliding_window_pattern""",
        "gemma3": """text_config vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index
            tie_word_embeddings""",
        "gpt2": """vocab_size n_positions n_embd n_layer n_head n_inner activation_function layer_norm_epsilon
            scale_attn_weights scale_attn_by_inverse_layer_idx reorder_and_upcast_attn add_cross_attention
            tie_word_embeddings""",
        "gpt_bigcode": """vocab_size n_positions n_embd n_layer n_head n_inner activation_function layer_norm_epsilon
            scale_attn_weights attention_softmax_in_fp32 scale_attention_softmax_in_fp32 multi_query
            num_key_value_heads add_cross_attention tie_word_embeddings""",
        "gpt_neox": f"""{_SHAPE} layer_norm_eps use_parallel_residual attention_bias is_decoder rotary_pct
            rotary_emb_base""",
        "granite": f"""{_SHAPE} rms_norm_eps attention_bias mlp_bias embedding_multiplier logits_scaling
            residual_multiplier attention_multiplier""",
        "llama": f"{_SHAPE} rms_norm_eps attention_bias mlp_bias head_dim",
        "mamba": """vocab_size hidden_size state_size num_hidden_layers layer_norm_epsilon expand conv_kernel use_bias
            use_conv_bias hidden_act time_step_rank time_step_scale time_step_min time_step_max time_step_init_scheme
            time_step_floor rescale_prenorm_residual residual_in_fp32 use_mambapy use_associative_scan intermediate_size
            tie_word_embeddings""",
        "mistral": f"{_SHAPE} {_WINDOW} rms_norm_eps head_dim",
        "mpt": """d_model n_heads n_layers expansion_ratio max_seq_len vocab_size layer_norm_epsilon learned_pos_emb
            attn_config init_device logit_scale no_bias verbose embedding_fraction norm_type tie_word_embeddings""",
        "olmo": f"{_SHAPE} attention_bias clip_qkv",
        "olmo2": f"{_SHAPE} attention_bias rms_norm_eps",
        "opt": """vocab_size hidden_size num_hidden_layers ffn_dim max_position_embeddings do_layer_norm_before
            _remove_final_layer_norm word_embed_proj_dim num_attention_heads activation_function layerdrop init_std
            enable_bias layer_norm_elementwise_affine tie_word_embeddings""",
        "phi": f"{_SHAPE} layer_norm_eps qk_layernorm partial_rotary_factor",
        "phi3": f"{_SHAPE} rms_norm_eps original_max_position_embeddings sliding_window partial_rotary_factor",
        "qwen2": f"{_SHAPE} {_WINDOW} rms_norm_eps",
        "qwen3": f"{_SHAPE} {_WINDOW} rms_norm_eps head_dim attention_bias",
        "smollm3": f"""{_SHAPE} {_WINDOW} rms_norm_eps no_rope_layers no_rope_layer_interval attention_bias
            mlp_bias""",
        "stablelm": f"{_SHAPE} layer_norm_eps use_qkv_bias qk_layernorm use_parallel_residual partial_rotary_factor",
        "starcoder2": f"{_SHAPE} norm_epsilon sliding_window use_bias",
    }.items()
}
"""By `model_type`: what decides the computation of the architectures that are causal in transformers' own code.

The keys are those of all versions of transformers that can be installed with this package.

Except for MPT, those with attention use PyTorch's scaled_dot_product_attention, whose masks exclude later positions.
A mask that is a large negative summand, as in the eager code of other architectures, gives way to scores that are as
large.
"""
ATTENTION, OTHER_ATTENTION = "sdpa", frozenset({"mamba", "mpt"})
"""The implementation of attention that a base must have, and the architectures that have none or their own."""

_NEVER: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    (r"is_causal", (None, True), "its attention looks ahead"),
    (r".*(bidirectional|non_?causal|prefix_?lm).*", (None, False), "its attention looks ahead"),
    (r"add_cross_attention|is_encoder_decoder", (None, False), "it reads a second text"),
    (r"auto_map", (None,), "it is computed by code of its own"),
    (r"_?(attn|experts)_implementation(_internal)?", (None, "eager", ATTENTION), "it names another implementation"),
    (r"per_layer_config", (None, {}), "its layers are of different architectures"),
    (r"quantization_config", (None,), "its weights are packed; dequantize them"),
)
"""Pattern of a key, the values that it may have, and why no other."""
LAYER_TYPES = {"full_attention", "sliding_attention"}
ROPE_TYPES = ("default", "linear", "llama3", "proportional", "yarn")
"""Rotary positions that are the same however long the text is."""
ROPE_KEYS = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    *("low_freq_factor", "high_freq_factor"),
}


def quiet_transformers() -> Any:
    """Return the library, which prints nothing from now on. UserError if it is not installed."""
    transformers = import_transformers("a model of the Hugging Face format")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def known_architecture(facts: Mapping[str, Any], *, fix: str) -> dict[str, Any]:
    """Return the keys of a config.json that decide what its model computes, defaults included, in plain JSON values.

    Keys that the model's configuration class does not know, and those without an effect on a frozen model, are dropped:
    each would give one predictor another digest. UserError, ending in `fix`, for an architecture that is not listed, or
    with a key by which a prediction could depend on more than the tokens before it.
    """
    # Refuse by name what is written, whether or not this version of transformers would follow it.
    kind = facts.get("model_type")
    if not isinstance(kind, str) or kind not in CAUSAL_KEYS:
        _refuse("model_type", kind, f"not among the causal architectures {', '.join(CAUSAL_KEYS)}", fix)
    _check_never(facts, fix)
    values, defaults = values_and_defaults(facts, fix=fix)
    # A key that a later version of transformers has added must be as if it were not there.
    for key in sorted(values.keys() - CAUSAL_KEYS[kind] - {"model_type"}):
        if values[key] != defaults[key]:
            _refuse(key, values[key], f"this release does not know the key for {kind}", fix)
        del values[key]
    # Check the values in force.
    _check_never(values, fix)
    if kind == "falcon" and values.get("alibi"):
        _refuse("alibi", values["alibi"], "its mask is a summand, which large scores outweigh", fix)
    for key in ("rope_parameters", "rope_scaling"):
        _check_rope(key, values.get(key), fix)
    for layer_type in values.get("layer_types") or ():
        if layer_type not in LAYER_TYPES:
            _refuse("layer_types", layer_type, f"expected {' or '.join(sorted(LAYER_TYPES))}", fix)
    # A model that reads images as well has the description of its language model in a part of its own.
    if kind == "gemma3":
        values["text_config"] = known_architecture(values["text_config"] | {"model_type": "gemma3_text"}, fix=fix)
    return values


def values_and_defaults(facts: Mapping[str, Any], *, fix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values in force, and the default ones, of the keys that decide what any model computes, causal or not.

    UserError, ending in `fix`, for a `model_type` that transformers does not have.
    """
    transformers, options = quiet_transformers(), dict(facts)
    kind = options.pop("model_type", None)
    try:
        found = transformers.AutoConfig.for_model(kind, **options).to_dict()
        default = transformers.AutoConfig.for_model(kind).to_dict()
    except _unfit() as error:
        reason = " ".join(str(error).split())
        raise UserError(f"base: transformers has no such architecture ({printable(reason)}); {fix}") from None
    # What every configuration has speaks of files, of generation and of output formats, except for the tie.
    of_all = transformers.PretrainedConfig().to_dict().keys() - {"tie_word_embeddings"}
    decisive = {key for key in default if key not in of_all and not WITHOUT_EFFECT.fullmatch(key)}
    values, defaults = (
        json.loads(json.dumps({key: value for key, value in each.items() if key in decisive}))
        for each in (found, default)
    )
    return values | {"model_type": kind}, defaults


def _check_never(values: Mapping[str, Any], fix: str) -> None:
    """UserError for a key that makes a model look ahead, or be another one than its description says."""
    for key, value in values.items():
        for pattern, allowed, reason in _NEVER:
            if re.fullmatch(pattern, key) and value not in allowed:
                _refuse(key, value, reason, fix)
        if isinstance(value, dict) and key in ("text_config", "attn_config"):
            _check_never(value, fix)


def _check_rope(key: str, rope: Any, fix: str) -> None:
    """UserError for rotary positions that change with the length of the text, or with keys that are not known."""
    if rope is None:
        return
    if not isinstance(rope, dict):
        _refuse(key, rope, "expected an object", fix)
    by_layer_type = {name: value for name, value in rope.items() if name in LAYER_TYPES}
    for name, value in by_layer_type.items():
        _check_rope(f"{key}.{name}", value, fix)
    for name, value in rope.items():
        if name in by_layer_type:
            continue
        if name in ("rope_type", "type") and value not in (None, *ROPE_TYPES):
            reason = f"its positions depend on the length of the whole text; expected one of {', '.join(ROPE_TYPES)}"
            _refuse(f"{key}.{name}", value, reason, fix)
        if name not in ROPE_KEYS:
            _refuse(f"{key}.{name}", value, "this release does not know the key", fix)


def _refuse(key: str, value: Any, reason: str, fix: str) -> NoReturn:
    """Raise the UserError for a key of an architecture."""
    raise UserError(f"base: {printable(key, 80)} is {printable(repr(value), 80)}: {reason}; {fix}")


def _unfit() -> tuple[type[Exception], ...]:
    """Return what transformers raises for values that make no configuration."""
    from huggingface_hub import errors

    strict = getattr(errors, "StrictDataclassError", ValueError)
    return (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, strict)

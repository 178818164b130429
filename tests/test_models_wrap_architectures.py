"""Networks of transformers that use linear maps in their own ways, wrapped and merged."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import sublora

transformers = pytest.importorskip("transformers")

IDS = torch.randint(5, 90, (2, 16), generator=torch.Generator().manual_seed(0))
SOUND = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SMALL = SIZES | {"vocab_size": 100}
CONVOLUTIONS = {
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
MAMBA = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "intermediate_size": 64}
BLOOM = {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pretraining_tp": 2, "slow_but_exact": True}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
FALCON = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
JAMBA = SMALL | {
    "num_key_value_heads": 2,
    "mamba_d_state": 4,
    "use_mamba_kernels": False,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
}
DEBERTA = SMALL | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
KINDS: dict[str, tuple[str, str, dict[str, Any], dict[str, torch.Tensor], list[str]]] = {
    # name: class, configuration, its keys, inputs, targets of which some are read and never called
    "wavlm": ("WavLMModel", "WavLMConfig", SIZES | CONVOLUTIONS, {"input_values": SOUND}, ["q_proj", "v_proj"]),
    "mamba": ("MambaModel", "MambaConfig", MAMBA, {"input_ids": IDS}, ["dt_proj"]),
    "falcon mamba": ("FalconMambaModel", "FalconMambaConfig", MAMBA, {"input_ids": IDS}, ["dt_proj"]),
    "jamba": ("JambaModel", "JambaConfig", JAMBA, {"input_ids": IDS}, ["dt_proj"]),
    "deberta": ("DebertaModel", "DebertaConfig", DEBERTA, {"input_ids": IDS}, ["in_proj"]),
    "bloom": ("BloomModel", "BloomConfig", BLOOM, {"input_ids": IDS}, ["dense", "dense_4h_to_h"]),
    "t5": ("T5Model", "T5Config", T5, {"input_ids": IDS, "decoder_input_ids": IDS}, ["wo", "wi"]),
    "falcon": ("FalconForCausalLM", "FalconConfig", FALCON, {"input_ids": IDS}, ["query_key_value", "dense"]),
    "mobilebert": (
        "MobileBertForMaskedLM",
        "MobileBertConfig",
        SMALL | {"embedding_size": 16, "intra_bottleneck_size": 16, "hidden_size": 32},
        {"input_ids": IDS},
        ["predictions.decoder", "predictions.dense"],
    ),
}


def model_of(name: str) -> nn.Module:
    kind, settings, values, *_ = KINDS[name]
    torch.manual_seed(0)
    module = getattr(transformers, kind)(getattr(transformers, settings)(**values)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.15)
    return module


@pytest.mark.parametrize("name", KINDS)
def test_what_is_merged_is_what_was_trained(name) -> None:
    *_, given, targets = KINDS[name]
    module = model_of(name)
    model = sublora.wrap(module, targets, rank=2, budget=8, seed=0)
    plain = copy.deepcopy(module)
    with torch.no_grad():
        model.subspace.subspace_params.fill_(2.0)
        base, found, merged = (each.eval()(**given)[0] for each in (plain, model, model.merge()))
    scale = float(merged.abs().max())
    assert float((found - base).abs().max()) > 1e-2 * scale
    torch.testing.assert_close(found, merged, atol=1e-4 * scale, rtol=1e-3)
    model(**given)[0].square().mean().backward()
    assert model.subspace.subspace_params.grad.norm() > 0


RWKV = SMALL | {"attention_hidden_size": 32, "num_hidden_layers": 8, "use_cache": False}
del RWKV["num_attention_heads"]
REFORMER = {
    "vocab_size": 100,
    "hidden_size": 32,
    "attention_head_size": 8,
    "num_attention_heads": 4,
    "feed_forward_size": 48,
    "attn_layers": ["local", "local"],
    "axial_pos_embds": False,
    "is_decoder": True,
    "local_attn_chunk_length": 4,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("rank", [2, None])
def test_a_network_that_rescales_its_weights_is_refused_in_its_first_pass(rank) -> None:
    model = sublora.wrap(
        transformers.RwkvForCausalLM(transformers.RwkvConfig(**RWKV)).eval(), "*", rank=rank, budget=8, seed=0
    )
    with pytest.raises(ValueError, match=r"evaluation mode changes 'rwkv.blocks.0.attention.output(.weight)?',"):
        model(input_ids=IDS)


@pytest.mark.parametrize("rank", [2, None])
def test_reversible_layers_are_refused_and_compute_what_they_compute_merged(rank) -> None:
    """They recompute in a backward pass of their own."""
    module = transformers.ReformerModelWithLMHead(transformers.ReformerConfig(**REFORMER)).eval()
    model = sublora.wrap(module, "*", rank=rank, budget=8, seed=0)
    with pytest.raises(ValueError, match="'reformer.encoder.layers.0.attention.* ran without gradients"):
        model(input_ids=IDS)
    with torch.no_grad():
        model.subspace.subspace_params.fill_(1.0)
        found, expected = (each(input_ids=IDS).logits for each in (model, model.merge()))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)

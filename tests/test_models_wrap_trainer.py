"""A wrapped module in transformers' Trainer: trained, saved in kilobytes, reloaded, resumed, merged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import sublora

NO_IDS = {"bos_token_id": None, "eos_token_id": None}
IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 40, size=(48, 12)))
NETWORKS = {
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2, **NO_IDS)),
        ["c_attn", "lm_head"],
    ),
    "llama": (
        lambda: LlamaForCausalLM(
            LlamaConfig(
                vocab_size=64,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                **NO_IDS,
            )
        ),
        ["q_proj", "*.mlp.down_proj"],
    ),
}


def network(kind: str):
    torch.manual_seed(2)
    return NETWORKS[kind][0]()


def wrapped(kind: str) -> sublora.Wrapped:
    return sublora.wrap(network(kind), NETWORKS[kind][1], budget=40, seed=3, allocation="learned")


def trainer(model: sublora.Wrapped, folder: Path, steps: int) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=6,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    return Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[sublora.AnnealCallback(model)])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS[:4]).logits


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_checkpoint_is_kilobytes_and_the_same_model(tmp_path: Path, kind) -> None:
    model = wrapped(kind)
    trainer(model, tmp_path, 12).train()
    assert model.rounding and model.mask_width == 0.0
    path = tmp_path / "checkpoint-12" / "model.safetensors"
    assert path.stat().st_size < 4096
    fresh = wrapped(kind)
    fresh.load_state_dict(load_file(path))
    assert torch.equal(logits(fresh), logits(model)) and not torch.equal(logits(model), logits(network(kind)))
    assert torch.equal(logits(model.module), logits(network(kind)))
    decoded = sublora.decode(sublora.encode(model).data, network(kind))
    assert torch.equal(logits(decoded.predictor), logits(model))


def test_a_resumed_training_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    whole, resumed = wrapped("llama"), wrapped("llama")
    trainer(whole, tmp_path / "whole", 12).train()
    trainer(resumed, tmp_path / "whole", 12).train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert sublora.encode(resumed).data == sublora.encode(whole).data


def test_the_loss_of_an_evaluation_is_the_module_s(tmp_path: Path) -> None:
    model = wrapped("gpt2")
    found = trainer(model, tmp_path, 1).evaluate(eval_dataset=[{"input_ids": row, "labels": row} for row in IDS])
    with torch.no_grad():
        expected = network("gpt2").eval()(input_ids=IDS, labels=IDS).loss
    assert found["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_checkpointing_of_activations_is_refused_before_the_training(tmp_path: Path) -> None:
    """Trainer asks the model for it; the module itself may have been told before."""
    model = wrapped("llama")
    training = trainer(model, tmp_path, 1)
    # The name since transformers 5, and the one until then.
    for option in ("activation_checkpointing", "gradient_checkpointing"):
        setattr(training.args, option, True)
    with pytest.raises(ValueError, match="cannot use gradient checkpointing.*leave out"):
        training.train()
    module = network("llama")
    module.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="uses gradient checkpointing"):
        sublora.wrap(module, "q_proj", budget=20, seed=0)(input_ids=IDS, labels=IDS)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_merged_model_is_saved_and_loaded_by_transformers(tmp_path: Path, kind) -> None:
    """Also where the head shares its weight with the embedding, as GPT-2's does."""
    model = wrapped(kind)
    with torch.no_grad():
        model.subspace.subspace_params.copy_(torch.linspace(-1.0, 1.0, 40))
    merged = model.merge()
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-5, rtol=1e-4)
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(merged))

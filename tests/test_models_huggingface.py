"""Causal language models of transformers: adapted as if weights were merged, named by a hash, checked when read."""

import copy
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_samples import SIZES, TARGETS, tiny_model

from sublora import config
from sublora.models.adapted import LoraNetwork, cores_network, lora_network
from sublora.models.huggingface import (
    HuggingFaceBackbone,
    HuggingFaceBase,
    build_module,
    load_huggingface_base,
    read_pretrained,
    save_base,
)
from sublora.system.errors import UserError

pytest.importorskip("transformers")

VOCABULARY = 50
RANK, ALPHA = 3, 6.0
KINDS = list(SIZES)


def lora(kind: str, *, head: bool = True, dropout: float = 0.0) -> config.Lora:
    targets = (*TARGETS[kind], *(["head"] if head else []))
    return config.Lora(rank=RANK, alpha=ALPHA, dropout=dropout, targets=targets, init="zero_b")


def model_settings(**changes: int) -> config.HuggingFaceModel:
    return config.HuggingFaceModel(kind="huggingface", **{"n_layer": 2, "context_length": 32} | changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind of model, as transformers writes it."""
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        tiny_model(kind, VOCABULARY).save_pretrained(root / kind)  # type: ignore[operator]
    return {kind: root / kind for kind in KINDS}


def network(
    folder: Path,
    settings: config.Lora,
    *,
    dtype: torch.dtype = torch.float32,
    use_compiler: bool = False,
    **sizes: int,
) -> LoraNetwork:
    base = read_pretrained(folder)
    backbone = HuggingFaceBackbone(
        base, model_settings(**sizes), settings, device=torch.device("cpu"), dtype=dtype, use_compiler=use_compiler
    )
    return lora_network(backbone, backbone.space, settings, base_sha256=base.sha256, seed=0)[0]


def random_theta(net: LoraNetwork, seed: int = 1) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(0.0, 0.3, net.space.size).astype(np.float32))


def merged_weights(model: Any, net: LoraNetwork, theta_D: torch.Tensor) -> dict[str, torch.Tensor]:
    """W + (alpha / rank) B A of every adapted W by its name in the model of transformers, differentiable in theta."""
    head = next(name for name, found in model.named_modules() if found is model.get_output_embeddings())
    cut = {p.name: theta_D[p.start : p.stop].view(p.shape) for p in net.space.parameters}
    found = {}
    for each in net.backbone.maps:
        name, place = f"{each.group}.{each.target}.lora_", head if each.name == "head" else each.name
        delta_OI = ALPHA / RANK * cut[f"{name}B"] @ cut[f"{name}A"]
        module = model.get_submodule(place)
        stores_inputs_first = type(module).__name__ == "Conv1D"
        found[f"{place}.weight"] = module.weight + (delta_OI.T if stores_inputs_first else delta_OI)
    return found


def merged_model(kind: str, net: LoraNetwork, theta_D: torch.Tensor) -> torch.nn.Module:
    """transformers' own model with the merged weights in the place of every adapted W, the head untied."""
    model: Any = copy.deepcopy(tiny_model(kind, VOCABULARY))
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    for name, value in merged_weights(model, net, theta_D).items():
        model.get_submodule(name.removesuffix(".weight")).weight = torch.nn.Parameter(value)
    return model


def scores(model: Any, tokens_NT: torch.Tensor, targets_K: torch.Tensor) -> torch.Tensor:
    return model.target_scores(model.hidden(tokens_NT).flatten(0, 1), targets_K)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapted_model_is_the_one_with_merged_weights(kind: str, folders: dict[str, Path]) -> None:
    net = network(folders[kind], lora(kind))
    tokens_NT = torch.randint(VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))
    targets_K = torch.randint(VOCABULARY, (60,), generator=torch.Generator().manual_seed(2))
    for theta_D in (torch.zeros(net.space.size), random_theta(net)):
        with torch.no_grad():
            logits = merged_model(kind, net, theta_D)(input_ids=tokens_NT).logits.flatten(0, 1)
            expected_K = logits.log_softmax(1).gather(1, targets_K[:, None])[:, 0]
            torch.testing.assert_close(scores(net.at(theta_D), tokens_NT, targets_K), expected_K, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_cores_move_a_model_between_the_singular_vectors_of_its_weights(kind: str, folders: dict[str, Path]) -> None:
    """The largest R of each weight that transformers has, whichever way round it stores it."""
    targets = tuple(name for name in lora(kind).targets if name != "dt_proj")  # one column has no three of them
    settings = lora(kind).model_copy(update={"targets": targets})
    backbone = network(folders[kind], settings).backbone
    net, start_D = cores_network(backbone, backbone.space, settings, base_sha256="")
    assert net.lift is not None and net.lift.space.size == len(backbone.maps) * RANK**2
    moved_C = 0.3 * torch.randn(net.lift.space.size, generator=torch.Generator().manual_seed(3))
    theta_D = torch.from_numpy(start_D) + net.lift.apply(tuple(map(torch.from_numpy, net.lift.arrays)), moved_C)
    plain, tokens_NT = tiny_model(kind, VOCABULARY), torch.arange(20).view(1, 20)
    merged = merged_model(kind, net, theta_D)
    with torch.no_grad():
        expected = merged(input_ids=tokens_NT).logits
        model = net.at(theta_D)
        torch.testing.assert_close(
            model.logits(model.hidden(tokens_NT).flatten(0, 1)), expected.flatten(0, 1), atol=2e-5, rtol=1e-4
        )
        assert not torch.allclose(expected, plain(input_ids=tokens_NT).logits)  # type: ignore[operator]
    for name, weight in merged_weights(plain, net, theta_D).items():
        frozen, changed = plain.get_parameter(name).detach().double(), weight.detach().double()
        left, _, right = torch.linalg.svd(frozen)
        update = changed - frozen
        within = left[:, :RANK] @ left[:, :RANK].T @ update @ right[:RANK].T @ right[:RANK]
        assert int(torch.linalg.matrix_rank(update, rtol=1e-3)) == RANK
        torch.testing.assert_close(within, update, rtol=0.02, atol=2e-3 * float(update.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_what_torch_finds_for_merged_weights(kind: str, folders: dict[str, Path]) -> None:
    net = network(folders[kind], lora(kind))
    tokens_NT = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    theta_D = random_theta(net).requires_grad_()
    model = net.at(theta_D)
    model.cross_entropy(model.hidden(tokens_NT[:, :-1]).flatten(0, 1), tokens_NT[:, 1:].flatten()).backward()
    plain = tiny_model(kind, VOCABULARY)
    expected_D = theta_D.detach().clone().requires_grad_()
    weights = merged_weights(plain, net, expected_D)
    arguments = {"input_ids": tokens_NT[:, :-1], "use_cache": False}
    logits = torch.func.functional_call(plain, weights, (), arguments, tie_weights=False).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, tokens_NT[:, 1:].flatten()).backward()
    torch.testing.assert_close(theta_D.grad, expected_D.grad, atol=1e-6, rtol=1e-4)


# Mamba computes partly in float32 whatever its type, too coarsely for a difference quotient.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "Mamba"])
def test_the_gradient_is_that_of_the_merged_weights(kind: str, folders: dict[str, Path]) -> None:
    net = network(folders[kind], lora(kind))
    tokens_NT = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    theta_D = random_theta(net).requires_grad_()
    model = net.at(theta_D)
    model.cross_entropy(model.hidden(tokens_NT[:, :-1]).flatten(0, 1), tokens_NT[:, 1:].flatten()).backward()
    direction_D = random_theta(net, seed=2)

    def loss(offset: float) -> float:
        with torch.no_grad():
            merged = merged_model(kind, net, theta_D.detach() + offset * direction_D).double()
            logits = merged(input_ids=tokens_NT[:, :-1]).logits.flatten(0, 1)
            return float(torch.nn.functional.cross_entropy(logits, tokens_NT[:, 1:].flatten()))

    slope = (loss(1e-3) - loss(-1e-3)) / 2e-3
    assert float(theta_D.grad @ direction_D) == pytest.approx(slope, rel=2e-3, abs=1e-5)


def test_models_of_one_network_do_not_disturb_each_other(folders: dict[str, Path]) -> None:
    net = network(folders["Llama"], lora("Llama"))
    tokens_NT, targets_K = torch.arange(20).view(2, 10), torch.arange(20)
    first, second = net.at(random_theta(net, 1)), net.at(random_theta(net, 2))
    with torch.no_grad():
        before = scores(first, tokens_NT, targets_K)
        assert not torch.equal(scores(second, tokens_NT, targets_K), before)
        assert torch.equal(scores(first, tokens_NT, targets_K), before)


def test_groups_are_layers_and_the_head(folders: dict[str, Path]) -> None:
    net = network(folders["GPT2"], lora("GPT2"))
    assert net.space.groups == ("0", "1", "head")
    assert (
        net.space.size
        == sum(RANK * (each.inputs + each.outputs) for each in net.backbone.maps)
        == RANK * (2 * (16 + 48) + 2 * (16 + 64) + 16 + VOCABULARY)
    )


def test_dropout_acts_in_training_alone(folders: dict[str, Path]) -> None:
    net = network(folders["Llama"], lora("Llama", dropout=0.5))
    model, tokens_NT = net.at(random_theta(net)), torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.equal(model.hidden(tokens_NT), model.hidden(tokens_NT))
        assert not torch.equal(model.hidden(tokens_NT, training=True), model.hidden(tokens_NT, training=True))


@pytest.mark.slow
def test_a_base_comes_back_from_its_file_with_its_hash(folders: dict[str, Path], tmp_path: Path) -> None:
    for kind in KINDS:
        base = read_pretrained(folders[kind])
        save_base(tmp_path / "base.safetensors", base)
        again = load_huggingface_base(tmp_path / "base.safetensors")
        assert again.sha256 == base.sha256
        assert again.parameters == sum(p.numel() for p in tiny_model(kind, VOCABULARY).parameters())
        for name, value in build_module(again, torch.float32).state_dict().items():
            assert torch.equal(value, build_module(base, torch.float32).state_dict()[name])


def test_the_hash_names_tensors_and_what_is_computed_with_them(folders: dict[str, Path]) -> None:
    base = read_pretrained(folders["Llama"])
    name = next(iter(base.tensors))
    nudged = {**base.tensors, name: base.tensors[name] + 1e-3}
    coarser = {key: value.to(torch.bfloat16) for key, value in base.tensors.items()}
    others = [
        HuggingFaceBase(base.architecture, nudged),
        HuggingFaceBase(base.architecture, coarser),
        HuggingFaceBase(base.architecture | {"rms_norm_eps": 1e-3}, base.tensors),
        HuggingFaceBase(base.architecture | {"tie_word_embeddings": True}, base.tensors),
    ]
    assert len({base.sha256, *(other.sha256 for other in others)}) == 5


def test_a_base_has_one_hash_however_it_is_stored(folders: dict[str, Path], tmp_path: Path) -> None:
    """Stored types, signs of zero and keys that compute nothing: each gave a prover other draws to choose from."""
    for kind in KINDS:
        base = read_pretrained(folders[kind])
        coarse = {key: value.to(torch.bfloat16) for key, value in base.tensors.items()}
        signed = {key: torch.where(value == 0.0, -0.0, value) for key, value in base.tensors.items()}
        without_defaults = {"model_type": base.architecture["model_type"]} | {
            key: value for key, value in base.architecture.items() if value not in (None, False)
        }
        spare = {"_my_key": 3, "initializer_range": 0.5, "eos_token_id": 7, "attention_dropout": 0.25, "max_length": 9}
        pairs = [
            (HuggingFaceBase(base.architecture, coarse), {key: value.double() for key, value in coarse.items()}),
            (base, signed),
        ]
        for one, tensors in pairs:
            assert HuggingFaceBase(base.architecture, tensors).sha256 == one.sha256
        for architecture in (base.architecture | spare, without_defaults):
            save_base(tmp_path / "base.safetensors", HuggingFaceBase(architecture, base.tensors))
            again = load_huggingface_base(tmp_path / "base.safetensors")
            assert again.sha256 == base.sha256
            assert again.architecture == base.architecture
    # A number is the same with and without its decimal point.
    a, b = (HuggingFaceBase(base.architecture | {"rope_theta": value}, base.tensors) for value in (10000, 1e4))
    assert a.sha256 == b.sha256


@pytest.mark.parametrize(
    ("sizes", "targets", "words"),
    [
        ({"n_layer": 3}, ["q_proj"], "model.n_layer is 3, the pretrained model has 2 layers"),
        (
            {"context_length": 128},
            ["q_proj"],
            "model.context_length is 128, the pretrained model was made for at most 64",
        ),
        ({}, ["c_attn"], "target 'c_attn' fits no linear map of the network; it has q_proj, k_proj"),
        ({}, ["layers.1.*.q_proj"], "expected linear maps in every one of 2 layers and nowhere else, layer 0 differs"),
    ],
)
def test_settings_that_do_not_fit_stop_with_one_line(
    sizes: dict[str, int], targets: list[str], words: str, folders: dict[str, Path]
) -> None:
    settings = lora("Llama").model_copy(update={"targets": tuple(targets)})
    with pytest.raises(UserError) as caught:
        network(folders["Llama"], settings, **sizes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


COHERE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "logit_scale": 0.5,
    "pad_token_id": 0,
}


def test_a_head_that_is_not_one_product_is_refused(tmp_path: Path) -> None:
    """Cohere multiplies its logits: what this library computes for the head would be another model."""
    tiny_model("Cohere", VOCABULARY, **COHERE).save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match="its logits are not its last hidden states times one matrix"):
        read_pretrained(tmp_path)


def test_a_model_that_sees_the_future_is_refused(tmp_path: Path) -> None:
    """A BERT with a language-model head predicts a token from the tokens after it: its losses are no code lengths."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = tiny_model("Bert", VOCABULARY, head="BertLMHeadModel", is_decoder=False, **sizes)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match="model_type is 'bert': not among the causal architectures"):
        read_pretrained(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "no config", "cut"])
def test_a_folder_that_is_no_model_stops_with_one_line(damage: str, folders: dict[str, Path], tmp_path: Path) -> None:
    for file in [] if damage == "empty" else folders["Llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if damage == "no config":
        (tmp_path / "config.json").unlink()
    if damage == "cut":
        path = tmp_path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="give another base.path") as caught:
        read_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_base_file_stops_with_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    with pytest.raises(UserError, match="no such file"):
        load_huggingface_base(path)
    save_base(path, read_pretrained(folders["Llama"]))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_huggingface_base(path)


def test_a_cross_entropy_is_the_mean_of_the_scores(folders: dict[str, Path]) -> None:
    net = network(folders["GPTNeoX"], lora("GPTNeoX"))
    model, tokens_NT, targets_K = net.at(random_theta(net)), torch.arange(24).view(2, 12), torch.arange(1, 25)
    with torch.no_grad():
        hidden_KC = model.hidden(tokens_NT).flatten(0, 1)
        loss_nats = float(model.cross_entropy(hidden_KC, targets_K))
        assert loss_nats == pytest.approx(-float(model.target_scores(hidden_KC, targets_K)[0].mean()), rel=1e-5)
    assert math.isfinite(loss_nats)


def loss_and_gradient(net: LoraNetwork, seed: int) -> tuple[float, torch.Tensor]:
    tokens_NT = torch.randint(VOCABULARY, (2, 13), generator=torch.Generator().manual_seed(1))
    theta_D = random_theta(net, seed).requires_grad_()
    model = net.at(theta_D)
    hidden_KC = model.hidden(tokens_NT[:, :-1], training=True).flatten(0, 1)
    loss = model.cross_entropy(hidden_KC, tokens_NT[:, 1:].flatten(), training=True)
    loss.backward()
    assert theta_D.grad is not None
    return float(loss), theta_D.grad


def test_bfloat16_differs_by_its_rounding(folders: dict[str, Path]) -> None:
    exact, rounded = (network(folders["Llama"], lora("Llama"), dtype=d) for d in (torch.float32, torch.bfloat16))
    (loss, gradient_D), (loss_16, gradient_16_D) = loss_and_gradient(exact, 1), loss_and_gradient(rounded, 1)
    assert 0.0 < abs(loss - loss_16) < 2e-2 * loss
    assert float((gradient_16_D - gradient_D).norm()) < 5e-2 * float(gradient_D.norm())


@pytest.mark.slow
@pytest.mark.skipif("SUBLORA_TEST_COMPILE" not in os.environ, reason="a minute; SUBLORA_TEST_COMPILE=1 asks for it")
def test_the_compiled_backbone_is_the_same_for_every_theta(folders: dict[str, Path]) -> None:
    plain, compiled = (network(folders["Llama"], lora("Llama"), use_compiler=c) for c in (False, True))
    for seed in (1, 2):
        (loss, gradient_D), (other, other_D) = loss_and_gradient(plain, seed), loss_and_gradient(compiled, seed)
        assert other == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(other_D, gradient_D, rtol=1e-4, atol=1e-6)

"""A pretrained base: what transformers writes gives transformers' logits, and whatever does not fit is refused."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from base_samples import CONTEXT, PRETRAINED, VOCABULARY, base_settings, complaint
from safetensors.numpy import load_file, save_file

from sublora.models.adapted import AdaptedModel
from sublora.models.gpt import GPT
from sublora.models.weights import load_weights, weight_shapes
from sublora.runs.base import load_base, make_base
from sublora.system.names import BASE_JSON_NAME, BASE_WEIGHTS_NAME

transformers = pytest.importorskip("transformers")

MODEL = base_settings(PRETRAINED).model
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def reference(model_class: str = "GPT2LMHeadModel", **changes: object) -> "transformers.PreTrainedModel":
    """A tiny model without special values: norms and biases are random as well."""
    sizes = {"n_layer": MODEL.n_layer, "n_head": MODEL.n_head, "n_embd": MODEL.n_embd}
    description = {"vocab_size": VOCABULARY, "n_positions": CONTEXT} | sizes | changes
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(transformers.GPT2Config(**description)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it; tests copy it."""
    folder = tmp_path_factory.mktemp("saved")
    reference().save_pretrained(folder)
    return folder


@pytest.fixture
def root(saved: Path, tmp_path: Path) -> Path:
    """The model in the folder `pretrained`, free to be damaged."""
    folder = tmp_path / PRETRAINED["path"]
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is read when the hub's library is imported, by whichever test comes first."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def imported(root: Path, base: dict | None = None, **sections: dict) -> GPT:
    """The base made and read again, as a run reads it."""
    settings = base_settings(PRETRAINED | (base or {}), **sections)
    make_base(settings, root=root)
    gpt = GPT(settings.model, VOCABULARY)
    gpt.load(load_base(settings, 1, VOCABULARY, root).weights)
    return gpt


def assert_same_logits(gpt: GPT, model: "transformers.PreTrainedModel") -> None:
    length = gpt.shape.context_length
    tokens_NT = torch.from_numpy(np.random.default_rng(1).integers(0, VOCABULARY, (5, length)))
    with torch.no_grad():
        ours = AdaptedModel(gpt, None)
        torch.testing.assert_close(ours.logits(ours.hidden(tokens_NT)), model(tokens_NT).logits, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_logits_are_those_of_transformers(tmp_path: Path, shard: str | None) -> None:
    model, folder = reference(), tmp_path / PRETRAINED["path"]
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    assert len(list(folder.glob("*.safetensors"))) == 1 if shard is None else (folder / INDEX).exists()
    assert_same_logits(imported(tmp_path), model)


def test_a_model_without_a_head_has_the_same_names_without_a_prefix(tmp_path: Path) -> None:
    """The head is the embedding in either: one base, one hash."""
    body = reference("GPT2Model")
    body.save_pretrained(tmp_path / PRETRAINED["path"])
    assert not any(name.startswith("transformer.") for name in load_file(tmp_path / PRETRAINED["path"] / WEIGHTS))
    whole = reference()
    whole.transformer.load_state_dict(body.state_dict())
    assert_same_logits(imported(tmp_path), whole)


def test_a_shorter_context_keeps_the_first_positions(root: Path) -> None:
    scoring = {"scoring": {"sliding_window": 8}}
    gpt = imported(root, model={"context_length": 8}, **scoring)
    assert gpt.weight("wpe.weight").shape == (8, MODEL.n_embd)
    assert_same_logits(gpt, reference())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_precision_are_read_as_they_are(tmp_path: Path, dtype: str) -> None:
    model = reference().to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / PRETRAINED["path"])
    assert_same_logits(imported(tmp_path), model.float())


def test_the_path_may_be_absolute_and_the_files_say_what_they_are(root: Path, tmp_path: Path) -> None:
    settings = base_settings(PRETRAINED | {"path": str(root / PRETRAINED["path"])})
    path = make_base(settings, root=tmp_path / "elsewhere")
    facts = json.loads(path.read_text(encoding="utf-8"))
    shapes = weight_shapes(settings.model, VOCABULARY)
    assert facts["kind"] == "pretrained"
    assert facts["parameters"] == sum(int(np.prod(shape)) for shape in shapes.values())
    assert load_base(settings, 1, VOCABULARY, tmp_path / "elsewhere").sha256 == facts["sha256"]
    assert list(load_weights(path.parent / BASE_WEIGHTS_NAME, settings.model, VOCABULARY)) == list(shapes)


def test_the_same_folder_gives_the_same_bytes(root: Path) -> None:
    first, second = (make_base(base_settings(PRETRAINED), root=root, out=root / name).parent for name in ("a", "b"))
    for name in (BASE_JSON_NAME, BASE_WEIGHTS_NAME):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def refusal(root: Path) -> str:
    """Why the folder is refused, naming it; nothing is written."""
    found = complaint(lambda: make_base(base_settings(PRETRAINED), root=root))
    assert str(root / PRETRAINED["path"]) in found
    assert not (root / "results").exists()
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_embd": 32}, "n_embd is 32, expected 16"),
        ({"n_layer": 3}, "n_layer is 3, expected 2"),
        ({"n_head": 4}, "n_head is 4, expected 2"),
        ({"vocab_size": 100}, "vocab_size is 100, expected 257"),
        ({"n_positions": 15}, "n_positions is 15, expected at least model.context_length 16; lower model"),
        ({"n_positions": None}, "n_positions is None"),
        ({"n_positions": "16"}, "n_positions is '16'"),
        ({"n_inner": 40}, "n_inner is 40, expected 64"),
        ({"activation_function": "relu"}, "activation_function is 'relu', expected 'gelu_new'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06, expected 1e-05"),
        ({"model_type": "llama"}, "model_type is 'llama', expected 'gpt2'"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False, expected True"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True, expected False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, expected True"),
        ({"add_cross_attention": True}, "add_cross_attention is True, expected False"),
    ],
)
def test_another_network_is_refused_by_the_key(root: Path, changes: dict, expected: str) -> None:
    edit_json(root / PRETRAINED["path"] / CONFIG, changes)
    found = refusal(root)
    assert f"{CONFIG}: {expected}" in found
    assert ";" in found  # the mend


def edit_json(path: Path, changes: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def edit_tensors(folder: Path, edit: Callable[[dict], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def replace_by(name: str, shape: tuple[int, ...]) -> Callable[[dict], object]:
    return lambda tensors: tensors.update({name: np.zeros(shape, dtype=np.float32)})


BIAS, CONV = "transformer.h.1.ln_2.bias", "transformer.h.0.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda f: (f / CONFIG).unlink(), f"{CONFIG}: no such file; base.path must be a folder with config.json and"),
        (lambda f: (f / CONFIG).write_text("{"), f"{CONFIG}: not valid JSON (Expecting property name"),
        (lambda f: (f / CONFIG).write_text("[]"), f"{CONFIG}: expected a JSON object; download the model again, or"),
        (lambda f: (f / CONFIG).write_bytes(b"\xff"), f"{CONFIG}: not valid JSON ('utf-8' codec"),
        (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS}: no such file; "),
        (lambda f: (f / WEIGHTS).write_bytes(b""), f"{WEIGHTS}: not a readable safetensors file"),
        (lambda f: os.truncate(f / WEIGHTS, 1000), f"{WEIGHTS}: not a readable safetensors file"),
        (lambda f: os.truncate(f / WEIGHTS, (f / WEIGHTS).stat().st_size - 1), "not a readable safetensors file"),
        (lambda f: edit_tensors(f, lambda tensors: tensors.pop(BIAS)), "tensor h.1.ln_2.bias is missing"),
        (lambda f: edit_tensors(f, replace_by(BIAS, (3,))), "tensor h.1.ln_2.bias has shape (3,), expected (16,)"),
        (
            lambda f: edit_tensors(f, replace_by(CONV, (64, 16))),
            "tensor h.0.mlp.c_fc.weight has shape (64, 16), expected (16, 64)",
        ),
        (
            lambda f: edit_tensors(f, replace_by("transformer.wpe.weight", (4, 16))),
            "tensor wpe.weight has shape (4, 16), expected (16, 16)",
        ),
        (lambda f: (f / INDEX).write_text("{}"), f"{INDEX}: weight_map is missing"),
        (lambda f: (f / INDEX).write_text('{"weight_map": ["a"]}'), f"{INDEX}: weight_map is missing"),
        (
            lambda f: (f / INDEX).write_text('{"weight_map": {"wte.weight": "shard-1.safetensors"}}'),
            "shard-1.safetensors: no such file; ",
        ),
    ],
)
def test_damage_is_refused_by_the_file_s_name(root: Path, damage: Callable[[Path], object], expected: str) -> None:
    damage(root / PRETRAINED["path"])
    found = refusal(root)
    assert expected in found
    assert ";" in found  # the mend
    assert "sublora base" not in found  # which has just been tried


def test_a_download_that_breaks_off_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is one of the hub's HTTP library, not one of Python's own."""
    import huggingface_hub

    kinds = [error for error in huggingface_hub.errors.HTTPError.__subclasses__() if error.__name__ == "RequestError"]

    def break_off(*arguments: object, **options: object) -> None:
        raise (kinds or [OSError])[0]("connection reset")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", break_off)
    found = complaint(lambda: make_base(base_settings(PRETRAINED), root=tmp_path))
    assert "the download from the Hugging Face hub failed (connection reset)" in found


@pytest.mark.parametrize("path", ["nobody/no-such-model", "/no/such/folder", "../models/one", "no such model"])
def test_a_model_that_cannot_be_had_is_refused_at_once(tmp_path: Path, path: str) -> None:
    settings = base_settings(PRETRAINED | {"path": path})
    started = time.monotonic()
    found = complaint(lambda: make_base(settings, root=tmp_path))
    assert time.monotonic() - started < 10
    assert found.startswith(f"base.path '{path}': no such folder, and the download from the Hugging Face hub failed (")
    assert "give a folder with config.json and safetensors" in found


def test_a_run_with_another_context_does_not_take_the_base(root: Path) -> None:
    make_base(base_settings(PRETRAINED), root=root)
    shorter = base_settings(PRETRAINED, model={"context_length": 8}, scoring={"sliding_window": 8})
    assert "made with other settings or data" in complaint(lambda: load_base(shorter, 1, VOCABULARY, root))

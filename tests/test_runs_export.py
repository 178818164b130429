"""Certified networks as text and as files of transformers and peft: the same function, nothing left over."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from base_samples import PRETRAINED, VOCABULARY, base_settings, complaint
from conftest import TINY

from sublora import config
from sublora.coding.certificate import read_certificate, write_certificate
from sublora.coding.payload import Payload
from sublora.data.prepare import prepare_dataset
from sublora.runs.base import make_base
from sublora.runs.bound import bound_run
from sublora.runs.build import RunFolder
from sublora.runs.decode import CertificateFiles, decode_certificate
from sublora.runs.encode import encode_run
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.yardsticks import make_yardsticks
from sublora.system.names import CERTIFICATE_NAME
from sublora.system.streams import generator
from sublora.tools.export import export_network
from sublora.tools.generate import Choice, Writing, continuation, write

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
TARGETS = {
    "attention": ["query", "value"],
    "value": ["value"],
    "head": ["query", "value", "head"],
    "mlp": ["mlp_in", "value", "mlp_out"],
}
CASES = [*itertools.product(TARGETS, ["zero_b"]), ("head", "both_random"), ("mlp", "both_random")]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data and a pretrained GPT-2 with a longer context than the runs', tokenizer files beside it."""
    root = tmp_path_factory.mktemp("export")
    settings = base_settings(PRETRAINED)
    prepare_dataset(settings.data, root)
    model = settings.model
    sizes = {"n_layer": model.n_layer, "n_head": model.n_head, "n_embd": model.n_embd}
    torch.manual_seed(0)
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=40, **sizes))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(0.0, 0.2)
    reference.save_pretrained(root / PRETRAINED["path"])
    (root / PRETRAINED["path"] / "tokenizer.json").write_text("{}", encoding="utf-8")
    make_base(settings, root=root)
    return root


def certified(data_root: Path, root: Path, lora: dict, base: dict = PRETRAINED) -> Path:
    """The folder of a run with a certificate; a few large steps, so that the network is far from its base."""
    for name in ("data", "results/base", PRETRAINED["path"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(data_root / name)
    training = {"steps": 6, "eval_interval_steps": 3, "learning_rate": 0.3}
    settings = base_settings(base, lora=lora, training=training, grid={"budgets": [60]})
    folder = root / "results/runs/d60_fixed-0.5_seed1"
    train_run(settings, config.parse_run(60, "fixed-0.5", 1), root=root, out=folder)
    encode_run(folder, root=root)
    return folder


def tokens() -> torch.Tensor:
    shape = (3, TINY["model"]["context_length"])
    return torch.from_numpy(np.random.default_rng(2).integers(0, VOCABULARY, shape))


@torch.no_grad()
def own_logits(folder: Path) -> torch.Tensor:
    model = decode_certificate(CertificateFiles.of(folder), CPU).model
    return model.logits(model.hidden(tokens()))


@torch.no_grad()
def assert_same_logits(model: torch.nn.Module, folder: Path) -> None:
    torch.testing.assert_close(model.eval()(tokens()).logits, own_logits(folder), rtol=2e-5, atol=1e-4)


def base_model(folder: Path) -> "transformers.PreTrainedModel":
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize(("targets", "init"), CASES)
def test_both_formats_compute_what_was_certified(data_root: Path, tmp_path: Path, targets: str, init: str) -> None:
    folder = certified(data_root, tmp_path, {"targets": TARGETS[targets], "init": init})
    merged, adapters = tmp_path / "merged", tmp_path / "adapters"
    pretrained = data_root / PRETRAINED["path"]
    export_network(CertificateFiles.of(folder, pretrained=pretrained), merged, "merged")
    export_network(CertificateFiles.of(folder / CERTIFICATE_NAME), adapters, "peft")
    with torch.no_grad():
        frozen = base_model(data_root / PRETRAINED["path"])(tokens()).logits
    assert (own_logits(folder) - frozen).abs().max() > 0.1

    model, info = transformers.GPT2LMHeadModel.from_pretrained(merged, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.tie_word_embeddings == ("head" not in TARGETS[targets])
    assert_same_logits(model, folder)
    assert (merged / "tokenizer.json").read_text(encoding="utf-8") == "{}"

    assert_same_logits(peft.AutoPeftModelForCausalLM.from_pretrained(adapters), folder)
    by_hand = peft.PeftModel.from_pretrained(base_model(data_root / PRETRAINED["path"]), adapters)
    assert_same_logits(by_hand, folder)
    if "head" not in TARGETS[targets]:
        assert_same_logits(by_hand.merge_and_unload(), folder)


def test_a_random_base_travels_with_its_adapters(data_root: Path, tmp_path: Path) -> None:
    folder = certified(data_root, tmp_path, {"targets": ["query", "value", "head"]}, {"kind": "random"})
    out = export_network(CertificateFiles.of(folder), tmp_path / "adapters", "peft")
    assert_same_logits(peft.AutoPeftModelForCausalLM.from_pretrained(out), folder)
    shutil.move(out, tmp_path / "moved")
    moved = peft.PeftModel.from_pretrained(base_model(tmp_path / "moved/base"), tmp_path / "moved")
    assert_same_logits(moved, folder)


@pytest.fixture(scope="module")
def run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certified(data_root, tmp_path_factory.mktemp("run"), {"targets": ["query", "value", "head"]})


def test_an_export_follows_no_path_of_the_provers(run: Path, data_root: Path, tmp_path: Path) -> None:
    """The base's place in the settings: any folder of the reader's machine, or any model of the hub."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "tokenizer.json").write_text('"confidential"', encoding="utf-8")
    old, mailed = read_certificate(run / CERTIFICATE_NAME), tmp_path / CERTIFICATE_NAME
    old.header["settings"]["base"] |= {"path": str(secret), "revision": "refs/pr/7"}
    write_certificate(mailed, old.header, Payload(old.payload_bytes, old.payload_bits, {}))
    files = CertificateFiles.of(mailed, base=data_root / "results/base/base.safetensors")
    for form in ("merged", "peft"):
        out = export_network(files, tmp_path / form, form)
        # The certificate itself is handed on as it is.
        files_of_export = [path for path in out.rglob("*") if path.is_file() and path.name != CERTIFICATE_NAME]
        contents = b"".join(path.read_bytes() for path in files_of_export)
        assert b"confidential" not in contents and str(secret).encode() not in contents and b"refs/pr" not in contents
    assert not (tmp_path / "merged/tokenizer.json").exists()
    described = json.loads((tmp_path / "peft/adapter_config.json").read_text(encoding="utf-8"))
    assert described["base_model_name_or_path"] == str(tmp_path / "peft/base") and described["revision"] is None
    assert_same_logits(peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft"), run)


def test_only_the_folder_that_the_reader_names_is_copied_from_and_it_must_hold_the_base(
    run: Path, data_root: Path, tmp_path: Path
) -> None:
    pretrained = data_root / PRETRAINED["path"]
    named = CertificateFiles.of(run, pretrained=pretrained)
    adapters = export_network(named, tmp_path / "adapters", "peft")
    described = json.loads((adapters / "adapter_config.json").read_text(encoding="utf-8"))
    assert described["base_model_name_or_path"] == str(pretrained.resolve()) and not (adapters / "base").exists()
    assert_same_logits(peft.AutoPeftModelForCausalLM.from_pretrained(adapters), run)
    other = shutil.copytree(pretrained, tmp_path / "other")
    model = base_model(other)
    with torch.no_grad():
        model.transformer.ln_f.weight.add_(0.01)
    model.save_pretrained(other)
    wrong = CertificateFiles.of(run, pretrained=other)
    line = complaint(lambda: export_network(wrong, tmp_path / "wrong", "peft"))
    assert "--pretrained" in line and "weights hash to" in line and not (tmp_path / "wrong").exists()


def test_a_base_that_is_drawn_has_no_folder(data_root: Path, tmp_path: Path) -> None:
    folder = certified(data_root, tmp_path, {"targets": ["head"]}, {"kind": "random"})
    files = CertificateFiles.of(folder, pretrained=data_root / PRETRAINED["path"])
    line = complaint(lambda: export_network(files, tmp_path / "out", "merged"))
    assert "the certificate's base is random; leave it out" in line


def test_an_export_names_its_certificate_and_overwrites_nothing(run: Path, tmp_path: Path) -> None:
    out = export_network(CertificateFiles.of(run), tmp_path / "out", "merged")
    facts = json.loads((out / "sublora.json").read_text(encoding="utf-8"))
    assert facts["run"] == "d60_fixed-0.5_seed1" and facts["format"] == "merged"
    again = export_network(CertificateFiles.of(run), tmp_path / "again", "merged")
    assert all(path.read_bytes() == (again / path.name).read_bytes() for path in out.iterdir())
    assert "exists and is not an empty folder" in complaint(
        lambda: export_network(CertificateFiles.of(run), out, "peft")
    )


def written(files: CertificateFiles, wanted: Writing) -> str:
    return write(decode_certificate(files, CPU), wanted)


def writing(**changes: object) -> Writing:
    values = {"prompt": "ab", "most_tokens": 12, "choice": Choice(), "seed": 1} | changes
    return Writing(**values)  # type: ignore[arg-type]


def test_greedy_text_is_what_transformers_generates(run: Path, tmp_path: Path) -> None:
    """As long as it fits into the context."""
    merged = base_model(export_network(CertificateFiles.of(run), tmp_path / "merged", "merged"))
    model = decode_certificate(CertificateFiles.of(run), CPU).model
    for prompt in ([256], [256, 97], [256, 98, 99, 100]):
        expected = merged.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_length=16
        )[0, len(prompt) :].tolist()
        written = continuation(
            model,
            np.array(prompt),
            end_id=256,
            most_tokens=16 - len(prompt),
            choice=Choice(temperature=0.0),
            stream=generator(0),
            device=CPU,
        )
        assert len(expected) > 3
        assert written.tolist() == [token for token in expected if token != 256]


def test_impossible_draws_are_one_line() -> None:
    for wrong, expected in (({"temperature": float("nan")}, "--temperature nan"), ({"top_k": 0}, "--top-k 0")):
        values = {"most_tokens": 3, "temperature": 1.0, "top_k": None, "seed": 1} | wrong
        assert expected in complaint(lambda values=values: Writing.of("a", **values))


def test_text_follows_from_the_seed_and_goes_on_beyond_the_context(run: Path) -> None:
    files, long = CertificateFiles.of(run), 3 * TINY["model"]["context_length"]
    texts = [written(files, writing(most_tokens=long, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("ab") for text in texts)
    greedy = {written(files, writing(choice=Choice(0.0), seed=seed)) for seed in (1, 2)}
    assert greedy == {written(files, writing(choice=Choice(1.0, top_k=1)))}


def test_tokens_are_drawn_with_the_probabilities_that_are_asked_for() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3]), dtype=np.float32)
    stream = generator(5, "draws")

    def shares(choice: Choice) -> np.ndarray:
        drawn = [choice.next_token(logits, stream) for _ in range(20_000)]
        return np.bincount(drawn, minlength=4) / len(drawn)

    squared = np.array([0.01, 0.16, 0.04, 0.09]) / 0.3
    np.testing.assert_allclose(shares(Choice()), [0.1, 0.4, 0.2, 0.3], atol=0.02)
    np.testing.assert_allclose(shares(Choice(temperature=0.5)), squared, atol=0.02)
    np.testing.assert_allclose(shares(Choice(top_k=2)), [0.0, 4 / 7, 0.0, 3 / 7], atol=0.02)
    assert Choice(temperature=0.0).next_token(np.array([1.0, 3.0, 3.0]), stream) == 1
    for wrong in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}):
        with pytest.raises(ValueError, match="expected"):
            Choice(**wrong)


def test_a_certificate_that_travels_needs_its_own_base(run: Path, data_root: Path, tmp_path: Path) -> None:
    """And nothing else: neither data nor checkpoint."""
    apart = tmp_path / "mail"
    apart.mkdir()
    shutil.copy(run / CERTIFICATE_NAME, apart)
    files = CertificateFiles.of(apart)
    assert "name the base's weights with --base" in complaint(lambda: decode_certificate(files, CPU))
    weights = data_root / "results/base/base.safetensors"
    named = CertificateFiles.of(apart, base=weights)
    expected = written(CertificateFiles.of(run), writing())
    assert written(named, writing()) == expected
    shutil.copy(weights, apart)
    assert written(files, writing()) == expected
    other = tmp_path / "other"
    settings = base_settings(PRETRAINED)
    (other / PRETRAINED["path"]).parent.mkdir(parents=True)
    shutil.copytree(data_root / PRETRAINED["path"], other / PRETRAINED["path"])
    model = base_model(other / PRETRAINED["path"])
    with torch.no_grad():
        model.transformer.ln_f.weight.add_(0.01)
    model.save_pretrained(other / PRETRAINED["path"])
    make_base(settings, root=other)
    assert "weights hash to" in complaint(lambda: decode_certificate(CertificateFiles.of(apart, root=other), CPU))


def test_the_card_says_what_is_certified(data_root: Path, tmp_path: Path) -> None:
    """As the hub reads it; the files of the claim lie beside the weights, and bounds of another run are refused."""
    from huggingface_hub import ModelCard

    folder = certified(data_root, tmp_path, {"rank": 2})
    files = CertificateFiles.of(folder)
    card = ModelCard.load(export_network(files, tmp_path / "bare", "peft") / "README.md")
    assert card.data.library_name == "peft" and "lora" in card.data.tags and card.data.base_model is None
    assert "No bounds.json lay beside the certificate" in card.text
    make_yardsticks(RunFolder.open(folder, None, tmp_path).settings, root=tmp_path)
    score_run(folder, root=tmp_path)
    record = json.loads(bound_run(folder).read_text(encoding="utf-8"))
    out = export_network(files, tmp_path / "whole", "merged")
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert f"needs at most {np.ceil(1000 * record['bound_value']) / 1000:.3f} bits per token (9" in card.text
    assert "mixed* with guessing, document by document" in card.text and "fixed without these documents" in card.text
    assert (out / CERTIFICATE_NAME).read_bytes() == (folder / CERTIFICATE_NAME).read_bytes()
    assert json.loads((out / "bounds.json").read_text()) == record
    (folder / "bounds.json").write_text(json.dumps(record | {"certificate_sha256": "0" * 64}))
    assert "bounds of another certificate" in complaint(lambda: export_network(files, tmp_path / "other", "peft"))
    assert not (tmp_path / "other").exists()

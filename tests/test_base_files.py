"""The base's files between the commands: what is damaged or of another make is refused, and at w = 0 a run is its base.

Shape legend: K scored positions, d entries of w, G gates.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from base_samples import (
    CONTEXT,
    PRETRAINED,
    TRAINED,
    VOCABULARY,
    base_folder,
    base_settings,
    complaint,
    prepared_root,
    root_of_its_own,
)
from safetensors.numpy import load_file, save_file
from torch import Tensor

from sublora import cli, config
from sublora.coding.certificate import MAGIC, read_certificate
from sublora.data.base_and_target import base_data, open_target
from sublora.data.dataset import dataset_folder
from sublora.data.dataset_files import META_FILE
from sublora.data.prepare import prepare_all
from sublora.losses.documents import score_documents
from sublora.models.adapted import AdaptedModel
from sublora.models.gpt import GPT
from sublora.models.head import head_target_scores
from sublora.models.weights import weight_shapes, weights_sha256
from sublora.runs.base import load_base, make_base
from sublora.runs.bound import bound_run
from sublora.runs.build import build_run
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify.verify import verify_run
from sublora.runs.yardsticks import frozen_base_row
from sublora.system.digests import SHA256_BYTES
from sublora.system.errors import UserError
from sublora.system.names import BASE_JSON_NAME, BASE_WEIGHTS_NAME, CERTIFICATE_NAME, CHECKPOINT_NAME
from sublora.system.versions import BASE_FORMAT, CERTIFICATE_FORMAT, CHECKPOINT_FORMAT
from sublora.training import checkpoint
from sublora.training.resumable import Interrupted
from sublora.training.run import Run

SETTINGS = base_settings(TRAINED)
SPEC = config.RunSpec(budget=40, allocation="learned", seed=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a base and one run through all commands; tests copy it."""
    prepared = prepared_root(tmp_path_factory.getbasetemp())
    root = root_of_its_own(prepared, tmp_path_factory.mktemp("finished") / "root")
    make_base(SETTINGS, root=root)
    train_run(SETTINGS, SPEC, root=root, out=run_folder(root))
    score_run(run_folder(root))
    bound_run(run_folder(root))
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of the results, free to be damaged; the data are shared."""
    shutil.copytree(finished / "results", tmp_path / "results")
    (tmp_path / "data").symlink_to((finished / "data").resolve())
    return tmp_path


def run_folder(root: Path) -> Path:
    return root / "results" / "runs" / SPEC.name


def refusals(root: Path, settings: config.Settings = SETTINGS) -> dict[str, str]:
    """What each command that reads base.json says; verify goes by the certificate and the weights alone."""
    commands: dict[str, Callable[[], object]] = {
        "train": lambda: train_run(settings, SPEC, root=root, out=root / "new"),
        "score": lambda: score_run(run_folder(root)),
    }
    return {name: complaint(command) for name, command in commands.items()}


def outcome_of_verify(root: Path) -> str:
    """verified, or why not: a refusal or the error of a file that cannot be read."""
    try:
        return verify_run(run_folder(root)).sentence()
    except UserError as error:
        return str(error)


def edit_json(path: Path, changes: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def flip_a_byte_of_a_tensor(folder: Path) -> None:
    path = folder / BASE_WEIGHTS_NAME
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def other_weights(folder: Path, edit: Callable[[dict], object]) -> None:
    """A base of the same settings with other tensors and base.json in agreement with them."""
    path = folder / BASE_WEIGHTS_NAME
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    sha256 = weights_sha256({name: tensors[name] for name in weight_shapes(SETTINGS.model, VOCABULARY)})
    edit_json(folder / BASE_JSON_NAME, {"sha256": sha256})


MAKE_AGAIN = "make the base again (sublora base)"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte of a tensor": (flip_a_byte_of_a_tensor, f"{BASE_WEIGHTS_NAME}: tensors hash to "),
    "no weights": (lambda f: (f / BASE_WEIGHTS_NAME).unlink(), f"{BASE_WEIGHTS_NAME}: no such file; {MAKE_AGAIN}"),
    "half the weights": (
        lambda f: (f / BASE_WEIGHTS_NAME).write_bytes((f / BASE_WEIGHTS_NAME).read_bytes()[:9000]),
        f"{BASE_WEIGHTS_NAME}: not a readable safetensors file",
    ),
    "no base.json": (lambda f: (f / BASE_JSON_NAME).unlink(), f"{BASE_JSON_NAME}: no such file; make the base first"),
    "no folder": (shutil.rmtree, f"{BASE_JSON_NAME}: no such file; make the base first"),
    "half of base.json": (lambda f: (f / BASE_JSON_NAME).write_text('{"format"'), "not valid JSON"),
    "base.json of bytes": (lambda f: (f / BASE_JSON_NAME).write_bytes(b"\xff\xfe"), "not valid JSON"),
    "base.json a list": (lambda f: (f / BASE_JSON_NAME).write_text("[1]"), "base format list, expected"),
    "base.json without a hash": (
        lambda f: (f / BASE_JSON_NAME).write_text(json.dumps({"format": BASE_FORMAT, "digest": "x"})),
        "sha256 is None, expected a hash",
    ),
    "no digest": (lambda f: edit_json(f / BASE_JSON_NAME, {"digest": 1}), "digest is 1, expected a hash"),
    "another format": (
        lambda f: edit_json(f / BASE_JSON_NAME, {"format": BASE_FORMAT - 1}),
        f"base format {BASE_FORMAT - 1}, expected {BASE_FORMAT}",
    ),
    "another hash": (lambda f: edit_json(f / BASE_JSON_NAME, {"sha256": "0" * 64}), "base.json says 000000000000..."),
    "another vocabulary": (
        lambda f: other_weights(f, lambda t: t.update({"wte.weight": t["wte.weight"][:100]})),
        f"{BASE_WEIGHTS_NAME}: tensor wte.weight has shape (100, 16), expected (257, 16)",
    ),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_damaged_base_stops_every_command_that_reads_it(root: Path, name: str) -> None:
    damage, expected = DAMAGES[name]
    damage(base_folder(root))
    for command, found in refusals(root).items():
        assert expected in found, command
        assert str(base_folder(root)) in found
        assert "make the base" in found
    assert not list((root / "new").glob("*.pt"))
    weights = base_folder(root) / BASE_WEIGHTS_NAME
    found = outcome_of_verify(root)
    if not weights.exists():  # as for a certificate that came by mail
        assert "no such file" in found and "--base FILE" in found
    if BASE_WEIGHTS_NAME in expected or not weights.exists():
        assert "verified" not in found.replace("NOT verified", "") and ("base" in found), found
    else:
        assert ": verified" in found, found


def test_a_base_of_other_settings_is_refused(root: Path) -> None:
    make_base(base_settings(TRAINED | {"seed": 8}), root=root)
    for found in refusals(root).values():
        assert f"{BASE_JSON_NAME}: made with other settings or data than" in found
        assert MAKE_AGAIN in found


def test_a_base_of_other_documents_is_refused(root: Path) -> None:
    """The same settings, but the base's own documents are others now: as if a folder corpus had grown."""
    data = root / "data"
    target = data.resolve()
    data.unlink()
    shutil.copytree(target, data)
    meta = dataset_folder(root, base_data(SETTINGS)) / META_FILE
    files = json.loads(meta.read_text(encoding="utf-8"))["files"]
    files["train.bin"]["sha256"] = "0" * 64
    edit_json(meta, {"files": files})
    for found in refusals(root).values():
        assert f"{BASE_JSON_NAME}: made with other settings or data than" in found


def test_results_of_another_base_with_the_same_settings_are_refused(root: Path) -> None:
    """As trained on other hardware: its files agree with each other, but not with the run."""
    other_weights(base_folder(root), lambda tensors: tensors["ln_f.bias"].__iadd__(1e-3))
    certificate = read_certificate(run_folder(root) / CERTIFICATE_NAME)
    named = certificate.header["base_sha256"][:12]
    assert "NOT verified" in outcome_of_verify(root)
    scored = complaint(lambda: score_run(run_folder(root)))
    assert CHECKPOINT_NAME in scored and f"the checkpoint was trained on {named}..." in scored


def test_the_certificate_names_the_base_and_an_honest_run_is_verified(finished: Path) -> None:
    facts = json.loads((base_folder(finished) / BASE_JSON_NAME).read_text(encoding="utf-8"))
    assert load_base(SETTINGS, SPEC.seed, VOCABULARY, finished).sha256 == facts["sha256"]
    assert read_certificate(run_folder(finished) / CERTIFICATE_NAME).header["base_sha256"] == facts["sha256"]
    bounds = json.loads((run_folder(finished) / "bounds.json").read_text(encoding="utf-8"))
    assert bounds["base"] == {"kind": "trained", "sha256": facts["sha256"], "independence": None}
    assert verify_run(run_folder(finished)).verified


def test_one_base_serves_all_seeds(finished: Path) -> None:
    first, second = (load_base(SETTINGS, seed, VOCABULARY, finished).sha256 for seed in (1, 2))
    assert first == second


def test_a_random_base_needs_no_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").mkdir()
    path = tmp_path / "config" / "config.yaml"
    path.write_text(yaml.safe_dump(base_settings({"kind": "random"}).model_dump(mode="json")), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["sublora", "base", "--config", str(path)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    line = "error: base.kind is random: each run draws its base from its seed, there is nothing to make\n"
    assert capsys.readouterr().err == line
    assert not (tmp_path / "results").exists()


def test_a_base_needs_its_own_data(tmp_path: Path) -> None:
    """Nothing is prepared: the line names the base's data set."""
    found = complaint(lambda: make_base(SETTINGS, root=tmp_path))
    assert "data/markovbase/meta.json: no such file" in found and "sublora prepare" in found


def of_the_format_before(path: Path) -> None:
    """Write a checkpoint or resume state again with the number of the format before."""
    value = torch.load(path, weights_only=True)
    checkpoint.save(path, value | {"format": CHECKPOINT_FORMAT - 1})


def test_checkpoints_of_the_format_before_are_refused(root: Path) -> None:
    of_the_format_before(run_folder(root) / CHECKPOINT_NAME)
    found = complaint(lambda: score_run(run_folder(root)))
    expected = f"checkpoint format {CHECKPOINT_FORMAT - 1}, expected {CHECKPOINT_FORMAT}; delete it and train again"
    assert CHECKPOINT_NAME in found and expected in found


@pytest.mark.parametrize("what", ["base", "run"])
def test_resume_states_of_the_format_before_are_refused(root: Path, what: str) -> None:
    def start(before_step: Callable[[int], None] | None = None) -> object:
        if what == "base":
            return make_base(SETTINGS, root=root, out=root / "new", before_step=before_step)
        return train_run(SETTINGS, SPEC, root=root, out=root / "new", before_step=before_step)

    with pytest.raises(Interrupted):
        start(interrupt)
    (state,) = (root / "new" / "state").glob("*.pt")
    of_the_format_before(state)
    found = complaint(start)
    assert f"{state}: checkpoint format {CHECKPOINT_FORMAT - 1}, expected {CHECKPOINT_FORMAT}; delete it" in found


def interrupt(step: int) -> None:
    if step == 3:
        os.kill(os.getpid(), signal.SIGTERM)


def test_certificates_of_the_format_before_are_refused(root: Path) -> None:
    path = run_folder(root) / CERTIFICATE_NAME
    data = path.read_bytes()[:-SHA256_BYTES]
    data = MAGIC + (CERTIFICATE_FORMAT - 1).to_bytes(2, "big") + data[len(MAGIC) + 2 :]
    path.write_bytes(data + hashlib.sha256(data).digest())
    for command in (verify_run, bound_run):
        found = complaint(lambda command=command: command(run_folder(root)))
        assert (
            f"{path}: certificate format {CERTIFICATE_FORMAT - 1}, this release reads {CERTIFICATE_FORMAT}; " in found
        )


@dataclasses.dataclass
class BareGPT:
    """The base without adapters; a `LanguageModel` as far as scoring goes.

    Its head may carry columns of zeros, as many as an adapter would add: sums of other lengths round otherwise.
    """

    gpt: GPT
    zero_columns: int = 0
    vocab_size: int = VOCABULARY
    context_length: int = CONTEXT

    def hidden(self, tokens_NT: Tensor, *, training: bool = False) -> Tensor:
        return AdaptedModel(self.gpt, None).hidden(tokens_NT)

    def target_scores(self, hidden_KC: Tensor, targets_K: Tensor) -> tuple[Tensor, Tensor]:
        if not self.zero_columns:
            return AdaptedModel(self.gpt, None).target_scores(hidden_KC, targets_K)
        weight_VC = self.gpt.weight("wte.weight")
        down_KR, up_VR = (torch.zeros(len(side), self.zero_columns) for side in (hidden_KC, weight_VC))
        return head_target_scores(hidden_KC, weight_VC, down_KR, up_VR, targets_K)


def bare_network(settings: config.Settings, root: Path) -> GPT:
    gpt = GPT(settings.model, VOCABULARY)
    gpt.load(load_base(settings, 2, VOCABULARY, root).weights)
    return gpt


def run_of(root: Path, settings: config.Settings, allocation: str) -> Run:
    spec = config.RunSpec(budget=40, allocation=allocation, seed=2)
    return build_run(settings, spec, open_target(settings, root), root, CPU)


def splits_of(run: Run) -> list[tuple[int, ...]]:
    """Gates all for A, all for B, and in between."""
    sizes = np.array([gate.size for gate in run.subspace.gates], dtype=int)
    return [tuple(int(size) for size in share * sizes) for share in (0, 1)] + [tuple(int(k) for k in sizes // 3)]


@pytest.mark.parametrize("init", ["zero_b", "both_random"])
@pytest.mark.parametrize("allocation", ["uniform", "fixed-0.2", "learned"])
def test_at_w_0_a_run_is_its_base_whatever_its_gates(finished: Path, init: str, allocation: str) -> None:
    settings = base_settings(TRAINED, lora={"init": init})
    run = run_of(finished, settings, allocation)
    gpt = bare_network(settings, finished)
    tokens_NT = torch.arange(2 * CONTEXT).view(2, CONTEXT)
    documents = [run.dataset.document("test", i) for i in range(10)]
    padded = BareGPT(gpt, zero_columns=settings.lora.rank * (2 if init == "both_random" else 1))
    expected, plain = (score_documents(bare, documents, run.scoring_rule, CPU) for bare in (padded, BareGPT(gpt)))
    models = [run.decoded(np.zeros(40, dtype=np.float32), split) for split in splits_of(run)]
    for model in [*models, run.model_at(torch.zeros(40))]:
        assert torch.equal(model.hidden(tokens_NT), gpt.hidden(tokens_NT))
        found = score_documents(model, documents, run.scoring_rule, CPU)
        np.testing.assert_array_equal(found.log_p_S, expected.log_p_S)
        np.testing.assert_array_equal(found.rank_S, expected.rank_S)
        np.testing.assert_allclose(found.log_p_S, plain.log_p_S, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("init", "allocation"), [("zero_b", "uniform"), ("both_random", "learned")])
def test_the_frozen_base_s_row_is_that_of_the_bare_network(finished: Path, init: str, allocation: str) -> None:
    settings = base_settings(TRAINED, lora={"init": init})
    run = run_of(finished, settings, allocation)
    row = frozen_base_row(run)
    bare = BareGPT(bare_network(settings, finished))
    smoothing = next(one for one in run.loss.candidates if one.name == row.smoothing)

    def mean_loss(split: str, count: int) -> float:
        documents = [run.dataset.document(split, i) for i in range(count)]
        scores = score_documents(bare, documents, run.scoring_rule, CPU)
        return float(scores.losses_DA([smoothing], VOCABULARY).mean())

    assert row.test_loss_bits == pytest.approx(mean_loss("test", settings.scoring.test_documents), abs=1e-5)
    assert row.val_loss_bits == pytest.approx(mean_loss("val", settings.scoring.val_documents), abs=1e-5)
    assert row.code_bits == np.ceil(np.log2(len(run.loss.candidates)))
    assert row.empirical_loss_bits < row.bound_bits


def test_a_pretrained_base_goes_through_all_commands(finished: Path, tmp_path: Path) -> None:
    """The bound's record carries the statement of independence; another statement asks for scoring alone."""
    transformers = pytest.importorskip("transformers")
    model = base_settings(PRETRAINED).model
    sizes = {"n_layer": model.n_layer, "n_head": model.n_head, "n_embd": model.n_embd}
    description = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=model.context_length, **sizes)
    transformers.GPT2LMHeadModel(description).save_pretrained(tmp_path / PRETRAINED["path"])
    # The target of the trained base leaves texts out, so this one has data of its own.
    settings = base_settings(PRETRAINED)
    prepare_all(settings, tmp_path)
    make_base(settings, root=tmp_path)
    folder = run_folder(tmp_path)
    train_run(settings, SPEC, root=tmp_path, out=folder)
    score_run(folder)
    bound_run(folder)
    assert verify_run(folder).verified
    bounds = json.loads((folder / "bounds.json").read_text(encoding="utf-8"))
    assert bounds["base"]["kind"] == "pretrained"
    assert bounds["base"]["independence"] == PRETRAINED["independence"]

"""A base whose attention sees the whole text: refused by its architecture, and found where it is scored.

The prover's losses, draws, hashes and bounds are all consistent, so nothing but the test of causality can find it.
"""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_samples import LLAMA, pretrained_root, pretrained_values, tiny_model

from sublora import config
from sublora.data.prepare import prepare_all
from sublora.losses.causality import CausalityTest
from sublora.models import architectures, huggingface
from sublora.runs.base import make_base
from sublora.runs.bound import bound_run
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify.files import Claim, Options
from sublora.runs.verify.verify import LOOKS_AHEAD, verify_and_print, verify_claim
from sublora.runs.yardsticks import make_yardsticks
from sublora.system.errors import UserError

pytest.importorskip("transformers")

SPEC = config.RunSpec(budget=40, allocation="uniform", seed=1)
ANCHORED = {
    "anchor": "base",
    "anchor_k0": 12,
    "base_documents": 60,
    "documents": 40,
    "smoothing": ["document(2)", "document(4)"],
}
DELTA = {"delta_base": 0.01, "delta_base_sample": 0.009, "delta_excess_sample": 0.036}


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a finished, anchored run on a Gemma whose attention is bidirectional, made without our refusals."""
    root = tmp_path_factory.mktemp("forged")
    path = pretrained_root(root)
    model = tiny_model("Gemma", 300, **LLAMA | {"head_dim": 8, "use_bidirectional_attention": True})
    model.save_pretrained(root / "model")  # type: ignore[operator]
    values = pretrained_values()
    values["scoring"] |= ANCHORED
    values["bound"] |= DELTA
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    settings = config.load_settings(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "_NEVER", ())
        patch.setattr(huggingface, "_check_form", lambda module, folder: None)
        patch.setattr(CausalityTest, "refusal", None)
        prepare_all(settings, root)
        make_base(settings, root=root)
        make_yardsticks(settings, root=root)
        out = root / "results/runs" / SPEC.name
        train_run(settings, SPEC, root=root, out=out)
        score_run(out, config_path=path)
        bound_run(out, config_path=path)
    return root


def test_every_command_refuses_the_architecture(forged: Path) -> None:
    claim, settings = Claim.of(forged / "results/runs" / SPEC.name), config.load_settings(forged / "config/config.yaml")
    words = "use_bidirectional_attention is True: its attention looks ahead"
    for command in (
        lambda: make_base(settings, root=forged),
        lambda: score_run(forged / "results/runs" / SPEC.name),
        lambda: verify_claim(claim, Options()),
    ):
        with pytest.raises(UserError, match=words):
            command()


def test_verify_finds_the_leak_that_the_list_let_through(forged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else agrees, and no bound is stated."""
    monkeypatch.setattr(architectures, "_NEVER", ())
    path = forged / "verdict.json"
    claim = Claim.of(forged / "results/runs" / SPEC.name)
    assert verify_and_print(claim, Options(redraw=20, nonce="x"), json_path=path) == 1
    verdict = json.loads(path.read_text())
    assert verdict["differs_in"] == [LOOKS_AHEAD]
    assert verdict["bounds_from_own_losses"] == {}


def test_score_and_yardsticks_refuse_the_leak_that_the_list_let_through(
    forged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architectures, "_NEVER", ())
    with pytest.raises(UserError, match="predictions depend on later tokens, or on the length of the text, at"):
        score_run(forged / "results/runs" / SPEC.name)
    with pytest.raises(UserError, match="^base [0-9a-f]{12}...: predictions depend on later tokens"):
        make_yardsticks(config.load_settings(forged / "config/config.yaml"), root=forged)

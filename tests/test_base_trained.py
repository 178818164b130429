"""A base that is trained: the gradients of every weight, the same bytes however it is interrupted, and that it learns.

Shape legend: N sequences, T positions, K scored positions, C width, H heads, R rank, V vocabulary.
"""

import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from base_samples import (
    KILLED,
    TRAINED,
    VOCABULARY,
    base_bytes,
    base_settings,
    die_at,
    outcome,
    prepared_root,
    root_of_its_own,
    start_in_child,
)
from killing import exit_status
from torch import Tensor

from sublora import config
from sublora.data.base_and_target import base_data
from sublora.data.corpora.markov import MarkovSource
from sublora.data.dataset import TokenDataset
from sublora.losses.windows import evaluation_chunks
from sublora.models import head
from sublora.models.adapted import AdaptedModel
from sublora.models.gpt import GPT
from sublora.models.weights import load_weights, random_weights, weight_shapes
from sublora.runs.base import make_base
from sublora.system.names import BASE_JSON_NAME, BASE_WEIGHTS_NAME
from sublora.training import checkpoint
from sublora.training.resumable import Interrupted


@pytest.fixture(scope="module")
def base_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_root(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def whole(base_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose training nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    make_base(base_settings(TRAINED), root=base_root, out=out)
    return out


def saved_steps(out: Path) -> list[int]:
    return [checkpoint.load(path)["history"]["step"] for path in (out / "state").glob("*.pt")]


def plain_loss(weights: dict[str, Tensor], tokens_NT: Tensor, targets_NT: Tensor, model: config.Model) -> Tensor:
    """GPT-2's mean cross-entropy in nats, written out, all logits at once."""
    n, t = tokens_NT.shape

    def norm(x: Tensor, name: str) -> Tensor:
        deviation = x - x.mean(-1, keepdim=True)
        scaled = deviation / (deviation.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    future_TT = torch.ones(t, t, dtype=torch.bool).triu(1)
    x = weights["wte.weight"][tokens_NT] + weights["wpe.weight"][:t]
    for layer in range(model.n_layer):
        split = linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn").chunk(3, -1)
        query, key, value = (part.view(n, t, model.n_head, -1).transpose(1, 2) for part in split)
        scores = query @ key.transpose(2, 3) / math.sqrt(model.n_embd / model.n_head)
        mixed = scores.masked_fill(future_TT, -math.inf).softmax(-1) @ value
        x = x + linear(mixed.transpose(1, 2).reshape(n, t, -1), f"h.{layer}.attn.c_proj")
        hidden = linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc")
        hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + linear(hidden, f"h.{layer}.mlp.c_proj")
    logits = norm(x, "ln_f") @ weights["wte.weight"].T
    return F.cross_entropy(logits.flatten(0, 1), targets_NT.flatten())


def test_gradients_of_all_weights_equal_those_of_a_plain_network() -> None:
    """The reference works in float64."""
    model = base_settings(TRAINED).model
    rng = np.random.default_rng(0)
    shapes = weight_shapes(model, VOCABULARY)
    values = {name: torch.from_numpy(0.3 * rng.standard_normal(shape)) for name, shape in shapes.items()}
    tokens_NT, targets_NT = torch.from_numpy(rng.integers(0, VOCABULARY, (2, 3, model.context_length)))
    used = {name: value.float().requires_grad_() for name, value in values.items()}
    gpt = GPT(model, VOCABULARY)
    gpt.place(used)
    adapted = AdaptedModel(gpt, None)
    loss = adapted.cross_entropy(adapted.hidden(tokens_NT).flatten(0, 1), targets_NT.flatten())
    gradients = torch.autograd.grad(loss, list(used.values()))
    plain = {name: value.requires_grad_() for name, value in values.items()}
    expected_loss = plain_loss(plain, tokens_NT, targets_NT, model)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)
    for name, got, wanted in zip(
        plain, gradients, torch.autograd.grad(expected_loss, list(plain.values())), strict=True
    ):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("chunk_elements", [1, 11 * 7, 1 << 20])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_head_s_weight_has_the_gradient_of_plain_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, chunk_elements: int, rank: int, padded: bool
) -> None:
    """W trained, alone and beside an adapter; in chunks and pieces; padded as on a GPU."""
    monkeypatch.setitem(head.LOGITS_AT_ONCE, "cpu", chunk_elements)
    monkeypatch.setitem(head.ROWS_AT_LEAST, "cpu", 4)
    if padded:
        monkeypatch.setitem(head.VOCABULARY_MULTIPLE, "cpu", 8)
        monkeypatch.setitem(head.WIDTH_MULTIPLE, "cpu", 8)
    generator = torch.Generator().manual_seed(0)
    shapes = {"hidden": (23, 6), "weight": (11, 6)} | ({"down": (23, rank), "up": (11, rank)} if rank else {})
    exact = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }
    targets_K = torch.randint(0, 11, (23,), generator=generator)
    weights_K = torch.rand(23, generator=generator)
    used = {name: value.detach().float().requires_grad_() for name, value in exact.items()}
    loss = head.head_cross_entropy(
        used["hidden"],
        used["weight"],
        used.get("down"),
        used.get("up"),
        targets_K,
        position_weights_K=weights_K,
        smoothing=smoothing,
    )
    gradients = torch.autograd.grad(3.0 * loss, list(used.values()))
    logits_KV = exact["hidden"] @ exact["weight"].T + (exact["down"] @ exact["up"].T if rank else 0.0)
    log_p_K = -F.cross_entropy(logits_KV, targets_K, reduction="none")
    expected = (weights_K.double() * -((1 - smoothing) * log_p_K.exp() + smoothing / 11).log()).sum()
    for got, wanted in zip(gradients, torch.autograd.grad(3.0 * expected, list(exact.values())), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_batch_has_the_same_gradient_in_any_number_of_pieces(base_root: Path, tmp_path: Path) -> None:
    """A large epsilon makes the step proportional to the gradient: rounding errors stay rounding errors."""
    found = []
    for rows in (2, 8):
        gentle = TRAINED | {"epsilon": 1.0, "learning_rate": 1.0, "final_learning_rate": 1.0, "gradient_clip": 1e9}
        settings = base_settings(gentle | {"micro_batch_sequences": rows, "steps": 3})
        make_base(settings, root=base_root, out=tmp_path / str(rows))
        found.append(load_weights(tmp_path / str(rows) / BASE_WEIGHTS_NAME, settings.model, VOCABULARY))
    start = random_weights(settings.model, VOCABULARY, TRAINED["seed"])
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], rtol=1e-5, atol=1e-6)
    assert np.abs(found[0]["wte.weight"] - start["wte.weight"]).max() > 1e-3


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    base_root: Path, whole: Path, tmp_path: Path
) -> None:
    make_base(base_settings(TRAINED), root=base_root, out=tmp_path / "again")
    assert outcome(tmp_path / "again") == outcome(whole)
    make_base(base_settings(TRAINED | {"seed": 8}), root=base_root, out=tmp_path / "other")
    assert base_bytes(tmp_path / "other")[1] != base_bytes(whole)[1]


def test_a_training_killed_again_and_again_ends_with_the_same_bytes(
    base_root: Path, whole: Path, tmp_path: Path
) -> None:
    """Before the first save, after it, between saves, in the last step."""
    settings, out = base_settings(TRAINED), tmp_path / "killed"
    for step, saved in {2: [], 4: [4], 7: [4], 11: [8]}.items():
        assert exit_status(start_in_child(settings, root=base_root, out=out, before_step=die_at(step))) == KILLED
        assert saved_steps(out) == saved
        assert not (out / BASE_JSON_NAME).exists()
    assert exit_status(start_in_child(settings, root=base_root, out=out)) == 0
    assert outcome(out) == outcome(whole)
    assert not (out / "state").exists()


@pytest.mark.parametrize(
    ("step", "writing", "saved"),
    [(0, ".pt", []), (5, ".pt", [4]), (11, BASE_WEIGHTS_NAME, [8]), (11, BASE_JSON_NAME, [8])],
)
def test_a_half_written_file_does_not_count(
    base_root: Path, whole: Path, tmp_path: Path, step: int, writing: str, saved: list[int]
) -> None:
    """Killed when a state, the weights or base.json are written but have not taken their names."""
    settings, out = base_settings(TRAINED), tmp_path / "killed"
    before_step = die_at(step, writing=writing)
    assert exit_status(start_in_child(settings, root=base_root, out=out, before_step=before_step)) == KILLED
    assert saved_steps(out) == saved
    assert not (out / BASE_JSON_NAME).exists()
    assert exit_status(start_in_child(settings, root=base_root, out=out)) == 0
    assert outcome(out) == outcome(whole)


def test_a_kill_while_a_base_is_replaced_leaves_none_that_is_half_new(
    base_root: Path, whole: Path, tmp_path: Path
) -> None:
    """An older base lies there: base.json goes before the weights change."""
    out = tmp_path / "killed"
    make_base(base_settings(TRAINED | {"seed": 8}), root=base_root, out=out)
    settings, before_step = base_settings(TRAINED), die_at(0, writing=BASE_JSON_NAME)
    assert exit_status(start_in_child(settings, root=base_root, out=out, before_step=before_step)) == KILLED
    assert not (out / BASE_JSON_NAME).exists()
    make_base(settings, root=base_root, out=out)
    assert outcome(out) == outcome(whole)


def test_sigterm_saves_the_state_and_gives_the_signal_s_exit_status(
    base_root: Path, whole: Path, tmp_path: Path
) -> None:
    settings, out = base_settings(TRAINED), tmp_path / "stopped"
    with pytest.raises(Interrupted) as caught:
        make_base(settings, root=base_root, out=out, before_step=signal_at(5))
    assert caught.value.code == 128 + signal.SIGTERM
    assert saved_steps(out) == [6]
    make_base(settings, root=base_root, out=out)
    assert outcome(out) == outcome(whole)


def test_the_state_of_other_settings_is_left_alone(
    base_root: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        make_base(base_settings(TRAINED), root=base_root, out=out, before_step=signal_at(5))
    (state,) = (out / "state").glob("*.pt")
    before = state.read_bytes()
    with pytest.raises(Interrupted):
        make_base(base_settings(TRAINED | {"seed": 8}), root=base_root, out=out, before_step=signal_at(2))
    assert f"not resuming from {state.name}, a state of other settings or data" in capfd.readouterr().err
    assert sorted(saved_steps(out)) == [3, 6]
    assert state.read_bytes() == before
    make_base(base_settings(TRAINED), root=base_root, out=out)
    assert "resuming at step 6" in capfd.readouterr().err
    assert outcome(out) == outcome(whole)


def signal_at(step: int, number: int = signal.SIGTERM):
    return lambda now: os.kill(os.getpid(), number) if now == step else None


def test_the_process_that_waits_takes_the_result_of_the_other(base_root: Path, whole: Path, tmp_path: Path) -> None:
    out, steps = tmp_path / "out", tmp_path / "steps.txt"

    def counted(step: int) -> None:
        with open(steps, "a") as file:
            file.write(f"{step}\n")
        time.sleep(0.02)

    settings = base_settings(TRAINED)
    children = [start_in_child(settings, root=base_root, out=out, before_step=counted) for _ in range(3)]
    assert [exit_status(child) for child in children] == [0, 0, 0]
    assert steps.read_text().split() == [str(step) for step in range(TRAINED["steps"])]
    assert outcome(out) == outcome(whole)


def test_the_process_that_waits_for_another_base_makes_its_own(base_root: Path, whole: Path, tmp_path: Path) -> None:
    """The first process trains with other settings; its result is not taken."""
    out, started = tmp_path / "out", tmp_path / "started"

    def slow(step: int) -> None:
        started.touch()
        time.sleep(0.02)

    other = start_in_child(base_settings(TRAINED | {"seed": 8}), root=base_root, out=out, before_step=slow)
    while not started.exists():
        time.sleep(0.005)
    make_base(base_settings(TRAINED), root=base_root, out=out)
    assert exit_status(other) == 0
    assert outcome(out) == outcome(whole)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_learns_in_either_type_and_its_weights_are_float32(
    base_root: Path, tmp_path: Path, dtype: str
) -> None:
    """Below the entropy of one symbol, which no model without context reaches; base.json says the loss of the file."""
    longer = TRAINED | {"steps": 80, "tokens_per_step": 512, "micro_batch_sequences": 16, "eval_sequences": 64}
    settings = base_settings(longer, compute={"dtype": dtype})
    facts = json.loads(make_base(settings, root=base_root, out=tmp_path).read_text(encoding="utf-8"))
    source = MarkovSource(settings.base.corpus)
    assert source.entropy_rate_bits < facts["val_loss_bits"] < source.symbol_entropy_bits < math.log2(VOCABULARY) / 2

    weights = load_weights(tmp_path / BASE_WEIGHTS_NAME, settings.model, VOCABULARY)
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    assert any(not torch.equal(value.bfloat16().float(), value) for value in tensors.values())
    tokens = TokenDataset.open(base_root, base_data(settings)).tokens("val")
    ((inputs, targets),) = evaluation_chunks(tokens, settings.model.context_length, 64, 64)
    loss = plain_loss(tensors, torch.from_numpy(inputs), torch.from_numpy(targets), settings.model)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    assert facts["val_loss_bits"] == pytest.approx(float(loss) / math.log(2), abs=tolerance)


def test_small_steps_are_not_lost_in_bfloat16(base_root: Path, tmp_path: Path) -> None:
    """Steps a hundred times smaller than bfloat16 resolves near 1, where the norms' weights start, add up."""
    rate = 2e-5
    tiny_steps = TRAINED | {"learning_rate": rate, "final_learning_rate": rate, "warmup_fraction": 0.0}
    settings = base_settings(tiny_steps, compute={"dtype": "bfloat16"})
    make_base(settings, root=base_root, out=tmp_path)
    moved = load_weights(tmp_path / BASE_WEIGHTS_NAME, settings.model, VOCABULARY)["h.0.ln_1.weight"] - 1.0
    assert rate < np.abs(moved).max() < 2.0**-8


def test_the_default_place_is_below_the_root(base_root: Path, whole: Path, tmp_path: Path) -> None:
    root = root_of_its_own(base_root, tmp_path / "root")
    assert make_base(base_settings(TRAINED), root=root) == root / "results/base" / BASE_JSON_NAME
    assert base_bytes(root / "results/base") == base_bytes(whole)

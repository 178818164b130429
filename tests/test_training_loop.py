"""Training: determinism, resume, comparability of the arms, and what is refused."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from conftest import TINY, build_on, demo_values, merged

from sublora import config
from sublora.data.dataset import TokenDataset
from sublora.models.adapted import AdaptedModel
from sublora.models.gpt import GPT
from sublora.runs import train as train_stage
from sublora.system.digests import tensors_sha256
from sublora.system.errors import UserError
from sublora.system.locks import LOCK_NAME, Presence, sole_writer
from sublora.system.names import CHECKPOINT_NAME
from sublora.training import checkpoint
from sublora.training.loop import Trainer
from sublora.training.reporting import Progress
from sublora.training.resumable import BeforeStep, Interrupted
from sublora.training.step import AdamW, learning_rate

ALLOCATIONS = ["uniform", "fixed-0.2", "learned"]


def settings_with(changes: dict | None = None) -> config.Settings:
    return config.parse_settings(merged(merged(demo_values(), TINY), changes or {}), source="tiny")


def run_of(allocation: str, seed: int = 1) -> config.RunSpec:
    return config.RunSpec(budget=40, allocation=allocation, seed=seed)


def train(root, out, allocation="uniform", changes=None, seed=1, before_step: BeforeStep | None = None) -> dict:
    spec = run_of(allocation, seed)
    path = train_stage.train_run(settings_with(changes), spec, root=root, out=out, before_step=before_step)
    return checkpoint.load(path)


def trainer_in(root, out, before_step: Callable[[Trainer, int], None]) -> Trainer:
    """The uniform arm, to be trained; the callback may change what is trained."""
    run = build_on(root, settings_with(), run_of("uniform"))
    progress = Progress(run.spec.name, steps=20, tokens_per_step=128, quiet=True)
    trainer = Trainer(run, out=out, progress=progress, before_step=lambda step: before_step(trainer, step))
    return trainer


def dying_at(killed_at: int) -> BeforeStep:
    def die(step: int) -> None:
        if step == killed_at:
            raise KeyboardInterrupt

    return die


def rows_of(path) -> list[dict[str, str]]:
    header, *lines = path.read_text().splitlines()
    return [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_same_job_gives_the_same_bytes(tiny_root, tmp_path, allocation):
    first, second = (train(tiny_root, tmp_path / name, allocation) for name in "ab")
    assert tensors_sha256(first["raw_model"].items()) == tensors_sha256(second["raw_model"].items())
    assert {k: v for k, v in first.items() if k not in ("raw_model", "provenance")} == {
        k: v for k, v in second.items() if k not in ("raw_model", "provenance")
    }
    assert first["raw_model"]["subspace_params"].abs().max() > 0
    assert not (tmp_path / "a" / "state").exists()


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("killed_at", [3, 9, 18])
def test_killed_training_resumes_to_the_same_bytes(tiny_root, tmp_path, allocation, killed_at):
    """Dropped before, between and after saves, with dropout's random numbers in play."""
    changes = {"lora": {"dropout": 0.2}}
    whole = train(tiny_root, tmp_path / "whole", allocation, changes)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_root, tmp_path / "killed", allocation, changes, before_step=dying_at(killed_at))
    assert not (tmp_path / "killed" / CHECKPOINT_NAME).exists()
    resumed = train(tiny_root, tmp_path / "killed", allocation, changes)
    assert tensors_sha256(resumed["raw_model"].items()) == tensors_sha256(whole["raw_model"].items())
    assert resumed["step"] == whole["step"]
    whole_rows, resumed_rows = (rows_of(tmp_path / name / "metrics.csv") for name in ("whole", "killed"))
    timing = {"tokens_per_second", "seconds"}
    assert [{k: v for k, v in row.items() if k not in timing} for row in whole_rows] == [
        {k: v for k, v in row.items() if k not in timing} for row in resumed_rows
    ]
    traces = [(tmp_path / name / "gating_trace.csv").read_bytes() for name in ("whole", "killed")]
    assert traces[0] == traces[1]


def test_sigterm_saves_and_exits(tiny_root, tmp_path):
    whole = train(tiny_root, tmp_path / "whole")

    def be_asked_to_stop(step: int) -> None:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stopped:
        train(tiny_root, tmp_path / "stopped", before_step=be_asked_to_stop)
    assert stopped.value.code == 128 + signal.SIGTERM
    (state,) = (tmp_path / "stopped" / "state").glob("*.pt")
    assert checkpoint.load(state)["history"]["step"] == 7
    resumed = train(tiny_root, tmp_path / "stopped")
    assert tensors_sha256(resumed["raw_model"].items()) == tensors_sha256(whole["raw_model"].items())


@pytest.mark.parametrize("init", ["zero_b", "both_random"])
def test_arms_start_alike(tiny_root, tmp_path, monkeypatch, init):
    """For one seed every arm has the same base, LoRA init, batches and optimizer steps, and starts from w = 0.

    Batches are those that reach the network, the init is what it is given with the first of them.
    """
    facts: dict[str, list] = {}
    hidden, cross_entropy, optimizer_step = GPT.hidden, AdaptedModel.cross_entropy, AdamW.step

    def watched_hidden(self, tokens_NT, adapters, **options):
        if torch.is_grad_enabled():
            facts["inputs"].append(tokens_NT.clone())
            if len(facts["inputs"]) == 1:
                names = (("0", "query"), ("1", "value"), ("head", "head"))
                facts["factors"] = [factor for name in names for factor in adapters.pair(*name)]
        return hidden(self, tokens_NT, adapters, **options)

    def watched_cross_entropy(self, hidden_KC, targets_K, **options):
        if torch.is_grad_enabled():
            facts["targets"].append(targets_K.clone())
        return cross_entropy(self, hidden_KC, targets_K, **options)

    def counted_step(self):
        facts["steps"].append(self.param_groups[0]["lr"])
        optimizer_step(self)

    monkeypatch.setattr(GPT, "hidden", watched_hidden)
    monkeypatch.setattr(AdaptedModel, "cross_entropy", watched_cross_entropy)
    monkeypatch.setattr(AdamW, "step", counted_step)
    arms = {}
    settings = settings_with({"lora": {"init": init}})
    for allocation in ("uniform", "fixed-0.2", "fixed-0.5", "fixed-0.8", "learned"):
        facts |= {"inputs": [], "targets": [], "steps": []}
        run = build_on(tiny_root, settings, run_of(allocation))
        subspace = run.subspace
        facts["start"] = [subspace.subspace_params.detach().clone(), subspace.origin_D.clone()]
        facts["gamma"] = subspace.gamma().tolist() if subspace.gates else []
        assert not bool(subspace.subspace_params.any()) and facts["gamma"] == [0.5] * len(facts["gamma"])
        progress = Progress("x", steps=20, tokens_per_step=128, quiet=True)
        Trainer(run, out=tmp_path / allocation, progress=progress).train()
        arms[allocation] = facts | {"base": run.network.base_sha256}
    assert len(arms["learned"]["gamma"]) == 3
    reference = arms["uniform"]
    assert len(reference["steps"]) == 20 and len(reference["inputs"]) == len(reference["targets"]) == 40
    for arm in arms.values():
        assert arm["base"] == reference["base"] and arm["steps"] == reference["steps"]
        for name in ("inputs", "targets", "factors", "start"):
            assert all(torch.equal(a, b) for a, b in zip(arm[name], reference[name], strict=True))


def test_first_loss_does_not_depend_on_the_arm_or_the_init(tiny_root, tmp_path):
    losses = set()
    for init in ("zero_b", "both_random"):
        changes = {"lora": {"init": init}, "training": {"steps": 1, "eval_interval_steps": 1}}
        for allocation in ALLOCATIONS:
            train(tiny_root, tmp_path / init / allocation, allocation, changes)
            losses.add(rows_of(tmp_path / init / allocation / "metrics.csv")[0]["train_loss_bits"])
    assert len(losses) == 1


def test_micro_batches_do_not_change_the_gradient(tiny_root, tmp_path):
    whole, pieces = (
        train(tiny_root, tmp_path / str(n), changes={"training": {"micro_batch_sequences": n}}) for n in (8, 2)
    )
    torch.testing.assert_close(
        whole["raw_model"]["subspace_params"], pieces["raw_model"]["subspace_params"], rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_best_checkpoint_is_the_best_of_the_hard_phase(tiny_root, tmp_path, allocation):
    changes = {"training": {"learning_rate": 0.5, "final_learning_rate": 0.5, "eval_interval_steps": 1}}
    best = train(tiny_root, tmp_path, allocation, changes)
    soft_steps = 16 if allocation == "learned" else 0
    rows = [row for row in rows_of(tmp_path / "metrics.csv") if int(row["step"]) > soft_steps]
    wanted = min(rows, key=lambda row: float(row["val_loss_bits"]))
    assert best["step"] == int(wanted["step"])
    assert best["val_loss_bits"] == pytest.approx(float(wanted["val_loss_bits"]), rel=1e-6)


def test_gate_trace_ends_on_integer_splits(tiny_root, tmp_path):
    train(tiny_root, tmp_path, "learned")
    rows = rows_of(tmp_path / "gating_trace.csv")
    assert {row["group"] for row in rows} == {"0", "1", "head"}
    last = [row for row in rows if row["step"] == "20"]
    assert all(float(row["mask_width"]) == 0.0 for row in last)
    assert all(float(row["gamma"]) * 40 == pytest.approx(round(float(row["gamma"]) * 40), abs=1e-5) for row in last)


def test_gate_signal_is_written_while_masks_are_soft(tiny_root, tmp_path):
    """16 soft steps of 20, a row every 5: the last row's window holds a single gradient, which has no spread."""
    train(tiny_root, tmp_path, "learned")
    rows = rows_of(tmp_path / "gating_trace.csv")
    for row in rows:
        assert (row["gradient_snr"] == "") == (row["step"] == "20")
        assert row["step"] == "20" or float(row["gradient_snr"]) > 0.0


def test_training_lowers_the_loss(tiny_root, tmp_path):
    train(tiny_root, tmp_path, changes={"training": {"steps": 60, "learning_rate": 0.05}})
    rows = rows_of(tmp_path / "metrics.csv")
    assert float(rows[-1]["val_loss_bits"]) < float(rows[0]["val_loss_bits"]) - 0.1


def test_non_finite_loss_stops_and_keeps_the_last_good_state(tiny_root, tmp_path):
    def explode(trainer: Trainer, step: int) -> None:
        if step == 6:
            trainer.run.subspace.subspace_params.data.fill_(float("inf"))

    with pytest.raises(UserError, match=r"d40_uniform_seed1: the loss is not finite .*; the state before is kept in"):
        trainer_in(tiny_root, tmp_path, explode).train()
    (state,) = (tmp_path / "state").glob("*.pt")
    assert bool(torch.isfinite(checkpoint.load(state)["subspace"]["subspace_params"]).all())


def test_state_of_another_config_is_not_used(tiny_root, tmp_path, capfd):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_root, tmp_path, before_step=dying_at(9))
    other = {"training": {"learning_rate": 0.01}}
    result = train(tiny_root, tmp_path, changes=other)
    assert "a state of other settings or data" in capfd.readouterr().err
    alone = train(tiny_root, tmp_path / "alone", changes=other)
    assert tensors_sha256(result["raw_model"].items()) == tensors_sha256(alone["raw_model"].items())


HOLD_LOCK = """
import fcntl, sys, time
with open(sys.argv[1], "w") as handle:
    fcntl.flock(handle, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(0.5)
"""


def test_second_trainer_waits_for_the_first(tmp_path):
    lock = str(tmp_path / LOCK_NAME)
    said = []
    with subprocess.Popen([sys.executable, "-c", HOLD_LOCK, lock], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with sole_writer(tmp_path, Presence(tmp_path, "training"), said.append) as waited:
            assert waited and other.wait(timeout=5) == 0
    assert said == [f"{tmp_path}: another process is at work here; waiting for it to end"]
    with sole_writer(tmp_path, Presence(tmp_path, "training"), said.append) as waited:
        assert not waited
    assert len(said) == 1


def test_result_of_the_process_waited_for_is_taken(tiny_root, tmp_path, monkeypatch):
    """After waiting, the very same training is not done twice; with other settings it is, another run is refused."""
    train(tiny_root, tmp_path)

    @contextlib.contextmanager
    def waited(out, presence, say):
        (out / "state").mkdir(exist_ok=True)
        yield True

    monkeypatch.setattr(train_stage, "sole_writer", waited)
    steps = []
    train(tiny_root, tmp_path, before_step=steps.append)
    assert steps == []
    with pytest.raises(UserError, match="the finished training of d40_uniform_seed1, with another grid point"):
        train(tiny_root, tmp_path, seed=2, before_step=steps.append)
    assert steps == []
    train(tiny_root, tmp_path, changes={"training": {"learning_rate": 0.002}}, before_step=steps.append)
    assert steps == list(range(20))


@pytest.mark.parametrize("bad", ["parameters", "loss"])
def test_a_state_that_is_not_finite_is_never_saved(tiny_root, tmp_path, bad):
    """A gradient that breaks w in the very step of a save must not replace the good state before it."""

    def explode(trainer: Trainer, step: int) -> None:
        if step != 7:
            return
        if bad == "parameters":
            trainer.run.subspace.subspace_params.register_hook(lambda gradient: gradient * float("nan"))
        else:
            trainer._loss_sum.fill_(float("nan"))

    with pytest.raises(UserError, match="not finite at step 8"):
        trainer_in(tiny_root, tmp_path, explode).train()
    (state,) = (tmp_path / "state").glob("*.pt")
    assert checkpoint.load(state)["history"]["step"] == 4


def test_keep_initialization_writes_the_start(tiny_root, tmp_path):
    train(tiny_root, tmp_path, changes={"training": {"keep_initialization": True, "steps": 1}})
    start = checkpoint.load(tmp_path / "ckpt_at_random_initialization.pt")["raw_model"]
    assert float(start["subspace_params"].abs().max()) == 0.0
    forward = checkpoint.load(tmp_path / "forward_ckpt_at_random_initialization.pt")["forward_model"]
    names = checkpoint.load(tmp_path / "names.pt")["names"]
    values = checkpoint.load(tmp_path / "trainable_initparams.pt")["trainable_initparams"]
    assert all(torch.equal(forward[name], value) for name, value in zip(names, values, strict=True))
    assert forward["wte.weight"].shape == (257, 16)


def test_checkpoint_of_another_config_is_refused(tiny_root, tmp_path):
    path = tmp_path / "best_ckpt.pt"
    own, _ = checkpoint.settings_of(train(tiny_root, tmp_path), path)
    other = settings_with({"training": {"learning_rate": 0.123}})
    with pytest.raises(UserError, match=r"another config: training.learning_rate is .* in the checkpoint, 0.123"):
        checkpoint.check_settings(own, other, path)
    checkpoint.check_settings(own, settings_with({"training": {"log_interval_steps": 3}}), path)


@pytest.mark.parametrize("damage", ["truncated", "foreign object", "not a zip", "missing"])
def test_damaged_checkpoints_are_refused(tiny_root, tmp_path, damage):
    path = tmp_path / "best_ckpt.pt"
    if damage == "truncated":
        train(tiny_root, tmp_path)
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "foreign object":
        torch.save({"format": 1, "x": threading.Thread}, path)
    elif damage == "not a zip":
        path.write_bytes(b"hello")
    with pytest.raises(UserError, match="best_ckpt.pt: "):
        checkpoint.load(path)


def test_schedule_warms_up_then_falls_along_a_cosine():
    rates = [learning_rate(s, steps=101, peak=1.0, final=0.1, warmup_steps=10) for s in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0) and rates[-1] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55)  # half way down
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_more_scored_documents_than_there_are_is_refused(tiny_root, tmp_path):
    dataset = TokenDataset.open(tiny_root, settings_with().data)
    with pytest.raises(UserError, match=f"has only {dataset.n_documents} training documents"):
        train(tiny_root, tmp_path, changes={"scoring": {"documents": 100000}})

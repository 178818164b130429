"""The training loop: AdamW on w and the gates, evaluation, best checkpoint, resume."""

import dataclasses
import math
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from sublora import config, random
from sublora.data.batches import BatchSampler, evaluation_batches
from sublora.data.dataset import TokenDataset
from sublora.device import gpu_name, peak_memory_mib
from sublora.errors import UserError
from sublora.names import CHECKPOINT_NAME, GATES_NAME, METRICS_NAME
from sublora.nn import allocation
from sublora.nn.language_model import LanguageModel
from sublora.training import checkpoint
from sublora.training.progress import Progress
from sublora.training.schedule import learning_rate
from sublora.versions import NUMERICS_VERSIONS

METRIC_COLUMNS = (
    "step",
    "tokens_seen",
    "learning_rate",
    "train_loss_bits",
    "train_eval_loss_bits",
    "val_loss_bits",
    "gradient_norm",
    "tokens_per_second",
    "seconds",
)
GATE_COLUMNS = ("step", "mask_width", "group", "gamma")
BITS_PER_NAT = 1.0 / math.log(2.0)


class Interrupted(SystemExit):
    """Training was asked to stop by a signal; its state is saved. The exit status is 128 + the signal."""


@dataclasses.dataclass
class History:
    """What a training has seen so far; plain values, so that it travels in the resume state."""

    step: int = 0
    seconds: float = 0.0
    metrics: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    gates: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    best: dict[str, Any] | None = None
    """step, losses in bits and parameters of the best evaluation so far."""


class Trainer:
    """One training run. `train()` ends with best_ckpt.pt, metrics.csv and gating_trace.csv in `out`."""

    def __init__(
        self,
        settings: config.Settings,
        run: config.RunSpec,
        dataset: TokenDataset,
        model: LanguageModel,
        *,
        device: torch.device,
        out: Path,
        progress: Progress,
    ) -> None:
        self.settings, self.run, self.dataset, self.model = settings, run, dataset, model
        self.device, self.out, self.progress = device, out, progress
        training = settings.training
        self.soft_steps = round(settings.gating.soft_fraction * training.steps) if run.mode == "learned" else 0
        self.digest = checkpoint.training_digest(settings, run, dataset.data_hash)
        context = settings.model.context_length
        self.sampler = BatchSampler(
            dataset.tokens("train"), context, training.tokens_per_step // context, run.seed, "train batches"
        )
        self.optimizer = self._build_optimizer()
        self.history = History()
        self._stop_signal: int | None = None
        self._loss_sum = torch.zeros((), device=device)
        self._loss_steps = 0

    @property
    def state_path(self) -> Path:
        return self.out / "state" / f"{self.digest[:16]}.pt"

    def train(self) -> Path:
        """Run to the last step, from the saved state if there is one, and write the results."""
        self._resume()
        training = self.settings.training
        if training.keep_initialization and self.history.step == 0:
            checkpoint.save_initialization(self.out, self.model)
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGUSR1)}
        started, seconds_before = time.monotonic(), self.history.seconds
        try:
            for step in range(self.history.step, training.steps):
                gradient_norm = self._step(step)
                self.history.step = done = step + 1
                self.history.seconds = seconds_before + time.monotonic() - started
                last = done == training.steps
                if last or done % training.eval_interval_steps == 0:
                    self._evaluate(float(gradient_norm))
                elif done % training.log_interval_steps == 0:
                    self._report()
                if (not last and done % training.save_interval_steps == 0) or self._stop_signal is not None:
                    self._save_state()
                if self._stop_signal is not None and not last:
                    raise Interrupted(128 + self._stop_signal)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._write_results()

    # One optimizer step

    def _step(self, step: int) -> Tensor:
        """Gradient over all micro-batches, clipped; returns its norm before clipping (on the device)."""
        self._set_rates(step)
        if self.settings.lora.dropout:
            torch.manual_seed(random.stream_key(self.run.seed, "dropout", step) % 2**63)
        inputs, targets = (
            torch.from_numpy(part).to(self.device, non_blocking=True) for part in self.sampler.batch(step)
        )
        rows = self.settings.training.micro_batch_sequences
        pieces = inputs.shape[0] // rows
        theta = self.model.subspace(self._mask_width(step))
        # The network sees theta as a leaf: its gradient accumulates over micro-batches, the projection runs once.
        leaf = theta.detach().requires_grad_()
        for start in range(0, inputs.shape[0], rows):
            adapters = self.model.adapters(leaf)
            part = slice(start, start + rows)
            loss = self.model.base.loss(inputs[part], targets[part], adapters, dropout=self.settings.lora.dropout)
            (loss / pieces).backward()
            self._loss_sum += loss.detach() / pieces
        self._loss_steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        theta.backward(leaf.grad)
        norm = torch.nn.utils.clip_grad_norm_(self.model.subspace.parameters(), self.settings.training.gradient_clip)
        self.optimizer.step()
        return norm

    def _build_optimizer(self) -> torch.optim.AdamW:
        training, subspace = self.settings.training, self.model.subspace
        groups: list[dict[str, Any]] = [{"params": [subspace.subspace_params], "weight_decay": training.weight_decay}]
        if self.run.mode == "learned":
            groups.append({"params": list(subspace.gating_params.values()), "weight_decay": 0.0})
        return torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, eps=training.epsilon)

    def _set_rates(self, step: int) -> None:
        training = self.settings.training
        warmup_steps = max(1, round(training.warmup_fraction * training.steps))
        rate = learning_rate(
            step,
            steps=training.steps,
            peak=training.learning_rate,
            final=training.final_learning_rate,
            warmup_steps=warmup_steps,
        )
        self.optimizer.param_groups[0]["lr"] = rate
        for group in self.optimizer.param_groups[1:]:
            group["lr"] = self.settings.gating.learning_rate * rate / training.learning_rate

    def _mask_width(self, step: int) -> float:
        gating = self.settings.gating
        return allocation.mask_width(
            step,
            budget=self.run.budget,
            start=gating.mask_width_start,
            end=gating.mask_width_end,
            soft_steps=self.soft_steps,
        )

    # Looking at the training

    def _report(self) -> None:
        self.progress.update(self.history.step, float(self._loss_sum) / self._loss_steps * BITS_PER_NAT)

    def _evaluate(self, gradient_norm: float) -> None:
        """Losses on train and val; keep the best parameters. Soft masks are never the best: they are not the model."""
        done, mask_width = self.history.step, self._mask_width(self.history.step - 1)
        train_loss_bits = self._mean_train_loss_bits()
        with torch.no_grad():
            adapters = self.model.adapters(self.model.subspace(mask_width))
            losses = {split: self._loss_bits(split, adapters) for split in ("train", "val")}
        if not all(math.isfinite(value) for value in losses.values()):
            self._refuse_non_finite()
        self._record(train_loss_bits, losses, gradient_norm, mask_width)
        last = done == self.settings.training.steps
        best_so_far = math.inf if self.history.best is None else self.history.best["val_loss_bits"]
        if mask_width == 0.0 and losses["val"] < best_so_far or (last and self.history.best is None):
            self.history.best = {
                "step": done,
                "train_loss_bits": losses["train"],
                "val_loss_bits": losses["val"],
                "raw_model": {
                    name: value.detach().cpu().clone() for name, value in self.model.subspace.state_dict().items()
                },
            }
        self.progress.update(done, train_loss_bits, val_loss_bits=losses["val"])

    def _record(
        self, train_loss_bits: float, losses: dict[str, float], gradient_norm: float, mask_width: float
    ) -> None:
        training, history = self.settings.training, self.history
        tokens = history.step * training.tokens_per_step
        history.metrics.append(
            (
                history.step,
                tokens,
                self.optimizer.param_groups[0]["lr"],
                train_loss_bits,
                losses["train"],
                losses["val"],
                gradient_norm,
                tokens / history.seconds,
                history.seconds,
            )
        )
        if self.run.mode == "learned":
            gamma = self.model.subspace.gamma().tolist()
            if mask_width == 0.0:
                gamma = (self.model.subspace.hard_split() / self.run.budget).tolist()
            for group, value in zip(self.model.layout.groups, gamma, strict=True):
                history.gates.append((history.step, mask_width, group, value))

    def _loss_bits(self, split: str, adapters: Any) -> float:
        """Mean loss in bits per token over fixed, evenly spread sequences of a split."""
        training, context = self.settings.training, self.settings.model.context_length
        total, sequences = torch.zeros((), device=self.device), 0
        tokens = self.dataset.tokens(split)
        for batch in evaluation_batches(tokens, context, training.eval_sequences, training.micro_batch_sequences):
            inputs, targets = (torch.from_numpy(part).to(self.device) for part in batch)
            total += self.model.base.loss(inputs, targets, adapters) * inputs.shape[0]
            sequences += inputs.shape[0]
        return float(total) / sequences * BITS_PER_NAT

    def _mean_train_loss_bits(self) -> float:
        value = float(self._loss_sum) / self._loss_steps * BITS_PER_NAT
        self._loss_sum.zero_()
        self._loss_steps = 0
        if not math.isfinite(value):
            self._refuse_non_finite()
        return value

    def _refuse_non_finite(self) -> None:
        saved = (
            f"the state before is kept in {self.state_path}" if self.state_path.exists() else "no state was saved yet"
        )
        raise UserError(
            f"{self.run.name}: the loss is not finite at step {self.history.step}; {saved}; "
            "lower training.learning_rate or training.gradient_clip"
        )

    # Stopping and going on

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_signal = number

    def _save_state(self) -> None:
        finite = torch.isfinite(self._loss_sum) & torch.isfinite(self.model.subspace.subspace_params).all()
        if not bool(finite):
            self._refuse_non_finite()
        checkpoint.save(
            self.state_path,
            {
                "format": checkpoint.CHECKPOINT_FORMAT,
                "digest": self.digest,
                "history": dataclasses.asdict(self.history),
                "loss_sum": self._loss_sum.cpu(),
                "loss_steps": self._loss_steps,
                "subspace": self.model.subspace.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def _resume(self) -> None:
        """Load the state of these very settings; states of other settings are left alone and said."""
        folder = self.state_path.parent
        others = [path for path in sorted(folder.glob("*.pt")) if path != self.state_path]
        if others:
            self.progress.say(f"{folder}: not resuming from {others[0].name}, a state of other settings or data")
        if not self.state_path.exists():
            return
        state = checkpoint.load(self.state_path)
        if state["digest"] != self.digest:
            raise UserError(f"{self.state_path}: resume state of another config; delete it")
        self.history = History(**state["history"])
        self._loss_sum.copy_(state["loss_sum"])
        self._loss_steps = state["loss_steps"]
        self.model.subspace.load_state_dict(state["subspace"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress.say(f"resuming at step {self.history.step}")

    def _write_results(self) -> Path:
        best = self.history.best
        if best is None:
            raise RuntimeError("the last evaluation always keeps a checkpoint")
        path = self.out / CHECKPOINT_NAME
        checkpoint.write_csv(self.out / METRICS_NAME, METRIC_COLUMNS, self.history.metrics)
        checkpoint.write_csv(self.out / GATES_NAME, GATE_COLUMNS, self.history.gates)
        checkpoint.save(
            path,
            {
                "format": checkpoint.CHECKPOINT_FORMAT,
                **best,
                "settings": self.settings.model_dump(mode="json"),
                "run": self.run.model_dump(mode="json"),
                "digest": self.digest,
                "base_sha256": self.model.base_sha256,
                "data_hash": self.dataset.data_hash,
                "vocab_size": self.dataset.vocab_size,
                "numerics_version": NUMERICS_VERSIONS["train"],
                "provenance": self._provenance(),
            },
        )
        return path

    def _provenance(self) -> dict[str, Any]:
        """Facts that differ from machine to machine; nothing reads them but reports."""
        return {
            "seconds": self.history.seconds,
            "peak_memory_mib": peak_memory_mib(self.device),
            "gpu": gpu_name(self.device),
            "python": sys.version.split()[0],
            "torch": str(torch.__version__),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        }

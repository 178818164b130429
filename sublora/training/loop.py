"""The training loop: AdamW on w, the gates and the quantization step; evaluation, best checkpoint, resume."""

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
from torch.func import functional_call

from sublora import config, random
from sublora.data.batches import BatchSampler, evaluation_batches
from sublora.data.dataset import TokenDataset
from sublora.device import gpu_name, peak_memory_mib
from sublora.errors import UserError
from sublora.names import CHECKPOINT_NAME, GATES_NAME, METRICS_NAME
from sublora.nn import allocation
from sublora.nn.language_model import LanguageModel
from sublora.nn.lora import Adapters
from sublora.training import checkpoint
from sublora.training.code_phase import CodePhase
from sublora.training.distributed import Peers
from sublora.training.gate_signal import GateSignal
from sublora.training.history import GATE_COLUMNS, METRIC_COLUMNS, History
from sublora.training.optimizer import AdamW
from sublora.training.prefetch import Prefetcher
from sublora.training.progress import Progress
from sublora.training.schedule import learning_rate
from sublora.versions import CHECKPOINT_FORMAT, NUMERICS_VERSIONS

BITS_PER_NAT = 1.0 / math.log(2.0)


class Interrupted(SystemExit):
    """Training was asked to stop by a signal; its state is saved. The exit status is 128 + the signal."""


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
        peers: Peers | None = None,
    ) -> None:
        """`peers`: the processes that share the training; every one of them calls `train()`, the first one writes."""
        self.peers = peers or Peers()
        self.settings, self.run, self.dataset, self.model = settings, run, dataset, model
        self.device, self.out, self.progress = device, out, progress
        training = settings.training
        self.soft_steps = round(settings.gating.soft_fraction * training.steps) if run.mode == "learned" else 0
        entropy = settings.message.quantizer == "entropy"
        self.code = CodePhase(settings, run, dataset, model, device) if entropy else None
        self.digest = checkpoint.training_digest(settings, run, dataset.data_hash)
        context = settings.model.context_length
        self.sampler = BatchSampler(
            dataset.tokens("train"), context, training.tokens_per_step // context, run.seed, "train batches"
        )
        self.prefetcher = Prefetcher(device)
        self.optimizer = self._build_optimizer()
        self.gate_signal = GateSignal(list(model.subspace.gating_params.values()), device)
        self.history = History()
        self._stop_signal = 0
        self._loss_sum = torch.zeros((), device=device)
        self._loss_steps = 0

    @property
    def state_path(self) -> Path:
        return self.out / "state" / f"{self.digest[:16]}.pt"

    def train(self) -> Path:
        """Run to the last step, from the saved state if there is one, and write the results."""
        self._resume()
        training = self.settings.training
        if training.keep_initialization and self.history.step == 0 and self.peers.is_first:
            checkpoint.save_initialization(self.out, self.model)
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGUSR1)}
        started, seconds_before = time.monotonic(), self.history.seconds
        try:
            for step in range(self.history.step, training.steps):
                gradient_norm = self._step(step)
                self.history.step = done = step + 1
                self.history.seconds = seconds_before + time.monotonic() - started
                last, stop_signal = done == training.steps, self.peers.largest(self._stop_signal)
                if self.run.mode == "learned" and (last or done % self.settings.gating.trace_interval_steps == 0):
                    self._record_gates()
                if last or done % training.eval_interval_steps == 0:
                    self._evaluate(float(gradient_norm))
                elif not self.peers.is_first:
                    pass
                elif self.code and self.code.frozen and done % self.settings.code_phase.choice_interval_steps == 0:
                    self._keep_if_best()
                elif done % training.log_interval_steps == 0:
                    self._report()
                due = (not last and done % training.save_interval_steps == 0) or stop_signal
                if due and self.peers.is_first:
                    self._save_state()
                if stop_signal and not last:
                    raise Interrupted(128 + stop_signal)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._write_results() if self.peers.is_first else self.out / CHECKPOINT_NAME

    # One optimizer step

    def _step(self, step: int) -> Tensor:
        """Gradient over all micro-batches, clipped; returns its norm before clipping (on the device)."""
        self._set_rates(step)
        if self.code:
            self._prepare_code(self.code, step)
        inputs, targets, weights, smoothing = self._batch(step)
        rows = self.settings.training.micro_batch_sequences
        pieces = inputs.shape[0] // rows
        w, price = self.code.forward(step) if self.code else (self.model.subspace.subspace_params, None)
        theta = functional_call(self.model.subspace, {"subspace_params": w}, (self._mask_width(step),))
        # The network sees theta as a leaf: its gradient accumulates over micro-batches, the projection runs once.
        leaf, step_loss = theta.detach().requires_grad_(), torch.zeros_like(self._loss_sum)
        for piece in self.peers.share(pieces):
            if self.settings.lora.dropout:
                # By micro-batch, so that it does not matter which process has it.
                torch.manual_seed(random.stream_key(self.run.seed, "dropout", step, piece) % 2**63)
            adapters = self.model.adapters(leaf)
            part = slice(piece * rows, (piece + 1) * rows)
            loss = self.model.base.loss(
                inputs[part],
                targets[part],
                adapters,
                dropout=self.settings.lora.dropout,
                position_weights_NT=None if weights is None else weights[part],
                smoothing=smoothing,
            )
            if weights is None:
                loss = loss / pieces
            loss.backward()
            step_loss += loss.detach()
        self.optimizer.zero_grad()
        # The same as theta.backward(leaf.grad), which would first import the symbolic algebra of the compiler.
        torch.dot(theta, leaf.grad).backward(retain_graph=price is not None)
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.peers.add_up([step_loss, *(parameter.grad for parameter in trained if parameter.grad is not None)])
        if price is not None:
            if not price.is_finite():
                self._refuse_non_finite()
            price.nats().backward()  # the same in every process, so not in the sum
        self.gate_signal.add()
        self._loss_sum += step_loss
        self._loss_steps += 1
        norm = torch.nn.utils.clip_grad_norm_(self.model.subspace.parameters(), self.settings.training.gradient_clip)
        self.optimizer.step()
        return norm

    def _prepare_code(self, code: CodePhase, step: int) -> None:
        if not code.is_due(step):
            return
        if not code.is_finite():
            self._refuse_non_finite()
        code.prepare(step)
        # Chosen by losses that two GPUs need not agree on to the last bit.
        code.load_state(self.peers.from_first(code.state()))

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor | None, float]:
        """(inputs, targets, position weights, smoothing) of a step: chunks of equal weight, or windows of documents."""
        sampler = self.code.sampler if self.code else self.sampler
        inputs, targets, *weights = self.prefetcher.batch(sampler.batch, step)
        return inputs, targets, weights[0] if weights else None, self.code.smoothing if self.code else 0.0

    def _build_optimizer(self) -> AdamW:
        """Every group but the first has its own learning rate, `peak`, that follows the schedule of w."""
        training, subspace = self.settings.training, self.model.subspace
        groups: list[dict[str, Any]] = [{"params": [subspace.subspace_params], "weight_decay": training.weight_decay}]
        if self.run.mode == "learned":
            gates = list(subspace.gating_params.values())
            groups.append({"params": gates, "weight_decay": 0.0, "peak": self.settings.gating.learning_rate})
        if self.code:
            peak = self.settings.code_phase.step_learning_rate
            groups.append({"params": [self.code.log_step], "weight_decay": 0.0, "peak": peak})
        return AdamW(groups, lr=training.learning_rate, betas=training.betas, eps=training.epsilon)

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
            group["lr"] = group["peak"] * rate / training.learning_rate

    def _mask_width(self, step: int) -> float:
        gating = self.settings.gating
        return allocation.mask_width(
            step,
            size=max(self.model.subspace.gate_sizes, default=0),
            start=gating.mask_width_start,
            end=gating.mask_width_end,
            soft_steps=self.soft_steps,
        )

    # Looking at the training

    def _report(self) -> None:
        self.progress.update(self.history.step, float(self._loss_sum) / self._loss_steps * BITS_PER_NAT)

    def _evaluate(self, gradient_norm: float) -> None:
        """Losses on train and val, of the quantized model in the code phase; keep the parameters if they are best."""
        train_loss_bits = self._mean_train_loss_bits()
        if not self.peers.is_first:
            return
        adapters, facts = self._look()
        facts |= self._token_losses(adapters)
        self._record(train_loss_bits, facts, gradient_norm)
        self._keep_if_best(facts)
        self.progress.update(self.history.step, train_loss_bits, val_loss_bits=facts["val_loss_bits"])

    @torch.no_grad()
    def _look(self) -> tuple[Adapters, dict[str, float]]:
        """Adapters of the present model; in the code phase of the quantized one, with its code and estimated bound."""
        width, rounded = self._mask_width(self.history.step - 1), None
        if self.code and self.code.started:
            rounded = self.code.rounded()
        w = self.model.subspace.subspace_params if rounded is None else rounded.w
        adapters = self.model.adapters(functional_call(self.model.subspace, {"subspace_params": w}, (width,)))
        if self.code is None or rounded is None:
            return adapters, {}
        return adapters, {
            "code_bits": rounded.payload_bits,
            "estimated_bound_bits": self.code.estimate(rounded, adapters).bound_bits,
            "quantization_step": self.code.step,
        }

    def _token_losses(self, adapters: Adapters) -> dict[str, float]:
        with torch.no_grad():
            losses = {f"{split}_loss_bits": self._loss_bits(split, adapters) for split in ("train", "val")}
        if not all(math.isfinite(value) for value in losses.values()):
            self._refuse_non_finite()
        return losses

    def _keep_if_best(self, facts: dict[str, float] | None = None) -> None:
        """Copy the parameters if they are the best so far, or the last and there are none.

        Without a code phase the val loss says what is best, with one the estimated bound. Soft masks are never the
        best, and neither is noise in place of rounding: they are not the model that is scored.
        """
        best, adapters = self.history.best, None
        if facts is None:
            adapters, facts = self._look()
        eligible = self._mask_width(self.history.step - 1) == 0.0 and (self.code is None or self.code.frozen)
        criterion = "estimated_bound_bits" if self.code else "val_loss_bits"
        better = eligible and (best is None or facts[criterion] < best[criterion])
        if better or (best is None and self.history.step == self.settings.training.steps):
            if adapters is not None:
                facts |= self._token_losses(adapters)
            raw_model = {name: value.detach().cpu().clone() for name, value in self.model.subspace.state_dict().items()}
            self.history.best = {"step": self.history.step, **facts, "raw_model": raw_model}

    def _record(self, train_loss_bits: float, facts: dict[str, float], gradient_norm: float) -> None:
        training, history = self.settings.training, self.history
        tokens = history.step * training.tokens_per_step
        history.metrics.append(
            (
                history.step,
                tokens,
                self.optimizer.param_groups[0]["lr"],
                train_loss_bits,
                facts["train_loss_bits"],
                facts["val_loss_bits"],
                gradient_norm,
                tokens / history.seconds,
                history.seconds,
                facts.get("code_bits", ""),
                facts.get("estimated_bound_bits", ""),
            )
        )

    def _record_gates(self) -> None:
        subspace, mask_width = self.model.subspace, self._mask_width(self.history.step - 1)
        gamma = subspace.gamma().tolist() if mask_width else (subspace.hard_split() / subspace.sizes_G).tolist()
        for group, value, snr in zip(self.model.layout.groups, gamma, self.gate_signal.read(), strict=True):
            self.history.gates.append((self.history.step, mask_width, group, value, "" if snr is None else snr))

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
                "format": CHECKPOINT_FORMAT,
                "digest": self.digest,
                "history": dataclasses.asdict(self.history),
                "loss_sum": self._loss_sum.cpu(),
                "loss_steps": self._loss_steps,
                "gate_signal": self.gate_signal.state(),
                "subspace": self.model.subspace.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "code": self.code.state() if self.code else None,
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
        self.gate_signal.load_state(state["gate_signal"])
        self.model.subspace.load_state_dict(state["subspace"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.code:
            self.code.load_state(state["code"])
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
                "format": CHECKPOINT_FORMAT,
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

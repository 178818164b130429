"""Train a run of the grid: AdamW on w, the gates and the quantization step; evaluation and the best checkpoint."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sublora.losses.windows import ChunkSampler
from sublora.subspace.allocations import mask_width
from sublora.system.names import CHECKPOINT_NAME, GATES_NAME, METRICS_NAME
from sublora.system.provenance import Provenance
from sublora.training import checkpoint
from sublora.training.evaluation import BITS_PER_NAT, Facts, GateSignal, look, token_losses
from sublora.training.exchange import Assemble, Peers, in_rows
from sublora.training.rate_phase import RatePhase
from sublora.training.reporting import Progress, Trackers, write_csv
from sublora.training.resumable import BeforeStep, NonFinite, ResumableTraining
from sublora.training.run import Run
from sublora.training.step import AdamW, Objective, learning_rate, warmup_steps

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
    "code_bits",
    "estimated_bound_bits",
)
GATE_COLUMNS = ("step", "mask_width", "group", "gamma", "gradient_snr")


class Trainer(ResumableTraining):
    """The training of one run. `train()` ends with best_ckpt.pt, metrics.csv and gating_trace.csv in `out`."""

    def __init__(
        self,
        run: Run,
        *,
        out: Path,
        progress: Progress,
        provenance: Provenance | None = None,
        peers: Peers | None = None,
        trackers: Trackers | None = None,
        before_step: BeforeStep | None = None,
    ) -> None:
        training = run.settings.training
        super().__init__(
            name=run.spec.name,
            digest=checkpoint.training_digest(
                run.settings,
                run.spec,
                run.dataset.data_hash,
                None if run.settings.base.kind == "random" else run.network.base_sha256,
                run.scale_points,
            ),
            steps=training.steps,
            save_interval_steps=training.save_interval_steps,
            out=out,
            progress=progress,
            peers=peers,
            trackers=trackers,
            before_step=before_step,
        )
        self.run, self._provenance = run, provenance or Provenance.of_this_process()
        self.soft_steps = round(run.settings.gating.soft_fraction * training.steps) if run.subspace.gates else 0
        self.rate = RatePhase(run) if run.settings.message.quantizer == "entropy" else None
        self.objective = Objective(run, self._batches(), rate=self.rate, peers=self.peers)
        self.optimizer = self._build_optimizer()
        self.gate_signal = GateSignal(list(run.subspace.gating_params.values()), run.device)
        self._trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self._loss_sum = torch.zeros((), device=run.device)
        self._loss_steps = 0

    def _at_the_start(self) -> None:
        if self.run.settings.training.keep_initialization:
            checkpoint.save_initialization(self.out, self.run)

    def _batches(self) -> Assemble:
        """Return the batches: windows of documents if the run trains for its message, else chunks of tokens."""
        if self.rate is not None:
            return self.rate.sampler.micro_batches
        context, training = self.run.settings.model.context_length, self.run.settings.training
        sequences, tokens = training.tokens_per_step // context, self.run.dataset.tokens("train")
        sampler = ChunkSampler(tokens, context, sequences, self.run.spec.seed, "train batches")
        return in_rows(sampler.batch, training.micro_batch_sequences)

    # One optimizer step

    def _step(self, step: int) -> Tensor:
        """Take one optimizer step; return the norm () of the gradient over all micro-batches before it was clipped."""
        self._set_rates(step)
        if self.rate is not None:
            self._prepare_rate(self.rate, step)
        self._loss_sum += self.objective.gradient(step, self._mask_width(step), self._trained)
        self._loss_steps += 1
        self.gate_signal.add()
        clip = self.run.settings.training.gradient_clip
        norm = torch.nn.utils.clip_grad_norm_(self.run.subspace.parameters(), clip)
        self.optimizer.step()
        return norm

    def _prepare_rate(self, rate: RatePhase, step: int) -> None:
        """Start the rate phase, or replace noise by rounding, when this step is the one for it."""
        if not rate.is_due(step):
            return
        if not rate.is_finite():
            raise NonFinite
        rate.prepare(step)
        # The choice follows from losses, which may differ between GPUs in the last bit: all take that of the first.
        rate.load_state_dict(self.peers.from_first(rate.state_dict()))

    def _build_optimizer(self) -> AdamW:
        """Build the optimizer: w, then groups with their own peak learning rates, which follow the schedule of w."""
        settings, subspace = self.run.settings, self.run.subspace
        training = settings.training
        groups: list[dict[str, Any]] = [{"params": [subspace.subspace_params], "weight_decay": training.weight_decay}]
        if subspace.gates:
            gates = list(subspace.gating_params.values())
            groups.append({"params": gates, "weight_decay": 0.0, "peak": settings.gating.learning_rate})
        if self.rate is not None:
            peak = settings.rate_phase.step_learning_rate
            groups.append({"params": [self.rate.log_step], "weight_decay": 0.0, "peak": peak})
        return AdamW(groups, lr=training.learning_rate, betas=training.betas, eps=training.epsilon)

    def _set_rates(self, step: int) -> None:
        """Set the learning rate of every group for a step."""
        training = self.run.settings.training
        rate = learning_rate(
            step,
            steps=training.steps,
            peak=training.learning_rate,
            final=training.final_learning_rate,
            warmup_steps=warmup_steps(training.warmup_fraction, training.steps),
        )
        self.optimizer.param_groups[0]["lr"] = rate
        for group in self.optimizer.param_groups[1:]:
            group["lr"] = group["peak"] * rate / training.learning_rate

    def _mask_width(self, step: int) -> float:
        """Return tau, the width of the soft masks at a step; 0 is the hard split."""
        gating = self.run.settings.gating
        return mask_width(
            step,
            size=self.run.subspace.largest_gate,
            start=gating.mask_width_start,
            end=gating.mask_width_end,
            soft_steps=self.soft_steps,
        )

    # Looking at the training

    def _after_step(self, gradient_norm: Tensor, last: bool) -> None:
        settings, done = self.run.settings, self.history.step
        if self.run.subspace.gates and (last or done % settings.gating.trace_interval_steps == 0):
            self._record_gates()
        # Then the first of these that is due. Only the first process measures; the others take part in the evaluation's
        # check that the loss is finite.
        if last or done % settings.training.eval_interval_steps == 0:
            self._evaluate(float(gradient_norm))
        elif not self.peers.is_first:
            pass
        elif self.rate and self.rate.state.frozen and done % settings.rate_phase.choice_interval_steps == 0:
            self._keep_if_best()
        elif done % settings.training.log_interval_steps == 0:
            self.progress.update(done, float(self._loss_sum) / self._loss_steps * BITS_PER_NAT)

    def _evaluate(self, gradient_norm: float) -> None:
        """Record the losses on train and val, of the quantized model in the rate phase; keep the parameters if best."""
        train_loss_bits = self._mean_train_loss_bits()
        if not self.peers.is_first:
            return
        seen = look(self.run, self.rate, self._mask_width(self.history.step - 1))
        facts = seen.facts | token_losses(self.run, seen.model)
        self._record(train_loss_bits, facts, gradient_norm)
        self._keep_if_best(facts)
        self.progress.update(self.history.step, train_loss_bits, val_loss_bits=facts["val_loss_bits"])

    def _keep_if_best(self, facts: Facts | None = None) -> None:
        """Copy the parameters if they are the best so far, or if the training ends and none were kept.

        The criterion is the val loss, with a rate phase the estimated bound. Soft masks are never the best, and
        neither is noise in place of rounding: they are not the model that is scored.

        Args:
            facts: measurements of the present model, taken here if not given.
        """
        best, model = self.history.best, None
        width = self._mask_width(self.history.step - 1)
        if facts is None:
            seen = look(self.run, self.rate, width)
            facts, model = seen.facts, seen.model
        eligible = width == 0.0 and (self.rate is None or self.rate.state.frozen)
        criterion = "estimated_bound_bits" if self.rate else "val_loss_bits"
        better = eligible and (best is None or facts[criterion] < best[criterion])
        if better or (best is None and self.history.step == self.steps):
            if model is not None:
                facts = facts | token_losses(self.run, model)
            self.history.best = {
                "step": self.history.step,
                **facts,
                "raw_model": self.run.subspace.parameter_copies(),
            }

    def _record(self, train_loss_bits: float, facts: Facts, gradient_norm: float) -> None:
        history = self.history
        tokens = history.step * self.run.settings.training.tokens_per_step
        row = (
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
        history.metrics.append(row)
        self.trackers.log(history.step, dict(zip(METRIC_COLUMNS, row, strict=True)))

    def _record_gates(self) -> None:
        subspace, width = self.run.subspace, self._mask_width(self.history.step - 1)
        gamma = subspace.gamma().tolist() if width else (subspace.hard_split() / subspace.sizes_G).tolist()
        for gate, value, snr in zip(subspace.gates, gamma, self.gate_signal.read(), strict=True):
            self.history.gates.append((self.history.step, width, gate.group, value, "" if snr is None else snr))
            self.trackers.log(self.history.step, {f"gamma/{gate.group}": value})

    def _mean_train_loss_bits(self) -> float:
        """Return the mean loss of the steps since the last call, bits per token; raises NonFinite."""
        value = float(self._loss_sum) / self._loss_steps * BITS_PER_NAT
        self._loss_sum.zero_()
        self._loss_steps = 0
        if not math.isfinite(value):
            raise NonFinite
        return value

    # What is kept

    def _state(self) -> dict[str, Any]:
        finite = torch.isfinite(self._loss_sum) & torch.isfinite(self.run.subspace.subspace_params).all()
        if not bool(finite):
            raise NonFinite
        return {
            "loss_sum": self._loss_sum.cpu(),
            "loss_steps": self._loss_steps,
            "gate_signal": self.gate_signal.state_dict(),
            "subspace": self.run.subspace.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state_dict() if self.rate else None,
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self._loss_sum.copy_(state["loss_sum"])
        self._loss_steps = state["loss_steps"]
        self.gate_signal.load_state_dict(state["gate_signal"])
        self.run.subspace.load_state_dict(state["subspace"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.rate is not None:
            self.rate.load_state_dict(state["rate"])

    def _write_results(self) -> None:
        if self.history.best is None:
            raise RuntimeError("the last evaluation always keeps a checkpoint")
        write_csv(self.out / METRICS_NAME, METRIC_COLUMNS, self.history.metrics)
        write_csv(self.out / GATES_NAME, GATE_COLUMNS, self.history.gates)
        checkpoint.save_result(self.out / CHECKPOINT_NAME, self.run, self.history, self.digest, self._provenance)

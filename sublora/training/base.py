"""Train a base: every weight of the network, once, on documents set apart from those that runs adapt to."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sublora import config
from sublora.data.dataset import TokenDataset
from sublora.losses.windows import ChunkSampler, evaluation_chunks
from sublora.models.adapted import AdaptedModel
from sublora.models.gpt import GPT
from sublora.models.weights import random_weights
from sublora.training.evaluation import BITS_PER_NAT
from sublora.training.exchange import Prefetcher, in_rows
from sublora.training.reporting import Progress, Trackers, write_csv
from sublora.training.resumable import BeforeStep, NonFinite, ResumableTraining
from sublora.training.step import learning_rate, warmup_steps

BASE_COLUMNS = ("step", "tokens_seen", "learning_rate", "train_loss_bits", "val_loss_bits", "gradient_norm", "seconds")


class BaseTrainer(ResumableTraining):
    """The training of all weights of a GPT; `train()` ends with those of the last step in `weights`.

    Weights are kept and updated in float32, whatever type the network computes in.
    """

    def __init__(
        self,
        base: config.TrainedBase,
        gpt: GPT,
        dataset: TokenDataset,
        *,
        digest: str,
        out: Path,
        progress: Progress,
        trackers: Trackers | None = None,
        before_step: BeforeStep | None = None,
    ) -> None:
        """`gpt`: on the device, its weights are replaced; `dataset`: the base's own."""
        super().__init__(
            name=f"base {base.name}",
            digest=digest,
            steps=base.steps,
            save_interval_steps=base.save_interval_steps,
            out=out,
            progress=progress,
            trackers=trackers,
            before_step=before_step,
        )
        self.base, self.gpt, self.dataset = base, gpt, dataset
        self.device = gpt.weight("wte.weight").device
        start = random_weights(gpt.shape, gpt.vocab_size, base.seed)
        self.weights = {name: torch.from_numpy(value).to(self.device).requires_grad_() for name, value in start.items()}
        """The weights being trained, float32."""
        # Matrices decay; norms and biases, which are vectors, do not.
        matrices = [value for value in self.weights.values() if value.dim() > 1]
        vectors = [value for value in self.weights.values() if value.dim() == 1]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=base.learning_rate,
            betas=base.betas,
            eps=base.epsilon,
            weight_decay=base.weight_decay,
            fused=True,
        )
        context = gpt.shape.context_length
        sequences = base.tokens_per_step // context
        sampler = ChunkSampler(dataset.tokens("train"), context, sequences, base.seed, "base batches")
        self._assemble = in_rows(sampler.batch, base.micro_batch_sequences)
        self._prefetcher = Prefetcher(self.device)
        self._loss_sum, self._loss_steps = torch.zeros((), device=self.device), 0

    def _step(self, step: int) -> Tensor:
        base = self.base
        rate = learning_rate(
            step,
            steps=base.steps,
            peak=base.learning_rate,
            final=base.final_learning_rate,
            warmup_steps=warmup_steps(base.warmup_fraction, base.steps),
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._loss_sum += self._gradient(self._prefetcher.micro_batches(self._assemble, step))
        self._loss_steps += 1
        norm = torch.nn.utils.clip_grad_norm_(list(self.weights.values()), base.gradient_clip)
        self.optimizer.step()
        return norm

    def _gradient(self, micro_batches: list[list[Tensor]]) -> Tensor:
        """Put the gradient of the mean loss into the weights, micro-batch by micro-batch; return the loss, nats ()."""
        sums = [torch.zeros_like(value) for value in self.weights.values()]
        total = torch.zeros((), device=self.device)
        for inputs_NT, targets_NT in micro_batches:
            used = self._place()
            loss = self._loss(inputs_NT, targets_NT) / len(micro_batches)
            gradients = torch.autograd.grad(loss, list(used.values()))
            for summed, gradient in zip(sums, gradients, strict=True):
                summed += gradient
            total += loss.detach()
        for value, summed in zip(self.weights.values(), sums, strict=True):
            value.grad = summed
        return total

    def _place(self) -> dict[str, Tensor]:
        """Put the present weights into the network, in the type it computes in; return them, leaves of the graph."""
        used = {name: value.detach().to(self.gpt.dtype).requires_grad_() for name, value in self.weights.items()}
        self.gpt.place(used)
        return used

    def _loss(self, inputs_NT: Tensor, targets_NT: Tensor) -> Tensor:
        model = AdaptedModel(self.gpt, None)
        return model.cross_entropy(model.hidden(inputs_NT).flatten(0, 1), targets_NT.flatten())

    def _after_step(self, gradient_norm: Tensor, last: bool) -> None:
        done, history = self.history.step, self.history
        if last or done % self.base.eval_interval_steps == 0:
            train_loss_bits = float(self._loss_sum) / self._loss_steps * BITS_PER_NAT
            val_loss_bits = self._val_loss_bits()
            if not (math.isfinite(train_loss_bits) and math.isfinite(val_loss_bits)):
                raise NonFinite
            self._loss_sum.zero_()
            self._loss_steps = 0
            rate = self.optimizer.param_groups[0]["lr"]
            tokens = done * self.base.tokens_per_step
            row = (done, tokens, rate, train_loss_bits, val_loss_bits, float(gradient_norm), history.seconds)
            history.metrics.append(row)
            self.trackers.log(done, dict(zip(BASE_COLUMNS, row, strict=True)))
            self.progress.update(done, train_loss_bits, val_loss_bits=val_loss_bits)
        elif done % self.base.log_interval_steps == 0:
            self.progress.update(done, float(self._loss_sum) / self._loss_steps * BITS_PER_NAT)

    @torch.no_grad()
    def _val_loss_bits(self) -> float:
        """Return the mean loss in bits per token over fixed, evenly spread chunks of the base's own val documents."""
        self._place()
        total, sequences = 0.0, 0
        context, tokens = self.gpt.shape.context_length, self.dataset.tokens("val")
        chunks = evaluation_chunks(tokens, context, self.base.eval_sequences, self.base.micro_batch_sequences)
        for inputs, targets in chunks:
            loss = self._loss(torch.from_numpy(inputs).to(self.device), torch.from_numpy(targets).to(self.device))
            total += float(loss) * len(inputs)
            sequences += len(inputs)
        return total / sequences * BITS_PER_NAT

    def _state(self) -> dict[str, Any]:
        if not all(bool(torch.isfinite(value).all()) for value in self.weights.values()):
            raise NonFinite
        return {
            "weights": {name: value.detach().cpu() for name, value in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self._loss_sum.cpu(),
            "loss_steps": self._loss_steps,
        }

    @torch.no_grad()
    def _load_state(self, state: dict[str, Any]) -> None:
        for name, value in self.weights.items():
            value.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self._loss_sum.copy_(state["loss_sum"])
        self._loss_steps = state["loss_steps"]

    def _write_results(self) -> None:
        write_csv(self.out / "metrics.csv", BASE_COLUMNS, self.history.metrics)

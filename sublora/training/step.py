"""One step of a training: the objective and its gradient, the update by AdamW, and the schedule of the learning rate.

The gradient takes micro-batches through the network and one pass through the projection. The arithmetic of the update
is PyTorch's own, `torch.optim.adamw.adamw`. The class around it exists because building `torch.optim.AdamW` imports the
whole compiler (torch._dynamo), more than two seconds of every training job.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from sublora.bounds.smoothing import parse_smoothing
from sublora.losses.documents import DocumentWeights, document_loss
from sublora.system.streams import stream_key
from sublora.training.exchange import Assemble, Peers, Prefetcher
from sublora.training.quantization import Price
from sublora.training.rate_phase import RatePhase
from sublora.training.resumable import NonFinite
from sublora.training.run import Run


class Objective:
    """The loss of a step's batch, plus in a rate phase the price of the message."""

    def __init__(
        self, run: Run, assemble: Assemble, *, rate: RatePhase | None = None, peers: Peers | None = None
    ) -> None:
        """`assemble` gives inputs and targets (N x T) of micro-batches; windows also have weights and lengths."""
        self._run, self._assemble, self._rate, self._peers = run, assemble, rate, peers or Peers()
        self._prefetcher = Prefetcher(run.device)

    def gradient(self, step: int, mask_width: float, trained: list[torch.nn.Parameter]) -> Tensor:
        """Put the gradient into `trained`, summed over all processes; return the loss of the batch in nats ().

        Raises:
            NonFinite: the coefficients cannot be priced, since one is infinite or not a number.
        """
        subspace = self._run.subspace
        micro_batches = self._prefetcher.micro_batches(self._assemble, step)
        w, price = self._rate.forward(step) if self._rate else (subspace.subspace_params, None)
        theta = subspace.theta(w, subspace.masks(mask_width))
        # Through the network, which sees theta as a leaf: the gradient accumulates over micro-batches.
        leaf = theta.detach().requires_grad_()
        loss, gradient_D = self._accumulate(leaf, step, micro_batches)
        for parameter in trained:
            parameter.grad = None
        # Through the projection, once. theta.backward(gradient_D) is the same but imports the compiler's algebra.
        torch.dot(theta, gradient_D).backward(retain_graph=price is not None)
        # Over all processes.
        self._peers.add_up([loss, *(p.grad for p in trained if p.grad is not None)])
        if price is not None:
            self._add_price(price)
        return loss

    def _accumulate(self, leaf_D: Tensor, step: int, micro_batches: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
        """Go backward through the network for this process's micro-batches; return their loss and its gradient (D)."""
        total = torch.zeros((), device=self._run.device)
        for piece in self._peers.share(len(micro_batches)):
            if self._run.settings.lora.dropout:
                # One stream per micro-batch, so that it does not matter which process computes it.
                torch.manual_seed(stream_key(self._run.spec.seed, "dropout", step, piece) % 2**63)
            model = self._run.network.at(leaf_D)
            inputs_NT, targets_NT, *windows = micro_batches[piece]
            hidden_KC = model.hidden(inputs_NT, training=True).flatten(0, 1)
            if windows:
                # With a network as anchor, responsibilities stay near 1 and are dropped: the loss is the plain one.
                mixes = self._rate is not None and self._run.loss.anchoring is None
                smoothing = parse_smoothing(self._rate.state.smoothing) if self._rate and mixes else None
                loss, value = document_loss(model, hidden_KC, targets_NT, DocumentWeights(*windows), smoothing)
            else:
                loss = model.cross_entropy(hidden_KC, targets_NT.flatten(), training=True) / len(micro_batches)
                value = loss.detach()
            loss.backward()
            total += value
        return total, torch.zeros_like(leaf_D) if leaf_D.grad is None else leaf_D.grad

    @staticmethod
    def _add_price(price: Price) -> None:
        if not price.is_finite():
            raise NonFinite
        price.nats().backward()  # the same in every process, so it is not summed


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); the interface of torch.optim.AdamW that we use."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        """`groups`: dicts with `params` and, where they differ from the arguments, `lr` and `weight_decay`."""
        self.betas, self.eps = betas, eps
        self.param_groups = [{"lr": lr, "weight_decay": weight_decay, **group} for group in groups]
        self._moments = [
            [
                {"step": torch.zeros(()), "first": torch.zeros_like(p), "second": torch.zeros_like(p)}
                for p in group["params"]
            ]
            for group in self.param_groups
        ]

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group, moments in zip(self.param_groups, self._moments, strict=True):
            pairs = [(p, m) for p, m in zip(group["params"], moments, strict=True) if p.grad is not None]
            if not pairs:
                continue
            gradients: list[Tensor] = [p.grad for p, _ in pairs]
            adamw(
                [p for p, _ in pairs],
                gradients,
                [m["first"] for _, m in pairs],
                [m["second"] for _, m in pairs],
                [],
                [m["step"] for _, m in pairs],
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=self.eps,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return moments and step counts, on the CPU."""
        return {"moments": [[{k: v.cpu().clone() for k, v in m.items()} for m in group] for group in self._moments]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned for the same groups."""
        for mine, theirs in zip(self._moments, state["moments"], strict=True):
            for moments, saved in zip(mine, theirs, strict=True):
                for name, value in moments.items():
                    value.copy_(saved[name])


def learning_rate(step: int, *, steps: int, peak: float, final: float, warmup_steps: int) -> float:
    """Return the rate of step 0 ... steps - 1: linear from peak / warmup_steps to peak, then a half cosine to final."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return final + 0.5 * (peak - final) * (1.0 + math.cos(math.pi * min(1.0, progress)))


def warmup_steps(fraction: float, steps: int) -> int:
    """Return the number of steps of the linear warm-up, at least 1."""
    return max(1, round(fraction * steps))

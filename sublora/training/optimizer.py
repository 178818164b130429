"""AdamW on a handful of small tensors, and the schedule of its learning rate.

The arithmetic is PyTorch's own, `torch.optim.adamw.adamw`. The class around it exists because building
`torch.optim.AdamW` imports the whole compiler (torch._dynamo), more than two seconds of every training job.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


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

"""How a budget of d coordinates is split between the A and the B matrices (DESIGN 2: gates and masks)."""

import torch
from torch import Tensor


def fixed_split(budget: int, ratio: float) -> int:
    """dim w_B of a fixed allocation: round(ratio d), the rest goes to A."""
    return int(ratio * budget + 0.5)


def soft_mask(gamma_G: Tensor, budget: int, width: float) -> Tensor:
    """Weights m (G x d) with which coordinate i goes to B: sigmoid((gamma d - i - 1/2) / width).

    `width` (coordinates) is the temperature: about the number of coordinates next to gamma d that both
    matrices use and through which the gate receives its gradient.
    """
    coordinates = torch.arange(budget, device=gamma_G.device, dtype=gamma_G.dtype)
    return torch.sigmoid((gamma_G[:, None] * budget - coordinates - 0.5) / width)


def hard_split(gamma_G: Tensor, budget: int) -> Tensor:
    """Integers k = round(gamma d): coordinates below k go to B, the others to A."""
    return torch.round(gamma_G.detach().double() * budget).long()


def hard_mask(split_G: Tensor, budget: int, dtype: torch.dtype) -> Tensor:
    """The mask (G x d) of integer splits."""
    return (torch.arange(budget, device=split_G.device) < split_G[:, None]).to(dtype)


def mask_width(step: int, *, budget: int, start: float, end: float, soft_steps: int) -> float:
    """Temperature in coordinates: geometric from start x d to `end` over the soft phase, then 0 (hard split)."""
    if step >= soft_steps:
        return 0.0
    progress = step / max(1, soft_steps - 1)
    return (start * budget) ** (1.0 - progress) * end**progress

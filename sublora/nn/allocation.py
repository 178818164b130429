"""How a budget of d coordinates is split between the A and the B matrices (DESIGN 2: gates and masks)."""

import torch
from torch import Tensor


def fixed_split(budget: int, ratio: float) -> int:
    """dim w_B of a fixed allocation: round(ratio d), the rest goes to A."""
    return int(ratio * budget + 0.5)


def soft_mask(boundary_G: Tensor, length: int, width: float) -> Tensor:
    """Weights m (G x length) with which coordinate i goes to B: sigmoid((boundary - i - 1/2) / width).

    The boundary is gamma times the number of coordinates. `width` (coordinates) is the temperature: about the number
    of coordinates next to the boundary that both matrices use and through which the gate receives its gradient.
    """
    coordinates = torch.arange(length, device=boundary_G.device, dtype=boundary_G.dtype)
    return torch.sigmoid((boundary_G[:, None] - coordinates - 0.5) / width)


def hard_split(gamma_G: Tensor, sizes_G: Tensor) -> Tensor:
    """Integers k = round(gamma size): of a group's coordinates those below k go to B, the others to A."""
    return torch.round(gamma_G.detach().double() * sizes_G).long()


def hard_mask(split_G: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """The mask (G x length) of integer splits."""
    return (torch.arange(length, device=split_G.device) < split_G[:, None]).to(dtype)


def mask_width(step: int, *, size: int, start: float, end: float, soft_steps: int) -> float:
    """Temperature in coordinates: geometric from start x size to `end` over the soft phase, then 0 (hard split).

    `size`: the coordinates that a gate splits.
    """
    if step >= soft_steps:
        return 0.0
    progress = step / max(1, soft_steps - 1)
    return (start * size) ** (1.0 - progress) * end**progress

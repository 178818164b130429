"""How much a gate's gradient says and how much of it is noise."""

from typing import Any

import torch
from torch import Tensor


class GateSignal:
    """Signal-to-noise ratio of each gate's gradient, |mean| / standard deviation over the steps since it was last read.

    Gradients without a direction give about sqrt(2 / (pi n)) over n steps. Shape legend: G gates.
    """

    def __init__(self, gates: list[torch.nn.Parameter], device: torch.device) -> None:
        self._gates = gates
        self._sums_2G = torch.zeros(2, len(gates), dtype=torch.float64, device=device)
        """Sums of the gradients and of their squares."""
        self._steps = 0

    @torch.no_grad()
    def add(self) -> None:
        """Count the present gradients; with a hard split gates have none."""
        gradients: list[Tensor] = [gate.grad for gate in self._gates if gate.grad is not None]
        if gradients:
            gradients_G = torch.stack(gradients).double()
            self._sums_2G += torch.stack([gradients_G, gradients_G.square()])
            self._steps += 1

    def read(self) -> list[float | None]:
        """The ratio of each gate, None where fewer than two steps or equal gradients give none; starts afresh."""
        mean_G, square_G = self._sums_2G.cpu() / max(1, self._steps)
        std_G = (square_G - mean_G.square()).clamp(min=0.0).sqrt()
        enough = self._steps > 1
        self._sums_2G.zero_()
        self._steps = 0
        pairs = zip(mean_G.abs().tolist(), std_G.tolist(), strict=True)
        return [mean / std if enough and std > 0.0 else None for mean, std in pairs]

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums_2G.cpu(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums_2G.copy_(state["sums"])
        self._steps = state["steps"]

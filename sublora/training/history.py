"""What a training has seen so far, and the columns under which it is written."""

import dataclasses
from typing import Any

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


@dataclasses.dataclass
class History:
    """Plain values, so that it travels in the resume state."""

    step: int = 0
    seconds: float = 0.0
    metrics: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    gates: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    best: dict[str, Any] | None = None
    """step, losses in bits and parameters of the best evaluation so far; in the rate phase also code and bound."""

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)

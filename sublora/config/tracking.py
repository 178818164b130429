"""Where the history of a training can be watched while it grows, beside metrics.csv."""

from typing import Annotated, Literal

from pydantic import Field

from sublora.config.section import Section


class Tracking(Section):
    """Copies of every row of metrics.csv and gating_trace.csv, while a training runs; no number depends on them."""

    tensorboard: bool
    """Whether event files are written into tensorboard/ in the run's folder; needs tensorboardX (sublora[tracking])."""
    wandb: Literal["offline", "online"] | None
    """Weights & Biases, which needs the package wandb. offline: files in wandb/ in the run's folder, to be sent later
    by `wandb sync`; online: sent at once, or written as offline where the server cannot be reached; null: neither."""
    wandb_project: Annotated[str, Field(min_length=1)]
    """Project on Weights & Biases."""

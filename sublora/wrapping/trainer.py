"""Annealing of a wrapped module inside transformers' Trainer."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sublora.wrapping.module import Wrapped


class AnnealCallback(TrainerCallback):
    """Calls `Wrapped.anneal` before each step with the share of the steps that have been done."""

    def __init__(self, wrapped: Wrapped, **options: Any) -> None:
        """Anneal a wrapped module; `options` are arguments of `Wrapped.anneal` other than progress."""
        self.wrapped, self.options = wrapped, options

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        self.wrapped.anneal(state.global_step / max(1, state.max_steps), **self.options)

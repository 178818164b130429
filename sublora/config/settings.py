"""A whole settings file, and what its sections must agree on."""

from typing import Annotated

from pydantic import model_validator

from sublora.config import comparison, overlap
from sublora.config.base import Base, PretrainedBase, TrainedBase
from sublora.config.bound import Bound, Message, Scoring
from sublora.config.data import Data
from sublora.config.grid import ALL, Grid, RunSpec
from sublora.config.model import (
    BLOCK_TARGETS,
    HEAD_TARGET,
    AnyModel,
    Gating,
    HuggingFaceModel,
    Lora,
    Model,
    Subspace,
    named_part,
)
from sublora.config.reach import Reaches, ReachesThrough, trains_for_the_message
from sublora.config.section import Section
from sublora.config.sizes import parse_size
from sublora.config.tracking import Tracking
from sublora.config.training import Compute, RatePhase, Training
from sublora.system.errors import UserError


class Settings(Section):
    """A whole settings file."""

    grid: Annotated[
        Grid,
        ReachesThrough("sweep_size", lambda grid: len(grid.runs()), "score", "bound"),
        ReachesThrough("first_seed", lambda grid: grid.seeds[0], "yardsticks"),
    ]
    data: Annotated[Data, Reaches("data", "train")]
    base: Annotated[Base, Reaches("base")]
    model: Annotated[AnyModel, Reaches("base", "train", "yardsticks")]
    lora: Annotated[Lora, Reaches("train")]
    subspace: Annotated[Subspace, Reaches("train")]
    gating: Annotated[Gating, Reaches("train")]
    training: Annotated[Training, Reaches("train")]
    rate_phase: Annotated[RatePhase, Reaches("train", when=trains_for_the_message)]
    compute: Annotated[Compute, Reaches("train")]
    tracking: Annotated[Tracking, Reaches()]
    message: Annotated[Message, Reaches("score", "bound")]
    scoring: Annotated[Scoring, Reaches("score", "yardsticks", "bound")]
    bound: Annotated[Bound, Reaches("score", "yardsticks", "bound"), Reaches("train", when=trains_for_the_message)]

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        found = [*self._sizes_that_disagree(), *self._what_only_some_bases_have()]
        found += [*self._targets_that_are_none(), *self._budgets_beyond_the_parameters()]
        found += self._phases_that_never_start()
        found += comparison.complaints(self)
        if isinstance(self.base, TrainedBase):
            found += [*self._batches_of_the_base(self.base), *overlap.complaints(self.base, self.data)]
        if found:
            raise ValueError("; ".join(found))
        return self

    def _sizes_that_disagree(self) -> list[str]:
        context = self.model.context_length
        found = []
        together = context * self.training.micro_batch_sequences * self.compute.gpus_per_training
        if self.training.tokens_per_step % together:
            found.append(
                f"training.tokens_per_step {self.training.tokens_per_step} is not a multiple of model.context_length x "
                f"training.micro_batch_sequences x compute.gpus_per_training = {together}"
            )
        if self.scoring.sliding_window > context:
            found.append(f"scoring.sliding_window {self.scoring.sliding_window} exceeds model.context_length {context}")
        if self.scoring.sources is not None and not (self.data.unit == "document" and self.data.knows_sources):
            found.append(
                f"scoring.sources {self.scoring.sources} needs data.unit: document and a corpus of source files "
                "(docstrings, functions or json_documentation); set it to null"
            )
        for key in ("val_documents", "test_documents"):
            have, wanted = getattr(self.data, key), getattr(self.scoring, key)
            if wanted > have:
                found.append(f"scoring.{key} {wanted} exceeds data.{key} {have}")
        return found

    def _what_only_some_bases_have(self) -> list[str]:
        found = []
        if self.data.tokenizer == "base" and not isinstance(self.base, PretrainedBase):
            found.append(f"data.tokenizer base needs base.kind pretrained, found {self.base.kind}")
        if isinstance(self.model, HuggingFaceModel) and self.training.keep_initialization:
            found.append("training.keep_initialization writes the files of a GPT-2; set it to false")
        return found

    def _targets_that_are_none(self) -> list[str]:
        """Of a model of transformers they are looked up when it is loaded."""
        if isinstance(self.model, HuggingFaceModel):
            if not isinstance(self.base, PretrainedBase):
                return [f"model.kind huggingface needs base.kind pretrained, found {self.base.kind}"]
            return []
        known = (*BLOCK_TARGETS, HEAD_TARGET)
        unknown = [target for target in self.lora.targets if target not in known]
        return [f"lora.targets: expected some of {', '.join(known)}, found {', '.join(unknown)}"] if unknown else []

    def _budgets_beyond_the_parameters(self) -> list[str]:
        if self.subspace.adapt != "lora" or self.grid.compares_networks:
            return []
        parameters = self.lora_parameters_without_head_rows()
        largest = max((budget for budget in self.grid.budgets if budget != ALL), default=0)
        if parameters is not None and HEAD_TARGET not in self.lora.targets and largest > parameters:
            return [f"grid.budgets holds {largest}, more than the {parameters} LoRA parameters"]
        return []

    def _phases_that_never_start(self) -> list[str]:
        steps, phase = self.training.steps, self.rate_phase
        if trains_for_the_message(self) and phase.first_rounded_step(steps) >= steps:
            return [
                f"rate_phase.fraction {phase.fraction} and rate_phase.noise_fraction {phase.noise_fraction} leave none "
                f"of {steps} training.steps in which w is rounded; raise the first, lower the second or train longer"
            ]
        return []

    def for_run(self, spec: RunSpec) -> "Settings":
        """The settings of one run: those of its network and of what it trains, where the grid compares such.

        Everything that is done for a run goes by these. The same settings again if they are those of the run.
        UserError if the run's size needs another base than there is.
        """
        changes: dict[str, Section] = {}
        if spec.size is not None:
            if self.base.kind != "random" or not isinstance(self.model, Model):
                raise UserError(f"size {spec.size}: needs base.kind random and model.kind gpt2, found {self.base.kind}")
            changes["model"] = self.model.model_copy(update=parse_size(spec.size)._asdict())
        if spec.trained is not None:
            adapt, projection = named_part(spec.trained)
            changes["subspace"] = self.subspace.model_copy(update={"adapt": adapt, "projection": projection})
            changes["training"] = self.training.with_rate_of(spec.trained)
        return self.model_copy(update=changes) if changes else self

    def _batches_of_the_base(self, base: TrainedBase) -> list[str]:
        together = self.model.context_length * base.micro_batch_sequences
        if base.tokens_per_step % together:
            return [
                f"base.tokens_per_step {base.tokens_per_step} is not a multiple of model.context_length x "
                f"base.micro_batch_sequences = {together}"
            ]
        return []

    def lora_parameters_without_head_rows(self) -> int | None:
        """LoRA parameters, leaving out the head's B, whose size depends on the vocabulary of the data.

        None for a model of transformers, whose sizes are in its own files.
        """
        if not isinstance(self.model, Model):
            return None
        r, width = self.lora.rank, self.model.n_embd
        # Inputs and outputs of a map, in widths of the residual stream.
        widths = {"query": 2, "value": 2, "mlp_in": 5, "mlp_out": 5}
        in_blocks = sum(widths[target] for target in BLOCK_TARGETS if target in self.lora.targets)
        return r * width * (in_blocks * self.model.n_layer + (HEAD_TARGET in self.lora.targets))

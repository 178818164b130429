"""All settings of an experiment, and what the sections must agree on."""

from typing import Annotated

from pydantic import model_validator

from sublora.config.base import Base, PretrainedBase, TrainedBase
from sublora.config.bound import Bound, MessageSettings, Scoring
from sublora.config.corpus import Data, kinds_with_sources
from sublora.config.grid import ALL, Grid, RunSpec
from sublora.config.network import (
    BLOCK_TARGETS,
    HEAD_TARGET,
    AnyModel,
    Gating,
    HuggingFaceModel,
    Lora,
    Model,
    SubspaceSettings,
    is_whole,
    named_part,
    parse_size,
)
from sublora.config.section import Mark, ReachesThrough, Section, trains_for_the_message
from sublora.config.training import Compute, RatePhaseSettings, Tracking, Training
from sublora.subspace.allocations import Uniform
from sublora.subspace.projections import IDENTITY
from sublora.system.errors import UserError


class Settings(Section):
    """All sections of a settings file."""

    grid: Annotated[
        Grid,
        ReachesThrough("sweep_size", lambda grid: grid.n_runs, "score", "bound"),
        ReachesThrough("first_seed", lambda grid: grid.seeds[0], "yardsticks"),
    ]
    data: Annotated[Data, Mark("data", "train")]
    base: Annotated[Base, Mark("base")]
    model: Annotated[AnyModel, Mark("base", "train", "yardsticks")]
    lora: Annotated[Lora, Mark("train")]
    subspace: Annotated[SubspaceSettings, Mark("train")] = SubspaceSettings()
    gating: Annotated[Gating, Mark("train")] = Gating()
    training: Annotated[Training, Mark("train", claim="no_effect")]
    rate_phase: Annotated[RatePhaseSettings, Mark("train", when=trains_for_the_message, claim="no_effect")] = (
        RatePhaseSettings()
    )
    compute: Annotated[Compute, Mark("train", claim="no_effect")]
    tracking: Annotated[Tracking, Mark(no_stage=True, claim="no_effect")] = Tracking()
    message: Annotated[MessageSettings, Mark("score", "bound")]
    scoring: Annotated[Scoring, Mark("score", "yardsticks", "bound")]
    bound: Annotated[Bound, Mark("score", "yardsticks", "bound"), Mark("train", when=trains_for_the_message)]

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        found = [*self._sizes_that_disagree(), *self._what_only_some_bases_have()]
        found += [*self._targets_that_are_none(), *self._budgets_beyond_the_parameters()]
        found += self._phases_that_never_start()
        found += _contradictions_of_the_grid(self)
        found += self._anchor_that_does_not_fit()
        found += self._scale_that_does_not_fit()
        if isinstance(self.base, TrainedBase):
            found += [*self._batches_of_the_base(self.base), *_overlap_complaints(self.base, self.data)]
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
            *others, last = kinds_with_sources()
            found.append(
                f"scoring.sources {self.scoring.sources} needs data.unit: document and a corpus of source files "
                f"({', '.join(others)} or {last}); set it to null"
            )
        for key in ("val_documents", "test_documents"):
            have, wanted = getattr(self.data, key), getattr(self.scoring, key)
            if wanted > have:
                found.append(f"scoring.{key} {wanted} exceeds data.{key} {have}")
        return found + self._what_too_few_documents_lack()

    def _what_too_few_documents_lack(self) -> list[str]:
        """Check what depends on all training documents against the number that is taken of them."""
        n, scoring = self.data.train_documents, self.scoring
        if n is None:
            return []
        found = []
        if scoring.documents != "all" and scoring.documents > n:
            found.append(f"scoring.documents {scoring.documents} exceeds data.train_documents {n}")
        if scoring.sources is not None and self.data.unit == "document":
            found.append(
                f"scoring.sources {scoring.sources}: of a source only some documents are among the {n} of "
                "data.train_documents, and large sources more often than small ones, so sources are no independent "
                "draws; set scoring.sources to null, or data.unit to source"
            )
        return found

    def _what_only_some_bases_have(self) -> list[str]:
        found = []
        if self.data.tokenizer == "base" and not isinstance(self.base, PretrainedBase):
            found.append(f"data.tokenizer base needs base.kind pretrained, found {self.base.kind}")
        if isinstance(self.model, HuggingFaceModel) and self.training.keep_initialization:
            found.append("training.keep_initialization writes the files of a GPT-2; set it to false")
        return found

    def _targets_that_are_none(self) -> list[str]:
        """Check the names of GPT-2's targets; those of a model of transformers are looked up when it is loaded."""
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

    @property
    def anchors_on_the_base(self) -> bool:
        """Whether the certified predictor falls back on the frozen base."""
        return self.base.kind != "random" if self.scoring.anchor is None else self.scoring.anchor == "base"

    def _anchor_that_does_not_fit(self) -> list[str]:
        scoring, bound = self.scoring, self.bound
        if not self.anchors_on_the_base:
            return []
        if self.base.kind == "random":
            return ["scoring.anchor base needs a base that is not random: leave the key out, or set it to guessing"]
        tokens = [name for name in scoring.smoothing if not name.startswith("document(")]
        found = [f"scoring.anchor base takes document(k) alone, scoring.smoothing holds {', '.join(tokens)}"] * bool(
            tokens
        )
        wanted = {
            "scoring.anchor_k0": scoring.anchor_k0,
            "scoring.base_documents": scoring.base_documents,
            "bound.delta_base": bound.delta_base,
        }
        if scoring.sources is not None:
            wanted["scoring.base_sources"] = scoring.base_sources
        if "all" not in (scoring.base_documents,) or scoring.base_sources not in (None, "all"):
            wanted["bound.delta_base_sample"] = bound.delta_base_sample
        if scoring.documents != "all" or scoring.sources is not None:
            wanted["bound.delta_excess_sample"] = bound.delta_excess_sample
        missing = [key for key, value in wanted.items() if value is None]
        if missing:
            found.append(f"scoring.anchor base needs {', '.join(missing)} (or set scoring.anchor to guessing)")
        return found

    def _scale_that_does_not_fit(self) -> list[str]:
        name, found = f"subspace.scale {self.subspace.scale}", []
        if self.subspace.scale is None:
            return []
        if self.base.kind != "trained":
            found.append(
                f"{name} comes from the corpus of the base: it needs base.kind trained, found {self.base.kind}"
            )
        if self.subspace.adapt == "cores":
            found.append(f"{name}: cores have the singular values of the weights for scales; set it to null")
        if self.grid.trained is not None:
            found.append(
                f"{name} is that of one kind of trained parameters, grid.trained compares several; set it to null"
            )
        return found

    def for_run(self, spec: RunSpec) -> "Settings":
        """Return the settings of one run: with its network and what it trains, where the grid compares them.

        Everything done for a run uses these. Where the grid compares neither, they are the settings themselves.
        UserError if the run's size needs a base that does not exist.
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


def _contradictions_of_the_grid(settings: Settings) -> list[str]:
    """Return one line for each contradiction between the grid and the other sections."""
    own = f"{settings.subspace.adapt}-{settings.subspace.projection}"
    parts = (own,) if settings.grid.trained is None else settings.grid.trained
    found = _of_budgets(settings, parts) + _of_networks(settings, parts)
    return found if settings.grid.trained is not None else found + _of_allocations(settings)


def _of_budgets(settings: Settings, parts: tuple[str, ...]) -> list[str]:
    budgets = settings.grid.budgets
    listed = ", ".join(map(str, budgets))
    if all(map(is_whole, parts)):
        if budgets == (ALL,):
            return []
        return [
            f"grid.budgets: with projection {IDENTITY} w is every trained parameter; expected [{ALL}], found [{listed}]"
        ]
    if ALL in budgets:
        return [
            f"grid.budgets: {ALL} is the budget of projection {IDENTITY}; {', '.join(parts)} need numbers, "
            f"found [{listed}]"
        ]
    return []


def _of_allocations(settings: Settings) -> list[str]:
    """Check that allocations other than uniform have a subspace of LoRA matrices to divide."""
    adapt, projection = settings.subspace.adapt, settings.subspace.projection
    split = [name for name in settings.grid.allocations if name != Uniform.mode]
    if not split or (adapt == "lora" and projection != IDENTITY):
        return []
    return [
        f"grid.allocations: with subspace.adapt {adapt} and projection {projection} there is nothing to divide between "
        f"A and B; expected {Uniform.mode} alone, found {', '.join(split)}"
    ]


def _of_networks(settings: Settings, parts: tuple[str, ...]) -> list[str]:
    found = []
    for adapt in dict.fromkeys(named_part(part)[0] for part in parts):
        if adapt in ("weights", "vectors") and not isinstance(settings.model, Model):
            found.append(f"adapt {adapt} needs model.kind gpt2, found {settings.model.kind}")
        if adapt != "lora" and settings.training.keep_initialization:
            found.append(
                f"training.keep_initialization writes files of adapters, and adapt {adapt} has none; set false"
            )
    if settings.grid.sizes is not None and settings.base.kind != "random":
        found.append(
            f"grid.sizes needs base.kind random, found {settings.base.kind}, which is a file of one size; set "
            "grid.sizes to null"
        )
    rates = settings.training.learning_rates or {}
    if unknown := [name for name in rates if name not in (settings.grid.trained or ())]:
        found.append(f"training.learning_rates: {', '.join(unknown)} is not in grid.trained")
    return found


def _overlap_complaints(base: TrainedBase, data: Data) -> list[str]:
    """Return what a trained base and `data` share but must not, one line each."""
    complaint = base.corpus.token_complaint(data.tokenizer, {"min_characters": base.min_characters})
    complaint = complaint or base.corpus.unit_complaint("document")
    found = [f"base: {complaint}"] if complaint else []
    if base.name == data.name:
        found.append(f"base.name and data.name are both '{data.name}', but each needs a folder of its own in data/")
    # Each is asked, since a kind may know of an overlap with another kind that was there before it.
    if overlap := base.corpus.overlap(data.corpus) or data.corpus.overlap(base.corpus):
        found.append(f"base.corpus and data.corpus share {overlap}; the base must not have seen documents of data")
    return found

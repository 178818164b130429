"""Training steps: sublora's own loop against the plain reference."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.flops import model_flops
from benchmarks.hardware import Machine
from benchmarks.reference import ReferenceTrainer
from benchmarks.synthetic import document_lengths, settings_with, write_random_dataset
from benchmarks.timing import compared, default_algorithms, timed
from sublora import config
from sublora.data.dataset import TokenDataset
from sublora.runs.build import build_run
from sublora.system.device import use_device
from sublora.training.loop import Trainer
from sublora.training.reporting import Progress

RUN = config.RunSpec(budget=1000, allocation="uniform", seed=42)
"""What both sides train, up to its rate phase."""
RATE_PHASE_FROM_THE_START = 0.99999
DATA = {"name": "random", "corpus": {"kind": "folder", "path": "none", "text_field": "text", "unit_field": None}}


Sections = dict[str, dict[str, Any]]
"""Changed settings by section."""

VARIANTS: dict[str, tuple[str, dict[str, float]]] = {
    "uniform": ("uniform", {}),
    "fixed-0.5": ("fixed-0.5", {}),
    "learned, soft masks": ("learned", {}),
    "uniform, rate phase, noise": (
        "uniform",
        {"fraction": RATE_PHASE_FROM_THE_START, "noise_fraction": RATE_PHASE_FROM_THE_START},
    ),
    "uniform, rate phase, rounded": ("uniform", {"fraction": RATE_PHASE_FROM_THE_START, "noise_fraction": 0.0}),
}
"""Other arms and phases, which the product trains alone: allocation and changes of settings.rate_phase."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    micro_batch_sequences: int
    micro_batches: int
    """Micro-batches of a step."""
    reference_micro_batch_sequences: int
    """The reference holds the logits of a whole micro-batch, so it may need smaller ones."""
    warmup_steps: int
    """Warm-up steps of the product; the reference, which compiles nothing, takes one."""
    product_steps: int
    """Steps of one repetition."""
    reference_steps: int
    repetitions: int
    context_length: int = 1024
    train_documents: int = 2000
    held_out_documents: int = 64
    """Val, and as many test documents."""
    variants: tuple[str, ...] = ()
    """Names in VARIANTS."""


CPU = Size(
    micro_batch_sequences=1,
    micro_batches=1,
    reference_micro_batch_sequences=1,
    warmup_steps=1,
    product_steps=1,
    reference_steps=1,
    repetitions=3,
)
GPU = Size(
    micro_batch_sequences=60,
    micro_batches=1,
    reference_micro_batch_sequences=12,
    warmup_steps=5,
    product_steps=20,
    reference_steps=2,
    repetitions=5,
    variants=tuple(VARIANTS),
)


def settings_for(machine: Machine, *, sections: Sections, held_out_documents: int, **training: int) -> config.Settings:
    """config/config.yaml on this machine, with `training`'s keys and, by section, further changes."""
    held_out = {f"{split}_documents": held_out_documents for split in ("val", "test")}
    changes: Sections = {
        "data": DATA | held_out,
        "scoring": held_out,
        "training": training,
        "compute": {
            "device": machine.device.type,
            "dtype": machine.dtype,
            "threads": machine.threads,
            "compile": machine.is_gpu,  # on a CPU it gains nothing, see docs/performance.md
        },
    }
    for section, keys in sections.items():
        changes[section] = changes.get(section, {}) | keys
    return settings_with(changes)


def trainer_of(
    settings: config.Settings, spec: config.RunSpec, dataset: TokenDataset, machine: Machine, folder: Path
) -> Trainer:
    """The product's training; its `_step`, for step numbers from 0 on, is all that is timed."""
    use_device(settings.compute, machine.device)
    run = build_run(settings, spec, dataset, folder, machine.device, dtype=settings.compute.dtype)
    training = settings.training
    progress = Progress(spec.name, steps=training.steps, tokens_per_step=training.tokens_per_step, quiet=True)
    return Trainer(run, out=folder, progress=progress)


def run(machine: Machine, size: Size, *, sections: Sections | None = None) -> dict[str, Any]:
    """Tokens per second of both sides, their ratio, FLOP/s, memory of a step; `sections`: changes of the settings."""
    settings = settings_for(
        machine,
        sections=sections or {},
        held_out_documents=size.held_out_documents,
        tokens_per_step=size.micro_batch_sequences * size.micro_batches * size.context_length,
        micro_batch_sequences=size.micro_batch_sequences,
    )
    with tempfile.TemporaryDirectory() as folder:
        lengths = document_lengths(size.train_documents + 2 * size.held_out_documents)
        dataset = write_random_dataset(Path(folder), settings.data, lengths)
        result = _measure(machine, size, settings, dataset, Path(folder))
        rates = {name: _variant_rate(machine, size, settings, dataset, Path(folder), name) for name in size.variants}
    return result | {"variants_tokens_per_second": rates}


def _measure(
    machine: Machine, size: Size, settings: config.Settings, dataset: TokenDataset, folder: Path
) -> dict[str, Any]:
    step_tokens, context = settings.training.tokens_per_step, settings.model.context_length
    product = _Steps(trainer_of(settings, RUN, dataset, machine, folder)._step, step_tokens)
    warmups = {"product": [timed(machine, lambda: product(1)) for _ in range(size.warmup_steps)]}
    smaller = settings.training.model_copy(update={"micro_batch_sequences": size.reference_micro_batch_sequences})
    reference_settings = settings.model_copy(update={"training": smaller})
    reference = _Steps(ReferenceTrainer(reference_settings, RUN, dataset, machine.device).step, step_tokens)

    def reference_steps(count: int = size.reference_steps) -> int:
        with default_algorithms():
            return reference(count)

    warmups["reference"] = [timed(machine, lambda: reference_steps(1))]
    result = compared(machine, lambda: product(size.product_steps), reference_steps, size.repetitions, warmups)
    flops = model_flops(
        settings.model, dataset.vocab_size, [context] * (step_tokens // context), step_tokens, training=True
    )
    for side, dtype in (("product", settings.compute.dtype), ("reference", "float32")):
        rate = flops / step_tokens * result[side]["tokens_per_second"]
        result[side] |= {"flop_per_second": rate, "dtype": dtype}
    micro_batch_tokens = settings.training.micro_batch_sequences * context
    return result | {
        "size": dataclasses.asdict(size),
        "micro_batch_logits_mib": micro_batch_tokens * dataset.vocab_size * 4 / 2**20,
        "settings": settings.model_dump(mode="json"),
    }


def _variant_rate(
    machine: Machine, size: Size, settings: config.Settings, dataset: TokenDataset, folder: Path, name: str
) -> float:
    """Tokens per second of the product."""
    allocation, changes = VARIANTS[name]
    phase = settings.rate_phase.model_copy(update=changes)
    run = RUN.model_copy(update={"allocation": allocation})
    trainer = trainer_of(settings.model_copy(update={"rate_phase": phase}), run, dataset, machine, folder)
    steps = _Steps(trainer._step, settings.training.tokens_per_step)
    timed(machine, lambda: steps(size.warmup_steps))
    return timed(machine, lambda: steps(size.product_steps))["per_second"]


class _Steps:
    """Optimizer steps, counted on: `steps(n)` takes the next n and returns how many tokens they trained on."""

    def __init__(self, take_step: Callable[[int], Any], tokens: int) -> None:
        self._take_step, self._tokens, self._done = take_step, tokens, 0

    def __call__(self, count: int) -> int:
        for _ in range(count):
            self._take_step(self._done)
            self._done += 1
        return count * self._tokens

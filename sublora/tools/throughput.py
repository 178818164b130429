"""How many tokens per second this machine trains on and scores, measured for some seconds."""

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch

from sublora import config
from sublora.data.base_and_target import open_target
from sublora.data.dataset import TokenDataset, dataset_folder
from sublora.data.tokenizers import TOKENIZERS
from sublora.losses.documents import score_documents
from sublora.runs.base import load_base
from sublora.runs.build import assemble_run
from sublora.runs.networks import random_base
from sublora.system.device import claim_device, gpu_name
from sublora.system.errors import UserError
from sublora.training.exchange import in_rows
from sublora.training.rate_phase import training_documents
from sublora.training.run import Run
from sublora.training.step import AdamW, Objective

MEASURE_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Tokens per second through one GPU (or CPU process), and the source of the numbers."""

    training: float
    """Training tokens per second, including evaluations if a finished run was measured."""
    scoring: float | None
    """Tokens per second through the network in scoring, more than are scored, since windows overlap."""
    source: str


@dataclasses.dataclass(frozen=True)
class RandomTokens:
    """Stands in for a dataset when only the network's speed matters."""

    vocab_size: int
    longest_targets: int = sys.maxsize
    """No document is read, so none of the base is out of sight."""

    @property
    def eot_id(self) -> int:
        return self.vocab_size - 1


def measure_throughput(settings: config.Settings, root: Path) -> Throughput:
    """Time the network of these settings on this machine for some seconds.

    Training is timed in whole steps (micro-batches, projection, AdamW) of at most four micro-batches, on windows of the
    documents if they are prepared: padded positions count as tokens, as in training.tokens_per_step, though a step
    leaves most of them out where documents are short. Without documents the tokens are random, as in scoring, which is
    timed in full windows.
    """
    dataset = dataset_if_prepared(settings, root)
    vocab_size = dataset.vocab_size if dataset else _vocab_size(settings)
    with claim_device(settings.compute) as device:
        random_tokens = cast(TokenDataset, RandomTokens(vocab_size))
        # The speed does not depend on the base's weights, so the base need not exist yet.
        spec = settings.grid.runs()[-1]
        settings = settings.for_run(spec)
        if isinstance(settings.model, config.HuggingFaceModel):
            base = load_base(settings, spec.seed, vocab_size, root)
        else:
            base = random_base(settings, vocab_size, seed=0)
        # Train in the settings' type, and score in float32.
        documents = dataset if settings.message.quantizer == "entropy" else None
        training = _training_rate(
            assemble_run(settings, spec, documents or random_tokens, base, device, dtype=settings.compute.dtype)
        )
        run = assemble_run(settings, spec, random_tokens, base, device)
        context = settings.model.context_length
        rng = np.random.Generator(np.random.Philox(0))
        size = (max(1, settings.compute.scoring_batch_tokens // context), context - 1)
        texts = list(rng.integers(vocab_size - 1, size=size))
        with torch.no_grad():
            model = run.model_at(run.subspace.subspace_params)

        def score_once() -> int:
            score_documents(model, texts, run.scoring_rule, device)
            return len(texts) * context

        scoring = _rate(score_once, device)
        where = gpu_name(device) or f"{settings.compute.threads} CPU thread{'s' * (settings.compute.threads > 1)}"
    of_run = f", run {spec.name}" if settings.grid.compares_networks else ""
    return Throughput(training, scoring, f"measured for {2 * MEASURE_SECONDS:.0f} s on this machine ({where}{of_run})")


def _vocab_size(settings: config.Settings) -> int:
    if settings.data.tokenizer not in TOKENIZERS:
        raise UserError(
            f"data/{settings.data.name} is not prepared, and only then the vocabulary of a pretrained model is known "
            "here; run sublora prepare and sublora base, or give --tokens-per-second"
        )
    return TOKENIZERS[settings.data.tokenizer].vocab_size


def _training_rate(run: Run) -> float:
    """Return the training tokens per second of one process."""
    training, context = run.settings.training, run.settings.model.context_length
    rows, processes = training.micro_batch_sequences, run.settings.compute.gpus_per_training
    pieces = min(4, training.tokens_per_step // (rows * context * processes))
    if isinstance(run.dataset, RandomTokens):
        rng = np.random.Generator(np.random.Philox(0))
        tokens = rng.integers(run.dataset.vocab_size, size=(pieces * rows, context + 1))
        objective = Objective(run, in_rows(lambda step: (tokens[:, :-1], tokens[:, 1:]), rows))
    else:
        objective = Objective(run, training_documents(run, pieces * rows).micro_batches)
    trained = list(run.subspace.parameters())
    optimizer = AdamW([{"params": trained}], lr=1e-4, betas=training.betas, eps=training.epsilon)
    # Soft masks if there are gates, since that part of a training is slower.
    width = float(bool(run.subspace.gates))

    steps = itertools.count()

    def step_once() -> int:
        objective.gradient(next(steps), width, trained)
        optimizer.step()
        return pieces * rows * context

    return _rate(step_once, run.device)


def _rate(work: Callable[[], int], device: torch.device) -> float:
    """Return the tokens per second of a piece of work that returns its tokens, after one call as a warm-up."""

    def finish() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    work()
    started, tokens = finish(), 0
    while (seconds := finish() - started) < MEASURE_SECONDS:
        tokens += work()
    return tokens / seconds


def dataset_if_prepared(settings: config.Settings, root: Path) -> TokenDataset | None:
    """Return the data, or None if they are not prepared; UserError if they were prepared with other settings."""
    if not (dataset_folder(root, settings.data) / "meta.json").exists():
        return None
    return open_target(settings, root)

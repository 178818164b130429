"""Scoring documents: sublora's own path against the plain reference, at two strides."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import reference
from benchmarks.flops import model_flops
from benchmarks.hardware import Machine
from benchmarks.synthetic import document_lengths, evenly_spread, write_random_dataset
from benchmarks.timing import compared, default_algorithms, timed
from benchmarks.training import RUN, Sections, settings_for
from sublora import config
from sublora.bounds.smoothing import parse_smoothing
from sublora.losses.documents import score_documents
from sublora.losses.windows import WindowRule, Windows, sliding_windows
from sublora.models.protocol import LanguageModel
from sublora.runs.build import build_run
from sublora.runs.networks import CERTIFIED_DTYPE
from sublora.system.device import use_device
from sublora.system.streams import generator
from sublora.training.run import Run

STANDARD_DEVIATION_OF_W = 0.3
"""The order that trained runs reach, so that the adapters matter in the comparison of losses."""


FEWEST_DOCUMENTS = 1000
"""In the dataset, so that the few compared ones can be chosen by their lengths."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    documents: int
    """That the product scores alone, once for each stride; 0: only those of the comparison."""
    compared_documents: dict[int, int]
    """By stride: how many of them, at evenly spaced quantiles of length, both sides score in turns."""
    reference_windows: int
    """Windows the reference takes at once."""
    scoring_batch_tokens: int | None
    """None: as config.yaml says."""
    repetitions: int
    held_out_documents: int = 8
    """Val, and as many test documents; nothing is scored on them."""
    dtype: str = CERTIFIED_DTYPE
    """What the product computes in; the reference computes in float32."""


CPU = Size(
    documents=0,
    compared_documents={100: 2, 512: 3},
    reference_windows=4,
    scoring_batch_tokens=8192,
    repetitions=2,
)
GPU = Size(
    documents=10_000,
    compared_documents={100: 200, 512: 400},
    reference_windows=16,
    scoring_batch_tokens=None,
    repetitions=3,
)


def run(machine: Machine, size: Size, *, sections: Sections | None = None) -> dict[str, Any]:
    """For each stride: tokens per second of both sides, their ratio, and the product's seconds for all documents."""
    settings = settings_at(machine, size, sections or {})
    use_device(settings.compute, machine.device)
    available = max(size.documents, FEWEST_DOCUMENTS)
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_random_dataset(
            Path(folder), settings.data, document_lengths(available + 2 * size.held_out_documents)
        )
        product = Product(build_run(settings, RUN, dataset, Path(folder), machine.device, dtype=size.dtype))
        plain = _Reference(machine, product)
        strides = {
            stride: _at_stride(machine, size, with_stride(settings, stride), product, plain)
            for stride in size.compared_documents
        }
    return {"size": dataclasses.asdict(size), "strides": strides, "settings": settings.model_dump(mode="json")}


def settings_at(machine: Machine, size: Size, sections: Sections) -> config.Settings:
    """config/config.yaml on this machine, for this size, with further changes by section."""
    if size.scoring_batch_tokens is not None:
        batch = {"scoring_batch_tokens": size.scoring_batch_tokens}
        sections = sections | {"compute": sections.get("compute", {}) | batch}
    return settings_for(machine, sections=sections, held_out_documents=size.held_out_documents)


def with_stride(settings: config.Settings, stride: int) -> config.Settings:
    scoring = settings.scoring.model_copy(update={"sliding_window": stride})
    return settings.model_copy(update={"scoring": scoring})


class Product:
    """sublora's scoring of a random w."""

    def __init__(self, run: Run) -> None:
        self.run, self.dataset = run, run.dataset
        self.w = STANDARD_DEVIATION_OF_W * generator("benchmark w").standard_normal(RUN.budget)
        self._model: LanguageModel = run.decoded(self.w, ())

    def losses(self, settings: config.Settings, documents: list[np.ndarray]) -> np.ndarray:
        """Bits per token (documents x candidates of the smoothing); of `settings` the stride counts."""
        run = dataclasses.replace(self.run, settings=settings)
        scores = score_documents(self._model, documents, run.scoring_rule, run.device)
        return scores.losses_DA(run.loss.candidates, self.dataset.vocab_size)


class _Reference:
    """The reference's scoring of the product's w."""

    def __init__(self, machine: Machine, product: Product) -> None:
        run = product.run
        self._eot_id = product.dataset.eot_id
        self._network = reference.PlainGPT(run.settings, product.dataset.vocab_size, RUN.seed).to(machine.device)
        with torch.no_grad():
            self._theta = run.subspace.theta(torch.from_numpy(product.w.astype(np.float32)).to(machine.device))

    def losses(self, settings: config.Settings, documents: list[np.ndarray], windows_at_once: int) -> np.ndarray:
        scoring, candidates = settings.scoring, tuple(map(parse_smoothing, settings.scoring.smoothing))
        with default_algorithms():
            return reference.score_documents(
                self._network,
                self._theta,
                documents,
                eot_id=self._eot_id,
                stride=scoring.sliding_window,
                smoothing=candidates,
                windows_at_once=windows_at_once,
            )[0]


def _at_stride(
    machine: Machine, size: Size, settings: config.Settings, product: Product, plain: _Reference
) -> dict[str, Any]:
    everything = [product.dataset.document("train", i) for i in range(product.dataset.n_documents)]
    documents = evenly_spread(everything, size.compared_documents[settings.scoring.sliding_window])
    tokens = sum(len(document) + 1 for document in documents)
    losses: dict[str, np.ndarray] = {}

    def score_with_product() -> int:
        losses["product"] = product.losses(settings, documents)
        return tokens

    def score_with_reference() -> int:
        losses["reference"] = plain.losses(settings, documents, size.reference_windows)
        return tokens

    warmups = {}
    if settings.compute.compile or machine.is_gpu:  # elsewhere there is nothing to compile or to choose
        sides = {"product": score_with_product, "reference": score_with_reference}
        warmups = {side: [timed(machine, score)] for side, score in sides.items()}
    result = compared(machine, score_with_product, score_with_reference, size.repetitions, warmups)
    windows = _windows(settings, documents)
    flops = model_flops(settings.model, product.dataset.vocab_size, windows.length, tokens, training=False)
    for side, dtype in (("product", size.dtype), ("reference", CERTIFIED_DTYPE)):
        rate = flops / tokens * result[side]["tokens_per_second"]
        result[side] |= {"flop_per_second": rate, "dtype": dtype}
    difference = float(np.abs(losses["product"] - losses["reference"]).max())
    result |= {
        "documents": len(documents),
        "tokens": tokens,
        "window_positions": int(windows.length.sum()),
        "largest_difference_of_a_document_loss_bits": difference,
    }
    if size.documents:
        result["all"] = _all_documents(machine, settings, product, evenly_spread(everything, size.documents), result)
    return result


def _all_documents(
    machine: Machine, settings: config.Settings, product: Product, documents: list[np.ndarray], part: dict[str, Any]
) -> dict[str, Any]:
    """The product alone on all documents; the reference's time for them is scaled from its part by window positions."""
    windows = _windows(settings, documents)
    tokens, positions = sum(len(document) + 1 for document in documents), int(windows.length.sum())

    def score() -> int:
        product.losses(settings, documents)
        return tokens

    measured = timed(machine, score)
    flops = model_flops(settings.model, product.dataset.vocab_size, windows.length, tokens, training=False)
    reference_rate = part["reference"]["tokens_per_second"] * part["window_positions"] / part["tokens"]
    return {
        "documents": len(documents),
        "tokens": tokens,
        "window_positions": positions,
        "seconds": measured["seconds"],
        "tokens_per_second": measured["per_second"],
        "flop_per_second": flops / measured["seconds"],
        "memory_mib": measured["memory_mib"],
        "reference_seconds_scaled_by_window_positions": positions / reference_rate,
    }


def _windows(settings: config.Settings, documents: list[np.ndarray]) -> Windows:
    counts = np.array([len(document) + 1 for document in documents])
    return sliding_windows(counts, WindowRule(settings.model.context_length, settings.scoring.sliding_window))

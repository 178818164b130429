"""results/yardsticks.json: the trivial models, and the frozen base with an empty message."""

import time
from pathlib import Path

import numpy as np
import torch

from sublora import config
from sublora.bounds.anchor import base_bound
from sublora.bounds.inequalities import betting, betting_subsampled
from sublora.bounds.premises import Anchoring
from sublora.bounds.selection import choose_smoothing
from sublora.bounds.smoothing import DocumentMixture
from sublora.coding.bits import index_bits, uint_to_bits
from sublora.data.base_and_target import open_target
from sublora.losses.bounded import bounded_loss
from sublora.losses.causality import CausalityTest
from sublora.losses.documents import score_documents
from sublora.runs.base_losses import write_base_losses
from sublora.runs.build import build_run
from sublora.runs.losses_file import BaseLosses
from sublora.runs.score import Predictor, held_out_units, record_units
from sublora.runs.starts import announce
from sublora.system.device import claim_device
from sublora.system.errors import UserError
from sublora.system.names import BASE_LOSSES_PATH
from sublora.system.provenance import Provenance
from sublora.system.streams import generator
from sublora.training.run import Run
from sublora.yardsticks.compute import compute_yardsticks
from sublora.yardsticks.record import (
    FROZEN_BASE,
    YARDSTICKS_FORMAT,
    YARDSTICKS_PATH,
    Row,
    Scored,
    Yardsticks,
    drawn_units,
    write_yardsticks,
    yardstick_row,
)


def make_yardsticks(settings: config.Settings, *, root: Path) -> Path:
    """Compute all yardsticks of the settings' dataset and write them; return the path of yardsticks.json.

    Raises UserError if the data or the base cannot be read.
    """
    # The models that know less, from the documents alone.
    dataset = open_target(settings, root).verified()
    scoring = settings.scoring
    loss = bounded_loss(
        settings, vocab_size=dataset.vocab_size, n_units=dataset.n_units, n_documents=dataset.n_documents
    ).direct
    rows = compute_yardsticks(dataset, loss, val_documents=scoring.val_documents, test_documents=scoring.test_documents)
    # The frozen base, on the device that trains.
    with claim_device(settings.compute) as device:
        announce(settings, Provenance.of_this_process(), device)
        # A random base is one for each seed: the first stands for all.
        spec = settings.grid.runs()[0]
        run = build_run(settings.for_run(spec), spec, dataset, root, device)
        if (anchoring := run.loss.anchoring) is None:
            row = frozen_base_row(run)
        else:
            started = time.perf_counter()
            losses = write_base_losses(root / BASE_LOSSES_PATH, run, anchoring)
            row = anchored_base_row(run, anchoring, losses, seconds=time.perf_counter() - started)
    yardsticks = Yardsticks(
        format=YARDSTICKS_FORMAT,
        data_hash=dataset.data_hash,
        base_sha256=run.network.base_sha256,
        settings=config.stage_settings(settings, "yardsticks"),
        rows=rows | {FROZEN_BASE: row},
    )
    path = root / YARDSTICKS_PATH
    write_yardsticks(path, yardsticks)
    return path


@torch.no_grad()
def frozen_base_row(run: Run) -> Row:
    """Return the row of a base that no run is anchored on: its message is the index of its smoothing alone.

    UserError if a prediction of the base depends on later tokens (`CausalityTest`).
    """
    started = time.perf_counter()
    loss, scoring = run.loss.direct, run.settings.scoring
    model = run.model_at(run.subspace.subspace_params)
    # The smoothing is chosen on val.
    documents_D, units = run.dataset.leading_units("val", scoring.val_documents)
    documents = [run.dataset.document("val", int(i)) for i in documents_D]
    scores = score_documents(model, documents, run.scoring_rule, run.device)
    val_losses_UA = units.means(scores.losses_DA(loss.candidates, loss.vocab_size))
    index_length = index_bits(len(loss.candidates))
    chosen = choose_smoothing(val_losses_UA, loss, code_bits=index_length)
    message = uint_to_bits(chosen, index_length)
    # The message seeds the draw that the bound is computed from.
    drawn_U = drawn_units(FROZEN_BASE, message, loss.premises, run.dataset.data_hash)
    smoothing = loss.candidates[chosen]
    causality = CausalityTest(generator("causality of the base", run.seen_base_sha256, run.dataset.data_hash))
    predictor = Predictor(model, smoothing, causality=causality)
    scored = Scored(
        smoothing=smoothing,
        losses_D=record_units(run, predictor, "train", drawn_U).losses_U,
        val_losses_D=val_losses_UA[:, chosen],
        test_losses_D=held_out_units(run, predictor, "test", scoring.test_documents).losses_U,
    )
    if causality.refusal is not None:
        raise UserError(f"base {run.network.base_sha256[:12]}...: {causality.refusal}")
    seconds = time.perf_counter() - started
    return yardstick_row(scored, loss, code_bits={"smoothing": float(index_length)}, seconds=seconds)


def anchored_base_row(run: Run, anchoring: Anchoring, losses: BaseLosses, *, seconds: float) -> Row:
    """Return the row of the base that all runs are anchored on: its bound is u_b, their common part.

    The base is mixed with guessing by the weight 2^-k0, a setting; only bits for choices made by hand are charged.
    losses: of this base, scored once for all runs; seconds: wall time that took.
    """
    loss, scoring, anchor = run.loss, run.settings.scoring, DocumentMixture(anchoring.k0)
    loss_range = anchor.loss_range_bits(loss.vocab_size, loss.min_targets)
    share = anchoring.base_share(anchoring.base_documents)
    extra_bits = run.settings.message.extra_bits

    def held_out_losses(split: str, wanted: int, log_p_D: np.ndarray) -> np.ndarray:
        """Return the losses of the anchor on the first units of a split, bits per token, float64 (units,)."""
        documents_D, units = run.dataset.leading_units(split, wanted)
        # The closing end-of-text is a target as well.
        targets_D = run.dataset.document_lengths(split)[documents_D] + 1
        return units.means(anchor.losses_bits(log_p_D, targets_D, loss.vocab_size))

    test_losses_U = held_out_losses("test", scoring.test_documents, losses.test_log_p_D)
    return Row(
        bound_bits=base_bound(losses.losses_U, loss_range, n=run.dataset.n_units, share=share, picked_bits=extra_bits),
        inequality=(betting if share.delta_sample is None else betting_subsampled).__name__,
        smoothing=anchor.name,
        loss_range_bits=list(loss_range),
        empirical_loss_bits=float(losses.losses_U.mean()),
        val_loss_bits=float(held_out_losses("val", scoring.val_documents, losses.val_log_p_D).mean()),
        test_loss_bits=float(test_losses_U.mean()),
        test_losses_bits=test_losses_U.tolist(),
        code_bits=extra_bits,
        code_bits_items={"extra": extra_bits},
        n=run.dataset.n_units,
        m=len(losses.losses_U),
        delta=share.delta,
        delta_sample=share.delta_sample,
        seconds=seconds,
    )

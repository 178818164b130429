"""data/{dataset}/yardsticks.json: the trivial models, and the frozen base with an empty message."""

import time
from pathlib import Path

import torch

from sublora import config
from sublora.bounds.selection import choose_smoothing
from sublora.coding.bits import index_bits, uint_to_bits
from sublora.data.base_and_target import open_target
from sublora.data.dataset import dataset_folder
from sublora.losses.bounded import bounded_loss
from sublora.losses.documents import score_documents
from sublora.runs.base_losses import BASE_LOSSES_PATH, write_base_losses
from sublora.runs.build import build_run
from sublora.runs.score import Predictor, held_out_units, record_units
from sublora.runs.starts import announce
from sublora.system.device import claim_device
from sublora.system.provenance import Provenance
from sublora.training.run import Run
from sublora.yardsticks.compute import compute_yardsticks
from sublora.yardsticks.files import YARDSTICKS_FILE, write_yardsticks
from sublora.yardsticks.rows import Row, Scored, drawn_units, yardstick_row

FROZEN_BASE = "frozen_base"


def make_yardsticks(settings: config.Settings, *, root: Path) -> Path:
    """Compute all yardsticks of the settings' data set and write them; returns yardsticks.json.

    UserError if the data or the base cannot be read.
    """
    dataset = open_target(settings, root).verified()
    scoring = settings.scoring
    loss = bounded_loss(
        settings, vocab_size=dataset.vocab_size, n_units=dataset.n_units, n_documents=dataset.n_documents
    ).direct
    contents = compute_yardsticks(
        dataset, loss, val_documents=scoring.val_documents, test_documents=scoring.test_documents
    )
    with claim_device(settings.compute) as device:
        announce(settings, Provenance.of_this_process(), device)
        # A random base is one for each seed: the first stands for all.
        run = build_run(settings, settings.grid.runs()[0], dataset, root, device)
        contents["rows"][FROZEN_BASE] = frozen_base_row(run)
        if (anchoring := run.loss.anchoring) is not None:
            write_base_losses(root / BASE_LOSSES_PATH, run, anchoring)
    path = dataset_folder(root, settings.data) / YARDSTICKS_FILE
    write_yardsticks(path, contents)
    return path


@torch.no_grad()
def frozen_base_row(run: Run) -> Row:
    """The row of the base as it is before any adaptation: its message is the index of its smoothing alone."""
    started = time.perf_counter()
    loss, scoring = run.loss.direct, run.settings.scoring
    model = run.model_at(run.subspace.subspace_params)
    documents_D, units = run.dataset.leading_units("val", scoring.val_documents)
    documents = [run.dataset.document("val", int(i)) for i in documents_D]
    scores = score_documents(model, documents, run.scoring_rule, run.device)
    val_losses_UA = units.means(scores.losses_DA(loss.candidates, loss.vocab_size))
    index_length = index_bits(len(loss.candidates))
    chosen = choose_smoothing(val_losses_UA, loss, code_bits=index_length)
    message = uint_to_bits(chosen, index_length)
    drawn_U = drawn_units(FROZEN_BASE, message, loss.premises, run.dataset.data_hash)
    smoothing = loss.candidates[chosen]
    predictor = Predictor(model, smoothing)
    scored = Scored(
        smoothing=smoothing,
        losses_D=record_units(run, predictor, "train", drawn_U).losses_U,
        val_losses_D=val_losses_UA[:, chosen],
        test_losses_D=held_out_units(run, predictor, "test", scoring.test_documents).losses_U,
    )
    seconds = time.perf_counter() - started
    return yardstick_row(scored, loss, code_bits={"smoothing": float(index_length)}, seconds=seconds)

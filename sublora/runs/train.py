"""Train one run of the grid."""

from pathlib import Path

import torch

from sublora import config
from sublora.data.base_and_target import open_target
from sublora.data.dataset import TokenDataset
from sublora.runs.base import base_sha256
from sublora.runs.build import build_run
from sublora.runs.networks import trained_parameters
from sublora.runs.starts import announce, record_start, write_owner
from sublora.system.device import claim_devices, use_device
from sublora.system.errors import UserError
from sublora.system.locks import Presence, sole_writer
from sublora.system.names import CHECKPOINT_NAME
from sublora.system.provenance import Provenance
from sublora.tools.message_cost import MessageCost, check_message, message_cost
from sublora.training import checkpoint
from sublora.training.distributed import joined
from sublora.training.loop import Trainer
from sublora.training.reporting import Progress, Trackers, tracked
from sublora.training.resumable import BeforeStep


def train_run(
    settings: config.Settings,
    spec: config.RunSpec,
    *,
    root: Path,
    out: Path,
    settings_file: Path | None = None,
    before_step: BeforeStep | None = None,
) -> Path:
    """Train `spec` and write best_ckpt.pt, metrics.csv and gating_trace.csv into `out`; returns the checkpoint.

    Two processes never train in one folder at once: the second waits for the first, and takes its result if it
    is the very same training. Started by torchrun, the processes share the training and the first one writes.
    `settings_file`, where the settings are from, is written beside the run. UserError for bad data, a bad budget, a
    missing GPU, a wrong number of processes, or a folder with another finished training, of which nothing is touched.
    """
    settings = settings.for_run(spec)
    provenance = Provenance.of_this_process()
    dataset = open_target(settings, root)
    _check_data_size(settings, dataset)
    cost = _message_cost(settings, spec, dataset)
    training, finished = settings.training, out / CHECKPOINT_NAME
    with joined(settings.compute) as peers:
        steps, tokens_per_step = training.steps, training.tokens_per_step
        presence = Presence(out, "training")
        progress = Progress(
            spec.name, steps=steps, tokens_per_step=tokens_per_step, quiet=not peers.is_first, presence=presence
        )

        def train_on(devices: list[torch.device] | None, trackers: Trackers | None = None) -> None:
            """What every process does; None: there is nothing to train."""
            devices = peers.from_first(devices)
            if devices is None:
                return
            use_device(settings.compute, device := devices[peers.rank])
            run = build_run(settings, spec, dataset, root, device, dtype=settings.compute.dtype)
            if peers.is_first:
                announce(settings, provenance, device)
            trainer = Trainer(
                run,
                out=out,
                progress=progress,
                provenance=provenance,
                peers=peers,
                trackers=trackers,
                before_step=before_step,
            )
            trainer.train()
            if peers.is_first:
                trainer.forget_state()

        if not peers.is_first:
            train_on(None)
            return finished
        with progress, sole_writer(out, presence, progress.say) as waited:
            if cost is not None and cost.is_absurd:
                progress.say(str(cost))
            digest = checkpoint.training_digest(settings, spec, dataset.data_hash, base_sha256(settings, root))
            if waited and finished.exists() and checkpoint.load(finished)["digest"] == digest:
                progress.say(f"{finished}: written by the process that was waited for")
                train_on(None)
                return finished
            _check_finished(finished, digest, spec, waited)
            write_owner(out, settings, settings_file, root)
            dataset.verified()
            record_start(out, "train", settings, provenance)
            with (
                tracked(settings, name=spec.name, digest=digest, out=out, say=progress.say) as trackers,
                claim_devices(settings.compute, peers.size) as devices,
            ):
                train_on(devices, trackers)
    return finished


def _check_finished(path: Path, digest: str, spec: config.RunSpec, waited: bool) -> None:
    """UserError if the folder holds the result of another training, which this one would overwrite.

    Of the same run with other settings only if there was nobody to wait for: a workflow that was killed and started
    again with new settings takes the place of its predecessor's jobs.
    """
    if not path.exists():
        return
    loaded = checkpoint.load(path)
    _, found = checkpoint.settings_of(loaded, path)
    if loaded["digest"] != digest and not (waited and found == spec):
        raise UserError(
            f"{path}: the finished training of {found.name}, with another grid point, settings or data; give another "
            "folder with --out, or delete this one's files"
        )


def _message_cost(settings: config.Settings, spec: config.RunSpec, dataset: TokenDataset) -> MessageCost | None:
    """What the message will cost, None where that takes the model's own files; UserError if none can be written."""
    parameters = trained_parameters(settings, dataset.vocab_size)
    if parameters is None and spec.budget == config.ALL:
        return None
    dimension = spec.dimension(parameters)
    if parameters is not None and dimension > parameters:
        return None
    cost = message_cost(settings, dimension, dataset)
    check_message(settings, cost)
    return cost


def _check_data_size(settings: config.Settings, dataset: TokenDataset) -> None:
    """UserError if the data cannot give the units that scoring needs."""
    wanted = settings.scoring.documents
    if wanted != "all" and wanted > dataset.n_units:
        kind = "documents" if dataset.unit == "document" else "units"
        raise UserError(
            f"scoring.documents is {wanted}, but data/{settings.data.name} has only "
            f"{dataset.n_units} training {kind}; lower scoring.documents"
        )

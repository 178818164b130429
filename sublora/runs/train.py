"""Train one run of the grid."""

import dataclasses
from pathlib import Path

import torch

from sublora import config
from sublora.data.base_and_target import open_target
from sublora.data.dataset import TokenDataset
from sublora.runs.base_files import named_base_sha256
from sublora.runs.build import build_run
from sublora.runs.message_cost import MessageCost, check_message, message_cost
from sublora.runs.networks import trained_parameters
from sublora.runs.scales import load_scale_points
from sublora.runs.starts import announce, record_start, write_owner
from sublora.system.device import claim_devices, use_device
from sublora.system.errors import UserError
from sublora.system.locks import Presence, sole_writer
from sublora.system.names import CHECKPOINT_NAME
from sublora.system.provenance import Provenance
from sublora.training import checkpoint
from sublora.training.exchange import Peers, joined
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
    """Train `spec`, write best_ckpt.pt, metrics.csv and gating_trace.csv into `out`, and return the checkpoint.

    Two processes never train in one folder at once: the second waits for the first, and takes its result if it
    is the very same training. Started by torchrun, the processes share the training and the first one writes.

    Args:
        settings: of the whole grid.
        spec: the run.
        root: the folder that holds data/ and results/base/.
        out: the run's folder.
        settings_file: the file that the settings are from, whose name is written beside the run.
        before_step: called with the number of each step.

    Raises:
        UserError: bad data or a bad budget, no GPU where one is asked for, a wrong number of processes, or a folder
            that holds another finished training; nothing of that one is touched.
    """
    # Refuse what can be refused before anything is written, and before waiting for a lock or a GPU.
    settings = settings.for_run(spec)
    dataset, provenance = open_target(settings, root), Provenance.of_this_process()
    _check_data_size(settings, dataset)
    cost = _message_cost(settings, spec, dataset)
    training, finished, presence = settings.training, out / CHECKPOINT_NAME, Presence(out, "training")
    with joined(settings.compute) as peers:
        progress = Progress(
            spec.name,
            steps=training.steps,
            tokens_per_step=training.tokens_per_step,
            quiet=not peers.is_first,
            presence=presence,
        )
        job = _Job(settings, spec, dataset, root, out, peers, progress, provenance, before_step)
        # The other processes wait to hear from the first one on which devices to train, or that there is no need to.
        if not peers.is_first:
            devices = peers.from_first(None)
            if devices is not None:
                job.train(devices[peers.rank])
            return finished
        with progress, sole_writer(out, presence, progress.say) as waited:
            if cost is not None and cost.is_absurd:
                progress.say(str(cost))
            base_sha256, points = named_base_sha256(settings, root), load_scale_points(settings, root)
            digest = checkpoint.training_digest(settings, spec, dataset.data_hash, base_sha256, points)
            # The process that held the lock before may have finished this very training.
            if waited and finished.exists() and checkpoint.load(finished)["digest"] == digest:
                progress.say(f"{finished}: another process has written it in the meantime")
                peers.from_first(None)
                return finished
            # From here on the folder belongs to this training.
            _check_finished(finished, digest, spec, waited)
            write_owner(out, settings, settings_file, root)
            dataset.verified()
            record_start(out, "train", settings, provenance)
            with (
                tracked(settings, name=spec.name, digest=digest, out=out, say=progress.say) as trackers,
                claim_devices(settings.compute, peers.size) as devices,
            ):
                peers.from_first(devices)
                job.train(devices[peers.rank], trackers)
    return finished


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """What every process of a training does once it has a device."""

    settings: config.Settings
    spec: config.RunSpec
    dataset: TokenDataset
    root: Path
    out: Path
    peers: Peers
    progress: Progress
    provenance: Provenance
    before_step: BeforeStep | None

    def train(self, device: torch.device, trackers: Trackers | None = None) -> None:
        """Build the run on the device and train it; the first process announces it and writes the results."""
        use_device(self.settings.compute, device)
        dtype = self.settings.compute.dtype
        run = build_run(self.settings, self.spec, self.dataset, self.root, device, dtype=dtype)
        if self.peers.is_first:
            announce(self.settings, self.provenance, device)
        trainer = Trainer(
            run,
            out=self.out,
            progress=self.progress,
            provenance=self.provenance,
            peers=self.peers,
            trackers=trackers,
            before_step=self.before_step,
        )
        trainer.train()
        if self.peers.is_first:
            trainer.forget_state()


def _check_finished(path: Path, digest: str, spec: config.RunSpec, waited: bool) -> None:
    """UserError if the folder holds the result of another training, which this one would overwrite.

    A result of the same run with other settings is refused as well, unless the process that held the lock before has
    written it: a workflow that was killed and started again with new settings replaces the results of its old jobs.
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
    """Predict the cost of the message; None where only the model's own files tell, UserError if none can be written."""
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

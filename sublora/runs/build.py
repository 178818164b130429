"""A run of the grid in memory: from its settings and seeds, or from the folder of a finished training.

It consists of the base, the parameters of the adapters, and the subspace.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sublora import config
from sublora.data.base_and_target import open_target
from sublora.data.dataset import TokenDataset
from sublora.models.adapted import LoraNetwork
from sublora.models.protocol import Network
from sublora.runs.base import load_base
from sublora.runs.networks import CERTIFIED_DTYPE, AnyBase, make_network
from sublora.runs.scales import load_scale_points
from sublora.subspace.allocations import parse_allocation
from sublora.subspace.parameters import ParameterSpace
from sublora.subspace.scales import Points, entry_scales, parse_scale, scales_of_points
from sublora.subspace.subspace import Subspace, SubspaceShape
from sublora.system.errors import UserError
from sublora.system.files import absolute
from sublora.system.names import CHECKPOINT_NAME
from sublora.system.streams import generator
from sublora.training import checkpoint
from sublora.training.run import Run


def build_run(
    settings: config.Settings,
    spec: config.RunSpec,
    dataset: TokenDataset,
    root: Path,
    device: torch.device,
    *,
    dtype: str = CERTIFIED_DTYPE,
) -> Run:
    """Build a run at its start (w = 0, gates 1/2); the same function for every arm of a seed.

    Args:
        settings: those of the run, `settings.for_run(spec)`, as in the other functions here.
        root: the folder that holds data/ and results/base/.
        dtype: what the network computes in, a training's `compute.dtype`.

    Raises:
        UserError: the budget does not fit the network, or the base cannot be read.
    """
    base = load_base(settings, spec.seed, dataset.vocab_size, root)
    points = load_scale_points(settings, root)
    return assemble_run(settings, spec, dataset, base, device, dtype=dtype, scale_points=points)


def assemble_run(
    settings: config.Settings,
    spec: config.RunSpec,
    dataset: TokenDataset,
    base: AnyBase,
    device: torch.device,
    *,
    dtype: str = CERTIFIED_DTYPE,
    scale_points: Points | None = None,
) -> Run:
    """A run at its start on a base that is at hand. UserError if budget or scales do not fit the network.

    scale_points: what the scales of the subspace follow from; None: it has none, whatever the settings say.
    """
    network, subspace = adaptable(
        settings, spec, base, dataset.vocab_size, device, dtype=dtype, scale_points=scale_points
    )
    seen_sha256 = base.seen_sha256(dataset.longest_targets)
    return Run(settings, spec, dataset, network, subspace, device, seen_sha256, scale_points=scale_points)


def adaptable(
    settings: config.Settings,
    spec: config.RunSpec,
    base: AnyBase,
    vocab_size: int,
    device: torch.device,
    *,
    dtype: str = CERTIFIED_DTYPE,
    scale_points: Points | None = None,
) -> tuple[Network, Subspace]:
    """The network on a base, and the subspace in which a run of it is trained, at its start; needs no data.

    UserError if budget or scales do not fit the network.
    """
    network, start_D = make_network(settings, base, vocab_size=vocab_size, seed=spec.seed, device=device, dtype=dtype)
    lift = network.lift if isinstance(network, LoraNetwork) else None
    space = network.space if lift is None else lift.space
    shape = SubspaceShape(
        space=space,
        allocation=parse_allocation(spec.allocation),
        budget=spec.dimension(space.size),
        projection=settings.subspace.projection,
        sharing=settings.gating.sharing,
        scale_D=_entry_scales(settings, space, scale_points),
        lift=lift,
    )
    stream = functools.partial(generator, spec.seed, "projection", settings.subspace.projection_seed)
    try:
        return network, Subspace(shape, start_D, stream).to(device)
    except ValueError as error:
        raise UserError(str(error)) from None


def _entry_scales(
    settings: config.Settings, space: ParameterSpace, scale_points: Points | None
) -> NDArray[np.float32] | None:
    """Return the scale of every trained parameter; None without scales. UserError if they are those of others."""
    if scale_points is None or settings.subspace.scale is None:
        return None
    try:
        return entry_scales(space, scales_of_points(scale_points, parse_scale(settings.subspace.scale)))
    except ValueError as error:
        raise UserError(f"subspace.scale: {error}") from None


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A trained run, its settings (the checkpoint's own), and the data it was trained on."""

    path: Path
    root: Path
    checkpoint: dict[str, Any]
    settings: config.Settings
    spec: config.RunSpec

    @classmethod
    def open(cls, path: Path, config_path: Path | None = None, root: Path | None = None) -> "RunFolder":
        """Read the checkpoint; with `config_path` the later stages follow that file, which must fit the training.

        Raises:
            UserError: the checkpoint is missing, damaged or of another config, or the data cannot be found.
        """
        ckpt_path = path / CHECKPOINT_NAME
        loaded = checkpoint.load(ckpt_path)
        settings, spec = checkpoint.settings_of(loaded, ckpt_path)
        if config_path is not None:
            given = config.load_settings(config_path).for_run(spec)
            checkpoint.check_settings(settings, given, ckpt_path)
            settings, root = given, root or config.root_of(config_path)
        return cls(path, root or find_root(path, settings.data.name), loaded, settings, spec)

    @functools.cached_property
    def dataset(self) -> TokenDataset:
        """The data of the training; UserError if they have changed since."""
        dataset = open_target(self.settings, self.root)
        if dataset.data_hash != self.checkpoint["data_hash"]:
            raise UserError(
                f"{self.root / 'data' / self.settings.data.name}: data hash {dataset.data_hash[:12]}..., but "
                f"{self.path.name} was trained on {self.checkpoint['data_hash'][:12]}...; "
                "train again or bring back that data"
            )
        return dataset.verified()

    def load(self, device: torch.device) -> Run:
        """Build the trained run on a device; UserError if the base's weights are not those of the training."""
        run = build_run(self.settings, self.spec, self.dataset, self.root, device)
        checkpoint.restore(run, self.checkpoint, self.path / CHECKPOINT_NAME)
        return run


def find_root(path: Path, data_name: str) -> Path:
    """Return the nearest folder above a run, or above the working directory, that holds data/{data_name}.

    Above the run as it is named, then above the folder that a link leads to: next to a linked results/ may lie other
    people's data. UserError if no folder does.
    """
    for start in (absolute(path), path.resolve(), Path.cwd()):
        for folder in (start, *start.parents):
            if (folder / "data" / data_name / "meta.json").exists():
                return folder
    raise UserError(
        f"{path}: no data/{data_name} in any folder above it; prepare the data (sublora prepare) or name the folder "
        "that holds data/ with --root"
    )

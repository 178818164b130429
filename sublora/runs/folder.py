"""The folder of a trained run, and the run in memory that its checkpoint stands for."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

from sublora import config
from sublora.data.base_and_target import open_target
from sublora.data.dataset import TokenDataset
from sublora.runs.build import build_run
from sublora.system.errors import UserError
from sublora.system.files import absolute
from sublora.system.names import CHECKPOINT_NAME
from sublora.training import checkpoint
from sublora.training.run import Run


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

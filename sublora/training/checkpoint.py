"""best_ckpt.pt and the resume state: small, loadable without running code, refused when they do not fit."""

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sublora import config
from sublora.models.adapted import LoraNetwork
from sublora.models.gpt import GPT
from sublora.subspace.hashes import points_sha256
from sublora.subspace.scales import Points
from sublora.system.archives import check_members, check_seal, sealed
from sublora.system.errors import UserError
from sublora.system.files import UNREADABLE, write_bytes
from sublora.system.names import SCALES_PATH
from sublora.system.provenance import Provenance, TrainingFacts
from sublora.system.versions import CHECKPOINT_FORMAT, NUMERICS_VERSIONS
from sublora.training.run import Run

TRAIN_AGAIN = "delete it and train again"


@dataclasses.dataclass
class History:
    """What a training has recorded so far: plain values, so that it travels in the resume state."""

    step: int = 0
    """Steps taken."""
    seconds: float = 0.0
    """Spent in steps, over all starts."""
    metrics: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    gates: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    best: dict[str, Any] | None = None
    """The best evaluation so far: step, losses in bits, parameters; in the rate phase also code bits and bound."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return dataclasses.asdict(self)


def save(path: Path, value: dict[str, Any]) -> None:
    """Save a value by torch.save through memory: the bytes do not depend on the file's name, and the file is sealed."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_bytes(path, sealed(buffer.getbuffer()))


def load(path: Path) -> dict[str, Any]:
    """Load what `save` wrote, with weights_only=True; UserError if the file is missing or a single bit has changed."""
    try:
        check_seal(path, fix=TRAIN_AGAIN)
        check_members(path, fix=TRAIN_AGAIN)
        value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such checkpoint; train the run first (sublora train --out {path.parent})"
        ) from None
    except (*UNREADABLE, pickle.UnpicklingError, IndexError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({type(error).__name__}); {TRAIN_AGAIN}") from None
    if not isinstance(value, dict) or value.get("format") != CHECKPOINT_FORMAT:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise UserError(f"{path}: checkpoint format {found}, expected {CHECKPOINT_FORMAT}; {TRAIN_AGAIN}")
    return value


def training_digest(
    settings: config.Settings,
    run: config.RunSpec,
    data_hash: str,
    base_sha256: str | None,
    scale_points: Points | None = None,
) -> str:
    """Return the digest of everything that a training's result depends on.

    `base_sha256`: None for a random base, which follows from the run's seed; `scale_points`: None without scales.
    """
    scales = {} if scale_points is None else {"scales": points_sha256(scale_points)}
    return config.digest(
        {
            **scales,
            "settings": config.stage_settings(settings, "train"),
            "run": run.model_dump(mode="json", exclude_none=True),
            "data": data_hash,
            "base": base_sha256,
            "numerics": NUMERICS_VERSIONS["train"],
        }
    )


def settings_of(checkpoint: dict[str, Any], path: Path) -> tuple[config.Settings, config.RunSpec]:
    """Return the settings and the run that a checkpoint carries."""
    settings = config.parse_settings(checkpoint["settings"], source=str(path))
    return settings, config.RunSpec.model_validate(checkpoint["run"])


def check_settings(own: config.Settings, settings: config.Settings, path: Path) -> None:
    """Raise UserError, naming a key that differs, unless a training with `own` settings is one with `settings`.

    `path`: the checkpoint whose own settings are given, for the message.
    """
    trained, wanted = (config.stage_settings(each, "train") for each in (own, settings))
    pairs = [
        (section, key, trained.get(section, {}).get(key), value)
        for section, values in wanted.items()
        for key, value in values.items()
    ]
    differing = [pair for pair in pairs if pair[2] != pair[3]]
    if not differing:
        return
    # Whether a key counts follows from other keys (base.kind, message.quantizer): prefer one that both have.
    section, key, found, value = min(differing, key=lambda pair: pair[1] not in trained.get(pair[0], {}))
    raise UserError(
        f"{path}: checkpoint of another config: {section}.{key} is {found!r} in the checkpoint, {value!r} in the "
        "settings; train again or score with the checkpoint's own settings"
    )


def restore(run: Run, checkpoint: dict[str, Any], path: Path) -> None:
    """Load w and gates into a run; UserError unless its base has the weights that the checkpoint was trained on."""
    state, base_sha256 = checkpoint.get("raw_model"), checkpoint.get("base_sha256")
    if not (isinstance(state, dict) and all(isinstance(each, Tensor) for each in state.values())):
        raise UserError(f"{path}: raw_model is no table of tensors; {TRAIN_AGAIN}")
    if not isinstance(base_sha256, str):
        raise UserError(f"{path}: base_sha256 is missing; {TRAIN_AGAIN}")
    if run.network.base_sha256 != base_sha256:
        raise UserError(
            f"{path}: the base's weights hash to {run.network.base_sha256[:12]}..., the checkpoint was trained on "
            f"{base_sha256[:12]}...; bring that base back, or for a random one the versions that drew "
            "it, of sublora and numpy"
        )
    scales = None if run.scale_points is None else points_sha256(run.scale_points)
    if checkpoint.get("scales_sha256") != scales:
        raise UserError(f"{path}: trained with other scales of the subspace than those of {SCALES_PATH}; {TRAIN_AGAIN}")
    try:
        run.subspace.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: parameters do not fit the settings: {' '.join(str(error).split())}") from None


def save_result(path: Path, run: Run, history: History, digest: str, provenance: Provenance) -> None:
    """Write best_ckpt.pt: the best parameters of a finished training, what they were trained with, and where."""
    save(
        path,
        {
            "format": CHECKPOINT_FORMAT,
            **(history.best or {}),
            "settings": run.settings.model_dump(mode="json"),
            "run": run.spec.model_dump(mode="json", exclude_none=True),
            "digest": digest,
            "base_sha256": run.network.base_sha256,
            **({} if run.scale_points is None else {"scales_sha256": points_sha256(run.scale_points)}),
            "data_hash": run.dataset.data_hash,
            "vocab_size": run.dataset.vocab_size,
            "numerics_version": NUMERICS_VERSIONS["train"],
            "provenance": TrainingFacts.of(provenance, history.seconds, run.device).model_dump(),
        },
    )


def save_initialization(folder: Path, run: Run) -> None:
    """Write the initial weights in full, under the names that published code uses (500 MB for GPT-2 small).

    The frozen weights are the base's: with lora.init both_random the initial product is not subtracted in the file.
    """
    network = run.network
    if not isinstance(network, LoraNetwork) or not isinstance(network.backbone, GPT):
        raise TypeError(f"the published files are those of a GPT with adapters, not of {type(network).__name__}")
    base = {name.replace("__", "."): value.cpu() for name, value in network.backbone.named_buffers()}
    theta_D = run.subspace.origin_D.cpu()
    lora = {p.name: theta_D[p.start : p.stop].view(p.shape).clone() for p in run.network.space.parameters}
    files: dict[str, dict[str, Any]] = {
        "ckpt_at_random_initialization.pt": {"raw_model": run.subspace.state_dict()},
        "forward_ckpt_at_random_initialization.pt": {"forward_model": base | lora},
        "trainable_initparams.pt": {"trainable_initparams": list(lora.values())},
        "names.pt": {"names": list(lora)},
    }
    for name, value in files.items():
        save(folder / name, {"format": CHECKPOINT_FORMAT, **value})

"""Make the base of all runs, once: train it or import a pretrained model; and read it for a run, by its hash."""

from pathlib import Path
from typing import Any

from sublora import config
from sublora.data.base_and_target import base_data
from sublora.data.dataset import TokenDataset
from sublora.models.gpt import DTYPES, GPT
from sublora.models.weights import Base, weights_sha256
from sublora.runs.base_files import MAKE_AGAIN, own_base_weights, read_base_facts
from sublora.runs.networks import AnyBase, gpt2, import_base, random_base, read_base, write_base
from sublora.runs.starts import announce, record_start
from sublora.system.device import claim_device
from sublora.system.errors import UserError
from sublora.system.files import write_json
from sublora.system.locks import Presence, sole_writer
from sublora.system.names import BASE_FOLDER, BASE_JSON_NAME, BASE_WEIGHTS_NAME
from sublora.system.pretrained import pretrained_folder
from sublora.system.provenance import Provenance
from sublora.system.versions import BASE_FORMAT, NUMERICS_VERSIONS
from sublora.training.base import BaseTrainer
from sublora.training.reporting import Progress, tracked
from sublora.training.resumable import BeforeStep


def make_base(
    settings: config.Settings, *, root: Path, out: Path | None = None, before_step: BeforeStep | None = None
) -> Path:
    """Train or import the base that the settings describe, write base.safetensors and base.json, and return the latter.

    A training that was stopped goes on from its last saved state.

    Args:
        settings: with a base that is not random.
        root: the folder that holds data/.
        out: by default results/base below `root`.
        before_step: called with the number of each step.

    Raises:
        UserError: the base is random, which needs no file, or data or the pretrained model do not fit.
    """
    out = root / BASE_FOLDER if out is None else out
    base = settings.base
    if base.kind == "random":
        raise UserError("base.kind is random: each run draws its base from its seed, there is nothing to make")
    if base.kind == "pretrained":
        return _import_pretrained(settings, base, root, out)
    return _train_base(settings, base, root, out, before_step)


def load_base(settings: config.Settings, seed: int, vocab_size: int, root: Path) -> AnyBase:
    """Return the base of a run: drawn from its seed, or read from results/base below `root`.

    Raises:
        UserError: the file is missing, damaged, of another network, or not the one that base.json describes.
    """
    if settings.base.kind == "random":
        return random_base(settings, vocab_size, seed)
    path = own_base_weights(root)
    facts = read_base_facts(path.parent)
    if facts["digest"] != base_digest(settings, root):
        raise UserError(
            f"{path.parent / BASE_JSON_NAME}: made with other settings or data than the present base and model "
            f"sections; {MAKE_AGAIN}"
        )
    base = read_base(path, settings, vocab_size)
    if base.sha256 != facts["sha256"]:
        raise UserError(
            f"{path}: tensors hash to {base.sha256[:12]}..., {BASE_JSON_NAME} says {facts['sha256'][:12]}...; "
            f"{MAKE_AGAIN}"
        )
    return base


def base_digest(settings: config.Settings, root: Path) -> str:
    """Return the digest of everything that the base's weights depend on."""
    identity: dict[str, Any] = {
        "settings": config.stage_settings(settings, "base"),
        "numerics": NUMERICS_VERSIONS["base"],
    }
    if settings.base.kind == "trained":
        identity["data"] = TokenDataset.open(root, base_data(settings)).data_hash
    return config.digest(identity)


def _train_base(
    settings: config.Settings, base: config.TrainedBase, root: Path, out: Path, before_step: BeforeStep | None
) -> Path:
    dataset = TokenDataset.open(root, base_data(settings))
    digest, provenance = base_digest(settings, root), Provenance.of_this_process()
    presence = Presence(out, "training")
    progress = Progress(f"base {base.name}", steps=base.steps, tokens_per_step=base.tokens_per_step, presence=presence)
    compute = settings.compute.model_copy(update={"threads": base.threads})
    with progress, sole_writer(out, presence, progress.say) as waited:
        # The process that held the lock before may have made this very base.
        if waited and (out / BASE_JSON_NAME).exists() and read_base_facts(out)["digest"] == digest:
            progress.say(f"{out / BASE_JSON_NAME}: another process has written it in the meantime")
            return out / BASE_JSON_NAME
        dataset.verified()
        record_start(out, "base", settings, provenance)
        # Train, or go on from a saved state.
        with claim_device(compute) as device:
            announce(settings, provenance, device)
            dtype = DTYPES[compute.dtype]
            gpt = GPT(gpt2(settings), dataset.vocab_size, dtype=dtype, use_compiler=compute.compile).to(device)
            with tracked(settings, name=f"base {base.name}", digest=digest, out=out, say=progress.say) as trackers:
                trainer = BaseTrainer(
                    base,
                    gpt,
                    dataset,
                    digest=digest,
                    out=out,
                    progress=progress,
                    trackers=trackers,
                    before_step=before_step,
                )
                trainer.train()
        # Write the base, and delete the saved states only then.
        weights = {name: value.detach().cpu().numpy() for name, value in trainer.weights.items()}
        facts = {
            "data_hash": dataset.data_hash,
            "data_settings": config.data_settings(base_data(settings)),
            "documents": dataset.n_documents,
            "val_loss_bits": trainer.history.metrics[-1][4],
        }
        _write_base(out, Base(weights, weights_sha256(weights)), settings, digest, facts)
        trainer.forget_state()
    return out / BASE_JSON_NAME


def _import_pretrained(settings: config.Settings, base: config.PretrainedBase, root: Path, out: Path) -> Path:
    imported = import_base(pretrained_folder(base.path, base.revision, root), settings)
    announce(settings, Provenance.of_this_process())
    with sole_writer(out, Presence(out, "importing")):
        _write_base(out, imported, settings, base_digest(settings, root), {})
    return out / BASE_JSON_NAME


def _write_base(out: Path, base: AnyBase, settings: config.Settings, digest: str, facts: dict[str, Any]) -> None:
    """Write base.safetensors, then base.json: where the second exists, the first is whole."""
    out.mkdir(parents=True, exist_ok=True)
    (out / BASE_JSON_NAME).unlink(missing_ok=True)
    write_base(out / BASE_WEIGHTS_NAME, base)
    write_json(
        out / BASE_JSON_NAME,
        {
            "format": BASE_FORMAT,
            "kind": settings.base.kind,
            "sha256": base.sha256,
            "digest": digest,
            "parameters": base.parameters,
            "settings": config.stage_settings(settings, "base"),
            **facts,
        },
    )

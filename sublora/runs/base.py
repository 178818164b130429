"""The base of all runs as files: trained once, or imported from a pretrained model, and read again by its hash."""

from pathlib import Path
from typing import Any

from sublora import config
from sublora.data.base_and_target import base_data
from sublora.data.dataset import TokenDataset
from sublora.models.gpt import DTYPES, GPT
from sublora.models.weights import Base, weights_sha256
from sublora.runs.networks import AnyBase, gpt2, import_base, random_base, read_base, write_base
from sublora.runs.starts import announce, record_start
from sublora.system.device import claim_device
from sublora.system.errors import UserError
from sublora.system.files import read_json, write_json
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
    """Train or import the base that the settings describe; write base.safetensors and base.json, and return the latter.

    `out`: by default results/base below `root`. A training that was stopped goes on from its last saved state.
    UserError for a random base, which needs no file, and for data or a pretrained model that do not fit.
    """
    out = root / BASE_FOLDER if out is None else out
    base = settings.base
    if base.kind == "random":
        raise UserError("base.kind is random: each run draws its base from its seed, there is nothing to make")
    if base.kind == "pretrained":
        return _import_pretrained(settings, base, root, out)
    return _train_base(settings, base, root, out, before_step)


def load_base(settings: config.Settings, seed: int, vocab_size: int, root: Path) -> AnyBase:
    """The base of a run: drawn from its seed, or read from results/base below `root`.

    UserError if the file is missing, damaged, of another network, or not the one that base.json describes.
    """
    if settings.base.kind == "random":
        return random_base(settings, vocab_size, seed)
    folder = root / BASE_FOLDER
    facts = read_base_facts(folder)
    if facts["digest"] != base_digest(settings, root):
        raise UserError(
            f"{folder / BASE_JSON_NAME}: made with other settings or data than the present base and model sections; "
            "make the base again (sublora base)"
        )
    base = read_base(folder / BASE_WEIGHTS_NAME, settings, vocab_size)
    if base.sha256 != facts["sha256"]:
        raise UserError(
            f"{folder / BASE_WEIGHTS_NAME}: tensors hash to {base.sha256[:12]}..., {BASE_JSON_NAME} says "
            f"{facts['sha256'][:12]}...; make the base again (sublora base)"
        )
    return base


def base_sha256(settings: config.Settings, root: Path) -> str | None:
    """What base.json says the base's weights hash to; None for a random base, which follows from a run's seed."""
    return None if settings.base.kind == "random" else str(read_base_facts(root / BASE_FOLDER)["sha256"])


def read_base_facts(folder: Path) -> dict[str, Any]:
    """base.json. UserError if it is missing, damaged or of another version."""
    path = folder / BASE_JSON_NAME
    missing = "; make the base first (sublora base --config FILE)"
    facts = read_json(path, missing=missing, fix="make the base again (sublora base)")
    found = facts.get("format") if isinstance(facts, dict) else type(facts).__name__
    if found != BASE_FORMAT:
        raise UserError(f"{path}: base format {found}, expected {BASE_FORMAT}; make the base again (sublora base)")
    for key in ("sha256", "digest"):
        if not isinstance(facts.get(key), str):
            raise UserError(
                f"{path}: {key} is {facts.get(key)!r}, expected a hash in hexadecimal; "
                "make the base again (sublora base)"
            )
    return dict(facts)


def base_digest(settings: config.Settings, root: Path) -> str:
    """Identifies everything the base's weights depend on."""
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
    digest = base_digest(settings, root)
    presence = Presence(out, "training")
    progress = Progress(f"base {base.name}", steps=base.steps, tokens_per_step=base.tokens_per_step, presence=presence)
    compute = settings.compute.model_copy(update={"threads": base.threads})
    with progress, sole_writer(out, presence, progress.say) as waited:
        if waited and (out / BASE_JSON_NAME).exists() and read_base_facts(out)["digest"] == digest:
            progress.say(f"{out / BASE_JSON_NAME}: written by the process that was waited for")
            return out / BASE_JSON_NAME
        dataset.verified()
        provenance = Provenance.of_this_process()
        record_start(out, "base", settings, provenance)
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
        weights = {name: value.detach().cpu().numpy() for name, value in trainer.weights.items()}
        facts = {
            "data_hash": dataset.data_hash,
            "data_settings": dataset.meta["settings"],
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
    """base.safetensors, then base.json: where the second stands, the first is whole."""
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

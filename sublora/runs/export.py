"""A certified network as a folder that transformers or peft loads."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from sublora import config
from sublora.data.tokenizers import load_tokenizer
from sublora.errors import UserError
from sublora.files import atomic_path, sha256_of_file, write_json
from sublora.models.gpt2_export import gpt2_description, gpt2_tensors, peft_description, peft_tensors, updates
from sublora.models.lora_gpt import AdaptedGPT
from sublora.names import BASE_FOLDER
from sublora.runs.decode import CertificateFiles, Decoded, decode
from sublora.runs.networks import gpt2

Form = Literal["peft", "merged"]
"""peft: adapters, for the base; merged: a whole GPT-2 with the adapters in its weights."""
BASE_NAME = "base"
"""Folder, in an export for peft, of a base that is no pretrained model's folder already."""
PROVENANCE_NAME = "sublora.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def export(files: CertificateFiles, out: Path, form: Form) -> Path:
    """Write the decoded network into the folder `out`, which must be new or empty, and return it.

    In float32, as it was scored. UserError as for `decode`, and if `out` holds files already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is no empty folder; give another one with --out")
    decoded = decode(files, torch.device("cpu"))
    model = decoded.model
    if not isinstance(model, AdaptedGPT):
        raise UserError(
            f"{files.certificate}: its network is no GPT-2 (model.kind {decoded.message.settings.model.kind}), and "
            "only GPT-2 can be exported"
        )
    out.mkdir(parents=True, exist_ok=True)
    source = _pretrained_folder(files, decoded.message.settings)
    if form == "merged":
        _write_merged(out, decoded, model)
        _copy_tokenizer(source, out)
    else:
        _write_peft(out, decoded, model, source)
    write_json(out / PROVENANCE_NAME, _provenance(files, decoded, form))
    return out


def _write_merged(out: Path, decoded: Decoded, model: AdaptedGPT) -> None:
    added = updates(model)
    _save(out / "model.safetensors", gpt2_tensors(decoded.base.weights, added))
    write_json(out / "config.json", _description(decoded, tied_head="lm_head" not in added))


def _write_peft(out: Path, decoded: Decoded, model: AdaptedGPT, source: Path | None) -> None:
    base, revision = decoded.message.settings.base, None
    if source is not None:
        name = str(source)
    elif isinstance(base, config.PretrainedBase):
        name, revision = base.path, base.revision
    else:
        folder = out / BASE_NAME
        folder.mkdir()
        _save(folder / "model.safetensors", gpt2_tensors(decoded.base.weights, {}))
        write_json(folder / "config.json", _description(decoded, tied_head=True))
        name = str(folder.resolve())
    added = updates(model)
    _save(out / "adapter_model.safetensors", peft_tensors(added))
    write_json(out / "adapter_config.json", peft_description(added, name, revision))


def _description(decoded: Decoded, *, tied_head: bool) -> dict[str, Any]:
    settings, vocab_size = decoded.message.settings, decoded.message.header["vocab_size"]
    end_id = load_tokenizer(settings.data.tokenizer).eot_id
    return gpt2_description(gpt2(settings), vocab_size, end_id, tied_head=tied_head)


def _pretrained_folder(files: CertificateFiles, settings: config.Settings) -> Path | None:
    """The folder that a pretrained base was read from, None for other bases and where it is not on this machine."""
    if not isinstance(settings.base, config.PretrainedBase):
        return None
    weights = files.base_weights().resolve()
    lies_in_results = weights.parent == weights.parents[2] / BASE_FOLDER
    folder = (weights.parents[2] if lies_in_results else Path.cwd()) / settings.base.path
    return folder if folder.is_dir() else None


def _copy_tokenizer(source: Path | None, out: Path) -> None:
    if source is None:
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A safetensors file as transformers wants it; it appears whole."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"format": "pt"})


def _provenance(files: CertificateFiles, decoded: Decoded, form: Form) -> dict[str, Any]:
    """Which certificate the folder was made from, and what its bound is about."""
    message = decoded.message
    return {
        "run": message.spec.name,
        "format": form,
        "certificate_sha256": sha256_of_file(files.certificate),
        "base_sha256": message.header["base_sha256"],
        "smoothing": message.smoothing.name,
        "certified": "the network in float32, its probabilities smoothed as named; the files hold it unsmoothed",
    }

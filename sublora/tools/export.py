"""Export of a certified network as a folder that transformers or peft can load."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch

from sublora import config
from sublora.models.adapted import AdaptedModel
from sublora.models.export import (
    gpt2_description,
    gpt2_tensors,
    gpt2_weights,
    merged_module,
    peft_description,
    peft_tensors,
    updates,
)
from sublora.models.weights import Base
from sublora.runs.decode import CertificateFiles, DecodedRun, decode_certificate
from sublora.runs.networks import gpt2
from sublora.system.errors import UserError
from sublora.system.files import sha256_of_file, write_json
from sublora.system.pretrained import TOKENIZER_FILES

Form = Literal["peft", "merged"]
"""peft: adapters for the base; merged: a whole model with the adapters in its weights."""
BASE_NAME = "base"
"""The folder of the base in an export for peft, if the base is not a pretrained model's folder already."""
PROVENANCE_NAME = "sublora.json"


def export_network(files: CertificateFiles, out: Path, form: Form) -> Path:
    """Write the decoded network into the folder `out`, which must be new or empty, and return the folder.

    The network is in float32, as it was scored, and the folder appears as a whole. UserError as for
    `decode_certificate`, and if `out` already holds files.
    """
    # Refuse before the network is decoded, which takes time.
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; give another one with --out")
    decoded = decode_certificate(files, torch.device("cpu"))
    if form == "peft" and decoded.message.settings.subspace.adapt == "weights":
        raise UserError(
            f"{files.certificate}: its network moves the weights themselves (subspace.adapt: weights) and has no "
            "adapters for peft; use --format merged"
        )
    # Write beside `out`, then rename.
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        if form == "merged":
            _write_merged(temporary, decoded)
        else:
            _write_peft(temporary, decoded, out)
        write_json(temporary / PROVENANCE_NAME, _provenance(decoded, form))
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _write_merged(folder: Path, decoded: DecodedRun) -> None:
    """Write a whole model, with the tokenizer's files if the base came with any."""
    added, _ = updates(cast(AdaptedModel, decoded.model), decoded.base)
    if isinstance(decoded.base, Base):
        _save(folder / "model.safetensors", gpt2_tensors(gpt2_weights(cast(AdaptedModel, decoded.model)), added))
        write_json(folder / "config.json", _gpt2_description(decoded, tied_head="lm_head" not in added))
    else:
        cast(Any, merged_module(decoded.base, added)).save_pretrained(folder)
    source = decoded.files.pretrained_folder(decoded.message.settings)
    if source is not None:
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def _write_peft(folder: Path, decoded: DecodedRun, out: Path) -> None:
    """Write adapters and, unless it is a pretrained model, their base; `out` is the folder's final place."""
    base, revision = decoded.message.settings.base, None
    source = decoded.files.pretrained_folder(decoded.message.settings)
    if source is not None:
        name = str(source)
    elif isinstance(base, config.PretrainedBase):
        name, revision = base.path, base.revision
    else:
        assert isinstance(decoded.base, Base)
        (folder / BASE_NAME).mkdir()
        _save(folder / BASE_NAME / "model.safetensors", gpt2_tensors(decoded.base.weights, {}))
        write_json(folder / BASE_NAME / "config.json", _gpt2_description(decoded, tied_head=True))
        name = str((out / BASE_NAME).resolve())
    added, transposed = updates(cast(AdaptedModel, decoded.model), decoded.base)
    _save(folder / "adapter_model.safetensors", peft_tensors(added))
    write_json(folder / "adapter_config.json", peft_description(added, name, revision, transposed=transposed))


def _gpt2_description(decoded: DecodedRun, *, tied_head: bool) -> dict[str, Any]:
    settings, vocab_size = decoded.message.settings, decoded.message.header.vocab_size
    return gpt2_description(gpt2(settings), vocab_size, decoded.tokenizer.eot_id, tied_head=tied_head)


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file with the metadata that transformers requires."""
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata={"format": "pt"})


def _provenance(decoded: DecodedRun, form: Form) -> dict[str, Any]:
    """Return which certificate the folder was made from, and what its bound is about."""
    message = decoded.message
    return {
        "run": message.spec.name,
        "format": form,
        "certificate_sha256": sha256_of_file(message.path),
        "base_sha256": message.header.base_sha256,
        "smoothing": message.smoothing.name,
        "certified": "the network in float32, its probabilities smoothed as named; the files hold it unsmoothed",
    }

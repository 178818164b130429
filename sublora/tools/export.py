"""Export of a certified network as a folder that transformers or peft can load."""

import hashlib
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
from sublora.runs.networks import gpt2, import_base
from sublora.system.errors import UserError
from sublora.system.files import write_json
from sublora.system.names import BOUNDS_NAME, CERTIFICATE_NAME
from sublora.system.pretrained import TOKENIZER_FILES
from sublora.tools.statement import model_card, read_own_bounds

Form = Literal["peft", "merged"]
"""peft: adapters for the base; merged: a whole model with the adapters in its weights."""
BASE_NAME = "base"
"""The folder of the base in an export for peft, unless the reader has named a folder of it."""
PROVENANCE_NAME = "sublora.json"


def export_network(files: CertificateFiles, out: Path, form: Form) -> Path:
    """Write the decoded network into the folder `out`, which must be new or empty, and return the folder.

    The network is in float32, as it was scored, and the folder appears as a whole. The path of a pretrained
    base in the certificate is not used: only the folder that the reader names is read, or named in the export.
    UserError as for `decode_certificate`, if `out` already holds files, or if the named folder holds another base.
    """
    # Refuse before the network is decoded, which takes time.
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; give another one with --out")
    decoded = decode_certificate(files, torch.device("cpu"))
    adapt = decoded.message.settings.subspace.adapt
    if form == "peft" and adapt in ("weights", "vectors"):
        raise UserError(
            f"{files.certificate}: its network moves the weights themselves (subspace.adapt: {adapt}) and has no "
            "adapters for peft; use --format merged"
        )
    _check_named_base(decoded)
    # Write beside `out`, then rename.
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        if form == "merged":
            _write_merged(temporary, decoded)
        else:
            _write_peft(temporary, decoded, out)
        write_json(temporary / PROVENANCE_NAME, _provenance(decoded, form))
        _write_claim(temporary, decoded, form)
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
    _copy_tokenizer(decoded, folder)


def _copy_tokenizer(decoded: DecodedRun, folder: Path) -> None:
    """Copy the tokenizer's files from the pretrained base's folder, if the reader named one."""
    source = decoded.files.pretrained
    if source is None:
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _check_named_base(decoded: DecodedRun) -> None:
    """UserError if the reader named the folder of a pretrained model and it does not hold the certificate's base."""
    folder, message = decoded.files.pretrained, decoded.message
    if folder is None:
        return
    if not isinstance(message.settings.base, config.PretrainedBase):
        raise UserError(f"--pretrained {folder}: the certificate's base is {message.settings.base.kind}; leave it out")
    found = import_base(folder, message.settings).sha256
    if found != message.header.base_sha256:
        raise UserError(
            f"--pretrained {folder}: weights hash to {found[:12]}..., {decoded.files.certificate} names "
            f"{message.header.base_sha256[:12]}...; name the folder of the certificate's base"
        )


def _write_peft(folder: Path, decoded: DecodedRun, out: Path) -> None:
    """Write adapters and, unless the reader named the base's folder, the base; `out` is the folder's final place."""
    if decoded.files.pretrained is not None:
        name = str(decoded.files.pretrained.resolve())
    else:
        (folder / BASE_NAME).mkdir()
        if isinstance(decoded.base, Base):
            _save(folder / BASE_NAME / "model.safetensors", gpt2_tensors(decoded.base.weights, {}))
            write_json(folder / BASE_NAME / "config.json", _gpt2_description(decoded, tied_head=True))
        else:
            cast(Any, merged_module(decoded.base, {})).save_pretrained(folder / BASE_NAME)
        name = str((out / BASE_NAME).resolve())
    added, transposed = updates(cast(AdaptedModel, decoded.model), decoded.base)
    _save(folder / "adapter_model.safetensors", peft_tensors(added))
    write_json(folder / "adapter_config.json", peft_description(added, name, transposed=transposed))


def _gpt2_description(decoded: DecodedRun, *, tied_head: bool) -> dict[str, Any]:
    settings, vocab_size = decoded.message.settings, decoded.message.header.vocab_size
    return gpt2_description(gpt2(settings), vocab_size, decoded.tokenizer.eot_id, tied_head=tied_head)


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file with the metadata that transformers requires."""
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata={"format": "pt"})


def _write_claim(folder: Path, decoded: DecodedRun, form: Form) -> None:
    """Write what is certified as README.md, with the certificate and, where it lies beside it, its bounds.json."""
    message, source = decoded.message, decoded.files.certificate
    certificate, bounds = source.read_bytes(), source.with_name(BOUNDS_NAME)
    if hashlib.sha256(certificate).hexdigest() != message.certificate_sha256:
        raise UserError(f"{source}: changed while it was exported; export again")
    record = read_own_bounds(bounds, message.certificate_sha256)
    (folder / CERTIFICATE_NAME).write_bytes(certificate)
    if record is not None:
        shutil.copyfile(bounds, folder / BOUNDS_NAME)
    (folder / "README.md").write_text(model_card(message, record, form), encoding="utf-8")


def _provenance(decoded: DecodedRun, form: Form) -> dict[str, Any]:
    """Return which certificate the folder was made from, and what its bound is about."""
    message = decoded.message
    return {
        "run": message.spec.name,
        "format": form,
        "certificate_sha256": message.certificate_sha256,
        "base_sha256": message.header.base_sha256,
        "smoothing": message.smoothing.name,
        "certified": "the network in float32, its probabilities smoothed as named; the files hold it unsmoothed",
    }

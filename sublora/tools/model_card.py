"""README.md of an exported network: the metadata of the Hugging Face hub, and what its certificate says."""

import re
from pathlib import Path
from typing import Any

import yaml

from sublora import config
from sublora.bounds.record import BoundRecord, parse_record
from sublora.runs.message import Message
from sublora.system.errors import UserError, printable
from sublora.system.files import read_json
from sublora.tools.statement import premises_in_words, sentence

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""What a model is called on the hub; a path of a folder is no such name."""


def read_own_bounds(path: Path, certificate_sha256: str) -> BoundRecord | None:
    """Return the record beside a certificate, or None if it is not there.

    UserError if it is damaged or of another certificate.
    """
    fix = "give the two files of one run, or leave bounds.json out"
    if not path.exists():
        return None
    try:
        record = parse_record(read_json(path, missing="", fix=fix))
    except ValueError as error:
        raise UserError(f"{path}: {printable(error, 100)}; {fix}") from None
    if record.certificate_sha256 != certificate_sha256:
        raise UserError(f"{path}: bounds of another certificate, {record.certificate_sha256[:12]}...; {fix}")
    return record


def model_card(message: Message, record: BoundRecord | None, form: str) -> str:
    """Return the card; `form` is that of the export, peft or merged."""
    library = "peft" if form == "peft" else "transformers"
    premises = "\n".join(f"- {each}" for each in premises_in_words(message.settings))
    return f"""\
---
{yaml.safe_dump(_metadata(message, library), sort_keys=False).strip()}
---

# A language model with a generalization bound

{_statement(message, record)}

The bound is about the network *mixed* with {_fallback(message)}, document by document. The files here hold the network
alone: it needs at most a few hundredths of a bit per token more on any document, but has no certificate of its own.

## What it assumes

{premises}

## Verify it

{"`certificate.bin` is" if record is None else "`certificate.bin` and `bounds.json` are"} the run's. Whoever has the
documents prepares them, and checks everything that is claimed with the run's losses.npz:

```sh
sublora verify --certificate certificate.bin --bounds bounds.json --losses losses.npz --data data/DATASET
```
"""


def _metadata(message: Message, library: str) -> dict[str, Any]:
    """Return the block that the hub reads."""
    base, found = message.settings.base, {}
    if isinstance(base, config.PretrainedBase) and HUB_ID.fullmatch(base.path):
        found["base_model"] = base.path
    tags = ["sublora", "generalization-bound", *(["lora"] if library == "peft" else [])]
    return {**found, "library_name": library, "pipeline_tag": "text-generation", "tags": tags}


def _statement(message: Message, record: BoundRecord | None) -> str:
    """Return what is certified."""
    if record is None:
        return "No bounds.json lay beside the certificate; `sublora bound` and `sublora verify` compute the bound."
    return (
        f"{sentence(record.model_dump(), message.settings)} The run was named before its bound was known; whoever "
        "picks the best of several quotes `bound_all_runs`."
    )


def _fallback(message: Message) -> str:
    return "guessing" if message.mixture is None else "its frozen base"

"""What a certificate states, in words: one sentence with its premises, and the pages that quote it.

The pages are the README.md of an exported network, and the card and README.md that `sublora adapt` ends with. Numbers
are rounded to the safe side: bounds up, gains down.
"""

import math
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from sublora import config
from sublora.bounds.anchor import certified_gain_bits
from sublora.bounds.record import BoundRecord, read_record
from sublora.runs.message import Message
from sublora.system.errors import UserError, printable

NOT_STATED = "not stated"
"""What the settings hold where nothing was said on the independence of a pretrained base."""
ELSEWHERE = "see how_checked"
"""Stands in the settings where one statement covers all that is asked about the independence of a base."""


def sentence(record: dict[str, Any], settings: config.Settings) -> str:
    """Return the certified statement.

    record: the content of bounds.json.
    """
    confidence = f"{100 * (1 - record['delta']):g} %"
    if not record["anchor"]:
        return (
            f"On new documents like these, the adapted model (mixed with guessing) needs at most "
            f"{decimals_up(record['bound_value'])} bits per token ({confidence}); guessing needs "
            f"{record['vacuous_bits']:.3f}. {_sizes(record, settings)}"
        )
    bound, base = decimals_up(record["bound_value"]), decimals_up(record["anchor"]["base_bound"])
    gain = record["certified_gain_bits"]
    gains = f"adapting gains at least {decimals_down(gain)}" if gain > 0.0 else "no gain over it is certified"
    return (
        f"On new documents like these, the adapted model (mixed with its base) needs at most {bound} bits per token "
        f"({confidence}); the frozen model at most {base}; {gains}. {_sizes(record, settings)}"
    )


def held_out_sentence(record: dict[str, Any], settings: config.Settings) -> str | None:
    """Return what the test documents certify about the gain over the base; None without an anchor.

    record: the content of bounds.json.
    """
    if not record["anchor"]:
        return None
    anchor, unit = record["anchor"], grouped_by(settings)
    excess_bits = record["bound_held_out"] - anchor["base_bound"]
    gain = certified_gain_bits(excess_bits, anchor["k0"], settings.data.min_tokens + 1)
    confidence = f"{100 * (1 - record['delta'] + anchor['delta_base']):g} %"
    tested = (
        f"{record['test_units']:,} test documents"
        if unit is None
        else f"{record['test_units']:,} test values of {unit}"
    )
    if gain <= 0.0:
        return f"Its {tested} alone certify no gain."
    return (
        f"From its {tested} alone, adapting gains at least {decimals_down(gain)} ({confidence}), if nothing was "
        "trained or chosen on them, which no file shows."
    )


def _sizes(record: dict[str, Any], settings: config.Settings) -> str:
    n = units_in_words(record["n_units"], record["n_documents"], grouped_by(settings))
    return f"n = {n}, message {math.ceil(record['code_bits']):,} bits."


def premises_in_words(settings: config.Settings) -> list[str]:
    """Return what the sentence presupposes, one statement each."""
    unit = grouped_by(settings)
    drawn = "each document" if unit is None else f"all documents of each {unit}"
    return [
        f"The documents are independent draws ({drawn}) from the population that the new ones come from; documents of "
        f"fewer than {settings.data.min_tokens} tokens are not in it.",
        f"The model was fixed without these documents: {_why_fixed(settings)}.",
        "These settings are the only ones that were tried on these documents "
        f"(message.extra_bits: {settings.message.extra_bits:g}).",
    ]


def _why_fixed(settings: config.Settings) -> str:
    if isinstance(settings.base, config.PretrainedBase):
        return independence_in_words(settings)
    return "its weights are random" if settings.base.kind == "random" else "it was trained on documents of its own"


def independence_in_words(settings: config.Settings) -> str:
    """Return why a pretrained base was fixed without the documents, as it was stated."""
    assert isinstance(settings.base, config.PretrainedBase)
    stated = settings.base.independence
    if stated.how_checked == NOT_STATED:
        return NOT_STATED
    parts = [stated.training_cutoff, stated.document_dates, stated.how_checked]
    own = [part for part in parts if part != ELSEWHERE]
    return "; ".join(printable(part).rstrip(".") for part in own)


def grouped_by(settings: config.Settings) -> str | None:
    """Return what documents are grouped by, None if each is a unit."""
    if settings.data.unit == "document":
        return None
    return printable(getattr(settings.data.corpus, "unit_field", None) or "source")


def units_in_words(n_units: int, n_documents: int, unit: str | None) -> str:
    """Return the number of units, as in "812 texts" or "40 values of customer (812 texts)"."""
    texts = f"{n_documents:,} texts"
    return texts if unit is None else f"{n_units:,} values of {unit} ({texts})"


def decimals_up(value: float) -> str:
    """Return an upper bound in three decimals."""
    return f"{math.ceil(1000 * value) / 1000:.3f}"


def decimals_down(value: float) -> str:
    """Return a lower bound in three decimals."""
    return f"{math.floor(1000 * value) / 1000:.3f}"


HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""What a model is called on the hub; a path of a folder is no such name."""


def read_own_bounds(path: Path, certificate_sha256: str) -> BoundRecord | None:
    """Return the record beside a certificate, or None if it is not there.

    UserError if it is damaged or of another certificate.
    """
    fix = "give the two files of one run, or leave bounds.json out"
    if not path.exists():
        return None
    record = read_record(path, missing="", fix=fix)
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


def card(record: dict[str, Any], settings: config.Settings, folder: Path, run: str, *, verified: str) -> str:
    """Return the card for the terminal.

    verified: the verdict of this machine in words.
    """
    check = shlex.join(["sublora", "verify", str(folder / run), "--config", str(folder / "config/config.yaml")])
    listed = "\n".join(f"  - {each}" for each in premises_in_words(settings))
    stated = "\n".join(_statements(record, settings))
    return f"{stated}\nPremises:\n{listed}\n{verified}\nTo check it: {check}"


def _statements(record: dict[str, Any], settings: config.Settings) -> list[str]:
    found = [sentence(record, settings), held_out_sentence(record, settings)]
    return [each for each in found if each is not None]


def readme(record: dict[str, Any], settings: config.Settings, root: Path, run: str, *, verified: str) -> str:
    """Return README.md of the folder `root`; commands on the page run in that folder."""
    assert isinstance(settings.base, config.PretrainedBase) and isinstance(settings.data.corpus, config.FolderCorpus)
    listed = "\n".join(f"- {each}" for each in premises_in_words(settings))
    d, revision, maps = settings.grid.budgets[0], settings.base.revision, ", ".join(settings.lora.targets)
    of_revision = f" (revision {revision})" if revision else ""
    # A folder of a model says where the tokenizer is; a name on the hub is looked up by whoever uses the model.
    is_folder = (root / settings.base.path).is_dir()
    own = f" --pretrained {shlex.quote(settings.base.path)}" if is_folder else ""
    rows = [
        ("adapted model, certified", decimals_up(record["bound_value"])),
        ("frozen model, certified", decimals_up(record["anchor"]["base_bound"])),
        ("gain by adapting, certified", decimals_down(record["certified_gain_bits"])),
        ("adapted model, mean on the test documents", f"{record['test_loss_bits']:.3f}"),
        ("guessing", f"{record['vacuous_bits']:.3f}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    stated = "\n\n".join(_statements(record, settings))
    return f"""\
# An adapted model and its certificate

{stated}

| | bits per token |
|---|---|
{table}

## Premises

{listed}

## Model and documents

`{printable(settings.base.path)}`{of_revision}, adapted by {d:,} numbers (LoRA on {maps}), and
`{printable(settings.data.corpus.path)}`. Every setting: `config/config.yaml`.

## Verify

{verified} Whoever does not trust this folder prepares the same documents and reads the same model, and runs

```sh
sublora verify {run} --config config/config.yaml
```

`certificate.bin`, `bounds.json` and `losses.npz` in `{run}` are all that has to be handed over.

## Use

```sh
sublora generate {run}{own} --prompt "..."
sublora export {run}{own} --format peft --out adapters
```

Both compute the adapted network alone; the certificate is about its mixture with the base.

## More runs

List more budgets, allocations and seeds under `grid` in `config/config.yaml`, and run `snakemake --directory .` here
(from a checkout of sublora: `--directory` with this folder).
"""

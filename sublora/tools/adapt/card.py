"""What `sublora adapt` ends with: the sentence that the certificate allows, its premises, and how to check it."""

import math
import shlex
from pathlib import Path
from typing import Any

from sublora import config
from sublora.system.errors import printable
from sublora.tools.adapt.plan import units_in_words
from sublora.tools.adapt.settings import NOT_STATED


def sentence(record: dict[str, Any], settings: config.Settings) -> str:
    """Return the certified statement; numbers are rounded to the safe side.

    record: the content of bounds.json of an anchored run.
    """
    confidence = f"{100 * (1 - record['delta']):g} %"
    bound, base, gain = record["bound_value"], record["anchor"]["base_bound"], record["certified_gain_bits"]
    gains = f"adapting gains at least {_down(gain)}" if gain > 0.0 else "no gain over it is certified"
    return (
        f"On new documents like these, the adapted model (mixed with its base) needs at most {_up(bound)} bits per "
        f"token ({confidence}); the frozen model at most {_up(base)}; {gains}. "
        f"n = {units_in_words(record['n_units'], record['n_documents'], _unit(settings))}, "
        f"message {math.ceil(record['code_bits']):,} bits."
    )


def premises_in_words(settings: config.Settings) -> list[str]:
    """Return what the sentence presupposes, one statement each."""
    unit = _unit(settings)
    drawn = "each document" if unit is None else f"all documents of each value of {printable(unit)}"
    statement = independence_in_words(settings)
    return [
        f"The documents are independent draws ({drawn}) from the population that the new ones come from; documents of "
        f"fewer than {settings.data.min_tokens} tokens are not in it.",
        f"The model was fixed without these documents: {statement}.",
        "These settings are the only ones that were tried on these documents "
        f"(message.extra_bits: {settings.message.extra_bits:g}).",
    ]


def independence_in_words(settings: config.Settings) -> str:
    """Return why the model was fixed without the documents, as it was stated."""
    assert isinstance(settings.base, config.PretrainedBase)
    stated = settings.base.independence.how_checked
    return f"{NOT_STATED} (--independence)" if stated == NOT_STATED else printable(stated).rstrip(".")


def card(record: dict[str, Any], settings: config.Settings, folder: Path, run: str, *, verified: str) -> str:
    """Return the card for the terminal.

    verified: the verdict of this machine in words.
    """
    check = shlex.join(["sublora", "verify", str(folder / run), "--config", str(folder / "config/config.yaml")])
    listed = "\n".join(f"  - {each}" for each in premises_in_words(settings))
    return f"{sentence(record, settings)}\nPremises:\n{listed}\n{verified}\nTo check it: {check}"


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
        ("adapted model, certified", _up(record["bound_value"])),
        ("frozen model, certified", _up(record["anchor"]["base_bound"])),
        ("gain by adapting, certified", _down(record["certified_gain_bits"])),
        ("adapted model, mean on the test documents", f"{record['test_loss_bits']:.3f}"),
        ("guessing", f"{record['vacuous_bits']:.3f}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""\
# An adapted model and its certificate

{sentence(record, settings)}

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


def _unit(settings: config.Settings) -> str | None:
    return settings.data.corpus.unit_field if isinstance(settings.data.corpus, config.FolderCorpus) else None


def _up(value: float) -> str:
    return f"{math.ceil(1000 * value) / 1000:.3f}"


def _down(value: float) -> str:
    return f"{math.floor(1000 * value) / 1000:.3f}"

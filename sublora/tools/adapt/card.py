"""What `sublora adapt` ends with: the sentence that the certificate allows, its premises, and how to check it."""

import shlex
from pathlib import Path
from typing import Any

from sublora import config
from sublora.system.errors import printable
from sublora.tools.statement import decimals_down, decimals_up, premises_in_words, sentence


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
        ("adapted model, certified", decimals_up(record["bound_value"])),
        ("frozen model, certified", decimals_up(record["anchor"]["base_bound"])),
        ("gain by adapting, certified", decimals_down(record["certified_gain_bits"])),
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

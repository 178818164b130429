"""The commands that need no settings file.

`sublora adapt` leads from documents and a model to a certificate; `sublora certify` bounds anyone's losses and compares
two models.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sublora.cli.application import app, quick_imports
from sublora.system.errors import UserError


@app.command("adapt")
def adapt_command(
    documents: Annotated[
        Path, typer.Argument(metavar="DOCUMENTS", help="File or folder of documents.", show_default=False)
    ],
    model: Annotated[
        str, typer.Option(metavar="DIR|NAME", help="Folder of a pretrained model, or its name on the Hugging Face hub.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for settings, data and results.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    text: Annotated[str, typer.Option(metavar="FIELD", help="Key of the text in a line.")] = "text",
    unit: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Key of what was drawn independently. Default: each document was."),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Linear maps to adapt, separated by commas. Default: those of peft."),
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="Dimension d of the subspace. Default: the largest gain to be expected.")
    ] = None,
    hours: Annotated[float | None, typer.Option(help="Time for the training, in place of --steps.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the training. Default: 300.")] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="Where networks run. Default: a GPU if there is one.")
    ] = None,
    independence: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Why the model has not read these documents; stored in the certificate."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, and train nothing; documents and model are prepared.")
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Train even if the documents are too few to certify a gain.")
    ] = False,
) -> None:
    """Adapt a pretrained model to documents and certify it: all stages, resumed where they stopped.

    Exit status 0: certified, and verified on this machine; 1: the verification found a difference.
    """
    with quick_imports():
        from sublora.tools.adapt.adapt import adapt

    adapted = adapt(
        documents,
        model=model,
        out=out,
        revision=revision,
        text=text,
        unit=unit,
        targets=None if targets is None else tuple(name.strip() for name in targets.split(",") if name.strip()),
        budget=budget,
        hours=hours,
        steps=steps,
        device=device,
        independence=independence,
        dry_run=dry_run,
        anyway=anyway,
    )
    print(adapted.text)
    raise typer.Exit(1 if adapted.verified is False else 0)


def number(text: object) -> float:
    """Parse a number. float() would take 3_0 for 30."""
    if "_" in str(text):
        raise typer.BadParameter(f"{text!r} is no number")
    try:
        return float(str(text))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number") from None


def whole(text: object) -> int:
    """Parse a whole number. int() would take 3_0 for 30."""
    if not re.fullmatch(r"[-+]?[0-9]{1,400}", str(text)):
        raise typer.BadParameter(f"{str(text)[:40]!r} is no whole number")
    return int(str(text))


@app.command("certify")
def certify_command(
    losses: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="One loss per example: .csv, .npz, .npy, .parquet; with --against also .jsonl.",
            show_default=False,
        ),
    ],
    lower: Annotated[float, typer.Option(parser=number, help="Smallest loss that any example can have.")],
    upper: Annotated[float, typer.Option(parser=number, help="Largest loss that any example can have.")],
    code_bits: Annotated[
        float | None,
        typer.Option(
            parser=number,
            help="C: every bit that a decoder needs beyond what was fixed without the n examples. Not needed for a "
            "comparison on held-out examples.",
            show_default=False,
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n",
            parser=whole,
            help="Number of independent examples that the message was chosen with; never tokens.",
            show_default=False,
        ),
    ] = None,
    delta: Annotated[float, typer.Option(parser=number, help="Probability with which the bound may fail.")] = 0.05,
    subsample: Annotated[
        bool,
        typer.Option(
            "--subsample/--full-sample",
            help="Losses of a draw with replacement, made after the message was frozen; or of all n examples.",
        ),
    ] = False,
    delta_sample: Annotated[
        float | None,
        typer.Option(parser=number, help="Part of delta spent on the draw. Default: nine tenths.", show_default=False),
    ] = None,
    alternatives: Annotated[
        int,
        typer.Option(
            parser=whole, help="Number of models or smoothings that the losses of the draw helped to choose from."
        ),
    ] = 1,
    column: Annotated[
        str | None,
        typer.Option("--column", "--key", help="Column of a table, or array of an .npz, that holds the losses."),
    ] = None,
    counts: Annotated[
        str | None,
        typer.Option(
            help="Column or key of how often each loss was drawn, if only distinct examples are given; beside an "
            ".npy file, another .npy file."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN|FILE",
            help="Compare with a reference: its values on the same examples, in a column of FILE or in a file like it.",
        ),
    ] = None,
    direction: Annotated[
        Literal["lower", "higher"] | None,
        typer.Option(help="With --against: which values are better.", show_default=False),
    ] = None,
    excess_upper: Annotated[
        float | None,
        typer.Option(
            parser=number,
            help="With --against and C: how much more than the reference the model can lose on any example.",
            show_default=False,
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="With --against FILE: what identifies an example in both. Default: doc_id in .jsonl."),
    ] = None,
    filter_name: Annotated[
        str | None, typer.Option("--filter", help="With .jsonl of lm-evaluation-harness: which of its filters.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write everything to this file.")] = None,
) -> None:
    """Bound any compressed model from its losses and its size in bits: every inequality, and which one to quote.

    Losses may be in any unit and from any program. An example is what was drawn independently: a document, not a token.
    """
    common: dict[str, Any] = {
        "column": column,
        "counts": counts,
        "json_path": json,
        "code_bits": code_bits,
        "n": n,
        "lower": lower,
        "upper": upper,
        "delta": delta,
        "subsample": subsample,
        "delta_sample": delta_sample,
        "alternatives": alternatives,
    }
    if against is not None:
        from sublora.tools.certify_pairs import certify_pairs_file

        certify_pairs_file(
            losses,
            against=against,
            id_column=id_column,
            filter_name=filter_name,
            direction=direction,
            excess_upper=excess_upper,
            **common,
        )
        return
    of_pairs = {
        "--direction": direction,
        "--excess-upper": excess_upper,
        "--id-column": id_column,
        "--filter": filter_name,
    }
    if given := [name for name, value in of_pairs.items() if value is not None]:
        raise UserError(f"{', '.join(given)}: only with --against")
    if code_bits is None or n is None:
        raise UserError("--code-bits and --n are needed, except to compare held-out examples with --against")
    from sublora.tools.certify import certify_file

    certify_file(losses, **common)

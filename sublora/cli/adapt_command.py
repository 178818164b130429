"""The command that does all the others in their order: from documents and a model to a certificate."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sublora.cli.application import app, quick_imports


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

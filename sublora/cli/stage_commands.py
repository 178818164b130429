"""Commands of the stages, in their order: prepare, base, scales, train, encode, score, bound, yardsticks."""

from pathlib import Path
from typing import Annotated

import typer

from sublora.cli.application import ConfigOption, RootOption, app, quick_imports
from sublora.subspace.allocations import allocation_forms

OptionalConfig = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Settings file; must agree with the training. Default: the checkpoint's own settings."
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a trained run.", show_default=False)]


@app.command("prepare")
def prepare_command(config: ConfigOption) -> None:
    """Read or download the corpus, tokenize it, and write data/{name}/; likewise the corpus of a base to be trained."""
    from sublora.config import load_settings, root_of
    from sublora.data.base_and_target import open_target
    from sublora.data.prepare import prepare_all
    from sublora.runs.starts import announce
    from sublora.system.provenance import Provenance

    settings, root = load_settings(config), root_of(config)
    folder = prepare_all(settings, root, started=lambda: announce(settings, Provenance.of_this_process()))
    print(open_target(settings, root).in_words())
    print(folder)


@app.command("base")
def base_command(
    config: ConfigOption, out: Annotated[Path | None, typer.Option(help="Default: results/base.")] = None
) -> None:
    """Make the base that all runs adapt: train it, resuming if interrupted, or import a pretrained model."""
    from sublora.config import load_settings, root_of

    settings = load_settings(config)
    with quick_imports():
        from sublora.runs.base import make_base

    print(make_base(settings, root=root_of(config), out=out))


@app.command("scales")
def scales_command(config: ConfigOption) -> None:
    """Measure the gradients of the base that the scales of the subspace follow from: results/scales.json."""
    from sublora.config import load_settings, root_of

    settings = load_settings(config)
    with quick_imports():
        from sublora.runs.scales import make_scales

    print(make_scales(settings, root=root_of(config)))


@app.command("train")
def train_command(
    config: ConfigOption,
    budget: Annotated[str, typer.Option(help="Dimension d of the subspace; all: every trained parameter.")],
    allocation: Annotated[str, typer.Option(help=f"{allocation_forms(' or ')}; for example fixed-0.2.")],
    seed: Annotated[int, typer.Option(help="Seed of base weights, LoRA init and batch order.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, metrics and resume state.")],
    trained: Annotated[
        str | None, typer.Option(help="What is trained: one of grid.trained. Default: what section subspace says.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Network: one of grid.sizes. Default: section model.")] = None,
) -> None:
    """Train one model; resumes from the last saved state if interrupted."""
    from sublora.config import load_settings, origin_of, parse_run, root_of

    settings = load_settings(config)
    run = parse_run(budget, allocation, seed, trained=trained, size=size)
    with quick_imports():
        from sublora.runs.train import train_run

    print(train_run(settings, run, root=root_of(config), out=out, settings_file=origin_of(config)))


@app.command("encode")
def encode_command(run: RunArgument, config: OptionalConfig = None, root: RootOption = None) -> None:
    """Write the trained model as a message: certificate.bin."""
    with quick_imports():
        from sublora.runs.encode import encode_run

    print(encode_run(run, config_path=config, root=root))


@app.command("score")
def score_command(run: RunArgument, config: OptionalConfig = None, root: RootOption = None) -> None:
    """Encode, then score the decoded model on documents: certificate.bin and losses.npz."""
    with quick_imports():
        from sublora.runs.score import score_run

    print(score_run(run, config_path=config, root=root))


@app.command("bound")
def bound_command(run: RunArgument, config: OptionalConfig = None) -> None:
    """Compute every bound from the certificate and the losses: bounds.json and bounds_metrics.pt."""
    with quick_imports():
        from sublora.runs.bound import bound_run

    print(bound_run(run, config_path=config))


@app.command("yardsticks")
def yardsticks_command(config: ConfigOption) -> None:
    """Bound the trivial models and the frozen base on the same documents: results/yardsticks.json."""
    from sublora.config import load_settings, root_of

    settings = load_settings(config)
    with quick_imports():
        from sublora.runs.yardsticks import make_yardsticks

    print(make_yardsticks(settings, root=root_of(config)))

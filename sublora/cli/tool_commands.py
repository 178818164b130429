"""Commands beside the pipeline: they check, use, export or predict what the stages make."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sublora.cli.application import ConfigOption, RootOption, app, quick_imports

CertificateArgument = Annotated[
    Path, typer.Argument(metavar="DIR|FILE", help="Folder of a scored run, or its certificate.bin.", show_default=False)
]
BaseOption = Annotated[
    Path | None,
    typer.Option(help="base.safetensors. Default: beside the certificate, else in results/base/ of a folder above."),
]
BaseRootOption = Annotated[Path | None, typer.Option("--root", help="Folder that holds results/base/.")]
PretrainedOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The pretrained base's own folder, with its tokenizer. Default: none is read."),
]


@app.command("duplicates")
def duplicates_command(
    config: ConfigOption,
    documents: Annotated[
        bool, typer.Option("--documents", help="Measure the documents only, which needs no run: data/{name}/.")
    ] = False,
) -> None:
    """Measure near duplicates, and how much the bounds owe to them: results/near_duplicates.json."""
    from sublora.config import load_settings, root_of
    from sublora.tools.duplicates import print_near_duplicates, write_document_facts, write_near_duplicates

    write = write_document_facts if documents else write_near_duplicates
    path = write(load_settings(config), root=root_of(config))
    print_near_duplicates(path)
    print(path)


@app.command("verify")
def verify_command(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Folder of a run; or give its files one by one.", show_default=False),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="Default: DIR/certificate.bin.")] = None,
    bounds: Annotated[Path | None, typer.Option(help="Default: bounds.json in DIR or beside the certificate.")] = None,
    losses: Annotated[Path | None, typer.Option(help="Default: losses.npz in DIR or beside the certificate.")] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="base.safetensors. Default: in results/base/ beside data/, otherwise beside the certificate."
        ),
    ] = None,
    base_sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="The base you expect; a claim about another base is refused.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your own prepared data. Default: data/{name} below --root.")
    ] = None,
    root: RootOption = None,
    config: Annotated[
        Path | None, typer.Option(help="The settings you expect; a claim made with other settings is refused.")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"] | None, typer.Option(help="Default: the certificate's.")] = None,
    redraw: Annotated[
        int | None,
        typer.Option(metavar="N", help="Also score N training documents of your own draw, which --nonce seeds."),
    ] = None,
    nonce: Annotated[str | None, typer.Option(help="Any text chosen after you received the certificate.")] = None,
    test_data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also bound the loss from test documents of your own: a folder of `sublora prepare`."
        ),
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the verdict as JSON.")] = None,
) -> None:
    """Recompute a claimed bound from its certificate and your data.

    Exit status 0: verified; 1: refused; 2: cannot be checked because a file is missing or damaged; 3: a fault of
    sublora itself.
    """
    with quick_imports():
        from sublora.runs.verify.files import Claim, Options
        from sublora.runs.verify.report import recorded
        from sublora.runs.verify.verify import verify_and_print

    with recorded(json_path):
        claim = Claim.of(run, certificate=certificate, bounds=bounds, losses=losses, base=base, data=data, root=root)
        options = Options(
            config_path=config,
            device=device,
            base_sha256=base_sha256,
            redraw=redraw,
            nonce=nonce,
            test_data=test_data,
        )
        status = verify_and_print(claim, options, json_path=json_path)
    raise typer.Exit(status)


@app.command("generate")
def generate_command(
    certificate: CertificateArgument,
    prompt: Annotated[str, typer.Option(help="How the document begins.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Stop after this number of tokens if the document goes on.")] = 100,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="1: the network's own probabilities; 0: always the most probable token.")
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Draw from this number of the most probable tokens. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws another text.")] = 0,
    base: BaseOption = None,
    root: BaseRootOption = None,
    pretrained: PretrainedOption = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the network runs.")] = "cpu",
) -> None:
    """Let the network of a certificate write on; needs its base and no data."""
    with quick_imports():
        from sublora.runs.decode import CertificateFiles
        from sublora.tools.generate import Writing, generate_text

    files = CertificateFiles.of(certificate, base=base, root=root, pretrained=pretrained)
    writing = Writing.of(prompt, most_tokens=tokens, temperature=temperature, top_k=top_k, seed=seed)
    print(generate_text(files, writing, device=device))


@app.command("export")
def export_command(
    certificate: CertificateArgument,
    form: Annotated[
        Literal["peft", "merged"],
        typer.Option("--format", help="peft: LoRA matrices for the base; merged: a whole GPT-2 for transformers."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
    base: BaseOption = None,
    root: BaseRootOption = None,
    pretrained: PretrainedOption = None,
) -> None:
    """Write the network of a certificate as safetensors that transformers or peft loads."""
    with quick_imports():
        from sublora.runs.decode import CertificateFiles
        from sublora.tools.export import export_network

    files = CertificateFiles.of(certificate, base=base, root=root, pretrained=pretrained)
    print(export_network(files, out, form))


@app.command("classify")
def classify_command(
    config: Annotated[Path, typer.Option("--config", help="Settings file, for example config/glue.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder for message.bin, losses.npz and bounds.json.")],
    message: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score this message instead of training one.")
    ] = None,
) -> None:
    """Adapt a two-class transformer to local examples (columns of QQP or CoLA) and bound its error on new ones."""
    from sublora.config import root_of
    from sublora.config.classify import load_classify_settings

    settings = load_classify_settings(config)
    with quick_imports():
        from sublora.tools.classify import classify

    print(classify(settings, root=root_of(config), out=out, message=message))


@app.command("status")
def status_command(
    config: ConfigOption = Path("config/config.yaml"),
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every five seconds until Ctrl-C.")] = False,
) -> None:
    """Show the progress of every run of the grid: done, running, failed, damaged, waiting or missing."""
    from sublora.tools.status import print_status

    print_status(config, watch=watch)


@app.command("plan")
def plan_command(
    config: ConfigOption,
    run: Annotated[
        Path | None, typer.Option(help="A finished run of the same network, to take the speed from.", metavar="DIR")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1e-9, help="Training tokens per second on one GPU, instead of a measurement.")
    ] = None,
    scoring_tokens_per_second: Annotated[
        float | None, typer.Option(min=1e-9, help="The same for scoring; only together with --tokens-per-second.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Also print the hours on this many GPUs at once.")] = None,
    loss: Annotated[
        float | None,
        typer.Option(help="Predict the bound instead: your guess of the adapted network's loss, bits per token."),
    ] = None,
    base_loss: Annotated[
        float | None,
        typer.Option(help="With --loss: the frozen base's loss. Default: as yardsticks measured it, if they did."),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="With --loss: training documents. Default: those prepared.")
    ] = None,
    loss_deviation: Annotated[
        float | None, typer.Option(help="With --loss: standard deviation over documents. Default: 0.4, the demo's.")
    ] = None,
    gain_deviation: Annotated[
        float | None,
        typer.Option(help="With an anchor: standard deviation of documents' gains over their mean. Default: 0.45."),
    ] = None,
    bits_per_coordinate: Annotated[
        float | None, typer.Option(help="With --loss: message bits for each of d numbers. Default: 2.6, the demo's.")
    ] = None,
) -> None:
    """Print what the whole grid costs in GPU hours and disk space; measures speed for a few seconds unless given.

    With --loss, print instead the bound to be expected, before anything is trained, and whether n is large enough.
    """
    if loss is not None:
        from sublora.tools.expected_bound import Guess, predict_and_print

        given = {
            "deviation_bits": loss_deviation,
            "bits_per_coordinate": bits_per_coordinate,
            "deviation_of_the_gain": gain_deviation,
        }
        chosen = {key: value for key, value in given.items() if value is not None}
        predict_and_print(config, Guess(loss, base_loss, **chosen), n_units=n)
        return
    with quick_imports():
        from sublora.tools.plan import print_plan

    print_plan(
        config,
        run=run,
        tokens_per_second=tokens_per_second,
        scoring_tokens_per_second=scoring_tokens_per_second,
        gpus=gpus,
    )

"""The application that commands register with, and what several of them need."""

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sublora import __version__

EXIT_INTERRUPTED = 130
"""That of a process which SIGINT ends."""


class OutputClosed(Exception):
    """Nobody reads what a command prints any more."""


class Commands(TyperGroup):
    """All commands; every error in one of them gets to `sublora.cli.main`.

    By itself typer ends with exit status 1, which means "refused" to a user of `sublora verify`, where a file ends
    early (EOFError), where a pipe is closed and, before version 0.16, after Ctrl-C.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError as error:
            raise OutputClosed from error
        except EOFError as error:
            raise RuntimeError(f"a file ended early: {error}") from error


app = typer.Typer(
    cls=Commands,
    name="sublora",
    help="Generalization bounds for language models through compression.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[Path, typer.Option("--config", help="Settings file, for example demo/config/config.yaml.")]
RootOption = Annotated[
    Path | None, typer.Option("--root", help="Folder that holds data/. Default: above the config file or above DIR.")
]


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import in here what takes seconds.

    What is imported stays until the process ends: the garbage collector need not search it, neither again and again
    while more is imported nor ever after. That is a quarter of the start and end of a job that imports torch.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit

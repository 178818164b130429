"""Errors that a user can cause and fix, and the line that each of them becomes."""

import sys
from typing import Literal

EXIT_BAD_INPUT: Literal[2] = 2
"""Exit status of every command for an error that its user can fix."""
EXIT_FAULT: Literal[3] = 3
"""Exit status of every command for any other error, a fault of this package: not 1, which Python would take, since
`sublora verify` says with it that a claim is refused."""


class UserError(Exception):
    """Bad input. The message is one line: where, what was found, what was expected, and how to fix it.

    The command line prints it without a traceback and exits with `EXIT_BAD_INPUT`.
    """


def printable(text: object, limit: int | None = None) -> str:
    """Return the text with control and format characters escaped, so that it cannot act on a terminal.

    For everything that may come from a stranger's file. A line break is escaped like the rest. `limit`: the result is
    cut after this many characters.
    """
    # No character becomes shorter, so what lies beyond the limit need not be looked at.
    shown = str(text) if limit is None else str(text)[: limit + 1]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown)
    return escaped if limit is None or len(escaped) <= limit else f"{escaped[: limit - 3]}..."


def note(text: str) -> None:
    """Print one line on stderr: what was found in the user's files and is not an error."""
    print(f"note: {printable(text)}", file=sys.stderr, flush=True)


EXTRAS = {
    "train": ("datasets", "huggingface_hub", "pandas", "pyarrow", "safetensors", "tiktoken", "torch"),
    "workflow": ("docutils", "jinja2", "markupsafe", "matplotlib", "mpl_toolkits", "scipy", "seaborn", "snakemake"),
    "hf": ("accelerate", "gguf", "peft", "tokenizers", "transformers"),
    "duplicates": ("datasketch",),
    "tracking": ("tensorboardX",),
}
"""The modules that each extra of the package installs."""


def missing_extra(error: ImportError, wanted: str) -> str | None:
    """Return the line that says what to install for `wanted`; None if no extra installs the missing module."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return f"{wanted} needs {module}, which is not installed: pip install 'sublora[{extra}]'"
    return None

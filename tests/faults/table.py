"""docs/studies/faults.md: the fault matrix with its messages, and what random damage does.

python tests/faults/table.py writes the page; the tests hold every row against it.
"""

import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs/studies/faults.md"

HEAD = """\
# Faults, and what they say

Each row is a test (`tests/faults/`): the fault is made, the command is run, and it must end with exit status 2 and this
one line, without a traceback and without changing a file. HASH stands for a sha256 or its beginning. Below `settings`
the command is `sublora status`, which reads the settings as every command does. Beside the rows the tests flip and cut
files at random places: checkpoint, resume state and certificate are refused after any one flipped bit and any cut, the
losses are read as they were or refused, and settings changed at random are taken or refused in one line.

What to do about a message: [troubleshooting](../guide/troubleshooting.md). Written by `make faults`.
"""
TITLES = {
    "settings": "Settings",
    "corpus": "`sublora prepare`: the corpus",
    "data": "Prepared data",
    "training": "`sublora train`",
    "scoring": "`sublora score`",
    "bound": "`sublora bound`",
    "verify": "`sublora verify`",
}


def row(what: str, message: str) -> str:
    """A row of a table."""
    return f"| {what} | {message.replace('|', chr(92) + '|')} |"


def page(messages: dict[tuple[str, str], str]) -> str:
    """The page, from the messages by group and fault."""
    parts = [HEAD]
    for group, title in TITLES.items():
        rows = [row(what, text) for (name, what), text in messages.items() if name == group]
        parts.append("\n".join([f"## {title}", "", "| what is wrong | message |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def main() -> None:
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from faults.matrix import MATRIX, message
    from faults.scene import Scene

    with tempfile.TemporaryDirectory() as folder:
        whole = Scene.build(Path(folder).resolve() / "whole")
        messages = {}
        for number, fault in enumerate(MATRIX):
            scene = whole.copy(Path(folder).resolve() / str(number))
            messages[fault.group, fault.what] = message(fault, scene)
    PAGE.write_text(page(messages), encoding="utf-8")


if __name__ == "__main__":
    main()

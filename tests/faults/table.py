"""Write tests/faults/messages.md, the message of every fault of the matrix: `python tests/faults/table.py`.

The tests compare every row of that file with the message that is printed.
"""

import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "tests/faults/messages.md"

HEAD = """\
# Faults and their messages

Each row is a test (`tests/faults/`): the test causes the fault, runs the command, and expects exit status 2 and this
one line, without a traceback and without a changed file. HASH stands for a sha256 or its beginning. Under *Settings*
the command is `sublora status`, which reads the settings as every command does. Further tests flip and cut files at
random places: checkpoint, resume state and certificate are refused after any flipped bit and any cut, losses are
either read unchanged or refused, and randomly changed settings are either accepted or refused in one line.

[Troubleshooting](../../docs/guide/troubleshooting.md) explains what to do about a message. This file is written by
`make faults`.
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

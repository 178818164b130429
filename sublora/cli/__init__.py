"""The command line. Heavy modules are imported inside the commands, so that --help is quick."""

import os
import sys
import traceback

# These modules register their commands; the help lists commands in this order.
from sublora.cli import stage_commands, standalone_commands, tool_commands
from sublora.cli.application import OutputClosed, app
from sublora.system.errors import EXIT_BAD_INPUT, EXIT_FAULT, printable
from sublora.system.files import user_line
from sublora.system.signals import outlive_announcements
from sublora.system.versions import check_library

__all__ = ["app", "main", "stage_commands", "standalone_commands", "tool_commands"]

EXIT_OUTPUT_CLOSED = 141
"""That of a process which SIGPIPE ends, as most programs do in `... | head`."""


def main() -> None:
    """Entry point, and the one place where every error of a command ends.

    An error that a user can fix (`user_line`) is one line on stderr and exit status 2. Any other is a fault of this
    package: a traceback, a line, and exit status 3.
    """
    outlive_announcements()
    try:
        check_library()
        app()
    except OutputClosed:
        # Python would write what is still buffered once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_OUTPUT_CLOSED)
    except Exception as error:
        line = user_line(error)
        if line is not None:
            print(f"error: {printable(line)}", file=sys.stderr)
            sys.exit(EXIT_BAD_INPUT)
        print(printable_traceback(error), file=sys.stderr)
        print("error: a fault of sublora, not of its input; please report the lines above", file=sys.stderr)
        sys.exit(EXIT_FAULT)


def printable_traceback(error: Exception) -> str:
    """Return the traceback, in which text from a stranger's file cannot act on a terminal."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(map(printable, lines))

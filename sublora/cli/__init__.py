"""The command line. Heavy modules are imported inside the commands, so that --help is quick."""

import sys

# These modules register their commands; the help lists commands in this order.
from sublora.cli import stage_commands, tool_commands
from sublora.cli.application import app
from sublora.system.errors import UserError, printable
from sublora.system.files import os_error_line
from sublora.system.signals import outlive_announcements

__all__ = ["app", "main", "stage_commands", "tool_commands"]


def main() -> None:
    """Entry point: an error that a user can fix is one line on stderr and exit status 2.

    That is a UserError, an error of the operating system, or a package that an extra brings.
    """
    outlive_announcements()
    try:
        app()
    except UserError as error:
        line = str(error)
    except OSError as error:
        line = os_error_line(error)
    except ModuleNotFoundError as error:
        from sublora.system.errors import missing_extra

        if (missing := missing_extra(error, "this command")) is None:
            raise
        line = missing
    else:
        return
    print(f"error: {printable(line)}", file=sys.stderr)
    sys.exit(2)

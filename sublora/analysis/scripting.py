"""What the workflow's scripts share: errors leave their reason in the log, and one of the user's is one clear line."""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from sublora.system.errors import UserError
from sublora.system.files import os_error_line
from sublora.system.versions import check_library


@contextlib.contextmanager
def user_errors_to(log: Path | str) -> Iterator[None]:
    """Turn what `sublora.cli.main` turns into a line into one, in `log` and on stderr; empties `log` first.

    The traceback of every other error goes to `log` as well.
    """
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    try:
        check_library()
        yield
    except (UserError, OSError) as error:
        line = f"error: {error if isinstance(error, UserError) else os_error_line(error)}\n"
        sys.stderr.write(line)
        log.write_text(line, encoding="utf-8")
        raise SystemExit(2) from None
    except Exception:
        log.write_text(traceback.format_exc(), encoding="utf-8")
        raise

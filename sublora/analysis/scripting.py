"""What the workflow's scripts share: one clear line for an error that the user can fix."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from sublora.system.errors import UserError
from sublora.system.files import os_error_line


@contextlib.contextmanager
def user_errors_to(log: Path | str) -> Iterator[None]:
    """Turn what `sublora.cli.main` turns into a line into one, in `log` and on stderr; empties `log` first."""
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    try:
        yield
    except (UserError, OSError) as error:
        line = f"error: {error if isinstance(error, UserError) else os_error_line(error)}\n"
        sys.stderr.write(line)
        log.write_text(line, encoding="utf-8")
        raise SystemExit(2) from None

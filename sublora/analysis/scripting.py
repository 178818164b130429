"""What the workflow's scripts share: one clear line for an error the user can mend."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from sublora.errors import UserError


@contextlib.contextmanager
def user_errors_to(log: Path | str) -> Iterator[None]:
    """Turn a UserError into one line in `log` and on stderr and exit status 2; empties `log` first."""
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    try:
        yield
    except UserError as error:
        line = f"error: {error}\n"
        log.write_text(line, encoding="utf-8")
        sys.stderr.write(line)
        raise SystemExit(2) from None

"""The errors a user can cause and mend."""


class UserError(Exception):
    """Bad input. The message is one line: where, what was found, what was expected, and the mend.

    The command line prints it without a traceback and exits with status 2.
    """


def printable(text: object, limit: int | None = None) -> str:
    """Text that cannot act on a terminal: control and format characters escaped, cut after `limit` characters.

    For everything that a stranger's file may hold. A line break is escaped like the rest.
    """
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))
    return escaped if limit is None or len(escaped) <= limit else f"{escaped[: limit - 3]}..."

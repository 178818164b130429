"""The errors a user can cause and mend."""


class UserError(Exception):
    """Bad input. The message is one line: where, what was found, what was expected, and the mend.

    The command line prints it without a traceback and exits with status 2.
    """

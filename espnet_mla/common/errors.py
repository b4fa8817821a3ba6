"""The errors that a command shows without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What a user has to mend: the message names the file or option, its value, and what would be valid."""


class UsageError(UserError, ValueError):
    """An option that does not exist, or a value that it cannot have."""


def one_line(error: BaseException) -> str:
    """What an error says, on one line; its type where it says nothing."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def closest(name: object, known: Iterable[str]) -> str:
    """For the end of an error that refuses a name: the known one that is closest, if any."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; closest: {close[0]}" if close else ""

"""The errors that a command shows without a traceback."""


class UserError(Exception):
    """What a user has to mend: the message names the file or option, its value, and what would be valid."""


class UsageError(UserError, ValueError):
    """An option that does not exist, or a value that it cannot have."""

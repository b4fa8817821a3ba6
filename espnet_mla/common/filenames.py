"""File names as they are shown: any name fits on a line and into any output."""

import os
import unicodedata

_UNSHOWN = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are not UTF-8, line and paragraph separators
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r", "\\": r"\\"}


def escaped(name: str | os.PathLike[str]) -> str:
    r"""A file's name for a line of text, which bash's `printf %b` makes the name again.

    A tab is written `\t`, a line feed `\n`, a backslash `\\`; other control characters, line separators and bytes that
    are not UTF-8 are written `\xff`. All other names stay as they are.
    """
    return "".join(
        _SHORT.get(char) or "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
        if char == "\\" or unicodedata.category(char) in _UNSHOWN
        else char
        for char in os.fspath(name)
    )

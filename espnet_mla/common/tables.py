"""Kaldi tables: one `key value` a line."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from espnet_mla.common.errors import UserError
from espnet_mla.common.filenames import escaped
from espnet_mla.common.files import write_text


def read_rows(path: str | Path) -> Iterator[tuple[str, str]]:
    """Read lines of a key and a value, separated by any white space, as ESPnet's readers do.

    A line that is only a key has the value ""; an empty line is left out.

    Raises:
        UserError: the file is missing, can't be read, or is not UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # editors of other systems begin it with a byte order mark
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}") from None
    # Not splitlines, which would also split at separators that may stand in a text.
    for line in text.split("\n"):
        if line.strip():
            key, value = (*line.strip().split(maxsplit=1), "")[:2]
            yield key, value


def read_table(path: str | Path) -> dict[str, str]:
    """Read `key value` lines as `read_rows` does.

    Raises:
        UserError: as `read_rows`, or a key occurs twice.
    """
    table: dict[str, str] = {}
    for key, value in read_rows(path):
        if key in table:
            raise UserError(f"{path}: {key} occurs twice")
        table[key] = value
    return table


def write_table(path: str | Path, table: Mapping[str, str]) -> None:
    """Write `key value` lines in the order of LC_ALL=C, as Kaldi's and ESPnet's tools expect them.

    Raises:
        UserError: a key or a value would be read otherwise than it is, or the file can't be written.
    """
    for key, value in table.items():
        line = f"{key} {value}"
        if key.split() != [key] or "\n" in value or "\r" in value or not _is_unicode(line):
            raise UserError(
                f"{path} cannot have the line {escaped(line)}: a key has no white space, a value no line break, and "
                "both are UTF-8"
            )
    lines = (f"{key} {table[key]}".rstrip() + "\n" for key in sorted(table, key=str.encode))
    write_text(path, "".join(lines))


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:  # from a file name that is not
        return False

"""Kaldi tables: one `key value` a line."""

from collections.abc import Mapping
from pathlib import Path

from espnet_mla.common.errors import UserError
from espnet_mla.common.files import write_text


def read_table(path: str | Path) -> dict[str, str]:
    """Read `key value` lines; a line that is only a key has the value "".

    Raises:
        UserError: the file is missing, can't be read, is not UTF-8, or has a key twice.
    """
    path = Path(path)
    table: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, _, value = line.strip().partition(" ")
        if key in table:
            raise UserError(f"{path}, line {number}: {key} occurs twice")
        table[key] = value.strip()
    return table


def write_table(path: str | Path, table: Mapping[str, str]) -> None:
    """Write `key value` lines in the order of LC_ALL=C, as Kaldi's and ESPnet's tools expect them."""
    lines = (f"{key} {table[key]}".rstrip() + "\n" for key in sorted(table, key=str.encode))
    write_text(path, "".join(lines))

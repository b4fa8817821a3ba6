"""Kaldi tables (one `key value` a line), and writing a file so that a killed run leaves either all of it or none."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


class RecipeError(Exception):
    """What a user has to mend: the message names the file or option, its value, and what would be valid."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes `path`'s place when the block ends without an exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same name whenever: what a killed run has left is written over. The suffix stays last because libraries choose
    # formats by it.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in one step."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_table(path: str | Path) -> dict[str, str]:
    """Read `key value` lines; a line that is only a key has the value "".

    Raises:
        RecipeError: the file is missing, is not UTF-8, or has a key twice.
    """
    path = Path(path)
    table: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise RecipeError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, _, value = line.strip().partition(" ")
        if key in table:
            raise RecipeError(f"{path}, line {number}: {key} stands there twice")
        table[key] = value.strip()
    return table


def write_table(path: str | Path, table: Mapping[str, str]) -> None:
    """Write `key value` lines in the order of LC_ALL=C, as Kaldi's and ESPnet's tools expect them."""
    lines = (f"{key} {table[key]}".rstrip() + "\n" for key in sorted(table, key=str.encode))
    write_text(path, "".join(lines))

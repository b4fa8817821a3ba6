"""Kaldi tables (one `key value` a line), and writing a file so that a killed run leaves either all of it or none."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm


class RecipeError(Exception):
    """What a user has to mend: the message names the file or option, its value, and what would be valid."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes `path`'s place when the block ends without an exception.

    Raises:
        RecipeError: in place of an OSError, which names no file after a failed write.
    """
    path = Path(path)
    # The same name whenever: what a killed run has left is written over. The suffix stays last because libraries choose
    # formats by it.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise RecipeError(f"cannot write {path}: {error}") from None


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in one step."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_table(path: str | Path) -> dict[str, str]:
    """Read `key value` lines; a line that is only a key has the value "".

    Raises:
        RecipeError: the file is missing, can't be read, is not UTF-8, or has a key twice.
    """
    path = Path(path)
    table: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise RecipeError(f"{path} does not exist") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from None
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


def check_space(folder: Path, needed: float, what: str) -> None:
    """Refuse what would fill the disk.

    Args:
        folder: where it will be written; it need not exist yet.
        needed: bytes.
        what: what needs them.

    Raises:
        RecipeError: less than `needed` is free.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        shown = [tqdm.format_sizeof(count, "B") for count in (free, needed)]
        raise RecipeError(f"{folder}: {shown[0]} are free, {what} needs {shown[1]}")

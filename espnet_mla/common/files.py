"""Writing a file so that a killed run leaves either all of it or none."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from espnet_mla.common.errors import UsageError, UserError

LONGEST_NAME = 255
"""Bytes of the name of a file or folder that the file systems of Linux and macOS take."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes `path`'s place when the block ends without an exception.

    Raises:
        UserError: in place of an OSError, which names no file after a failed write.
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
        raise UserError(f"cannot write {path}: {error}") from None


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in one step."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_space(folder: Path, needed: float, what: str) -> None:
    """Refuse what would fill the disk.

    Args:
        folder: where it will be written; it need not exist yet.
        needed: bytes.
        what: what needs them.

    Raises:
        UserError: less than `needed` is free.
    """
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        sizes = [tqdm.format_sizeof(count, "B") for count in (free, needed)]
        raise UserError(f"{folder}: {sizes[0]} are free, {what} needs {sizes[1]}")


def check_names(path: Path, advice: str) -> None:
    """Refuse a path that no file system takes, before anything is made.

    Args:
        path: of a file or folder.
        advice: how it gets another one.

    Raises:
        UsageError: the name of a folder in it, or of the file, is too long.
    """
    for name in path.parts:
        if (length := len(os.fsencode(name))) > LONGEST_NAME:
            raise UsageError(
                f"{name:.64}... is a name of {length} bytes, and at most {LONGEST_NAME} are possible: {advice}"
            )

"""Archives of stage 14: unpacked whole, each once, into a cache folder named after its content."""

import hashlib
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from espnet_mla.common.errors import UserError


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip archive into `folder`, which then holds its members and nothing else.

    Raises:
        UserError: it is not a whole zip archive, or a member would land outside of `folder`; that then stays as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        partial = Path(scratch).resolve() / "content"
        try:
            with zipfile.ZipFile(archive) as members:
                for name in members.namelist():
                    if not (partial / name).resolve().is_relative_to(partial):
                        raise UserError(f"{archive}: its member {name} would land outside of its folder")
                members.extractall(partial)
        except zipfile.BadZipFile as error:
            raise UserError(f"{archive} is not a whole zip archive: {error}") from None
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def unpacked_in_cache(archive: Path) -> Path:
    """The folder with an archive's content, named after that: another archive under the same name gets another one."""
    with archive.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espnet_mla"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / digest
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unpack(archive, folder)
    return folder

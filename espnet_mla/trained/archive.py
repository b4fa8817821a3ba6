"""Archives of stage 14: unpacked whole, each once, into a cache folder named after its content."""

import hashlib
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from espnet_mla.common.errors import UserError
from espnet_mla.common.files import check_space

_PARAMETERS = (".pth", ".pt", ".ckpt", ".safetensors")
"""What files of parameters are called."""


def unpack(archive: Path, folder: Path, check: Callable[[Path], object] = lambda folder: None) -> None:
    """Unpack a zip archive into `folder`, which then holds its members and nothing else.

    Args:
        archive: that is unpacked.
        folder: where to.
        check: refuses what was unpacked, with a UserError, before it comes to `folder`.

    Raises:
        UserError: it is not a whole zip archive, or a member would land outside of `folder`, or `check` refuses it, or
            there is no place for it; `folder` then stays as it was.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            partial = Path(scratch).resolve() / "content"
            partial.mkdir()
            _extract(archive, partial)
            try:
                check(partial)
            except UserError as error:
                raise UserError(str(error).replace(f"{partial}/", f"{archive}: ")) from None
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked into {folder.parent}: {error.strerror or error}") from None


def _extract(archive: Path, folder: Path) -> None:
    member = ""
    try:
        with zipfile.ZipFile(archive) as members:
            _check_members(archive, members, folder)
            for member in members.namelist():
                members.extract(member, folder)
    except UserError:
        raise
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive} is not a whole zip archive: {error}") from None
    except NotImplementedError as error:
        raise UserError(f"{archive}: its {member or 'directory'} can't be read: {error}: pack it with `zip`") from None
    except Exception as error:  # of the file system, and of each method's decompressor, which has an error of its own
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{archive}: its {member or 'directory'} can't be unpacked: {why}") from None


def _check_members(archive: Path, members: zipfile.ZipFile, folder: Path) -> None:
    names = members.namelist()
    if any(name.endswith("/data.pkl") for name in names) and "meta.yaml" not in names:
        raise _parameters(archive)
    for member in members.infolist():
        if not (folder / member.filename).resolve().is_relative_to(folder):
            raise UserError(f"{archive}: its member {member.filename} would land outside of its folder")
        if member.flag_bits & 1:
            raise UserError(f"{archive}: its {member.filename} is encrypted: unpack it with its password")
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise UserError(f"{archive}: its {name} is there {times} times")
    check_space(folder, sum(member.file_size for member in members.infolist()), f"unpacking {archive}")


def check_kind(path: Path) -> None:
    """Refuse a file that is something else than a zip archive.

    Raises:
        UserError: it is; the message says what to do with it.
    """
    try:
        if not path.stat().st_size:
            raise UserError(f"{path} is empty")
        if path.suffix in _PARAMETERS:
            raise _parameters(path)
        if not zipfile.is_zipfile(path) and tarfile.is_tarfile(path):
            raise UserError(f"{path} is a tar archive: unpack it (tar -xf {path}), and give the folder that it holds")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _parameters(path: Path) -> UserError:
    return UserError(
        f"{path} holds parameters alone: give its folder, {path.parent}, and its name, {path.name}, by "
        "--inference_asr_model, or where that is no option its path by --asr_model_file"
    )


def unpacked_in_cache(archive: Path, check: Callable[[Path], object]) -> Path:
    """The folder with an archive's content, named after that: another archive under the same name gets another one.

    Args:
        archive: that is unpacked, unless it was before.
        check: as of `unpack`: nothing that it refuses comes to the cache.

    Raises:
        UserError: as `unpack`; or it is no zip archive, or there can be no cache.
    """
    check_kind(archive)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espnet_mla"
    try:
        with archive.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{archive} cannot be read: {error.strerror}") from None
    folder = cache / digest
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".lock"):  # one for all: a refused archive leaves nothing
            if not folder.exists():
                unpack(archive, folder, check)
    except OSError as error:
        raise UserError(
            f"{archive} cannot be unpacked into {cache}: {error.strerror}: XDG_CACHE_HOME names the folder of caches"
        ) from None
    return folder

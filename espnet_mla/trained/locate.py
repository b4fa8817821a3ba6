"""Where the files of a trained model lie: an experiment, an archive of stage 14, or a model on the Hugging Face hub."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

import espnet_mla
from espnet_mla.common.errors import UserError, one_line
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.trained import tasks
from espnet_mla.trained.archive import unpacked_in_cache
from espnet_mla.trained.names import MODEL_FILE, VERSION_FILE

_ON_THE_HUB = re.compile(r"https?://.+|[\w.-]+/[\w.-]+(@.+)?")
_VALID = (
    "valid are an archive of stage 14 (.zip), a folder with meta.yaml (such an archive, unpacked), the folder of an "
    "experiment (with config.yaml), and owner/name on the Hugging Face hub"
)


def locate(
    source: str | os.PathLike[str], inference_asr_model: str, option: str = "inference_asr_model"
) -> tuple[Path, dict[str, Path], bool]:
    """Where the files of a trained model lie.

    Args:
        source, inference_asr_model: as `espnet_mla.from_pretrained` takes them.
        option: what names another model of an experiment, for messages.

    Returns:
        The folder that the paths in its configuration start from; the files, under the names of Speech2Text's
        arguments; and whether they come from an archive or from the hub, so that they may go away.

    Raises:
        UserError: as `espnet_mla.from_pretrained`.
    """
    place = _existing(source) or Path(_downloaded(str(source)))
    if place.is_file():
        place = unpacked_in_cache(place, lambda unpacked: _check_packed(unpacked, source))
    folder = Path(os.path.abspath(place))
    packed = (folder / "meta.yaml").is_file()
    if packed:
        root, files = folder, _check_packed(folder, source)
        if inference_asr_model not in (MODEL_FILE, files["asr_model_file"].name):
            raise UserError(
                f"{source} holds one model, {files['asr_model_file'].name}: {option} {inference_asr_model} can only be "
                "given with the folder of an experiment"
            )
    elif (folder / "config.yaml").is_file():
        root = recipe_folder(folder / "config.yaml")
        files = {"asr_train_config": folder / "config.yaml", "asr_model_file": folder / inference_asr_model}
        tasks.check(read_mapping(files["asr_train_config"]), source)
        _check_files(files, folder, source, option)
    else:
        raise UserError(f"{source} holds neither meta.yaml nor config.yaml: {_VALID}")
    return root, files, packed


def _existing(source: str | os.PathLike[str]) -> Path | None:
    """The file or folder of this name; None where there is none."""
    try:
        place = Path(source).expanduser()
        return place if place.exists() else None
    except (OSError, RuntimeError):  # no name that a file can have, a folder that can't be read, no such user
        return None


def _check_files(files: dict[str, Path], folder: Path, source: str | os.PathLike[str], option: str) -> None:
    for path in files.values():
        if not path.is_file():
            raise UserError(f"{source} lacks {os.path.relpath(path, folder)}{_other_models(folder, option)}")


def _check_packed(folder: Path, source: str | os.PathLike[str]) -> dict[str, Path]:
    """The files of an unpacked archive, under the names of Speech2Text's arguments.

    Raises:
        UserError: it is no archive of a speech recogniser that can be loaded here.
    """
    if not (folder / "meta.yaml").is_file():
        raise UserError(f"{source} holds no meta.yaml: {_VALID}")
    _check_version(folder, source)
    files = _packed_files(folder, source)
    _check_files(files, folder, source, "")
    tasks.check(read_mapping(files["asr_train_config"]), source)
    return files


def _downloaded(tag: str) -> Path:
    """What espnet_model_zoo downloads for a tag: a folder from the hub, or an archive."""
    if not _ON_THE_HUB.fullmatch(tag) or (tag.endswith(".zip") and "://" not in tag):
        raise UserError(f"{tag} does not exist: {_VALID}")
    from espnet_model_zoo.downloader import ModelDownloader
    from huggingface_hub.errors import HTTPError

    try:
        return Path(ModelDownloader().download(tag))
    except (OSError, HTTPError, RuntimeError, ValueError) as error:
        why = one_line(error)
        raise UserError(f"{tag} is neither a local file nor available from the hub ({why}): {_VALID}") from None


def _check_version(folder: Path, source: str | os.PathLike[str]) -> None:
    path = folder / VERSION_FILE
    if not path.is_file():  # an archive that ESPnet's own recipes have packed
        return
    needed, there = str(read_mapping(path).get("version")), espnet_mla.__version__
    try:
        newer = Version(needed) > Version(there)
    except InvalidVersion:
        raise UserError(f"{source}: {VERSION_FILE}: version: {needed} is none; such as {there} is needed") from None
    if newer:
        raise UserError(f"{source} needs espnet_mla {needed} or newer, which packed it; installed is {there}")


def _packed_files(folder: Path, source: str | os.PathLike[str]) -> dict[str, Path]:
    """What meta.yaml names, under the names of Speech2Text's arguments."""
    meta = read_mapping(folder / "meta.yaml")
    named: dict[str, str] = {}
    for key in ("yaml_files", "files"):
        section = meta.get(key, {})
        if not isinstance(section, dict) or not all(isinstance(path, str) for path in section.values()):
            raise UserError(f"{source}: meta.yaml: {key}: {section or 'null'!s:.60}: `name: path` lines are needed")
        named |= section
    if not {"asr_train_config", "asr_model_file"} <= set(named):
        for path in meta.get("yaml_files", {}).values():  # of a model of another task
            if (folder / path).is_file():
                tasks.check(read_mapping(folder / path), source)
        raise UserError(
            f"{source} holds no speech recogniser: its meta.yaml names only {', '.join(named) or 'no file'}"
        )
    return {name: folder / path for name, path in named.items()}


def recipe_folder(config: Path) -> Path:
    """The folder that the paths in an experiment's config.yaml start from: that of the recipe, above the experiment."""
    experiment = Path(os.path.abspath(config)).parent
    output_dir = Path(read_mapping(config).get("output_dir") or "")
    if output_dir.is_absolute():
        return Path.cwd()
    return next((above for above in experiment.parents if above / output_dir == experiment), Path.cwd())


def file_needed(error: OSError, packed: bool) -> str:
    """What to say where a file that a configuration names is not there.

    Args:
        error: of ESPnet or the system.
        packed: whether the configuration is from an archive or from the hub.
    """
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return why if packed else f"{why}; an experiment needs its recipe's folder"


def _other_models(folder: Path, option: str) -> str:
    models = sorted(path.name for path in folder.glob("*.pth") if path.name != "checkpoint.pth")
    return f"; {option} may be {', '.join(models)}" if models and option else ""


def with_files(value: Any, root: Path, named: Callable[[Path], str] = str) -> Any:
    """A configuration in which every file below `root` has another name: its whole path, or what `named` makes of that.

    A list of tokens stays as it is: a token may be spelt like a file.
    """
    if isinstance(value, dict):
        tokens = {key for key in value if key == "token_list" and isinstance(value[key], list)}
        return {key: item if key in tokens else with_files(item, root, named) for key, item in value.items()}
    if isinstance(value, list):
        return [with_files(item, root, named) for item in value]
    if isinstance(value, str) and os.path.isfile(root / value):
        return named(root / value)
    return value

"""from_pretrained(): a trained model, wherever it lies, as the Speech2Text of ESPnet that transcribes with it."""

import hashlib
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from filelock import FileLock
from packaging.version import Version

import espnet_mla
from espnet_mla.recipe.files import RecipeError

if TYPE_CHECKING:
    from espnet2.bin.asr_inference import Speech2Text

MODEL_FILE = "valid.acc.ave.pth"
"""What an experiment's model is called when nothing else is said, as in ESPnet's asr.sh."""
VERSION_FILE = "espnet_mla.yaml"
"""The file of an archive that says which version of this package has packed it."""

_ON_THE_HUB = re.compile(r"https?://.+|[\w.-]+/[\w.-]+(@.+)?")
_VALID = (
    "valid are an archive of stage 14 (.zip), a folder with meta.yaml (such an archive, unpacked), the folder of an "
    "experiment (with config.yaml), and owner/name on the Hugging Face hub"
)


def from_pretrained(
    source: str | os.PathLike[str], *, inference_asr_model: str = MODEL_FILE, **options: object
) -> "Speech2Text":
    """Load a trained model with the plugin registered; see `espnet_mla.from_pretrained`."""
    root, files, _ = locate(source, inference_asr_model)
    espnet_mla.register()
    from espnet2.bin.asr_inference import Speech2Text
    from espnet2.torch_utils.safe_torch_load import UnsafeLoadRefusedError

    with tempfile.TemporaryDirectory() as scratch:
        for name in [name for name in files if name.endswith("_config")]:
            config = mapping(files[name])
            files[name] = Path(scratch) / f"{name}.yaml"
            files[name].write_text(yaml.safe_dump(with_files(config, root)), encoding="utf-8")
        try:
            return Speech2Text(**files, **options)
        except (FileNotFoundError, UnsafeLoadRefusedError) as error:
            why = str(error).splitlines()[0]
            raise RecipeError(f"{source} cannot be loaded: {why}; an experiment needs its recipe's folder") from error


def locate(
    source: str | os.PathLike[str], inference_asr_model: str, option: str = "inference_asr_model"
) -> tuple[Path, dict[str, Path], bool]:
    """Where the files of a trained model lie.

    Args:
        source, inference_asr_model: as `espnet_mla.from_pretrained` takes them.
        option: what names another model of an experiment, for messages.

    Returns:
        The folder that the paths in its configuration start from; the files, under the names of Speech2Text's arguments;
        and whether they come from an archive or from the hub, so that they may go away.

    Raises:
        RecipeError: as `espnet_mla.from_pretrained`.
    """
    place = Path(source).expanduser()
    folder = Path(os.path.abspath(place if place.exists() else _downloaded(str(source))))
    if folder.is_file():
        folder = _unpacked_in_cache(folder)
    packed = (folder / "meta.yaml").is_file()
    if packed:
        _check_version(folder, source)
        root, files = folder, _packed_files(folder, source)
    elif (folder / "config.yaml").is_file():
        root = recipe_folder(folder / "config.yaml")
        files = {"asr_train_config": folder / "config.yaml", "asr_model_file": folder / inference_asr_model}
    else:
        raise RecipeError(f"{source} holds neither meta.yaml nor config.yaml: {_VALID}")
    for path in files.values():
        if not path.is_file():
            raise RecipeError(f"{source} lacks {os.path.relpath(path, folder)}{_other_models(folder, option)}")
    return root, files, packed


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip archive into `folder`, which then holds its members and nothing else.

    Raises:
        RecipeError: it is not a whole zip archive, or a member would land outside of `folder`; that then stays as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        partial = Path(scratch).resolve() / "content"
        try:
            with zipfile.ZipFile(archive) as members:
                for name in members.namelist():
                    if not (partial / name).resolve().is_relative_to(partial):
                        raise RecipeError(f"{archive}: its member {name} would land outside of its folder")
                members.extractall(partial)
        except zipfile.BadZipFile as error:
            raise RecipeError(f"{archive} is not a whole zip archive: {error}") from None
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _unpacked_in_cache(archive: Path) -> Path:
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


def _downloaded(tag: str) -> Path:
    """What espnet_model_zoo gets for a tag: a folder from the hub, or an archive."""
    if not _ON_THE_HUB.fullmatch(tag) or tag.endswith(".zip") and "://" not in tag:
        raise RecipeError(f"{tag} does not exist: {_VALID}")
    from espnet_model_zoo.downloader import ModelDownloader
    from huggingface_hub.errors import HTTPError

    try:
        return Path(ModelDownloader().download(tag))
    except (OSError, HTTPError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise RecipeError(f"{tag} is neither here nor can it be had from the hub ({why}): {_VALID}") from None


def _check_version(folder: Path, source: str | os.PathLike[str]) -> None:
    path = folder / VERSION_FILE
    if not path.is_file():  # an archive that ESPnet's own recipes have packed
        return
    needed, there = mapping(path)["version"], espnet_mla.__version__
    if Version(needed) > Version(there):
        raise RecipeError(f"{source} needs espnet_mla {needed} or newer, which packed it; installed is {there}")


def _packed_files(folder: Path, source: str | os.PathLike[str]) -> dict[str, Path]:
    """What meta.yaml names, under the names of Speech2Text's arguments."""
    meta = mapping(folder / "meta.yaml")
    named = {**meta.get("yaml_files", {}), **meta.get("files", {})}
    if not {"asr_train_config", "asr_model_file"} <= set(named):
        raise RecipeError(f"{source} holds no speech recogniser: its meta.yaml names only {', '.join(named)}")
    return {name: folder / path for name, path in named.items()}


def recipe_folder(config: Path) -> Path:
    """The folder that the paths in an experiment's config.yaml start from: that of the recipe, above the experiment."""
    experiment = Path(os.path.abspath(config)).parent
    output_dir = Path(mapping(config).get("output_dir") or "")
    if output_dir.is_absolute():
        return Path.cwd()
    return next((above for above in experiment.parents if above / output_dir == experiment), Path.cwd())


def mapping(path: Path) -> dict:
    """What a YAML file of `key: value` lines holds.

    Raises:
        RecipeError: it holds something else, or can't be read.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold `key: value` lines")
    return content


def _other_models(folder: Path, option: str) -> str:
    models = sorted(path.name for path in folder.glob("*.pth") if path.name != "checkpoint.pth")
    return f"; {option} may be {', '.join(models)}" if models else ""


def with_files(value: object, root: Path, named: Callable[[Path], str] = str) -> object:
    """A configuration in which every file below `root` has another name: its whole path, or what `named` makes of that.

    A list of tokens stays as it is: a token may be spelt like a file.
    """
    if isinstance(value, dict):
        kept = {key for key in value if key == "token_list" and isinstance(value[key], list)}
        return {key: item if key in kept else with_files(item, root, named) for key, item in value.items()}
    if isinstance(value, list):
        return [with_files(item, root, named) for item in value]
    if isinstance(value, str) and os.path.isfile(root / value):
        return named(root / value)
    return value

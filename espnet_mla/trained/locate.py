"""Where the files of a trained model lie: an experiment, an archive of stage 14, or a model on the Hugging Face hub."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

import espnet_mla
from espnet_mla.common.errors import UserError, one_line
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.trained import tasks
from espnet_mla.trained.archive import unpacked_in_cache
from espnet_mla.trained.names import MODEL_FILE, VERSION_FILE
from espnet_mla.trained.tasks import Task

_ON_THE_HUB = re.compile(r"https?://.+|[\w.-]+/[\w.-]+(@.+)?")
_VALID = (
    "valid are an archive of stage 14 (.zip), a folder with meta.yaml (such an archive, unpacked), the folder of an "
    "experiment (with config.yaml), and owner/name on the Hugging Face hub"
)


@dataclass(frozen=True)
class Located:
    """Where the files of a trained model lie.

    Args:
        task: that it is of.
        config, model: of its training, and its parameters.
        others: of an archive, what else its recogniser takes, by the names of its arguments: a language model, ...
        root: the folder that paths in its configuration start from.
        packed: whether it comes from an archive or from the hub, so that the files may go away.
    """

    task: Task
    config: Path
    model: Path
    others: Mapping[str, Path]
    root: Path
    packed: bool

    @property
    def files(self) -> dict[str, Path]:
        """All of them, by the names of the recogniser's arguments."""
        return {self.task.config_key: self.config, self.task.model_key: self.model, **self.others}


def locate(source: str | os.PathLike[str], model_file: str, option: str = "inference_asr_model") -> Located:
    """Where the files of a trained model lie.

    Args:
        source: as `espnet_mla.from_pretrained` takes it.
        model_file: of an experiment, the name of the model's file.
        option: what names that, for messages.

    Raises:
        UserError: as `espnet_mla.from_pretrained`.
    """
    place = _existing(source) or Path(_downloaded(str(source)))
    if place.is_file():
        place = unpacked_in_cache(place, lambda unpacked: _check_packed(unpacked, source))
    folder = Path(os.path.abspath(place))
    if (folder / "meta.yaml").is_file():
        found = _check_packed(folder, source)
        if model_file not in (MODEL_FILE, found.model.name):
            raise UserError(
                f"{source} holds one model, {found.model.name}: {option} {model_file} can only be given with the "
                "folder of an experiment"
            )
        return found
    if (folder / "config.yaml").is_file():
        config = folder / "config.yaml"
        trained = read_mapping(config)
        model, task = _model_of(folder, model_file, trained), tasks.task_of(trained, source)
        found = Located(task, config, model, {}, recipe_folder(config), packed=False)
        _check_files(found, folder, source, option)
        return found
    raise UserError(f"{source} holds neither meta.yaml nor config.yaml: {_VALID}")


def of_espnet3(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is one that ESPnet3 has trained from, or was converted from one."""
    return "exp_dir" in config


def _model_of(folder: Path, model_file: str, config: Mapping[str, Any]) -> Path:
    """Of an experiment, the file of this name.

    ESPnet3 makes no `valid.acc.ave.pth`: of its averages over the best models (`valid.acc.ave_10best.pth`) the one over
    as many as its configuration says is taken, or while there are fewer, over the most.
    """
    path = folder / model_file
    if model_file != MODEL_FILE or os.path.lexists(path) or not of_espnet3(config):
        return path
    found = {}
    for file in folder.iterdir():
        if match := re.fullmatch(r"valid\.acc\.ave_(\d+)best\.pth", file.name):
            found[int(match[1])] = file
    wanted = [best for monitor, best, *_ in config.get("best_model_criterion") or () if monitor == "valid/acc"]
    possible = [number for number in found if not wanted or number <= wanted[0]]
    return found[max(possible)] if possible else path


def _existing(source: str | os.PathLike[str]) -> Path | None:
    """The file or folder of this name; None where there is none."""
    try:
        place = Path(source).expanduser()
        return place if place.exists() else None
    except (OSError, RuntimeError):  # no name that a file can have, a folder that can't be read, no such user
        return None


def _check_files(found: Located, folder: Path, source: str | os.PathLike[str], option: str) -> None:
    for path in found.files.values():
        if not path.is_file():
            raise UserError(f"{source} lacks {os.path.relpath(path, folder)}{_other_models(folder, option)}")


def _check_packed(folder: Path, source: str | os.PathLike[str]) -> Located:
    """The files of an unpacked archive.

    Raises:
        UserError: it is no archive of a model that can be loaded here.
    """
    if not (folder / "meta.yaml").is_file():
        raise UserError(f"{source} holds no meta.yaml: {_VALID}")
    _check_version(folder, source)
    found = _packed_files(folder, source)
    _check_files(found, folder, source, "")
    return found


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


def _packed_files(folder: Path, source: str | os.PathLike[str]) -> Located:
    """What meta.yaml names.

    The names of model and configuration need not be those of the model's task: ESPnet's own recipes pack SLU as ASR.
    """
    meta = read_mapping(folder / "meta.yaml")
    named: dict[str, str] = {}
    for key in ("yaml_files", "files"):
        section = meta.get(key, {})
        if not isinstance(section, dict) or not all(isinstance(path, str) for path in section.values()):
            raise UserError(f"{source}: meta.yaml: {key}: {section or 'null'!s:.60}: `name: path` lines are needed")
        named |= section
    where, others = "meta.yaml", [folder / path for path in meta.get("yaml_files", {}).values()]
    if "system" in meta:  # of ESPnet3
        where, others = named.get("inference_config", "meta.yaml (no inference_config)"), []
        named = _decoding_files(folder / where) if (folder / where).is_file() else {}
    for key in tasks.KEYS:
        config, model = f"{key}_train_config", f"{key}_model_file"
        if {config, model} <= named.keys():
            files = {name: folder / path for name, path in named.items()}
            if not files[config].is_file():
                raise UserError(f"{source} lacks {named[config]}")
            task = tasks.task_of(read_mapping(files[config]), source)
            more = {name: path for name, path in files.items() if name not in (config, model)}
            return Located(task, files[config], files[model], more, folder, packed=True)
    for path in filter(Path.is_file, others):  # of a model of another task
        tasks.task_of(read_mapping(path), source)
    raise UserError(f"{source} holds no model: its {where} names only {', '.join(named) or 'no file'}")


def _decoding_files(config: Path) -> dict[str, str]:
    """The files that an archive of ESPnet3 decodes with, by the names of the recogniser's arguments."""
    model, here = read_mapping(config).get("model") or {}, "${recipe_dir}/"
    return {
        name: value.removeprefix(here)
        for name, value in (model.items() if isinstance(model, dict) else ())
        if isinstance(value, str) and value.startswith(here)
    }


def recipe_folder(config: Path) -> Path:
    """The folder that the paths in an experiment's config.yaml start from: that of the recipe, above the experiment."""
    experiment = Path(os.path.abspath(config)).parent
    trained = read_mapping(config)
    output_dir = Path(trained.get("output_dir") or trained.get("exp_dir") or "")  # of ESPnet2, of ESPnet3
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

    A list of tokens stays as it is, and what is a name (`text_name: text`): they may be spelt like a file.
    """
    if isinstance(value, dict):
        kept = {key for key in value if key.endswith("_name") or (key == "token_list" and isinstance(value[key], list))}
        return {key: item if key in kept else with_files(item, root, named) for key, item in value.items()}
    if isinstance(value, list):
        return [with_files(item, root, named) for item in value]
    if isinstance(value, str) and os.path.isfile(root / value):
        return named(root / value)
    return value

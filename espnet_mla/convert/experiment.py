"""The folder of an experiment as what a conversion starts from, and as what it leaves."""

import contextlib
import os
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from espnet2.tasks.abs_task import optim_classes
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.safe_torch_load import safe_torch_load
from espnet2.utils.get_default_kwargs import get_default_kwargs
from torch import Tensor, nn

from espnet_mla.pretrained import mapping, recipe_folder, with_files
from espnet_mla.recipe.files import RecipeError

MODEL = "model.pth"
LINK = "valid.acc.ave.pth"
"""The name that the recipe, `from_pretrained` and ESPnet's asr.sh look for when they are not told another."""
CONVERSION = "conversion.json"
"""What only a folder that was made here has."""
FINETUNE = "finetune.yaml"

SHARE = 10  # fine-tuning takes a tenth of the training's epochs

# What stage 11 gives on the command line, or what belongs to one run alone.
_OF_A_RUN = (
    "config", "output_dir", "dry_run", "print_config", "collect_stats", "resume", "ngpu", "init_param", "pretrain_path",
    "ignore_init_mismatch", "token_list", "token_type", "bpemodel", "non_linguistic_symbols", "cleaner", "g2p",
    "use_preprocessor", "fold_length", "version", "distributed", "required",
    "multiprocessing_distributed",
)  # fmt: skip
_OF_A_RUN_BEGIN = ("train_data_path", "valid_data_path", "train_shape", "valid_shape", "dist_", "local_rank", "wandb_")


@dataclass(frozen=True)
class Source:
    """A trained model.

    Args:
        config: of its training, as it stands in the file.
        config_file, model_file: where they are.
        root: the folder that paths in `config` start from.
        packed: whether it comes from an archive or from the hub, whose files may go away.
    """

    config: dict
    config_file: Path
    model_file: Path
    root: Path
    packed: bool

    def load(self) -> tuple[nn.Module, Namespace]:
        """ESPnet's model, for inference, and its configuration with whole paths.

        Raises:
            RecipeError: a file is missing or broken, or model and configuration do not fit.
        """
        config = with_files(self.config, self.root)
        state = _state(self.model_file)
        try:
            model, args = build(config)
        except OSError as error:
            raise RecipeError(f"{self.config_file}: {error}; an experiment needs its recipe's folder") from None
        if wrong := _load(model, state):
            raise RecipeError(f"{self.model_file} does not fit {self.config_file}: {wrong}")
        return model.eval(), args


def source(config_file: Path, model_file: Path) -> Source:
    """The model of an experiment's folder.

    Raises:
        RecipeError: a file is missing, or the configuration is broken.
    """
    for path in (config_file, model_file):
        if not path.is_file():
            raise RecipeError(f"{path} does not exist")
    return Source(_config(config_file), config_file, model_file, recipe_folder(config_file), packed=False)


def packed_source(root: Path, files: Mapping[str, Path]) -> Source:
    """The model that `espnet_mla.pretrained.locate` has found."""
    config_file = files["asr_train_config"]
    packed = (root / "meta.yaml").is_file()
    return Source(_config(config_file), config_file, files["asr_model_file"], root, packed)


def build(config: dict) -> tuple[nn.Module, Namespace]:
    """ESPnet's model, with random weights, and its configuration."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        try:
            return ASRTask.build_model_from_file(path)
        except (TypeError, ValueError, AssertionError, KeyError) as error:
            raise RecipeError(f"ESPnet cannot build the model: {error}") from None


def finetuning(config: dict) -> dict:
    """A configuration for stage 11 that trains on for a tenth of the epochs, at a tenth of the rate.

    Everything else is as in the training that `config` is of.
    """
    defaults = vars(ASRTask.get_parser().parse_args([]))
    config = {name: defaults[name] for name in ("max_epoch", "keep_nbest_models", "optim")} | config
    left_out = _OF_A_RUN + (("normalize", "normalize_conf") if config.get("normalize") == "global_mvn" else ())
    kept = {
        key: value
        for key, value in config.items()
        if key not in left_out and not key.startswith(_OF_A_RUN_BEGIN) and value != defaults.get(key, ...)
    }
    epochs = max(1, config["max_epoch"] // SHARE)
    best = config["keep_nbest_models"]
    # As ESPnet has it: what a configuration does not say is the optimiser's own.
    optim_conf = get_default_kwargs(optim_classes[config["optim"]]) | (config.get("optim_conf") or {})
    if "lr" in optim_conf:
        optim_conf["lr"] = float(f"{optim_conf['lr'] / SHARE:.6g}")
    kept |= {
        "max_epoch": epochs,
        "patience": None,
        "keep_nbest_models": min([epochs, *(best if isinstance(best, list) else [best])]),
        "optim_conf": optim_conf,
        "scheduler": None,
        "scheduler_conf": {},
    }
    return kept


@contextlib.contextmanager
def leaving(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to write to; it becomes `folder` when the block ends without an exception.

    Raises:
        RecipeError: as `check_free`, or it cannot be written.
    """
    check_free(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            partial = Path(scratch) / "new"
            partial.mkdir()
            yield partial
            if folder.exists():
                folder.rename(Path(scratch) / "old")
            partial.rename(folder)
    except OSError as error:
        raise RecipeError(f"cannot write {folder}: {error}") from None


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse to write over what is there.

    Raises:
        RecipeError: `folder` exists, and is not to be overwritten, or was not made by a conversion.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / CONVERSION).is_file():
        raise RecipeError(f"--output_dir {folder} exists and was not made by espnet-mla convert: name another folder")
    if not overwrite:
        raise RecipeError(f"--output_dir {folder} exists: give --overwrite to replace it, or name another folder")


def write(folder: Path, place: Path, source: Source, config: dict, state: dict[str, Tensor]) -> None:
    """Write configurations and weights to `folder`, which will be at `place`.

    Within the recipe of the source the paths in a configuration stay what they are, relative to its folder; elsewhere they
    become whole ones. What an archive's configuration names (sentencepiece's model, statistics) is copied beside them.
    """
    try:
        torch.save(state, folder / MODEL)
    except RuntimeError as error:  # its way to say that the disk is full
        raise OSError(f"{MODEL}: {error}") from None
    (folder / LINK).symlink_to(MODEL)
    start = Path.cwd() if source.packed else source.root
    place = Path(os.path.abspath(place))
    named = place.relative_to(start) if place.is_relative_to(start) else place
    config = {**config, "output_dir": str(named)}
    if source.packed:

        def copied(path: Path) -> str:
            shutil.copyfile(path, folder / path.name)
            return str(named / path.name)

        config = with_files(config, source.root, copied)
    elif named == place:
        config = with_files(config, source.root)
    for name, content in (("config.yaml", config), (FINETUNE, finetuning(config))):
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (folder / name).write_text(text, encoding="utf-8")


def _config(path: Path) -> dict:
    try:
        return mapping(path)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no configuration of ESPnet: {' '.join(str(error).split())}") from None


def _state(path: Path) -> dict[str, Tensor]:
    """The parameters that a file of ESPnet, DeepSpeed or Lightning holds."""
    try:
        state = safe_torch_load(path, map_location="cpu")
    except Exception as error:  # torch.load raises whatever its readers raise
        raise RecipeError(f"{path} holds no model that can be loaded: {str(error).splitlines()[0]}") from None
    for wrapper in ("module", "state_dict"):
        state = state.get(wrapper, state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise RecipeError(f"{path} holds no model: a file with parameters alone is needed, such as {LINK}")
    return dict(state)


def _load(model: nn.Module, state: dict[str, Tensor]) -> str:
    """Load the parameters; what does not fit, if anything does not. (ESPnet would load what does.)"""

    def some(names: list[str]) -> str:
        return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")

    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        return str(error).splitlines()[1].strip()
    wrong = [f"it lacks {some(missing)}"] if missing else []
    wrong += [f"it has {some(unexpected)}, which the model has not"] if unexpected else []
    return "; ".join(wrong)

"""The folder of an experiment that a conversion leaves."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import yaml
from espnet2.tasks.abs_task import optim_classes
from espnet2.utils.get_default_kwargs import get_default_kwargs
from torch import Tensor

from espnet_mla.common.errors import UserError
from espnet_mla.trained.locate import of_espnet3, with_files
from espnet_mla.trained.model import Source
from espnet_mla.trained.names import CONVERSION_FILE, MODEL_FILE
from espnet_mla.trained.tasks import Task

MODEL = "model.pth"
FINETUNE = "finetune.yaml"

SHARE = 10  # fine-tuning takes a tenth of the training's epochs

# What stage 11 gives on the command line, or what belongs to one run alone.
_OF_A_RUN = (
    "config", "output_dir", "dry_run", "print_config", "collect_stats", "resume", "ngpu", "init_param", "pretrain_path",
    "ignore_init_mismatch", "token_list", "token_type", "bpemodel", "non_linguistic_symbols", "cleaner", "g2p",
    "use_preprocessor", "init", "fold_length", "version", "distributed", "required",
    "multiprocessing_distributed",
)  # fmt: skip
_OF_A_RUN_BEGIN = ("train_data_path", "valid_data_path", "train_shape", "valid_shape", "dist_", "local_rank", "wandb_")


def finetuning(config: dict, task: Task) -> dict:
    """A configuration for stage 11 that trains on for a tenth of the epochs, at a tenth of the rate.

    The rate is a tenth of the highest that the training's scheduler came to, and stays there. Everything else is as in
    the training that `config` is of.
    """
    defaults = vars(task.task_class().get_parser().parse_args([]))
    named = {key: value for key, value in config.items() if value is not None}
    config = {name: defaults[name] for name in ("max_epoch", "keep_nbest_models", "optim")} | named
    left_out = _OF_A_RUN + (("normalize", "normalize_conf") if config.get("normalize") == "global_mvn" else ())
    finetune = {
        key: value
        for key, value in config.items()
        if key in defaults and value != defaults[key] and key not in left_out and not key.startswith(_OF_A_RUN_BEGIN)
    }
    epochs = max(1, config["max_epoch"] // SHARE)
    best = config["keep_nbest_models"]
    # As ESPnet has it: what a configuration does not say is the optimiser's own.
    optimiser = optim_classes.get(config["optim"])
    optim_conf = (get_default_kwargs(optimiser) if optimiser else {}) | config.get("optim_conf", {})
    if "lr" in optim_conf:
        peak = _peak_rate(optim_conf["lr"], config.get("scheduler"), config.get("scheduler_conf", {}))
        optim_conf["lr"] = float(f"{peak / SHARE:.6g}")
    finetune |= {
        "max_epoch": epochs,
        "patience": None,
        "keep_nbest_models": min([epochs, *(best if isinstance(best, list) else [best])]),
        "optim_conf": optim_conf,
        "scheduler": None,
        "scheduler_conf": {},
    }
    return finetune


def _peak_rate(lr: float, scheduler: str | None, conf: dict) -> float:
    """The highest learning rate that one of ESPnet's schedulers comes to."""
    if scheduler == "noamlr":
        return lr * (conf.get("model_size", 320) * conf.get("warmup_steps", 25000)) ** -0.5
    for name in ("max_lr", "warmup_lr_list"):
        if name in conf:
            return max(conf[name]) if isinstance(conf[name], list) else conf[name]
    return lr


@contextlib.contextmanager
def leaving(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to write to; it becomes `folder`, or what that is a link to, when the block ends without an
    exception.

    Raises:
        UserError: as `check_free`, or it cannot be written.
    """
    check_free(folder, overwrite)
    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            partial = Path(scratch) / "new"
            partial.mkdir()
            yield partial
            old = Path(scratch) / "old"
            if folder.exists():
                folder.rename(old)
            try:
                partial.rename(folder)
            except BaseException:  # Ctrl-C among them
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}") from None


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse to write over what is there.

    Raises:
        UserError: `folder` exists, and is not to be overwritten, or was not made by a conversion; or it can't be made.
    """
    there = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--output_dir {folder}: {there} is no folder that can be written to")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"--output_dir {folder} is the current folder, or above it: name another one")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / CONVERSION_FILE).is_file():
        raise UserError(f"--output_dir {folder} exists and was not made by espnet-mla convert: name another folder")
    if not overwrite:
        raise UserError(f"--output_dir {folder} exists: give --overwrite to replace it, or name another folder")


def origin(files: Mapping[str, Path], place: Path, source: Source) -> dict[str, str]:
    """Where the files of the source lie, seen from the folder `place`; in full where that is not in its recipe."""
    place = Path(os.path.abspath(place))
    beside = not source.packed and place.is_relative_to(source.root)
    full = {key: os.path.abspath(file) for key, file in files.items()}
    return {key: os.path.relpath(file, place) for key, file in full.items()} if beside else full


def write(folder: Path, place: Path, source: Source, config: dict, state: dict[str, Tensor]) -> None:
    """Write configurations and weights to `folder`, which will be at `place`.

    Within the recipe of the source the paths in a configuration stay what they are, relative to its folder; elsewhere
    they become whole ones. What an archive's configuration names (sentencepiece's model, statistics) is copied beside
    them.
    """
    start = Path.cwd() if source.packed else source.root
    place = Path(os.path.abspath(place))
    named = place.relative_to(start) if place.is_relative_to(start) else place
    config = {**config, "output_dir": str(named)}
    if source.packed:

        def copied(path: Path) -> str:
            member = path.relative_to(source.root)
            (folder / member).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / member)
            return str(named / member)

        config = with_files({**config, "init_param": []}, source.root, copied)
    elif named == place:
        config = with_files(config, source.root)
    files = {"config.yaml": config}
    if not of_espnet3(config):  # its optimiser and epochs are told in another way, which stage 11 does not know
        files[FINETUNE] = finetuning(config, source.task)
    for name, content in files.items():
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (folder / name).write_text(text, encoding="utf-8")
    try:
        torch.save(state, folder / MODEL)
    except RuntimeError as error:  # its way to say that the disk is full
        raise OSError(f"{MODEL}: {error}") from None
    (folder / MODEL_FILE).symlink_to(MODEL)

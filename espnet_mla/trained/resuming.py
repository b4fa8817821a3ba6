"""What a training starts from: checkpoint.pth of an earlier run, and the files of --init_param.

Both are partial by design, and ESPnet takes what it finds: what is cut, of another model, or matches nothing is named
here.
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import espnet2.torch_utils.load_pretrained_model as pretrained
import espnet2.train.trainer as espnet_trainer
from espnet2.tasks import abs_task
from espnet2.tasks.abs_task import AbsTask
from espnet2.train.trainer import Trainer
from torch import Tensor, nn

from espnet_mla.common.errors import UserError
from espnet_mla.common.files import replacing
from espnet_mla.common.torch_save import CHECKPOINT
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.trained import loading

_PARTS = ("model", "reporter", "optimizers", "schedulers")
"""Keys of checkpoint.pth that ESPnet reads."""
_OPTIMISERS = ("optim", "optim2", "scheduler", "scheduler2")
"""Keys of a configuration whose states checkpoint.pth holds."""
_MODEL = ("frontend_conf", "encoder", "encoder_conf", "decoder", "decoder_conf", "ctc_conf", "model", "model_conf")
"""Keys of a configuration by which parameters of the same shapes may mean something else."""

_espnet_main_worker = AbsTask.main_worker.__func__
_espnet_resume = Trainer.resume
_espnet_load = pretrained.load_pretrained_model


def install() -> None:
    """Have ESPnet's trainings start by the functions below."""
    AbsTask.main_worker = classmethod(main_worker)
    Trainer.resume = staticmethod(resume)
    abs_task.load_pretrained_model = load_pretrained_model


def main_worker(cls: type[AbsTask], args: argparse.Namespace) -> None:
    """As ESPnet's method of this name, but a refused training leaves the configuration of the earlier one in place.

    Raises:
        UserError: as `resume` and `load_pretrained_model`; or another optimiser or scheduler than the checkpoint's.
    """
    path = Path(args.output_dir) / "config.yaml"
    before = path.read_bytes() if path.is_file() else None
    checkpoint = path.with_name(CHECKPOINT)
    if before and args.resume and not args.dry_run and not args.collect_stats and checkpoint.exists():
        _check_configuration(path, args, checkpoint)
    try:
        _espnet_main_worker(cls, args)
    except UserError:
        if before is not None and not args.dist_rank and path.read_bytes() != before:
            with replacing(path) as partial:
                partial.write_bytes(before)
        raise


def _check_configuration(path: Path, args: argparse.Namespace, checkpoint: Path) -> None:
    """Compare with the earlier training's what the shapes of parameters do not tell."""
    try:
        config = read_mapping(path)
    except UserError:  # of a training that was killed while it wrote it
        return
    tokens = getattr(args, "token_list", None)
    if isinstance(tokens, str) and Path(tokens).is_file():
        tokens = [line.rstrip() for line in Path(tokens).read_text(encoding="utf-8").splitlines()]
    if isinstance(tokens, list) and isinstance(config.get("token_list"), list) and tokens != config["token_list"]:
        raise UserError(f"token_list: {checkpoint} is of a model of other tokens: {_other(checkpoint)}")
    for key in _OPTIMISERS:
        old, new = config.get(key), getattr(args, key, None)
        if key in config and old != new:
            was = f"{checkpoint} is of a training with {key}: {_yaml(old)}"
            raise UserError(f"{key}: {_yaml(new)}: {was}: {_other(checkpoint)}")
    changed = [key for key in _MODEL if key in config and config[key] != getattr(args, key, None)]
    if changed and not args.dist_rank:
        # Not by logging, which ESPnet has yet to set up.
        print(f"warning: {', '.join(changed)}: not as in the training that {checkpoint} is of", file=sys.stderr)


def resume(checkpoint: str | Path, model: nn.Module, *args: Any, strict: bool = True, **named: Any) -> None:
    """As ESPnet's `Trainer.resume`.

    Args:
        strict: false of a model with adapters, whose other parameters the checkpoint may lack.

    Raises:
        UserError: the checkpoint is cut or no checkpoint, or is of another model or optimiser.
    """
    checkpoint = Path(checkpoint)

    def load_state_dict(state: Mapping[str, Any], **_: Any) -> Any:
        return loading.fit(model, state, loading.lacks if strict else lambda *_: "")

    model.__dict__["load_state_dict"] = load_state_dict
    try:
        with _in_place(espnet_trainer, "safe_torch_load", _read_checkpoint):
            _espnet_resume(checkpoint, model, *args, strict=strict, **named)
    except loading.Misfit as error:
        other = f"{checkpoint} is of another model than the configuration: {error}"
        raise UserError(f"{other}: {_other(checkpoint)}") from None
    except ValueError as error:  # of the optimisers: numbers of parameters, or of their groups
        other = f"{checkpoint} is of another optimiser than the configuration: {error}"
        raise UserError(f"{other}: {_other(checkpoint)}") from None
    finally:
        del model.__dict__["load_state_dict"]


def _read_checkpoint(path: Path, **options: Any) -> Any:
    try:
        states = loading.read(path, **options)
        if missing := [part for part in _PARTS if not isinstance(states, Mapping) or part not in states]:
            raise UserError(f"{path} is no training checkpoint: it lacks {missing[0]}")
        loading.check_finite(path, states["model"])
    except UserError as error:
        epochs = sorted(path.parent.glob("[0-9]*epoch.pth"), key=lambda file: int(file.stem.removesuffix("epoch")))
        weights = f" (--init_param {epochs[-1]} starts from its weights)" if epochs else ""
        raise UserError(f"{error}: delete it to train from the first epoch on{weights}") from None
    return states


def _other(checkpoint: Path) -> str:
    return (
        "a training is resumed with the configuration that it began with: give that one, or let another one write into "
        f"another folder than {checkpoint.parent}"
    )


def load_pretrained_model(init_param: str, model: nn.Module, *args: Any, **named: Any) -> None:
    """As ESPnet's function of this name.

    Raises:
        UserError: the file can't be read, is a training checkpoint, or has parameters that the model lacks, or that are
            not finite; or it has none that the model takes.
    """
    option = f"--init_param {init_param}"
    # By identity, as ESPnet renames and leaves out; with the parameters, so that no other comes to have their identity.
    file: dict[int, tuple[str, Tensor]] = {}
    taken = 0

    def read(path: str, **options: Any) -> Any:
        state = loading.checked(path, loading.read(path, **options))
        for name, value in state.get("module", state).items():
            file[id(value)] = (name, value)
        return state

    def load_state_dict(self: nn.Module, state: Mapping[str, Any], *_: Any, **__: Any) -> Any:
        nonlocal taken
        taken = sum(id(value) in file for value in state.values())
        if not taken:
            ours = next(iter(self.state_dict()), "nothing")
            theirs = next(iter(file.values()))[0]
            raise UserError(f"none of its parameters fits the model: it has {theirs}, the model {ours}")
        return loading.fit(self, state)

    with _in_place(pretrained, "safe_torch_load", read), _in_place(nn.Module, "load_state_dict", load_state_dict):
        try:
            _espnet_load(init_param, model, *args, **named)
        except UserError as error:
            raise UserError(f"{option}: {error}") from None
        except loading.Misfit as error:
            raise UserError(
                f"{option} does not fit the model: {error}; --ignore_init_mismatch true leaves out what does not"
            ) from None
        except (AttributeError, ValueError) as error:  # no such part; too many colons
            raise UserError(f"{option}: FILE[:SOURCE_KEY[:TARGET_KEY[:EXCLUDED_KEYS]]] is needed: {error}") from None
    logging.info(f"{option}: {taken} of {len(file)} parameters of the file are taken")


@contextlib.contextmanager
def _in_place(owner: Any, name: str, function: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _yaml(value: str | None) -> str:
    return "null" if value is None else value

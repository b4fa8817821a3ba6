"""The one strict loader: a model's parameters must fit its configuration, whichever way the model is loaded.

ESPnet loads what fits and leaves the rest at its random initialisation, without a word.
"""

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from espnet2.tasks.abs_task import AbsTask
from espnet2.torch_utils.safe_torch_load import UnsafeLoadRefusedError
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_mla.common.errors import UserError
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.trained.names import MODEL_FILE

_TRAINING_CHECKPOINT = {"model", "optimizers"}
"""Keys of ESPnet's checkpoint.pth."""

_espnet_build = AbsTask.build_model_from_file.__func__


@contextlib.contextmanager
def strict_loading() -> Iterator[None]:
    """Within the block ESPnet's tasks load models by `build_model_from_file`."""
    before = AbsTask.__dict__["build_model_from_file"]
    AbsTask.build_model_from_file = classmethod(build_model_from_file)
    try:
        yield
    finally:
        AbsTask.build_model_from_file = before


def build_model_from_file(
    cls: type[AbsTask],
    config_file: str | Path | None = None,
    model_file: str | Path | None = None,
    device: str = "cpu",
) -> tuple[AbsESPnetModel, argparse.Namespace]:
    """As ESPnet's method of this name, but parameters that do not fit are refused.

    Raises:
        UserError: `model_file` can't be read, is a training checkpoint, or lacks parameters, has others, or some of
            another shape. Of a model with adapters it may lack what is not in the adapters.
    """
    if model_file is None:
        return _espnet_build(cls, config_file, model_file, device)
    config = Path(config_file) if config_file is not None else Path(model_file).parent / "config.yaml"
    with _strict_state_dicts(Path(model_file), bool(read_mapping(config).get("use_adapter"))):
        return _espnet_build(cls, config, model_file, device)


@contextlib.contextmanager
def _strict_state_dicts(model_file: Path, use_adapter: bool) -> Iterator[None]:
    """Have ESPnet's models take nothing but state dicts that fit."""

    def load_state_dict(self: nn.Module, state: Any, strict: bool = True, assign: bool = False) -> Any:
        _check(model_file, state)
        fitted = nn.Module.load_state_dict(self, state, strict=False, assign=assign)
        problems = []
        if fitted.missing_keys and not use_adapter:
            problems.append(f"it lacks {_first(fitted.missing_keys)}")
        if fitted.unexpected_keys:
            problems.append(f"it has {_first(fitted.unexpected_keys)}, which the configuration does not")
        if problems:
            raise UserError(f"{model_file} does not fit its configuration: {'; '.join(problems)}")
        return fitted

    AbsESPnetModel.load_state_dict = load_state_dict
    try:
        yield
    except UnsafeLoadRefusedError:
        raise UserError(
            f"{model_file} holds no model: it is no whole file of parameters that PyTorch has saved"
        ) from None
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        misshapen = [line.strip() for line in str(error).splitlines()[1:]]
        raise UserError(f"{model_file} does not fit its configuration: {_first(misshapen)}") from None
    finally:
        del AbsESPnetModel.load_state_dict


def _check(model_file: Path, state: Any) -> None:
    """See that a file holds parameters and nothing else, all of them finite."""
    if isinstance(state, Mapping) and state.keys() >= _TRAINING_CHECKPOINT:
        raise UserError(
            f"{model_file} is a training checkpoint, which training resumes from: a file with parameters alone is "
            f"needed, such as {MODEL_FILE}"
        )
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{model_file} holds no model: a file with parameters alone is needed, such as {MODEL_FILE}")
    if broken := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise UserError(f"{model_file}: {broken[0]} has values that are not finite numbers")


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")

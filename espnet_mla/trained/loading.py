"""The one strict loader: a model's parameters must fit its configuration, whichever way the model is loaded.

ESPnet loads what fits and leaves the rest at its random initialisation, without a word.
"""

import argparse
import contextlib
import importlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from espnet2.tasks import abs_task
from espnet2.tasks.abs_task import AbsTask
from espnet2.torch_utils.safe_torch_load import UnsafeLoadRefusedError, safe_torch_load
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_mla.common.errors import UserError
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.trained.names import MODEL_FILE

_TRAINING_CHECKPOINT = {"model", "optimizers"}
"""Keys of ESPnet's checkpoint.pth."""

_espnet_build = AbsTask.build_model_from_file.__func__
_torch_load_state_dict = nn.Module.load_state_dict


class Misfit(RuntimeError):
    """Parameters that are not those of a model. ESPnet, which tries older names after a RuntimeError, does so here."""


@contextlib.contextmanager
def strict_loading() -> Iterator[None]:
    """Within the block ESPnet's tasks load models by `build_model_from_file`."""
    before = AbsTask.__dict__["build_model_from_file"]
    AbsTask.build_model_from_file = classmethod(build_model_from_file)
    try:
        yield
    finally:
        AbsTask.build_model_from_file = before


def install() -> None:
    """Have ESPnet's programs load strictly from here on, and name a file that they can't read."""
    AbsTask.build_model_from_file = classmethod(build_model_from_file)
    for name in ("tasks.abs_task", "main_funcs.average_nbest_models"):
        module: ModuleType = importlib.import_module(f"espnet2.{name}")
        module.safe_torch_load = read  # type: ignore[attr-defined]


def build_model_from_file(
    cls: type[AbsTask],
    config_file: str | Path | None = None,
    model_file: str | Path | None = None,
    device: str = "cpu",
) -> tuple[AbsESPnetModel, argparse.Namespace]:
    """As ESPnet's method of this name, but parameters that do not fit are refused.

    Raises:
        UserError: `model_file` can't be read, is a training checkpoint, or lacks parameters, has others, or some of
            another shape. Of a model with adapters it may lack what save_strategy leaves out.
    """
    if model_file is None:
        return _espnet_build(cls, config_file, model_file, device)
    config_file = Path(config_file) if config_file is not None else Path(model_file).parent / "config.yaml"
    config = read_mapping(config_file)

    class Strict(cls):  # type: ignore[valid-type, misc]
        """The task, whose model takes nothing but parameters that fit."""

        @classmethod
        def build_model(cls, args: argparse.Namespace) -> AbsESPnetModel:
            model = super().build_model(args)
            # The model's own alone: its parts may load others, as pretrained frontends do.
            model.__dict__["load_state_dict"] = lambda state, **_: fit(model, state, _adapters(config))
            return model

    before = abs_task.safe_torch_load
    abs_task.safe_torch_load = lambda path, **options: checked(path, read(path, **options))
    try:
        model, args = _espnet_build(Strict, config_file, model_file, device)
    except Misfit as error:
        raise UserError(f"{model_file} does not fit its configuration: {error}") from None
    finally:
        abs_task.safe_torch_load = before
    del model.__dict__["load_state_dict"]
    return model, args


def read(path: str | Path, map_location: Any = None, **options: Any) -> Any:
    """What PyTorch has saved in a file, as ESPnet's `safe_torch_load`.

    Raises:
        UserError: it can't be read.
    """
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return torch.load(path, map_location=map_location, weights_only=True, **options)
    except Exception as error:  # whatever the readers of the format raise
        if not _is_whole(Path(path)):
            raise UserError(
                f"{path} is no whole file of parameters that PyTorch has saved: it is "
                + ("cut or damaged, or another kind of file" if Path(path).stat().st_size else "empty")
            ) from None
        if not isinstance(error, pickle.UnpicklingError):  # no memory, no such device
            raise
    try:
        return safe_torch_load(path, map_location=map_location, **options)
    except UnsafeLoadRefusedError:
        raise UserError(
            f"{path} holds more than parameters, which could run a program: if you trust it, set "
            "ESPNET_ALLOW_UNSAFE_TORCH_LOAD=1"
        ) from None


def _is_whole(path: Path) -> bool:
    """Whether a file that can't be loaded is a whole zip archive, as PyTorch's files are."""
    try:
        with zipfile.ZipFile(path) as members:
            return members.testzip() is None
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        return False


def checked(path: str | Path, state: Any) -> Any:
    """The content of a file, which holds parameters and nothing else, all of them finite.

    DeepSpeed and Lightning have the parameters below a key, which ESPnet looks for.

    Raises:
        UserError: it holds something else.
    """
    if isinstance(state, Mapping) and state.keys() >= _TRAINING_CHECKPOINT:
        raise UserError(
            f"{path} is a training checkpoint, which training resumes from: a file with parameters alone is "
            f"needed, such as {MODEL_FILE}"
        )
    found = state
    for key in ("module", "state_dict"):
        found = found[key] if isinstance(found, Mapping) and key in found else found
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path} holds no model: a file with parameters alone is needed, such as {MODEL_FILE}")
    check_finite(path, found)
    return state


def check_finite(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Refuse parameters that are not finite numbers.

    Raises:
        UserError: some are.
    """
    if broken := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise UserError(f"{path}: {broken[0]} has values that are not finite numbers")


type Lacking = Callable[[nn.Module, list[str]], str]
"""What is wrong about parameters that a file lacks, of a model and their names; empty where nothing is."""


def lacks(model: nn.Module, missing: list[str]) -> str:
    """As `Lacking`, of a file that is to hold all."""
    return f"it lacks {_first(missing)}"


def fit(model: nn.Module, state: Mapping[str, Any], lacking: Lacking = lacks) -> Any:
    """Load parameters into a model that has exactly these.

    Raises:
        Misfit: `state` lacks some that it may not, has others, or some of another shape.
    """
    try:
        fitted = _torch_load_state_dict(model, state, strict=False)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise Misfit(_first([line.strip() for line in str(error).splitlines()[1:]])) from None
    problems = [lacking(model, fitted.missing_keys)] if fitted.missing_keys else []
    if fitted.unexpected_keys:
        problems.append(f"it has {_first(fitted.unexpected_keys)}, which the model does not")
    if any(problems):
        raise Misfit("; ".join(filter(None, problems)))
    return fitted


def _adapters(config: Mapping[str, Any]) -> Lacking:
    """What a file may lack by use_adapter and save_strategy of its configuration.

    It has what was trained. The rest comes from a pretrained part, which loads its own; what init_param brought into
    the training is not there any more.
    """
    strategy = config.get("save_strategy") or "all"
    if not config.get("use_adapter") or strategy == "all":
        return lacks

    def lacking(model: nn.Module, missing: list[str]) -> str:
        parameters = dict(model.named_parameters())
        trained = [name for name in missing if name in parameters and parameters[name].requires_grad]
        if trained:
            return lacks(model, trained)
        if config.get("init_param"):
            return f"{lacks(model, missing)}, which save_strategy: {strategy} left out: give a file saved by `all`"
        return ""

    return lacking


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")

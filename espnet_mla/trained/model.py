"""A trained model on the disk: its configuration and its parameters, which must fit each other."""

import tempfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.safe_torch_load import safe_torch_load
from torch import Tensor, nn

from espnet_mla.common.errors import UserError
from espnet_mla.common.units import hertz
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.trained.locate import locate, recipe_folder, with_files
from espnet_mla.trained.names import MODEL_FILE

if TYPE_CHECKING:
    from espnet2.bin.asr_inference import Speech2Text


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
            UserError: a file is missing or broken, or model and configuration do not fit.
        """
        config = with_files(self.config, self.root)
        state = _state(self.model_file)
        model, args = build(config, str(self.config_file))
        if wrong := _load(model, state):
            raise UserError(f"{self.model_file} does not fit {self.config_file}: {wrong}")
        if model.frontend is None:
            raise UserError(f"{self.config_file}: frontend: null: this model takes features, here only audio is read")
        return model.eval(), args

    def speech2text(self, **options: object) -> "Speech2Text":
        """ESPnet's recogniser, with its options."""
        from espnet2.bin.asr_inference import Speech2Text

        with tempfile.TemporaryDirectory() as scratch:
            config = Path(scratch) / "config.yaml"
            config.write_text(yaml.safe_dump(with_files(self.config, self.root)), encoding="utf-8")
            return Speech2Text(asr_train_config=config, asr_model_file=self.model_file, **options)

    @property
    def fs(self) -> int:
        """Hz of its audio."""
        return sampling_rate(self.config)


def find(config_file: str | None, model_file: str | None, model_tag: str | None) -> Source:
    """What the options --asr_train_config, --asr_model_file and --model_tag name.

    Args:
        config_file: default config.yaml beside `model_file`.
        model_file: None where `model_tag` is given.
        model_tag: a folder, an archive or owner/name on the hub.

    Raises:
        UserError: a file is missing, or the configuration is broken; or as `espnet_mla.from_pretrained`.
    """
    if model_tag:
        root, files, packed = locate(model_tag, MODEL_FILE, "--asr_model_file")
        config, model = files["asr_train_config"], files["asr_model_file"]
    else:
        model = Path(model_file)
        config = Path(config_file or model.parent / "config.yaml")
        for path in (model, config):
            if not path.is_file():
                raise UserError(f"{path} is a folder: a file is needed" if path.is_dir() else f"{path} does not exist")
        root, packed = recipe_folder(config), False
    return Source(read_mapping(config), config, model, root, packed)


def sampling_rate(config: Mapping) -> int:
    """Hz of the audio that a model of this configuration takes; ESPnet's default is 16 kHz."""
    return hertz(str((config.get("frontend_conf") or {}).get("fs", 16000)))


def build(config: dict, name: str) -> tuple[nn.Module, Namespace]:
    """ESPnet's model, with weights that are yet to be loaded, and its configuration.

    Args:
        name: of the configuration, for messages.

    Raises:
        UserError: ESPnet can't build it.
    """
    config = {**config, "init": None}  # an old way of initialising may not be known any more
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        try:
            return ASRTask.build_model_from_file(path)
        except OSError as error:
            raise UserError(f"{name}: {error}; an experiment needs its recipe's folder") from None
        except Exception as error:  # constructors and type checks raise whatever they raise
            what = " ".join(str(error).split())
            raise UserError(f"{name}: ESPnet cannot build the model: {type(error).__name__}: {what}") from None


def _state(path: Path) -> dict[str, Tensor]:
    """The parameters that a file of ESPnet, DeepSpeed or Lightning holds."""
    try:
        state = safe_torch_load(path, map_location="cpu")
    except Exception as error:  # torch.load raises whatever its readers raise
        raise UserError(f"{path} holds no model that can be loaded: {str(error).splitlines()[0]}") from None
    for wrapper in ("module", "state_dict"):
        state = state.get(wrapper, state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no model: a file with parameters alone is needed, such as {MODEL_FILE}")
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise UserError(f"{path}: {broken[0]} has values that are not finite numbers")
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

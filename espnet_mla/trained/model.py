"""A trained model on the disk: its configuration and its parameters, which must fit each other."""

import contextlib
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_mla.common.errors import UserError, one_line
from espnet_mla.common.units import hertz
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.models.encoding import Prompt
from espnet_mla.trained import tasks
from espnet_mla.trained.loading import strict_loading
from espnet_mla.trained.locate import file_needed, locate, recipe_folder, with_files
from espnet_mla.trained.names import MODEL_FILE
from espnet_mla.trained.tasks import Task


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

    @property
    def task(self) -> Task:
        """That it is of."""
        return tasks.task_of(self.config, self.config_file)

    def load(self, audio: bool = True) -> tuple[AbsESPnetModel, Namespace]:
        """ESPnet's model, for inference, and its configuration with whole paths.

        Args:
            audio: refuse a model that takes anything else besides, or in place of it.

        Raises:
            UserError: a file is missing or broken, or model and configuration do not fit.
        """
        tasks.check_speakers(self.config, self.config_file, {})
        (tasks.check_audio if audio else tasks.check_features)(self.config, self.config_file)
        config = with_files(self.config, self.root)
        model, args = build(config, str(self.config_file), self.model_file, self.packed)
        return model.eval(), args

    def speech2text(self, **options: Any) -> Any:
        """ESPnet's recogniser of the model's task, with its options.

        Raises:
            UserError: as `load`.
        """
        recogniser = self.task.recogniser_class()
        with _written(with_files(self.config, self.root)) as config, strict_loading():
            made = recogniser(**{self.task.config_key: config, self.task.model_key: self.model_file}, **options)
        check_prompt(self.task, made)
        return made

    @property
    def token_list(self) -> list[str]:
        """Of its configuration, which may name a file."""
        tokens = with_files(self.config, self.root)["token_list"]
        return Path(tokens).read_text(encoding="utf-8").splitlines() if isinstance(tokens, str) else list(tokens)

    @property
    def window(self) -> float | None:
        """Seconds to which its speech is padded or cut; None where it may have any length."""
        return tasks.window_of(self.config, self.config_file)

    def heard(self, samples: Tensor) -> Tensor:
        """What it hears of the samples (time,): they themselves, or padded or cut to its window."""
        return padded(samples, self.window, self.fs)

    @property
    def fs(self) -> int:
        """Hz of its audio."""
        return sampling_rate(self.config)


def find(config_file: str | None, model_file: str | None, model_tag: str | None) -> Source:
    """What the options --asr_train_config, --asr_model_file (or another task's) and --model_tag name.

    Args:
        config_file: default config.yaml beside `model_file`.
        model_file: None where `model_tag` is given.
        model_tag: a folder, an archive or owner/name on the hub.

    Raises:
        UserError: a file is missing, or the configuration is broken; or as `espnet_mla.from_pretrained`.
    """
    if model_tag:
        found = locate(model_tag, MODEL_FILE, "--asr_model_file")
        return Source(read_mapping(found.config), found.config, found.model, found.root, found.packed)
    assert model_file is not None
    model = Path(model_file)
    config = Path(config_file or model.parent / "config.yaml")
    for path in (model, config):
        if not path.is_file():
            raise UserError(f"{path} is a folder: a file is needed" if path.is_dir() else f"{path} does not exist")
    trained = read_mapping(config)
    tasks.task_of(trained, config)
    return Source(trained, config, model, recipe_folder(config), packed=False)


def check_prompt(task: Task, recogniser: Any) -> None:
    """See that a recogniser of ESPnet's speech-to-text task has the symbols that it is to tell its model.

    Raises:
        UserError: one is no token.
    """
    if task in (tasks.S2T, tasks.S2T_CTC):
        Prompt(recogniser.lang_sym, recogniser.task_sym).ids(task.model_of(recogniser).token_list)


def padded(samples: Tensor, window: float | None, fs: int) -> Tensor:
    """The samples (time,) padded with zeros, or cut, to `window` seconds; as they are where it is None."""
    if window is None:
        return samples
    return nn.functional.pad(samples, (0, round(window * fs) - len(samples)))  # a negative padding cuts


def sampling_rate(config: Mapping) -> int:
    """Hz of the audio that a model of this configuration takes; ESPnet's default is 16 kHz."""
    return hertz(str((config.get("frontend_conf") or {}).get("fs", 16000)))


def build(
    config: dict, name: str, model_file: Path | None = None, packed: bool = False
) -> tuple[AbsESPnetModel, Namespace]:
    """Build ESPnet's model, of whichever task the configuration is.

    Args:
        config: of its training.
        name: of the configuration, for messages.
        model_file: its parameters; None leaves them as they are initialised.
        packed: whether it comes from an archive or from the hub.

    Returns:
        The model, and its configuration.

    Raises:
        UserError: ESPnet can't build it, or the parameters do not fit.
    """
    config = {
        **config,
        "init": None,
    }  # the parameters come from a file, and ESPnet may no longer have the initialisation
    with _written(config) as path, strict_loading():
        try:
            return tasks.task_of(config, name).task_class().build_model_from_file(path, model_file)
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{name}: {file_needed(error, packed)}") from None
        except Exception as error:  # constructors and type checks raise whatever they raise
            why = one_line(error)
            raise UserError(f"{name}: ESPnet cannot build the model: {type(error).__name__}: {why}") from None


@contextlib.contextmanager
def _written(config: dict) -> Iterator[Path]:
    """A configuration as a file, which ESPnet wants."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        yield path

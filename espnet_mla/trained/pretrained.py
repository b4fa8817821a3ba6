"""from_pretrained(): a trained model, wherever it lies, as the Speech2Text of ESPnet that transcribes with it."""

import inspect
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import espnet_mla
from espnet_mla.common.errors import UserError, one_line
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.trained import tasks
from espnet_mla.trained.decoding import check, check_for, check_loadable
from espnet_mla.trained.locate import file_needed, locate, with_files
from espnet_mla.trained.names import MODEL_FILE
from espnet_mla.trained.options import check_device
from espnet_mla.trained.tasks import Task

if TYPE_CHECKING:
    from espnet2.bin.asr_inference import Speech2Text


def from_pretrained(
    source: str | os.PathLike[str], *, inference_asr_model: str = MODEL_FILE, **options: Any
) -> "Speech2Text":
    """Load a trained model with the plugin registered; see `espnet_mla.from_pretrained`."""
    check(options)
    task, recogniser = load(source, inference_asr_model=inference_asr_model, **options)
    check_for(task, task.config_of(recogniser), options)
    return recogniser


def load(
    source: str | os.PathLike[str],
    *,
    inference_asr_model: str = MODEL_FILE,
    audio: bool = False,
    cache_dtype: str | None = None,
    **options: Any,
) -> tuple[Task, Any]:
    """As `from_pretrained`, with the model's task, for whom does not decode: whether the model can bear the options is
    not checked.

    Args:
        audio: refuse a model that takes anything else besides.
        cache_dtype: in what caches are kept, those of streams and of decoding.
    """
    given = [name for key in tasks.KEYS if (name := f"inference_{key}_model") in options]
    for name in given:  # of another task, as ESPnet's recipes call it
        inference_asr_model = options.pop(name)
    found = locate(source, inference_asr_model, *given[:1])
    task, files = found.task, found.files
    trained = read_mapping(found.config)
    tasks.check_speakers(trained, source, options)
    (tasks.check_audio if audio else tasks.check_features)(trained, source)
    if task is tasks.MT and trained.get("model") != "discrete_asr":
        options.setdefault("ctc_weight", 0.0)  # it has no CTC, and ESPnet's default needs it
    check_loadable(task, trained, options)
    if "device" in options:
        options["device"] = check_device(str(options["device"]), "device")
    espnet_mla.register()
    import torch

    from espnet_mla.models.caches import set_cache_dtype
    from espnet_mla.trained.loading import strict_loading
    from espnet_mla.trained.model import check_prompt

    recogniser = task.recogniser_class()
    with tempfile.TemporaryDirectory() as scratch:
        for name in [name for name in files if name.endswith("_config")]:
            config = read_mapping(files[name])
            files[name] = Path(scratch) / f"{name}.yaml"
            files[name].write_text(yaml.safe_dump(with_files(config, found.root)), encoding="utf-8")
        inspect.signature(recogniser).bind(**files, **options)  # a TypeError is the caller's
        try:
            with strict_loading():
                made = recogniser(**files, **options)
        except (UserError, torch.OutOfMemoryError):
            raise
        except OSError as error:
            raise UserError(f"{source} cannot be loaded: {file_needed(error, found.packed)}") from error
        except Exception as error:  # constructors and type checks raise whatever they raise
            why = one_line(error)
            raise UserError(f"{source}: ESPnet cannot load the model: {type(error).__name__}: {why}") from error
    check_prompt(task, made)
    if cache_dtype is not None:
        set_cache_dtype(task.model_of(made), cache_dtype)
    return task, made

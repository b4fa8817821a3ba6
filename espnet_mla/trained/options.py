"""The options of commands that name a trained model and a device."""

import argparse
from typing import TYPE_CHECKING

from espnet_mla.common.errors import UsageError
from espnet_mla.trained.tasks import KEYS, S2T, S2T_CTC, Task

if TYPE_CHECKING:
    from espnet_mla.models.encoding import Prompt

DEVICES = ("cpu", "cuda", "mps")
"""Kinds of devices that ESPnet computes on."""


def add(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add --asr_model_file, --asr_train_config (or another task's) and --model_tag; the group that they stand in."""
    model = parser.add_argument_group("the trained model")
    model.add_argument(
        *(f"--{key}_model_file" for key in KEYS), metavar="FILE", help="its weights, as exp/A/valid.acc.ave.pth"
    )
    model.add_argument(
        *(f"--{key}_train_config" for key in KEYS),
        metavar="FILE",
        help="its configuration (default: config.yaml beside the weights)",
    )
    model.add_argument(
        "--model_tag",
        metavar="MODEL",
        help="in place of both: a folder, an archive (.zip), or owner/name on the Hugging Face hub",
    )
    return model


def check(options: argparse.Namespace) -> None:
    """See that they name one model.

    Raises:
        UsageError: they name none, or two.
    """
    if bool(options.model_tag) == bool(options.asr_model_file):
        raise UsageError("either --asr_model_file (with --asr_train_config) or --model_tag is needed")
    if options.model_tag and options.asr_train_config:
        raise UsageError("--asr_train_config goes with --asr_model_file: --model_tag brings its own configuration")


def add_prompt(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add --lang_sym and --task_sym."""
    group.add_argument("--lang_sym", metavar="SYMBOL", help="language of the speech, for OWSM (default: eng)")
    group.add_argument("--task_sym", metavar="SYMBOL", help="what OWSM is to do (default: asr)")


def add_cache_dtype(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add --cache_dtype."""
    group.add_argument(
        "--cache_dtype", metavar="TYPE",
        help="in what caches are kept: float32, bfloat16, int8 or int4 (default: as they are computed)",
    )  # fmt: skip


def symbols(options: argparse.Namespace, task: Task) -> dict[str, str]:
    """Those that are given of --lang_sym and --task_sym; `eng` stands for `<eng>`, as in ESPnet's s2t_inference.

    Raises:
        UsageError: one is given to a model that takes none.
    """
    given = {name: value for name in ("lang_sym", "task_sym") if (value := getattr(options, name)) is not None}
    if given and task not in (S2T, S2T_CTC):
        name, value = next(iter(given.items()))
        raise UsageError(f"--{name} {value}: only a model for {S2T.title} takes it; this one is for {task.title}")
    return {name: f"<{value.strip('<>')}>" for name, value in given.items()}


def prompt_of(options: argparse.Namespace, task: Task) -> "Prompt":
    """As `symbols`, with the defaults of what is not given."""
    from espnet_mla.models.encoding import Prompt

    return Prompt(**symbols(options, task))


def device_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """What --device names, or else the GPU where there is one; a wrong one is a usage error."""
    import torch

    try:
        return check_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except UsageError as error:
        parser.error(str(error))


def check_device(name: str, option: str = "--device") -> str:
    """A device that can be computed on, by the name that ESPnet takes, which knows no cpu:0.

    Raises:
        UsageError: it is no name of one, or the machine has none.
    """
    import torch

    try:
        if name.partition(":")[0] not in DEVICES:
            raise UsageError(f"{option} {name}: valid are cpu, cuda, cuda:1, ..., and mps")
        device = torch.device(name)
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"{option} {name}: {str(error).splitlines()[0].partition('. ')[0]}") from None
    return "cpu" if device.type == "cpu" else name

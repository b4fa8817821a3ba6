"""The options of commands that name a trained model and a device."""

import argparse

from espnet_mla.common.errors import UsageError

DEVICES = ("cpu", "cuda", "mps")
"""Kinds of devices that ESPnet computes on."""


def add(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add --asr_model_file, --asr_train_config and --model_tag; the group that they stand in."""
    model = parser.add_argument_group("the trained model")
    model.add_argument("--asr_model_file", metavar="FILE", help="its weights, as exp/A/valid.acc.ave.pth")
    model.add_argument(
        "--asr_train_config", metavar="FILE", help="its configuration (default: config.yaml beside the weights)"
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

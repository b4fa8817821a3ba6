"""The options of commands that name a trained model and a device."""

import argparse

from espnet_mla.common.errors import UsageError


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

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {device}: {str(error).splitlines()[0]}")
    return device

"""The `espnet-mla` command: one subcommand for each thing that the package does."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import metadata


def _recipe(arguments: list[str]) -> int:
    from espnet_mla.recipe.__main__ import main

    return main(arguments)


def _transcribe(arguments: list[str]) -> int:
    from espnet_mla.trained.transcribe import main

    return main(arguments)


def _stream(arguments: list[str]) -> int:
    from espnet_mla.streaming.command import main

    return main(arguments)


def _convert(arguments: list[str]) -> int:
    from espnet_mla.convert.command import main

    return main(arguments)


def _profile(arguments: list[str]) -> int:
    from espnet_mla.measure.profile import main

    return main(arguments)


def _compare(arguments: list[str]) -> int:
    from espnet_mla.measure.compare import main

    return main(arguments)


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "recipe": ("the stages of ESPnet's asr.sh; espnet-mla recipe --help lists its options", _recipe),
    "profile": ("what a trained model costs, measured", _profile),
    "compare": ("what was measured of many models, side by side", _compare),
    "convert": ("a trained MHA model made an MLA or GQA one, without training", _convert),
    "transcribe": ("the text of audio files", _transcribe),
    "stream": ("the text of speech while it is heard", _stream),
}
"""Name -> what it does, and the function that takes its arguments and returns the exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="espnet-mla",
        description="Compressed attention for ESPnet's speech recognition.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:<10} {what}" for name, (what, _) in COMMANDS.items()),
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("command", choices=COMMANDS, metavar="command")
    # What follows the command is the command's own.
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the command's arguments")
    options = parser.parse_args(arguments)
    return COMMANDS[options.command][1](options.arguments)


def _version() -> str:
    try:
        return f"espnet-mla {metadata.version('espnet_mla')}"
    except metadata.PackageNotFoundError:
        return "espnet-mla (not installed)"


if __name__ == "__main__":
    sys.exit(main())

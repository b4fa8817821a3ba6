"""The `espnet-mla` command: one subcommand for each thing that the package does."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib import metadata

COMMANDS = {
    "recipe": ("the stages of ESPnet's asr.sh", "espnet_mla.recipe.__main__"),
    "profile": ("what a trained model costs, measured", "espnet_mla.measure.profile"),
    "compare": ("what was measured of many models, side by side", "espnet_mla.measure.compare"),
    "convert": ("a trained MHA model made an MLA, MTLA, GQA or linear one", "espnet_mla.convert.command"),
    "distill": ("a converted model that learns from its original", "espnet_mla.convert.distill_command"),
    "transcribe": ("the text of audio files", "espnet_mla.trained.transcribe"),
    "stream": ("the text of speech while it is spoken", "espnet_mla.streaming.command"),
}
"""Name -> what it does, and the module whose `main` takes its arguments and returns the exit status."""


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
    # Imported here because --help is answered at once.
    return importlib.import_module(COMMANDS[options.command][1]).main(options.arguments)


def _version() -> str:
    try:
        return f"espnet-mla {metadata.version('espnet_mla')}"
    except metadata.PackageNotFoundError:
        return "espnet-mla (not installed)"


if __name__ == "__main__":
    sys.exit(main())

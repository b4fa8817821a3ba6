"""ESPnet's own parsers of options, without their habit of ending the process where an option is wrong."""

import argparse
from collections.abc import Sequence

import yaml

from espnet_mla.common.errors import UsageError, closest


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str], named: str, program: str) -> argparse.Namespace:
    """Parse arguments of a program of ESPnet's.

    Args:
        parser: its parser, which is changed.
        arguments: `--name value`, without --config.
        named: what they come from, for errors.
        program: its name, for errors.

    Raises:
        UsageError: one is unknown, lacks its value, or has one that it can't have.
    """
    parser.exit_on_error = False
    next(action for action in parser._actions if action.dest == "config").type = _refuse
    try:
        options, unknown = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UsageError(f"{named}: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{named}: {' '.join(str(error).split())}") from None
    if unknown:
        hint = closest(unknown[0].partition("=")[0], parser._option_string_actions)
        raise UsageError(f"{named}: {unknown[0]} is no option of ESPnet's {program}{hint}")
    return options


def _refuse(path: str) -> str:
    raise argparse.ArgumentTypeError(f"{path}: the configuration has an option of its own")

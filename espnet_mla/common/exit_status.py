"""How a command ends: its exit status, and one line where something went wrong."""

import argparse
import sys
from collections.abc import Callable

from espnet_mla.common.errors import UsageError, UserError


def exit_status(parser: argparse.ArgumentParser, work: Callable[[], None], stopped: str) -> int:
    """Do the work of a command: 0, or 1 with a UserError's message, or 130 with `stopped` after Ctrl-C.

    Raises:
        SystemExit: with 2, as the parser ends for a UsageError.
    """
    try:
        work()
    except UsageError as error:
        parser.error(str(error))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    return 0

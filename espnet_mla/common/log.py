"""Lines of a log with the time, as ESPnet's scripts print them."""

import logging
import sys
import time

from tqdm import tqdm

TIME = "%Y-%m-%dT%H:%M:%S"


def log(text: str) -> None:
    """Print `text` after date and time, without disturbing a progress bar."""
    if sys.stdout is None:  # as Python has it where there is no place to print to; print() is silent then too
        return
    encoding = sys.stdout.encoding or "utf-8"  # which a file's name may not fit into
    tqdm.write(f"{time.strftime(TIME)} {text}".encode(encoding, "backslashreplace").decode(encoding))


def show_logging() -> None:
    """Show what modules report by `logging` in the same form."""
    handler = logging.Handler()
    handler.emit = lambda record: log(record.getMessage())  # type: ignore[method-assign]
    logging.basicConfig(level=logging.INFO, handlers=[handler])

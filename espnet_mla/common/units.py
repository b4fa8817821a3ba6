"""Sampling rates as users write them, and durations as logs show them."""

import re

from espnet_mla.common.errors import UsageError

LOWEST_RATE, HIGHEST_RATE = 1000, 1_000_000
"""Hz. Nothing is recorded at others: a smaller number is meant as kHz, a larger one has a `k` too many."""


def hertz(rate: str | float, name: str = "--fs") -> int:
    """A sampling rate in Hz: 16k, 16000 and "16000" are the same.

    Args:
        rate: as it was given.
        name: of the option or key that it was given by, for errors.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(k?)", str(rate), re.IGNORECASE | re.ASCII)
    value = float(match[1]) * (1000 if match[2] else 1) if match else 0
    if match and value == int(value) and LOWEST_RATE <= value <= HIGHEST_RATE:
        return int(value)
    message = f"{name} {rate} is not a sampling rate in Hz, such as 16k or 16000"
    if match and 0 < value < LOWEST_RATE <= 1000 * value <= HIGHEST_RATE:
        message = f"{name} {rate}: {value:g} Hz is no sampling rate of speech; did you mean {value:g}k?"
    raise UsageError(message)


def duration(seconds: float) -> str:
    """`3725` -> `1:02:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def size(number: float) -> str:
    """Bytes with commas; a share of a group's, which need not be whole, to a tenth."""
    return f"{number:,.0f}" if number == round(number) else f"{number:,.1f}"

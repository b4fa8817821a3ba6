"""Sampling rates as users write them, and durations as logs show them."""

import re

from espnet_mla.common.errors import UsageError


def hertz(text: str) -> int:
    """The sampling rate that `--fs` names: 16k and 16000 are the same.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(k?)", text, re.IGNORECASE)
    rate = float(match[1]) * (1000 if match[2] else 1) if match else 0
    if rate < 1 or rate != int(rate):
        raise UsageError(f"--fs {text} is not a sampling rate in Hz, such as 16k or 16000")
    return int(rate)


def duration(seconds: float) -> str:
    """`3725` -> `1:02:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"

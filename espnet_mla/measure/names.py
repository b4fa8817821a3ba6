"""Names of experiments without their seeds, and the lengths of speech that can be measured."""

import math
import re
from collections.abc import Iterable

from espnet_mla.common.errors import UsageError

_SEED = re.compile(r"_?seed_?\d+")


def without_seed(name: str) -> str:
    """`conformer_mla_seed2` -> `conformer_mla`."""
    return _SEED.sub("", name)


def check_seconds(lengths: Iterable[float]) -> None:
    """Check that speech of these lengths can be encoded.

    Raises:
        UsageError: one is too short, or not finite.
    """
    if wrong := [seconds for seconds in lengths if not 1 <= seconds < math.inf]:
        raise UsageError(f"--seconds {wrong[0]:g}: at least 1 is needed")

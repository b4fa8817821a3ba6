"""Names that figures go by."""

import re

FILE = "figures.json"
"""What profile leaves beside a model."""

_SEED = re.compile(r"_?seed_?\d+")


def without_seed(name: str) -> str:
    """`conformer_mla_seed2` -> `conformer_mla`."""
    return _SEED.sub("", name)

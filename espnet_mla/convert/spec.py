"""The specification of a conversion."""

from dataclasses import dataclass
from pathlib import Path

MODULES = ("encoder", "decoder_self", "decoder_src")
"""The parts of a model that can be converted."""
METHODS = {
    "mla": {"split": False, "joint": False, "covariance": True, "attention": True},
    "gqa": {"mean": False, "aligned": True},
    "mtla": {"averaged": False},
    "linear": {"copied": False},
}
"""Attention -> its methods, the best last, and whether each needs calibration speech; see `factors` and `heads`."""
OPTION = {"mla": "kv_lora_rank", "gqa": "num_kv_heads", "mtla": "down_rate"}
"""Attention -> the option that sets the size of its cache; `linear` has none, its state being of fixed size."""


@dataclass(frozen=True)
class ConversionSpec:
    """The specification of a conversion.

    Args:
        attention: mla, gqa, mtla (of an mla model) or linear.
        method: a key of `METHODS[attention]`.
        modules: of `MODULES`.
        sizes: kv_lora_rank, num_kv_heads or down_rate, of all layers or of each; None where `kv_budget` decides, and of
            linear.
        kv_budget: the share of the cache to keep, or None.
        qk_rope_head_dim: of the rotary key that takes the place of those of an `mha` with rope; None for half of a
            head's size.
        calibration: a wav.scp, or None.
        utterances: how many of its utterances to use.
    """

    attention: str
    method: str
    modules: tuple[str, ...]
    sizes: list[int] | None
    kv_budget: float | None
    qk_rope_head_dim: int | None
    calibration: Path | None
    utterances: int

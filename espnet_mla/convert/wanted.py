"""What a conversion is asked for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wanted:
    """What a conversion is asked for.

    Args:
        attention: mla or gqa.
        method: a key of `factors.METHODS` or of `heads.METHODS`.
        modules: of encoder, decoder_self and decoder_src.
        sizes: kv_lora_rank or num_kv_heads, of all layers or of each; None where `kv_budget` decides.
        kv_budget: the share of the cache to keep, or None.
        calibration: a wav.scp, or None.
        utterances: how many of it to look at.
    """

    attention: str
    method: str
    modules: tuple[str, ...]
    sizes: list[int] | None
    kv_budget: float | None
    calibration: Path | None
    utterances: int

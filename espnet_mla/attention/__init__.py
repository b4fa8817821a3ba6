"""What an attention is: `mha`, `gqa`, `mla`, `mtla` and `linear`, in plain PyTorch."""

import inspect
from collections.abc import Mapping
from typing import Any

from espnet_mla.attention.base import POSITIONS, Attention
from espnet_mla.attention.cache import Cache, FrameCache, RunningState
from espnet_mla.attention.cache_types import CACHE_TYPES
from espnet_mla.attention.chunks import ALL, Chunks
from espnet_mla.attention.context import AttentionContext, attention_context, using_context
from espnet_mla.attention.gqa import GQA, MHA
from espnet_mla.attention.linear import Linear
from espnet_mla.attention.merged import MergedCache
from espnet_mla.attention.mla import MLA
from espnet_mla.attention.mtla import MTLA
from espnet_mla.attention.positions import CachedPosition
from espnet_mla.attention.tree import Past, TokenTree

ATTENTIONS: dict[str, type[Attention]] = {"mha": MHA, "gqa": GQA, "mla": MLA, "mtla": MTLA, "linear": Linear}

# Options of which a layer has several numbers.
_LISTS = ("rope_frequencies",)

# Sizes that the model around an attention decides.
_SHARED = ("d_model", "num_heads", "position", "dropout_rate")


def attention_options(kind: str) -> dict[str, object]:
    """The keys of `attention_conf` that this choice has, each with its default."""
    parameters = inspect.signature(ATTENTIONS[kind].__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _SHARED}


def build_attention(
    kind: str,
    conf: dict,
    *,
    d_model: int,
    num_heads: int,
    position: str,
    dropout_rate: float,
    key: str = "attention_conf",
) -> Attention:
    """Build one attention module.

    Args:
        kind: a key of `ATTENTIONS`.
        conf: options of that choice, see `attention_options`.
        key: what a configuration calls `conf`, for messages.
        Others as in `Attention`.

    Raises:
        ValueError: the kind or a key of `conf` is unknown, or a size can't work.
    """
    if kind not in ATTENTIONS:
        raise ValueError(f"unknown attention {kind!r}: it must be one of {', '.join(ATTENTIONS)}")
    options = attention_options(kind)
    valid = ", ".join(options) or "none at all"
    if not isinstance(conf, Mapping):
        raise ValueError(f"{key}: {conf!r} must hold `option: value` lines; the options of {kind}: {valid}")
    for name, value in conf.items():
        if name not in options:
            raise ValueError(f"{key}: {name}: {value} is not an option of {kind}; its options: {valid}")
        if isinstance(options[name], bool):
            if not isinstance(value, bool):
                raise ValueError(f"{key}: {name}: {value!r} must be true or false")
        elif name in _LISTS:
            if value is not None and not (isinstance(value, list) and all(type(number) is int for number in value)):
                raise ValueError(f"{key}: {name}: {value!r} must be a list of whole numbers for each layer")
        elif (value is not None or options[name] is not None) and (
            not isinstance(value, int) or isinstance(value, bool)
        ):
            raise ValueError(f"{key}: {name}: {value!r} must be a whole number")
    sizes: dict[str, Any] = {
        "d_model": d_model,
        "num_heads": num_heads,
        "position": position,
        "dropout_rate": dropout_rate,
    }
    try:
        return ATTENTIONS[kind](**sizes, **conf)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def build_attentions(kind: str, conf: dict, layers: int, *, key: str = "attention_conf", **shared) -> list[Attention]:
    """Build the attention modules of all layers.

    Args:
        conf: as in `build_attention`, but a list has one value for each layer.
        layers: how many.
        key, shared: as in `build_attention`.

    Raises:
        ValueError: as `build_attention`, or a list has another length.
    """

    def of(layer: int, name: str, value: object) -> object:
        if not isinstance(value, list):
            return value
        if len(value) != layers:
            raise ValueError(f"{key}: {name}: {value} has {len(value)} values, but there are {layers} layers")
        return value[layer]

    confs = [conf] * layers
    if isinstance(conf, Mapping):
        confs = [{name: of(layer, name, value) for name, value in conf.items()} for layer in range(layers)]
    return [build_attention(kind, layer_conf, key=key, **shared) for layer_conf in confs]


__all__ = [
    "ALL",
    "ATTENTIONS",
    "CACHE_TYPES",
    "POSITIONS",
    "Attention",
    "AttentionContext",
    "Cache",
    "CachedPosition",
    "Chunks",
    "FrameCache",
    "MergedCache",
    "Past",
    "RunningState",
    "TokenTree",
    "attention_context",
    "attention_options",
    "build_attention",
    "build_attentions",
    "using_context",
]

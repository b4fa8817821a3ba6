"""What a model keeps of the past: the cache objects of its attentions, filled with an utterance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    LegacyRelPositionMultiHeadedAttention,
    MultiHeadedAttention,
    RelPositionMultiHeadedAttention,
)
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_mla.attention import Attention, Cache, FrameCache
from espnet_mla.attention.cache_types import check_cache_type
from espnet_mla.common.errors import UsageError
from espnet_mla.models.decoder import CachedMultiHeadedAttention, TransformerDecoder
from espnet_mla.models.encoding import DEFAULT_PROMPT, Prompt, inputs_of
from espnet_mla.models.streaming import StreamingEncoder


def set_cache_dtype(model: AbsESPnetModel, cache_dtype: str, measured: bool = False) -> None:
    """Have a model keep its caches, those of streams and of decoding, in one of `espnet_mla.attention.CACHE_TYPES`.

    Args:
        model: of any task.
        cache_dtype: the type.
        measured: whether what a full-context encoder would have to keep is of interest.

    Raises:
        UsageError: there is no such type, or nothing in the model keeps a cache.
    """
    try:
        check_cache_type(cache_dtype)
    except ValueError as error:
        raise UsageError(str(error)) from None
    keeping = [module for module in model.modules() if isinstance(module, StreamingEncoder | TransformerDecoder)]
    if not (measured or any(isinstance(one, TransformerDecoder) or one.streaming for one in keeping)):
        raise UsageError(
            f"cache_dtype: {cache_dtype}: this model keeps no cache: it has no encoder with `streaming`, and no "
            "Transformer decoder"
        )
    for module in keeping:
        module.cache_dtype = cache_dtype


TOKENS = 10  # that the decoder is given


@dataclass(frozen=True)
class CacheReport:
    """The caches of one part of a model, one for each layer, after one utterance.

    Args:
        part: encoder, decoder_self (its unit is a token) or decoder_src.
        attention: its choice in the configuration.
        caches: of each layer.
    """

    part: str
    attention: str
    caches: Sequence[Cache]

    @property
    def unit(self) -> str:
        """What a cache grows by: a token in the decoder's attention to itself, else a frame of the encoder's output."""
        return "token" if self.part == "decoder_self" else "frame"

    @property
    def bytes_per_frame(self) -> list[float]:
        """Of each layer; for a token where that is the unit."""
        return [cache.nbytes_per_frame for cache in self.caches]

    @property
    def fixed_bytes(self) -> list[int]:
        """Of each layer: the size of a state that does not grow; 0 where the cache grows."""
        return [cache.nbytes if not cache.nbytes_per_frame else 0 for cache in self.caches]

    @property
    def nbytes(self) -> int:
        """Of all layers together, for this utterance."""
        return sum(cache.nbytes for cache in self.caches)

    def figures(self, rate: float | None) -> dict:
        """In JSON's types.

        Args:
            rate: frames a second; None where there are no seconds.
        """
        per_unit = sum(self.bytes_per_frame)
        return {
            "attention": self.attention,
            "layers": len(self.caches),
            f"bytes_per_{self.unit}": per_unit,
            **({"bytes_per_second": round(per_unit * rate)} if self.unit == "frame" and rate else {}),
            "fixed_bytes": sum(self.fixed_bytes),
        }


@torch.inference_mode()
def fill_caches(model: AbsESPnetModel, encode: Callable[[], tuple]) -> dict[str, CacheReport]:
    """The caches of each part of a model after one utterance.

    ESPnet's own encoder attentions keep nothing between calls; they are represented by the keys and values that they
    compute, which they would have to keep. Parts without a cache (a decoder without attention) are left out.

    Args:
        model: whose caches they are, kept as `set_cache_dtype` has said.
        encode: of `encoder_of`, for the utterance.

    Raises:
        UsageError: linear attention is to keep its sums in codes.
    """
    inputs: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, tuple], None]:
        def hook(_attention: nn.Module, arguments: tuple) -> None:
            inputs[name] = arguments[1]

        return hook

    attentions = {
        name: module
        for name, module in model.encoder.named_modules()
        # What OWSM-CTC's keeps of its prompt does not grow with the speech.
        if isinstance(module, Attention | MultiHeadedAttention) and not name.endswith(".cross_attn")
    }
    handles = [module.register_forward_pre_hook(record(name)) for name, module in attentions.items()]
    try:
        encoded = encode()[0]
    finally:
        for handle in handles:
            handle.remove()
    reports = {}
    if inputs:
        cache_dtype = getattr(model.encoder, "cache_dtype", None)
        try:
            filled = [cache_of(attentions[name], inputs[name]).stored_as(cache_dtype) for name in attentions]
        except ValueError as error:
            raise UsageError(str(error)) from None
        reports["encoder"] = CacheReport("encoder", _choice(attentions[next(iter(inputs))]), filled)
    if isinstance(decoder := getattr(model, "decoder", None), TransformerDecoder):
        reports |= _decoder(decoder, encoded[0], model.sos)
    return reports


def _decoder(decoder: TransformerDecoder, encoded: Tensor, sos: int) -> dict[str, CacheReport]:
    state = decoder.init_state(encoded)
    tokens = torch.full((TOKENS,), sos, device=encoded.device)
    for length in range(1, TOKENS + 1):
        _, state = decoder.score(tokens[:length], state, encoded)
    layer = decoder.decoders[0]
    return {
        "decoder_self": CacheReport("decoder_self", _choice(layer.self_attn), state.tokens.trimmed()),
        "decoder_src": CacheReport("decoder_src", _choice(layer.src_attn), state.source),
    }


def frame_rate(model: AbsESPnetModel, fs: int, prompt: Prompt = DEFAULT_PROMPT) -> float:
    """Encoder frames for a second of audio at `fs` Hz."""
    like = next(model.parameters())

    def frames(seconds: int) -> int:
        return int(model.encode(**inputs_of(model, torch.zeros(seconds * fs).to(like), prompt))[1][0])

    with torch.inference_mode():
        return (frames(11) - frames(1)) / 10  # the difference, because the ends of an utterance lose some


def cache_of(attention: Attention | MultiHeadedAttention, x: Tensor) -> Cache:
    """What an attention keeps of the frames x (batch, time, d); of ESPnet's own, what it would have to keep."""
    if isinstance(attention, Attention | CachedMultiHeadedAttention):
        return attention.project_kv(x)
    _, k, v = attention.forward_qkv(x, x, x)
    return FrameCache((k, v))


def _choice(attention: nn.Module) -> str:
    """Its choice in the configuration."""
    if isinstance(attention, RelPositionMultiHeadedAttention):
        return "rel_selfattn"
    if isinstance(attention, LegacyRelPositionMultiHeadedAttention):
        return "legacy_rel_selfattn"
    return getattr(attention, "name", "selfattn")

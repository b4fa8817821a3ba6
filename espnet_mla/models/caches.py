"""What a model keeps of the past: the cache objects of its own attentions, filled by speech that went through it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    LegacyRelPositionMultiHeadedAttention,
    MultiHeadedAttention,
    RelPositionMultiHeadedAttention,
)
from torch import Tensor, nn

from espnet_mla.attention import Attention, Cache, FrameCache
from espnet_mla.models.decoder import TransformerDecoder

TOKENS = 10  # that a decoder is fed


@dataclass(frozen=True)
class CacheReport:
    """What one part of a model keeps: a cache for each layer, of one utterance.

    Args:
        part: encoder, decoder_self (its unit is a token) or decoder_src.
        attention: the choice.
        caches: of each layer.
    """

    part: str
    attention: str
    caches: list[Cache]

    @property
    def unit(self) -> str:
        """What a cache grows by: a token in the decoder's attention to itself, else a frame of the encoder's output."""
        return "token" if self.part == "decoder_self" else "frame"

    @property
    def bytes_per_frame(self) -> list[int]:
        """Of each layer; of a token where that is the unit."""
        return [cache.nbytes_per_frame for cache in self.caches]

    @property
    def fixed_bytes(self) -> list[int]:
        """Of each layer for a whole stream, where that is what is kept."""
        return [cache.nbytes if not cache.nbytes_per_frame else 0 for cache in self.caches]

    @property
    def nbytes(self) -> int:
        """Of all layers together, as they are filled now."""
        return sum(cache.nbytes for cache in self.caches)

    def figures(self, rate: float) -> dict:
        """In JSON's types.

        Args:
            rate: frames a second.
        """
        per_unit = sum(self.bytes_per_frame)
        return {
            "attention": self.attention,
            "layers": len(self.caches),
            f"bytes_per_{self.unit}": per_unit,
            **({"bytes_per_second": round(per_unit * rate)} if self.unit == "frame" else {}),
            "fixed_bytes": sum(self.fixed_bytes),
        }


@torch.inference_mode()
def filled(model: nn.Module, encode: Callable[[], tuple]) -> dict[str, CacheReport]:
    """The caches of each part after an utterance.

    ESPnet's own encoder attentions keep nothing between calls; what stands for them is the keys and values that they make,
    which they would have to keep. Parts that no cache stands for (a decoder without attention) are left out.

    Args:
        model: ESPnetASRModel.
        encode: runs its encoder on the utterance, and gives what that gives.
    """
    seen: dict[str, tuple[nn.Module, Tensor]] = {}

    def watch(name: str):
        def hook(attention: nn.Module, inputs: tuple) -> None:
            seen[name] = (attention, inputs[1])

        return hook

    attentions = {name: module for name, module in model.encoder.named_modules() if _cached(module)}
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in attentions.items()]
    try:
        encoded = encode()[0]
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    if seen:
        found["encoder"] = CacheReport(
            "encoder", _name(next(iter(seen.values()))[0]), [cache_of(*seen[name]) for name in attentions]
        )
    if isinstance(model.decoder, TransformerDecoder):
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded  # with those of the layers between
        found |= _decoder(model.decoder, encoded[0], model.sos)
    return found


def _decoder(decoder: TransformerDecoder, encoded: Tensor, sos: int) -> dict[str, CacheReport]:
    state = decoder.init_state(encoded)
    tokens = torch.full((TOKENS,), sos, device=encoded.device)
    for length in range(1, TOKENS + 1):
        _, state = decoder.score(tokens[:length], state, encoded)
    layer = decoder.decoders[0]
    return {
        "decoder_self": CacheReport("decoder_self", _name(layer.self_attn), state.tokens),
        "decoder_src": CacheReport("decoder_src", _name(layer.src_attn), state.source),
    }


def frame_rate(model: nn.Module, fs: int) -> float:
    """Encoder frames for a second of audio at `fs` Hz."""
    like = next(model.parameters())

    def frames(seconds: int) -> int:
        samples = torch.zeros(1, seconds * fs).to(like)
        return int(model.encode(samples, torch.tensor([samples.shape[1]], device=like.device))[1][0])

    with torch.inference_mode():
        return (frames(11) - frames(1)) / 10  # the difference, because the ends of an utterance lose some


def _cached(module: nn.Module) -> bool:
    return isinstance(module, Attention | MultiHeadedAttention)


def cache_of(attention: nn.Module, x: Tensor) -> Cache:
    """What an attention keeps, or ESPnet's own would have to keep, of the frames x (batch, time, d)."""
    if hasattr(attention, "project_kv"):
        return attention.project_kv(x)
    _, k, v = attention.forward_qkv(x, x, x)
    return FrameCache((k, v))


def _name(attention: nn.Module) -> str:
    """Its choice in the configuration."""
    if isinstance(attention, RelPositionMultiHeadedAttention):
        return "rel_selfattn"
    if isinstance(attention, LegacyRelPositionMultiHeadedAttention):
        return "legacy_rel_selfattn"
    return getattr(attention, "name", "selfattn")

"""The attentions of a model that can be converted, and what becomes of their parameters."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    LegacyRelPositionMultiHeadedAttention,
    MultiHeadedAttention,
    RelPositionMultiHeadedAttention,
)
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_mla.attention import ATTENTIONS, Attention
from espnet_mla.attention.gqa import MHA
from espnet_mla.attention.mla import MLA
from espnet_mla.attention.mtla import MTLA
from espnet_mla.common.errors import UserError
from espnet_mla.convert.factors import Factors, Weights
from espnet_mla.convert.heads import Pooled
from espnet_mla.convert.rotary import SharedKey
from espnet_mla.models.decoder import CachedMultiHeadedAttention, TransformerDecoder
from espnet_mla.models.encoders import ENCODERS, AttentionChoice

type SourceAttention = MultiHeadedAttention | MHA
"""The multi-head attentions that can be converted; RelPositionMultiHeadedAttention is one."""


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Args:
        name: that --modules gives it.
        attentions: name of the module -> module, a layer each: a `SourceAttention`, or for `mtla` an `MLA`.
        conf: the section of a configuration that it is built from.
        kind, options: the keys there of its attention's choice and of the choice's options.
    """

    name: str
    attentions: Mapping[str, Any]
    conf: str
    kind: str
    options: str

    @property
    def rotary(self) -> bool:
        """Whether its positions are rotary ones."""
        return any(getattr(attention, "position", None) == "rope" for attention in self.attentions.values())

    def changed(self, config: dict, choice: str, options: dict) -> dict:
        """A configuration in which this part has another attention.

        Where that can't have the positions of the old one, the encoder has rotary ones.
        """
        conf = {key: value for key, value in (config.get(self.conf) or {}).items() if key not in _ESPNET_ONLY}
        ours = all(isinstance(one, Attention) for one in self.attentions.values())
        if self.conf == "encoder_conf" and config.get("encoder") == "transformer" and not ours:
            # Where it is none that ESPnet's Transformer knows, it takes this one.
            conf["pos_enc_layer_type"] = "abs_pos"
        if any(hasattr(one, "linear_pos") for one in self.attentions.values()):
            conf["pos_enc_layer_type"] = "rel_pos" if "rel_pos" in ATTENTIONS[choice].positions else "rope"
        return {**config, self.conf: {**conf, self.kind: choice, self.options: options}}


# Options of ESPnet's own attention: what they choose between gives the same output, or is refused.
_ESPNET_ONLY = ("zero_triu", "use_sdpa", "use_flash_attn", "qk_norm")


def parts(model: AbsESPnetModel, names: Sequence[str], config: dict, choice: str) -> list[Part]:
    """The parts of these names, which are to have the attention `choice`.

    Raises:
        UserError: one of them can't be converted; the message says why.
    """
    if config.get("use_adapter"):
        raise UserError("use_adapter: true can't be converted: merge the adapter into the weights first")
    found = [_PARTS[name](model, config) for name in names]
    for part in found:
        for attention in part.attentions.values():
            _check(attention, part, choice)
    return found


def _encoder(model: AbsESPnetModel, config: dict) -> Part:
    encoder = model.encoder
    if not isinstance(encoder, AttentionChoice):
        raise UserError(f"encoder: {config['encoder']} can't be converted; what can is {', '.join(ENCODERS)}")
    if (config.get("encoder_conf") or {}).get("pos_enc_layer_type") == "conv":
        raise UserError("encoder_conf: pos_enc_layer_type: conv can't be converted: none of the choices here has it")
    found = {}
    for number, layer in enumerate(encoder.encoders):
        slot = "self_attn" if hasattr(layer, "self_attn") else "attn"
        found[f"encoder.encoders.{number}.{slot}"] = getattr(layer, slot)
    if None in found.values():
        raise UserError("encoder_conf: use_attn: false: this Branchformer has no attention to convert")
    return Part("encoder", found, "encoder_conf", encoder.attention_key, "attention_conf")


def _decoder(slot: str, model: AbsESPnetModel, config: dict) -> Part:
    decoder = getattr(model, "decoder", None)
    if decoder is None:
        raise UserError("model_conf: ctc_weight: 1.0: this model has no decoder to convert")
    if not isinstance(decoder, TransformerDecoder):
        raise UserError(f"decoder: {config.get('decoder')} can't be converted; what can is transformer")
    found = {f"decoder.decoders.{n}.{slot}": getattr(layer, slot) for n, layer in enumerate(decoder.decoders)}
    which = slot.removesuffix("_attn")
    kind, options = f"{which}_attention_layer_type", f"{which}_attention_conf"
    return Part(f"decoder_{which}", found, "decoder_conf", kind, options)


_PARTS = {  # of `spec.MODULES`
    "encoder": _encoder,
    "decoder_self": lambda model, config: _decoder("self_attn", model, config),
    "decoder_src": lambda model, config: _decoder("src_attn", model, config),
}


def _check(attention: nn.Module, part: Part, choice: str) -> None:
    """Refuse an attention that is not multi-head attention as `factors` understands it."""
    key = f"{part.conf}: {part.kind}"
    if choice == "mtla":
        if part.name == "decoder_src":
            raise UserError(f"{key}: a decoder's attention to the speech can't be mtla")
        if type(attention) is not MLA:
            name = getattr(attention, "name", "selfattn")
            raise UserError(f"{key}: {name} can't be converted to mtla; what can is mla: convert it to that first")
        return
    if isinstance(attention, LegacyRelPositionMultiHeadedAttention):
        raise UserError(
            f"{key}: legacy_rel_selfattn (rel_pos_type: legacy, which is ESPnet's default where the key is absent) "
            "can't be converted: it scores a frame that comes after the query by the position of another frame, which "
            "none of the attentions here computes. A model trained with rel_pos_type: latest can be"
        )
    if isinstance(attention, Attention) and type(attention) is not MHA:
        raise UserError(f"{key}: {attention.name} can't be converted; what can is selfattn, rel_selfattn and mha")
    if not isinstance(attention, MHA | CachedMultiHeadedAttention) and type(attention) not in (
        MultiHeadedAttention, RelPositionMultiHeadedAttention,
    ):  # fmt: skip
        raise UserError(
            f"{key}: {type(attention).__name__} can't be converted; what can is selfattn, rel_selfattn and mha"
        )
    if getattr(attention, "position", None) == "rope" and choice == "gqa":
        raise UserError(
            f"{key}: mha with pos_enc_layer_type: rope can't be converted to gqa: its keys carry their positions"
        )
    if not isinstance(getattr(attention, "k_norm", None) or nn.Identity(), nn.Identity):
        raise UserError(f"{key}: qk_norm: true can't be converted: normalised keys are no linear map of the frames")
    if getattr(attention, "zero_triu", False):
        raise UserError(f"{key}: zero_triu: true can't be converted: none of the attentions here has it")


def heads_of(attention: SourceAttention) -> int:
    """The number of heads, which ESPnet and we name differently."""
    return attention.num_heads if isinstance(attention, MHA) else attention.h


def weights_of(attention: SourceAttention) -> Weights:
    """What `factors` starts from."""
    heads = heads_of(attention)
    k, v = (
        layer.weight.detach().double().unflatten(0, (heads, -1)) for layer in (attention.linear_k, attention.linear_v)
    )
    out = attention.linear_out.weight.detach().double().unflatten(1, (heads, -1)).transpose(0, 1)
    return Weights(k, v, out)


def as_mla(attention: SourceAttention, factors: Factors) -> dict[str, Tensor]:
    """The parameters of the `mla` that takes the place of `attention`.

    The bias of linear_k adds the same to every score of a row, which softmax removes; that of linear_v comes out as it
    is, and goes into the bias of linear_out.
    """
    state = _copied(attention, "linear_q", "linear_out", "linear_pos", "pos_bias_u", "pos_bias_v")
    state["linear_kv_down.weight"] = factors.down
    state["linear_k_up.weight"] = factors.k_up
    state["linear_v_up.weight"] = factors.v_up
    state["linear_out.bias"] = _out_bias(attention, factors.v_shift)
    return _cast(state, attention)


def as_rotary_mla(attention: SourceAttention, factors: Factors, shared: SharedKey) -> dict[str, Tensor]:
    """The parameters of the `mla` that takes the place of an `mha` with rope.

    Its scores are divided by the root of a larger size, which the queries make up for.
    """
    heads, d_head = heads_of(attention), weights_of(attention).k.shape[1]
    scale = (1 + len(shared.down) / d_head) ** 0.5

    def queries(x: Tensor) -> Tensor:  # (h d_head, ...) of each head, for the part without and that with rotation
        x = x.detach().double().unflatten(0, (heads, -1))
        return scale * torch.cat((x, shared.queries(x)), dim=1).flatten(0, 1)

    state = as_mla(attention, factors)
    state |= {f"linear_q.{name}": queries(parameter) for name, parameter in attention.linear_q.named_parameters()}
    state["linear_k_rope.weight"] = shared.down
    return _cast(state, attention)


def as_gqa(attention: SourceAttention, pooled: Pooled) -> dict[str, Tensor]:
    """The parameters of the `gqa` that replaces `attention`: queries, positions and output rotated with the heads."""
    heads = heads_of(attention)

    def rotated(x: Tensor) -> Tensor:  # (h d_head, ...) of each head
        x = x.detach().double().reshape(heads, pooled.k_rotation.shape[1], -1)
        return (pooled.k_rotation @ x).flatten(0, 1)

    state = {
        "linear_q.weight": rotated(attention.linear_q.weight),
        "linear_q.bias": rotated(attention.linear_q.bias)[:, 0],
    }
    if hasattr(attention, "linear_pos"):
        state["linear_pos.weight"] = rotated(attention.linear_pos.weight)
        for name in ("pos_bias_u", "pos_bias_v"):
            state[name] = rotated(getattr(attention, name)).view(heads, -1)
    state["linear_k.weight"], state["linear_v.weight"] = pooled.k.flatten(0, 1), pooled.v.flatten(0, 1)
    for name in ("linear_k", "linear_v"):
        state[f"{name}.bias"] = torch.zeros(len(state[f"{name}.weight"]))
    out = weights_of(attention).out @ pooled.v_rotation.transpose(1, 2)  # (h, d_out, d_head)
    state["linear_out.weight"] = out.transpose(0, 1).flatten(1)
    state["linear_out.bias"] = _out_bias(attention, pooled.v_shift)
    return _cast(state, attention)


def options_of(attention: MLA) -> dict[str, Any]:
    """Those that a latent attention can be built from again."""
    names = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    frequencies = attention.rope_frequencies
    return {name: getattr(attention, name) or None for name in names} | {
        "kv_norm": not isinstance(attention.kv_norm, nn.Identity),
        "rope_frequencies": frequencies and list(frequencies),
    }


def as_mtla(attention: MLA, down_rate: int) -> dict[str, Tensor]:
    """The parameters of the `mtla` that takes the place of an `mla`: its own; latents are averaged over their group.

    Every weight is sigmoid(linear_merge(c) . linear_merge_pos(pe)) = 1 / down_rate, whatever c and pe: both have only
    biases. The second's are no zeros, so that the first one learns.
    """
    new = MTLA(
        **{**options_of(attention), "down_rate": down_rate},
        d_model=attention.d_model, num_heads=attention.num_heads, position=attention.position,
    )  # fmt: skip
    place = torch.ones_like(new.linear_merge_pos.bias)
    biases = {"linear_merge": -math.log(down_rate - 1) / len(place) * place, "linear_merge_pos": place}
    merging = {f"{name}.bias": bias for name, bias in biases.items()}
    merging |= {f"{name}.weight": torch.zeros_like(getattr(new, name).weight) for name in biases}
    return _cast(attention.state_dict() | merging, attention)


def as_linear(attention: SourceAttention) -> dict[str, Tensor]:
    """The parameters of the `linear` that takes the place of `attention`: its own, to be trained on.

    What all queries add to their scores with relative positions (u of Dai et al. 2019) goes into the queries' bias; the
    positions' own weights have no place there.
    """
    state = _copied(attention, "linear_q", "linear_k", "linear_v", "linear_out")
    if (bias := getattr(attention, "pos_bias_u", None)) is not None:
        state["linear_q.bias"] = state["linear_q.bias"] + bias.detach().flatten()
    return state


def _copied(attention: SourceAttention, *names: str) -> dict[str, Tensor]:
    return {key: value for key, value in attention.state_dict().items() if key.split(".")[0] in names}


def _out_bias(attention: SourceAttention, shift: Tensor) -> Tensor:
    """The bias of linear_out that makes up for the bias of linear_v, and for `shift`."""
    weight, bias = (
        parameter.detach().double() for parameter in (attention.linear_out.weight, attention.linear_out.bias)
    )
    return bias + weight @ (attention.linear_v.bias.detach().double() + shift)


def _cast(state: dict[str, Tensor], attention: SourceAttention) -> dict[str, Tensor]:
    dtype = attention.linear_out.weight.dtype
    return {key: value.to(dtype).contiguous() for key, value in state.items()}

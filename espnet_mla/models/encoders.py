"""ESPnet's encoders with the choice of an attention.

Each subclass has ESPnet's constructor build the network with ESPnet's matching attention, and then replaces the
attention module of every layer. Nothing of an encoder is repeated here.
"""

import inspect
import math
from typing import Any, ClassVar

from espnet2.asr.encoder import (
    branchformer_encoder,
    conformer_encoder,
    e_branchformer_ctc_encoder,
    e_branchformer_encoder,
    transformer_encoder,
)
from torch import Tensor, nn

from espnet_mla.attention import ATTENTIONS, POSITIONS, build_attentions
from espnet_mla.models.signature import extended
from espnet_mla.models.streaming import StreamingEncoder

# The value for ESPnet's constructor, so that its network fits our attention in everything else. Rotary positions are
# applied in the attention: the embedding in front of the first layer then only scales, see `ScaledInput`.
_ESPNET_POSITION = {"rel_pos": "rel_pos", "abs_pos": "abs_pos", "scaled_abs_pos": "scaled_abs_pos", "rope": "abs_pos"}

# ESPnet's own attentions. Only used to say what is valid: whatever ESPnet's constructor takes is taken.
_ESPNET_ATTENTIONS = ("selfattn", "rel_selfattn", "legacy_rel_selfattn", "fast_selfattn")

# Options of ESPnet's own attention that another one would silently ignore.
_ESPNET_ONLY = ("zero_triu", "qk_norm", "use_sdpa")


class ScaledInput(nn.Module):
    """What ESPnet's position embeddings do besides positions: scale by sqrt(d_model), drop out.

    Args:
        d_model: size of a frame.
        dropout_rate: ESPnet's positional_dropout_rate.
    """

    def __init__(self, d_model: int, dropout_rate: float):
        super().__init__()
        self.scale = math.sqrt(d_model)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, d_model) -> the same."""
        return self.dropout(x * self.scale)


class AttentionChoice(StreamingEncoder):
    """Mixed in before one of ESPnet's encoders, adds the choices to that encoder's configuration.

    New values of the encoder's own key (`attention_key`): mha, gqa, mla, mtla, linear, with their options in
    `attention_conf`; a new `pos_enc_layer_type` for them: rope. Every other configuration builds ESPnet's network as it
    is. With a choice of ours relative positions are ESPnet's latest ones, whatever `rel_pos_type` says, and `streaming`
    makes it a chunked encoder, see `StreamingEncoder`.

    Raises:
        ValueError: an unknown attention or option, a size that can't work, or an option of ESPnet's attention that the
            chosen one does not have.
    """

    attention_key: ClassVar[str]
    position_kinds: ClassVar[tuple[str, ...]] = tuple(_ESPNET_POSITION)
    can_stream: ClassVar[bool] = True
    __signature__: ClassVar[inspect.Signature]
    _espnet_keys: ClassVar[frozenset[str]]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        espnets = cls.__bases__[1]
        ours: dict[str, object] = {cls.attention_key: "selfattn", "attention_conf": {}}
        ours |= {"streaming": None} if cls.can_stream else {}
        cls.__signature__ = extended(espnets, ours)
        cls._espnet_keys = frozenset(inspect.signature(espnets).parameters)

    def __init__(self, *args: Any, **kwargs: Any):
        given = self.__signature__.bind(*args, **kwargs)
        given.apply_defaults()
        conf = dict(given.arguments)
        kind, attention_conf = conf[self.attention_key], conf.pop("attention_conf") or {}
        if kind not in ATTENTIONS:
            self._build_espnet(conf, kind, attention_conf)
            return

        position = conf["pos_enc_layer_type"]
        self._check(conf, kind)
        attentions = build_attentions(
            kind,
            attention_conf,
            conf["num_blocks"],
            d_model=conf["output_size"],
            num_heads=conf["attention_heads"],
            position=position,
            dropout_rate=conf["attention_dropout_rate"],
        )
        relative = position == "rel_pos"
        conf |= {
            self.attention_key: "rel_selfattn" if relative else "selfattn",
            "pos_enc_layer_type": _ESPNET_POSITION[position],
            "rel_pos_type": "latest",
            "use_flash_attn": False,
        }
        super().__init__(**self._espnet_conf(conf))
        if position in ("rope", "scaled_abs_pos"):
            self._replace_embedding(position, conf)
        for layer, attention in zip(self.encoders, attentions, strict=True):
            slot = "self_attn" if hasattr(layer, "self_attn") else "attn"
            if getattr(layer, slot) is not None:  # a Branchformer layer may lack its attention branch
                setattr(layer, slot, attention)
        if conf.get("streaming") is not None:
            self._configure_streaming(conf | {"pos_enc_layer_type": position})

    def _espnet_conf(self, conf: dict) -> dict:
        return {key: value for key, value in conf.items() if key in self._espnet_keys}

    def _build_espnet(self, conf: dict, kind: str, attention_conf: dict) -> None:
        ours = {"attention_conf": attention_conf or None, "streaming": conf.get("streaming")}
        if conf["pos_enc_layer_type"] == "rope":  # ESPnet's Transformer would take it for abs_pos
            ours["pos_enc_layer_type"] = "rope"
        for key, value in ours.items():
            if value is not None:
                raise ValueError(
                    f"{key}: {value} needs {self.attention_key} to be one of {', '.join(ATTENTIONS)}, but it is {kind}"
                )
        has_key = self.attention_key in self._espnet_keys
        known = _ESPNET_ATTENTIONS if has_key else ("selfattn",)
        unknown = ValueError(
            f"{self.attention_key}: {kind!r} is unknown; it must be one of {', '.join((*ATTENTIONS, *known))}"
        )
        if kind not in known and not has_key:  # ESPnet would not see the key
            raise unknown
        try:
            super().__init__(**self._espnet_conf(conf))
        except (ValueError, AssertionError) as error:
            if kind in known:
                raise
            raise unknown from error

    def _check(self, conf: dict, kind: str) -> None:
        position = conf["pos_enc_layer_type"]
        if position in POSITIONS and position not in self.position_kinds:
            valid = ", ".join(k for k in self.position_kinds if k in ATTENTIONS[kind].positions)
            raise ValueError(
                f"pos_enc_layer_type: {position} is not available in this encoder; it must be one of {valid}"
            )
        for key in _ESPNET_ONLY:
            if conf.get(key):
                raise ValueError(f"{key}: {conf[key]} belongs to ESPnet's own attention: {kind} does not have it")

    def _replace_embedding(self, position: str, conf: dict) -> None:
        """Put another position embedding where ESPnet's constructor has put one."""
        size, dropout_rate = conf["output_size"], conf["positional_dropout_rate"]
        owner, name = _position_embedding(self.embed, conf["input_layer"])
        old = getattr(owner, name)
        if position == "rope":
            setattr(owner, name, ScaledInput(size, dropout_rate))
        elif type(old) is not conformer_encoder.ScaledPositionalEncoding:
            setattr(owner, name, conformer_encoder.ScaledPositionalEncoding(size, dropout_rate))


def _position_embedding(embed: Any, input_layer: Any) -> tuple[nn.Module, str]:
    """The module and the attribute that hold ESPnet's position embedding."""
    if hasattr(embed, "pos_enc"):
        return embed, "pos_enc"
    if isinstance(embed, nn.Sequential):
        for name, module in embed.named_children():
            if hasattr(module, "extend_pe"):
                return embed, name
    raise ValueError(f"input_layer: {input_layer} has no position embedding, so pos_enc_layer_type can't be chosen")


class ConformerEncoder(AttentionChoice, conformer_encoder.ConformerEncoder):
    """Conformer (Gulati et al. 2020, arXiv 2005.08100)."""

    attention_key = "selfattention_layer_type"


class BranchformerEncoder(AttentionChoice, branchformer_encoder.BranchformerEncoder):
    """Branchformer (Peng et al. 2022, arXiv 2207.02971)."""

    attention_key = "attention_layer_type"


class EBranchformerEncoder(AttentionChoice, e_branchformer_encoder.EBranchformerEncoder):
    """E-Branchformer (Kim et al. 2022, arXiv 2210.00077)."""

    attention_key = "attention_layer_type"


class EBranchformerCTCEncoder(AttentionChoice, e_branchformer_ctc_encoder.EBranchformerCTCEncoder):
    """E-Branchformer of OWSM-CTC (Peng et al. 2024, arXiv 2402.12654), which also hears a prompt by cross-attention.

    The choice is of its self-attention; the cross-attention stays ESPnet's.
    """

    attention_key = "attention_layer_type"
    can_stream = False  # the prompt's tokens stand before the speech


class TransformerEncoder(AttentionChoice, transformer_encoder.TransformerEncoder):
    """Transformer (Vaswani et al. 2017). ESPnet's has no key for its attention; here it is Conformer's."""

    attention_key = "selfattention_layer_type"
    position_kinds = ("abs_pos", "scaled_abs_pos", "rope")  # its layers hand no position embeddings on


ENCODERS = {
    "conformer": ConformerEncoder,
    "branchformer": BranchformerEncoder,
    "e_branchformer": EBranchformerEncoder,
    "e_branchformer_ctc": EBranchformerCTCEncoder,
    "transformer": TransformerEncoder,
}

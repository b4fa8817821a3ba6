"""ESPnet's encoders with the choice of an attention: nothing changes unless it is asked for, and then only that."""

import inspect

import pytest
import torch
from espnet2.asr.encoder import (
    branchformer_encoder,
    conformer_encoder,
    e_branchformer_ctc_encoder,
    e_branchformer_encoder,
    transformer_encoder,
)
from espnet2.legacy.nets.pytorch_backend.transformer import attention as espnet_attention

from espnet_mla.attention import ATTENTIONS
from espnet_mla.models.encoders import ENCODERS

ESPNET = {
    "conformer": conformer_encoder.ConformerEncoder,
    "branchformer": branchformer_encoder.BranchformerEncoder,
    "e_branchformer": e_branchformer_encoder.EBranchformerEncoder,
    "e_branchformer_ctc": e_branchformer_ctc_encoder.EBranchformerCTCEncoder,
    "transformer": transformer_encoder.TransformerEncoder,
}
PLAIN = {  # what ESPnet's recipes ask for, and the same of ours
    "conformer": {"rel_pos_type": "latest", "macaron_style": True},
    "branchformer": {},
    "e_branchformer": {"use_ffn": True, "macaron_ffn": True},
    "e_branchformer_ctc": {"use_ffn": True, "macaron_ffn": True, "input_layer": "conv2d"},
    "transformer": {},
}
ABSOLUTE = {"pos_enc_layer_type": "abs_pos"}
SMALL = {"output_size": 16, "attention_heads": 4, "num_blocks": 2}
CHOICES = [
    (name, kind, position)
    for name, encoder in ENCODERS.items()
    for kind, attention in ATTENTIONS.items()
    for position in attention.positions
    if position in encoder.position_kinds
]
ONE_EACH = {("conformer", "mla", "rel_pos"), ("branchformer", "gqa", "rel_pos"), ("e_branchformer", "linear", "rope"),
            ("transformer", "mha", "rope")}  # fmt: skip
TRACED = [  # test_attention.py compiles every attention with every position: one of each encoder is enough here
    pytest.param(*choice, marks=() if choice in ONE_EACH else pytest.mark.slow)
    for choice in CHOICES
    if "abs" not in choice[2]
]


def build(classes, name, seed=0, **conf):
    torch.manual_seed(seed)
    return classes[name](input_size=20, **{**SMALL, **PLAIN[name], **conf}).eval()


def choose(name, kind, position="abs_pos", **conf):
    key = ENCODERS[name].attention_key
    sizes = {"attention_conf": {"kv_lora_rank": 6}} if kind in ("mla", "mtla") else {}
    return build(ENCODERS, name, **{key: kind, "pos_enc_layer_type": position, **sizes, **conf})


def encode(encoder, lengths=(60, 41)):
    torch.manual_seed(1)
    features = torch.randn(len(lengths), max(lengths), 20)
    with torch.no_grad():
        out, out_lengths, _ = encoder(features, torch.tensor(lengths))
    return out, out_lengths


def assert_same(encoder, other):
    """The same real frames: what stands in padding is nobody's."""
    out, lengths = encode(encoder)
    expected, _ = encode(other)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(out[row, :length], expected[row, :length], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_without_new_values_the_network_is_espnets_to_the_bit(name):
    ours, theirs = build(ENCODERS, name), build(ESPNET, name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(encode(ours)[0], encode(theirs)[0])


@pytest.mark.parametrize("name", ENCODERS)
def test_every_key_of_espnet_is_listed_with_its_default_and_ours_beside_them(name):
    theirs = inspect.signature(ESPNET[name]).parameters
    ours = inspect.signature(ENCODERS[name]).parameters
    assert {key: ours[key].default for key in theirs} == {key: value.default for key, value in theirs.items()}
    assert set(ours) - set(theirs) <= {"attention_conf", "streaming", "selfattention_layer_type"}
    assert ours["attention_conf"].default == {}
    assert ("streaming" in ours) == ENCODERS[name].can_stream and (
        "streaming" not in ours or ours["streaming"].default is None
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_mha_takes_espnets_checkpoint_and_gives_espnets_output(name):
    position = "abs_pos" if name == "transformer" else "rel_pos"
    theirs, ours = build(ESPNET, name), choose(name, "mha", position)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    kept = [n for n, module in ours.named_modules() if isinstance(module, espnet_attention.MultiHeadedAttention)]
    assert all(name.endswith(".cross_attn") for name in kept)
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("name", "kind", "position"),
    [
        pytest.param(*choice, marks=pytest.mark.slow if "abs" in choice[2] and choice[1] != "mha" else ())
        for choice in CHOICES
    ],
)
def test_every_choice_runs_and_padding_never_changes_a_real_frame(name, kind, position):
    encoder = choose(name, kind, position)
    out, lengths = encode(encoder)
    torch.manual_seed(1)
    features = torch.randn(2, 60, 20)
    alone, _, _ = encoder(features[1:, :41], torch.tensor([41]))
    torch.testing.assert_close(out[1, : lengths[1]], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "kind", "position"), TRACED)
def test_compiling_changes_no_output(name, kind, position):
    """ESPnet keeps the compiler out of its make_pad_mask; that an attention breaks no graph is tested with it."""
    torch.compiler.reset()
    encoder = choose(name, kind, position)
    compiled = torch.compile(encoder, backend="aot_eager")
    assert_same(compiled, encoder)


@pytest.mark.parametrize(("name", "kind", "position"), TRACED)
def test_an_exported_encoder_gives_the_same_output(name, kind, position):
    encoder = choose(name, kind, position)
    example = (torch.randn(2, 60, 20), torch.tensor([60, 41]))
    exported = torch.export.export(encoder, example).module()
    assert_same(exported, encoder)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_list_gives_each_layer_an_option_of_its_own(name):
    key = ENCODERS[name].attention_key
    encoder = build(ENCODERS, name, **{key: "mla", "attention_conf": {"kv_lora_rank": [3, 5]}, **ABSOLUTE})
    slot = "self_attn" if hasattr(encoder.encoders[0], "self_attn") else "attn"
    assert [getattr(layer, slot).kv_lora_rank for layer in encoder.encoders] == [3, 5]
    assert encode(encoder)[0].isfinite().all()


@pytest.mark.parametrize("name", ENCODERS)
def test_the_order_of_frames_matters_with_rope(name):
    encoder = choose(name, "mha", "rope")
    slot = "self_attn" if hasattr(encoder.encoders[0], "self_attn") else "attn"
    attention = getattr(encoder.encoders[0], slot)
    x = torch.randn(1, 5, 16)
    reversed_x = x.flip(1)
    assert not torch.allclose(attention(x, x, x, None), attention(reversed_x, reversed_x, reversed_x, None).flip(1))


@pytest.mark.parametrize("name", ENCODERS)
def test_nothing_but_attention_modules_differs_between_choices(name):
    def others(kind):
        attention = ("self_attn.", ".attn.")
        return {key for key in choose(name, kind).state_dict() if not any(part in key for part in attention)}

    assert others("mha") == others("gqa") == others("mla") == others("linear")


@pytest.mark.parametrize("input_layer", ["linear", "conv2d2"])
@pytest.mark.parametrize("name", ENCODERS)
def test_rope_takes_the_place_of_positions_behind_every_input_layer(name, input_layer):
    encoder = choose(name, "mla", "rope", input_layer=input_layer)
    assert not any(hasattr(module, "extend_pe") for module in encoder.modules())
    encode(encoder)


def test_a_branchformer_without_its_attention_branch_stays_without():
    encoder = choose("branchformer", "mla", "rel_pos", use_attn=False)
    assert all(layer.attn is None for layer in encoder.encoders)
    encode(encoder)


WRONG = [
    (
        "conformer",
        {"selfattention_layer_type": "mlaa"},
        "selfattention_layer_type: 'mlaa' is unknown; .* mha, gqa, mla",
    ),
    (
        "transformer",
        {"selfattention_layer_type": "rel_selfattn"},
        "must be one of mha, gqa, mla, mtla, linear, selfattn",
    ),
    ("branchformer", {"attention_layer_type": "linear"}, "rel_pos, but linear takes rope or abs_pos"),
    ("branchformer", {"attention_layer_type": "mla", "pos_enc_layer_type": "spiral"}, "pos_enc_layer_type: spiral"),
    ("branchformer", {"attention_conf": {"kv_lora_rank": 8}}, "attention_conf: .* but it is rel_selfattn"),
    ("branchformer", {"attention_layer_type": "gqa", "attention_conf": {"num_kv_heads": 3}}, r"\(3\) must divide"),
    ("e_branchformer", {"attention_layer_type": "mha", "attention_heads": 3}, r"attention_heads \(3\) must divide"),
    (
        "transformer",
        {"selfattention_layer_type": "mha", "pos_enc_layer_type": "rel_pos"},
        "abs_pos, scaled_abs_pos, rope",
    ),
    ("transformer", {"pos_enc_layer_type": "rope"}, "rope needs selfattention_layer_type"),
    ("conformer", {"selfattention_layer_type": "mha", "qk_norm": True}, "qk_norm: True belongs to ESPnet's own"),
    ("branchformer", {"attention_layer_type": "mha", "input_layer": None, "pos_enc_layer_type": "rope"}, "input_layer"),
]


@pytest.mark.parametrize(("name", "conf", "message"), WRONG)
def test_a_wrong_value_is_refused_with_its_key_and_what_is_valid(name, conf, message):
    with pytest.raises(ValueError, match=message):
        build(ENCODERS, name, **conf)

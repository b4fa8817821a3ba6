"""Streaming encoders: what a frame sees, that chunk by chunk equals one masked pass, and that memory is bounded."""

import copy

import pytest
import torch
from espnet2.asr.encoder import conformer_encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_mla.attention import ATTENTIONS, Chunks, build_attention
from espnet_mla.models import encoders
from espnet_mla.models.chunked import ChunkConv1d
from espnet_mla.models.streaming_conf import read

D = 16
FEATURES = 20
ENCODERS = {name: encoder for name, encoder in encoders.ENCODERS.items() if encoder.can_stream}
PLAIN = {
    "conformer": {"macaron_style": True, "cnn_module_kernel": 7},
    "branchformer": {"cgmlp_conv_kernel": 7, "cgmlp_linear_units": 32},
    "e_branchformer": {"use_ffn": True, "macaron_ffn": True, "cgmlp_conv_kernel": 7, "cgmlp_linear_units": 32},
    "transformer": {},
}
MERGED = (("conformer", "rel_pos"), ("branchformer", "rope"))  # mtla differs from mla in the attention alone
CHOICES = [
    pytest.param(name, kind, position, marks=() if kind != "mtla" or (name, position) in MERGED else pytest.mark.slow)
    for name, encoder in ENCODERS.items()
    for kind, attention in ATTENTIONS.items()
    for position in ("rel_pos", "rope")
    if position in attention.positions and position in encoder.position_kinds
]


def build(name="conformer", kind="mla", position="rel_pos", chunk_size=4, left_chunks=2, **conf):
    """With random parameters of a size that lets every frame matter."""
    left_chunks = -1 if kind == "linear" else left_chunks
    conf = {"streaming": {"chunk_size": chunk_size, "left_chunks": left_chunks}} | conf
    sizes = {"input_size": FEATURES, "output_size": D, "attention_heads": 4, "num_blocks": 2, "linear_units": 32}
    if name == "branchformer":
        del sizes["linear_units"]
    options = {"attention_conf": {"kv_lora_rank": 6}} if kind in ("mla", "mtla") else {}
    key = {ENCODERS[name].attention_key: kind, "pos_enc_layer_type": position}
    torch.manual_seed(0)
    encoder = ENCODERS[name](**{**sizes, **PLAIN[name], **key, **options, **conf}).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def at_once(encoder, features, lengths):
    with torch.no_grad():
        out, counts, _ = encoder(features, torch.tensor(lengths))
    return [row[:count] for row, count in zip(out, counts, strict=True)]


def piecewise(encoder, features, lengths, cuts, state=None):
    """The frames of each row, where row r of the features comes in pieces of cuts(r) frames."""
    state = state or encoder.stream(rows=len(lengths))
    outs, at = [[] for _ in lengths], [0] * len(lengths)
    while not all(state.ended):
        new = [min(cuts(row), length - begun) for row, (length, begun) in enumerate(zip(lengths, at, strict=True))]
        piece = features.new_zeros(len(lengths), max(new), features.shape[-1])
        for row, count in enumerate(new):
            piece[row, :count] = features[row, at[row] : at[row] + count]
            at[row] += count
        last = [begun == length for begun, length in zip(at, lengths, strict=True)]
        frames, counts = encoder.forward_chunk(piece, state, torch.tensor(new), last)
        for row, count in enumerate(counts):
            outs[row].append(frames[row, :count])
    return [torch.cat(pieces) for pieces in outs]


def assert_same(ours, expected):
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "kind", "position"), CHOICES)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_piece_by_piece_gives_what_one_masked_pass_gives(name, kind, position, data):
    """Whatever the chunks, the cuts, and the lengths of the streams side by side."""
    size = data.draw(st.sampled_from([2, 6, 4, 16, -1] if kind == "mtla" else [1, 3, 4, 16, -1]), "chunk_size")
    left = data.draw(st.sampled_from([0, 2, 7, -1]), "left_chunks")
    lengths = data.draw(st.lists(st.integers(1, 120), min_size=1, max_size=3).filter(lambda all_: max(all_) > 6))
    cut = st.sampled_from([0, 1, 3, 17, 40])
    encoder = build(name, kind, position, size, left)
    torch.manual_seed(1)
    features = torch.randn(len(lengths), max(lengths), FEATURES)
    ours = piecewise(encoder, features, lengths, lambda row: data.draw(cut) or 1 if row == 0 else data.draw(cut))
    assert_same(ours, at_once(encoder, features, lengths))


@pytest.mark.parametrize(("name", "kind", "position"), CHOICES)
def test_a_frame_depends_on_its_chunk_and_what_was_before_and_on_nothing_after(name, kind, position):
    encoder = build(name, kind, position, chunk_size=4, left_chunks=-1)
    rate, span = encoder.subsampling
    features = torch.randn(1, 19 * rate + span, FEATURES)
    (before,) = at_once(encoder, features, [features.shape[1]])
    for chunk in (1, 3):
        visible = ((chunk + 1) * 4 - 1) * rate + span  # features that the chunk's last frame sees
        changed = features.clone()
        changed[:, visible:] += 1
        (after,) = at_once(encoder, changed, [features.shape[1]])
        assert torch.equal(before[: (chunk + 1) * 4], after[: (chunk + 1) * 4])
        changed[:, visible - 1] += 1  # only the last frame's look to the right has it
        (after,) = at_once(encoder, changed, [features.shape[1]])
        assert not torch.allclose(before[chunk * 4], after[chunk * 4])  # the chunk's first frame sees its last


@pytest.mark.parametrize("kind", [kind for kind in ATTENTIONS if kind != "linear"])
def test_an_attention_sees_so_many_chunks_to_the_left_and_no_more(kind):
    torch.manual_seed(0)
    attention = build_attention(kind, {}, d_model=32, num_heads=2, position="rope", dropout_rate=0.0).eval()
    x = torch.randn(1, 16, 32)
    out = attention.attend_in_chunks(x, None, None, Chunks(size=4, left=1))
    for chunk in range(4):
        queries, window = slice(4 * chunk, 4 * chunk + 4), slice(max(0, 4 * chunk - 4), 4 * chunk + 4)
        alone = attention.attend(x[:, queries], attention.project_kv(x[:, window], start=window.start), None, None)
        torch.testing.assert_close(out[:, queries], alone)


def test_linear_attention_in_chunks_is_its_running_state_chunk_after_chunk():
    torch.manual_seed(0)
    for position in ("rope", "abs_pos"):
        attention = build_attention("linear", {}, d_model=8, num_heads=2, position=position, dropout_rate=0.0).eval()
        x = torch.randn(2, 11, 8)
        mask = torch.arange(11) < torch.tensor([[11], [7]])
        out = attention.attend_in_chunks(x, None, mask.unsqueeze(1), Chunks(size=4, left=-1))
        kv = None
        for chunk in x.split(4, dim=1):
            new = attention.project_kv(chunk)
            kv = new if kv is None else kv.append(new)
            expected = attention.attend(chunk, kv, None, None)
            torch.testing.assert_close(out[0, len(kv) - chunk.shape[1] : len(kv)], expected[0])
        torch.testing.assert_close(
            out[1, :4], attention.attend(x[:, :4], attention.project_kv(x[:, :4]), None, None)[1]
        )
        with pytest.raises(ValueError, match="left_chunks is -1, not 2"):
            attention.attend_in_chunks(x, None, None, Chunks(4, 2))


@pytest.mark.parametrize(("name", "kind", "position"), CHOICES)
def test_positions_do_not_run_out(name, kind, position):
    """Days later frames are what they would be now."""
    encoder = build(name, kind, position)
    features, state = torch.randn(1, 200, FEATURES), encoder.stream()
    encoder.forward_chunk(features[:, :120], state)
    later = state.select([0])
    later.frames = [state.frames[0] + 10_000_384]  # a multiple of what mtla counts up to
    expected, _ = encoder.forward_chunk(features[:, 120:], state)
    found, _ = encoder.forward_chunk(features[:, 120:], later)
    assert len(expected[0]) >= 16 and torch.equal(found, expected)


@pytest.mark.parametrize(("name", "kind", "position"), CHOICES)
def test_the_state_grows_to_its_bound_and_no_further(name, kind, position):
    encoder = build(name, kind, position)
    state, sizes = encoder.stream(), []
    for _ in range(8):
        encoder.forward_chunk(torch.randn(1, 16, FEATURES), state)
        sizes.append((state.attention_nbytes, state.convolution_nbytes, state.features_nbytes))
    assert len(set(sizes[4:])) == 1
    latent = 6 + (2 if position == "rope" else 0)
    numbers = {"mha": 2 * D, "gqa": 2 * D // 4, "mla": latent, "mtla": latent / 2}
    if kind == "linear":
        assert sizes[-1][0] == 4 * 2 * 4 * (4 + 1) * 4  # bytes, layers, heads (d_head + 1) d_head
    else:
        assert sizes[-1][0] == 4 * 2 * 2 * 4 * numbers[kind]  # bytes, layers, chunks, frames
    caches = [*state.attention.values(), *state.convolution.values()]
    tensors = [tensor for cache in caches for tensor in vars(cache).values()]
    tensors = [tensor for one in tensors for tensor in (one if isinstance(one, tuple) else (one,))]
    for tensor in (tensor for tensor in tensors if isinstance(tensor, torch.Tensor)):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4  # no larger memory is held than is counted


def test_the_bytes_are_those_of_the_tensors_and_of_all_rows():
    encoder = build("e_branchformer", "mla")
    state = encoder.stream(rows=3)
    encoder.forward_chunk(torch.randn(3, 40, FEATURES), state)
    convolution = 2 * (3 * 16 + 1 * 2 * D)  # layers; half the kernels of 7 and of 3, their channels
    assert state.convolution_nbytes == 4 * 3 * convolution
    assert state.features_nbytes == 4 * 3 * FEATURES * (40 - 2 * 16)
    assert state.attention_nbytes == 4 * 3 * 2 * 8 * 6
    assert state.nbytes == state.attention_nbytes + state.convolution_nbytes + state.features_nbytes


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_streams_join_and_leave_a_batch_at_any_time(kind):
    encoder = build("e_branchformer", kind, "rope")
    features = torch.randn(3, 160, FEATURES)
    expected = at_once(encoder, features, [160] * 3)
    type_ = type(encoder.stream())
    states, outs = [encoder.stream() for _ in range(3)], [[], [], []]
    starts = (0, 2, 5)  # the step at which each stream begins
    for step in range(16):
        there = [row for row in range(3) if starts[row] <= step < starts[row] + 10]
        if not there:
            continue
        joined = type_.join([states[row] for row in there])
        piece = torch.stack([features[row, (at := 16 * (step - starts[row])) : at + 16] for row in there])
        frames, counts = encoder.forward_chunk(piece, joined, last=[step == starts[row] + 9 for row in there])
        for place, row in enumerate(there):
            outs[row].append(frames[place, : counts[place]])
            states[row] = joined.select([place])
    assert_same([torch.cat(pieces) for pieces in outs], expected)


def test_streams_with_different_chunks_cannot_be_joined():
    encoder = build()
    a, b = encoder.stream(chunk_size=4), encoder.stream(chunk_size=8)
    with pytest.raises(ValueError, match=r"size=4.* and .*size=8"):
        type(a).join([a, b])


def test_set_chunks_changes_the_configurations_chunks():
    encoder, features = build(), torch.randn(1, 100, FEATURES)
    by_conf = at_once(encoder, features, [100])
    encoder.set_chunks(8, 1)
    other = at_once(encoder, features, [100])
    assert not torch.allclose(by_conf[0], other[0])
    assert_same(piecewise(encoder, features, [100], lambda _: 9), other)
    assert_same(piecewise(encoder, features, [100], lambda _: 9, encoder.stream(4, 2)), by_conf)
    encoder.set_chunks(-1)
    whole = conformer_encoder.ConformerEncoder.forward(encoder, features, torch.tensor([100]))[0]
    assert_same(at_once(encoder, features, [100]), [whole[0]])
    encoder.set_chunks()
    assert_same(at_once(encoder, features, [100]), by_conf)


def test_training_draws_a_size_for_each_batch_and_validation_keeps_to_the_configurations():
    conf = {"chunk_size": 4, "left_chunks": 2, "dynamic_chunk_sizes": {"min": 2, "max": 5, "full_context": 0.3}}
    streaming = read(conf)
    drawn = [streaming.draw() for _ in range(400)]
    assert {one.size for one in drawn} == {-1, 2, 3, 4, 5} and {one.left for one in drawn} == {2}
    assert 0.2 < sum(one.size == -1 for one in drawn) / 400 < 0.4
    assert {read(conf | {"dynamic_chunk_sizes": [3, -1]}).draw().size for _ in range(50)} == {3, -1}
    assert {read({"chunk_size": 4, "left_chunks": 2}).draw().size for _ in range(50)} == {4}

    encoder = build(streaming=conf, dropout_rate=0.0, positional_dropout_rate=0.0, use_cnn_module=False)
    features = torch.randn(1, 100, FEATURES)
    (validated,) = at_once(encoder, features, [100])
    encoder.train()
    trained = [at_once(encoder, features, [100])[0] for _ in range(20)]
    assert any(torch.allclose(one, validated, atol=1e-6) for one in trained)
    assert any(not torch.allclose(one, validated, atol=1e-4) for one in trained)


@pytest.mark.parametrize(("name", "kind", "position"), CHOICES)
def test_every_parameter_of_a_streaming_encoder_is_trained(name, kind, position):
    encoder = build(name, kind, position).train()
    out, _, _ = encoder(torch.randn(2, 90, FEATURES), torch.tensor([90, 61]))
    (out * torch.randn_like(out)).sum().backward()
    for name_, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name_
        if "linear_k.bias" not in name_ and "depthwise_conv.bias" not in name_:  # which softmax and norm take away
            assert parameter.grad.abs().max() > 0, name_


def test_weights_that_change_between_chunks_are_used():
    """The projections of the positions are kept from chunk to chunk, but not from weight to weight."""
    encoder, features = build(), torch.randn(1, 200, FEATURES)
    assert_same(piecewise(encoder, features, [200], lambda _: 40), at_once(encoder, features, [200]))
    with torch.no_grad():
        for layer in encoder.encoders:
            layer.self_attn.linear_pos.weight.mul_(-2)
    assert_same(piecewise(encoder, features, [200], lambda _: 40), at_once(encoder, features, [200]))
    other = build(kind="mla")
    other.load_state_dict({name: value + 0.1 for name, value in encoder.state_dict().items()})
    encoder.load_state_dict(other.state_dict())
    assert_same(piecewise(encoder, features, [200], lambda _: 40), at_once(other, features, [200]))
    assert_same(piecewise(copy.deepcopy(encoder), features, [200], lambda _: 40), at_once(other, features, [200]))
    (out,) = piecewise(encoder.double(), features.double(), [200], lambda _: 40)
    assert out.dtype == torch.float64
    assert_same([out.float()], at_once(other, features, [200]))


def test_an_encoder_with_intermediate_ctc_streams():
    encoder, features = build(interctc_layer_idx=[1]), torch.randn(1, 100, FEATURES)
    with torch.no_grad():
        (out, _), _, _ = encoder(features, torch.tensor([100]))
    assert_same(piecewise(encoder, features, [100], lambda _: 9), [out[0]])


def test_a_quantised_encoder_streams():
    encoder, features = build(), torch.randn(1, 100, FEATURES)
    quantised = torch.ao.quantization.quantize_dynamic(encoder, {torch.nn.Linear}, dtype=torch.qint8)
    ours, expected = piecewise(quantised, features, [100], lambda _: 9)[0], at_once(encoder, features, [100])[0]
    assert (ours - expected).norm() < 0.1 * expected.norm()


def test_a_chunk_that_failed_can_be_tried_again(monkeypatch):
    """Whatever fails in the middle of a chunk, the state is that of before, and nothing that came is lost."""
    encoder, features = build(), torch.randn(1, 150, FEATURES)
    expected = at_once(encoder, features, [150])
    state, outs = encoder.stream(), []
    for begin in range(0, 150, 19):
        last = begin + 19 >= 150
        with monkeypatch.context() as broken:
            broken.setattr(encoder.encoders[1], "forward", lambda *_: 1 / 0)
            try:
                frames, counts = encoder.forward_chunk(features[:, begin : begin + 19], state, last=last)
            except ZeroDivisionError:
                broken.undo()
                frames, counts = encoder.forward_chunk(features[:, :0], state)
        outs.append(frames[0, : counts[0]])
    assert_same([torch.cat(outs)], expected)


def test_encode_chunk_encodes_one_chunk_of_each_row_that_has_one():
    """Rows without one are left as they are, and the rows keep their order."""
    encoder = build(chunk_size=4)
    features, lengths = torch.randn(4, 90, FEATURES), [90, 10, 90, 30]  # a chunk needs 19
    expected = at_once(encoder, features[:, :90], [90, 90, 90, 90])
    state = encoder.stream(rows=4)
    encoder.buffer(features, state, lengths)
    counts = []
    while ready := encoder.ready(state):
        before = [row.clone() for row in state.features]
        frames, new = encoder.encode_chunk(state)
        counts.append(new)
        for row in range(4):
            end = state.frames[row]
            assert new[row] == (4 if row in ready else 0)
            torch.testing.assert_close(
                frames[row, : new[row]], expected[row][end - new[row] : end], rtol=1e-4, atol=1e-4
            )
            if row not in ready:
                assert torch.equal(state.features[row], before[row])
    assert counts == [[4, 0, 4, 4]] + [[4, 0, 4, 0]] * 4
    assert encoder.encode_chunk(state)[1] == [0] * 4


class Reordered(torch.nn.Module):
    """A layer that calls its parts, which are equal in shape, in another order than modules() lists them."""

    def __init__(self, layer):
        super().__init__()
        self.first, self.second = layer.self_attn, copy.deepcopy(layer.self_attn)
        self.conv_a, self.conv_b = (ChunkConv1d(D, D, 5, padding=2) for _ in range(2))
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.3)

    def forward(self, x, mask):
        for attention, conv in ((self.second, self.conv_b), (self.first, self.conv_a)):
            x = x + attention(x, x, x, mask)
            x = x + conv(x.transpose(1, 2)).transpose(1, 2)
        return x, mask


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_each_module_has_its_own_cache_whatever_the_order_of_the_calls(kind):
    encoder = build("transformer", kind, "rope")
    for number, layer in enumerate(encoder.encoders):
        encoder.encoders[number] = Reordered(layer)
    encoder, features = encoder.double(), torch.randn(1, 150, FEATURES, dtype=torch.double)
    assert_same(piecewise(encoder, features, [150], lambda _: 9), at_once(encoder, features, [150]))


@pytest.mark.parametrize("name", ENCODERS)
def test_caches_of_equal_shape_hold_the_frames_of_their_own_module(name):
    """What the state has under a module's name is made of that module's own inputs."""
    encoder, features = (
        build(name, "mha", "rope" if name == "transformer" else "rel_pos"),
        torch.randn(1, 16 * 6 + 3, FEATURES),
    )
    state = encoder.stream()
    encoder.forward_chunk(features, state)
    inputs, modules = {}, dict(encoder.encoders.named_modules())
    for key in (*state.attention, *state.convolution):
        modules[key].register_forward_hook(lambda _, args, __, key=key: inputs.__setitem__(key, args[0]))
    at_once(encoder, features, [features.shape[1]])
    assert len(state.attention) == 2 and (len(state.convolution) >= 2 or name == "transformer")
    for key, cache in state.attention.items():
        expected = modules[key].project_kv(inputs[key]).keep_last(8)
        torch.testing.assert_close(cache.tensors, expected.tensors, rtol=1e-4, atol=1e-4)
    for key, cache in state.convolution.items():
        expected = inputs[key].transpose(1, 2)[:, -len(cache) :]
        torch.testing.assert_close(cache.tensors, (expected,), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_streaming_adds_no_parameter_and_renames_none(name):
    position = "rope" if name == "transformer" else "rel_pos"
    plain, chunked = build(name, position=position, streaming=None), build(name, position=position)
    assert {key: value.shape for key, value in plain.state_dict().items()} == {
        key: value.shape for key, value in chunked.state_dict().items()
    }


@pytest.mark.parametrize("input_layer", ["conv2d1", "conv2d2", "conv2d6", "conv2d8", "linear"])
def test_every_input_layer_streams(input_layer):
    encoder = build(input_layer=input_layer, input_size=FEATURES)
    features = torch.randn(1, 130, FEATURES)
    assert_same(piecewise(encoder, features, [130], lambda _: 7), at_once(encoder, features, [130]))


def test_a_stream_that_has_ended_takes_no_more_features():
    encoder = build()
    state = encoder.stream(rows=2)
    encoder.forward_chunk(torch.randn(2, 30, FEATURES), state, last=[True, False])
    encoder.forward_chunk(torch.randn(2, 30, FEATURES), state, lengths=[0, 30])
    with pytest.raises(ValueError, match="row 0 of the streams has ended"):
        encoder.forward_chunk(torch.randn(2, 30, FEATURES), state)
    wrong = [
        (torch.randn(1, 30, FEATURES), {}),
        (torch.randn(2, 30, FEATURES + 1), {}),
        (torch.randn(2, 30, FEATURES), {"lengths": [0, 31]}),
        (torch.randn(2, 30, FEATURES), {"lengths": [0, -5]}),
        (torch.randn(2, 30, FEATURES), {"last": [True]}),
    ]
    for features, named in wrong:
        with pytest.raises(ValueError, match=rf"the state needs \(2, time, {FEATURES}\), lengths from 0 to time"):
            encoder.forward_chunk(features, state, **named)


def test_an_encoder_in_training_mode_is_refused():
    encoder = build().train()
    with pytest.raises(ValueError, match=r"in training mode can't be streamed: call eval\(\) first"):
        encoder.forward_chunk(torch.randn(1, 30, FEATURES), encoder.stream())


def test_a_stream_without_a_frame_gives_none():
    encoder = build()
    frames, counts = encoder.forward_chunk(torch.randn(1, 6, FEATURES), encoder.stream(), last=True)
    assert frames.shape == (1, 0, D) and counts.tolist() == [0]


WRONG = [
    ({"streaming": 16}, "streaming: 16 must be a mapping; its keys are chunk_size, left_chunks"),
    ({"streaming": {"chunk_size": 16}}, "streaming: left_chunks is missing"),
    ({"streaming": {"chunk_size": 0, "left_chunks": 1}}, "streaming: chunk_size: 0 must be a number of encoder frames"),
    ({"streaming": {"chunk_size": 4, "left_chunks": -2}}, "streaming: left_chunks: -2 must be a number of chunks"),
    ({"streaming": {"chunk_size": 4, "left_chunks": 1, "hop": 2}}, "streaming: hop: 2 is not an option of it"),
    ({"streaming": {"chunk_size": 4, "left_chunks": 1, "dynamic_chunk_sizes": []}}, r"\[\] must be a list of sizes"),
    (
        {"streaming": {"chunk_size": 4, "left_chunks": 1, "dynamic_chunk_sizes": {"min": 3}}},
        "must have min and max",
    ),
    (
        {"streaming": {"chunk_size": 4, "left_chunks": 1, "dynamic_chunk_sizes": {"min": 3, "max": 2}}},
        r"min \(3\) must be at least 1 and at most max \(2\)",
    ),
    ({"pos_enc_layer_type": "abs_pos"}, "pos_enc_layer_type: abs_pos can't be used with streaming .* rel_pos or rope"),
    ({"input_layer": "embed"}, "input_layer: embed can't be used with streaming"),
    ({"selfattention_layer_type": "rel_selfattn", "attention_conf": {}, "streaming": {}}, "streaming: {} needs self"),
    ({"positionwise_layer_type": "conv1d"}, "positionwise_layer_type: conv1d can't be used"),
    ({"selfattention_layer_type": "rel_selfattn", "attention_conf": {}}, "streaming: .* but it is rel_selfattn"),
    (
        {"selfattention_layer_type": "linear", "attention_conf": {}, "pos_enc_layer_type": "rope"},
        "left_chunks: 2, but linear attention sums over all",
    ),
    (
        {"kind": "mtla", "chunk_size": 3},
        "chunk_size: 3 must be a multiple of 2, since mtla merges frames",
    ),
    (
        {"kind": "mtla", "streaming": {"chunk_size": 4, "left_chunks": 1, "dynamic_chunk_sizes": [4, 5]}},
        r"dynamic_chunk_sizes: \[4, 5\] must be multiples of 2, since mtla merges frames",
    ),
    (
        {
            "kind": "mtla",
            "streaming": {"chunk_size": 4, "left_chunks": 1, "dynamic_chunk_sizes": {"min": 3, "max": 3}},
        },
        "dynamic_chunk_sizes: min 3, max 3: sizes must be multiples of 2",
    ),
]


@pytest.mark.parametrize(("conf", "message"), WRONG)
def test_a_wrong_value_is_refused_with_its_key_and_what_is_valid(conf, message):
    with pytest.raises(ValueError, match=message):
        build(**conf)


def test_a_branchformer_that_pools_over_the_utterance_is_refused():
    with pytest.raises(ValueError, match="merge_method: learned_ave can't be used with streaming"):
        build("branchformer", merge_method="learned_ave")


def test_a_full_context_encoder_is_refused_with_the_key_that_it_lacks():
    with pytest.raises(ValueError, match="encoder_conf: streaming is missing"):
        build(streaming=None).stream()


@pytest.mark.parametrize(
    ("name", "kind", "position"), [("conformer", "mla", "rel_pos"), ("branchformer", "linear", "rope")]
)
def test_compiled_and_exported_encoders_see_the_same_chunks(name, kind, position):
    encoder, features, lengths = build(name, kind, position), torch.randn(2, 100, FEATURES), torch.tensor([100, 61])
    expected = at_once(encoder, features, [100, 61])
    torch.compiler.reset()
    assert_same(at_once(torch.compile(encoder, backend="aot_eager"), features, [100, 61]), expected)
    assert_same(at_once(torch.export.export(encoder, (features, lengths)).module(), features, [100, 61]), expected)

"""Look-ahead: what a chunk sees of the frames after it, that streaming equals the one pass, and caches as ever."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_streaming import CHOICES, ENCODERS, FEATURES, D, assert_same, at_once, build, piecewise

from espnet_mla.attention import Chunks, attention_context
from espnet_mla.convert.statistics import StatisticsAccumulator
from espnet_mla.models import chunked, distilled
from espnet_mla.models.streaming_conf import read

OFTEN = (
    ("conformer", "mla", "rel_pos"), ("branchformer", "mha", "rel_pos"), ("e_branchformer", "gqa", "rope"),
    ("transformer", "mla", "rope"),
)  # fmt: skip
AHEAD = [
    pytest.param(*choice.values, marks=() if choice.values in OFTEN else pytest.mark.slow)
    for choice in CHOICES
    if choice.values[1] in ("mha", "gqa", "mla")
]
LEFT = 2


def ahead(name="conformer", kind="mla", position="rel_pos", size=4, left=LEFT, look_ahead=3, **conf):
    streaming = {"chunk_size": size, "left_chunks": left, "look_ahead": look_ahead}
    return build(name, kind, position, streaming=streaming, **conf)


@pytest.mark.parametrize(("name", "kind", "position"), AHEAD)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_piece_by_piece_gives_what_one_pass_gives(name, kind, position, data):
    """Whatever the chunks, the look-ahead, the cuts, and the lengths of the streams side by side."""
    size, left = data.draw(st.sampled_from([1, 3, 4, 16])), data.draw(st.sampled_from([0, 1, 2, 7]))
    encoder = ahead(name, kind, position, size, left, data.draw(st.sampled_from([1, 2, 4, 7, 20])))
    lengths = data.draw(st.lists(st.integers(1, 120), min_size=1, max_size=3).filter(lambda all_: max(all_) > 6))
    cut = st.sampled_from([0, 1, 3, 17, 40])
    torch.manual_seed(1)
    features = torch.randn(len(lengths), max(lengths), FEATURES)
    ours = piecewise(encoder, features, lengths, lambda row: data.draw(cut) or 1 if row == 0 else data.draw(cut))
    assert_same(ours, at_once(encoder, features, lengths))


@pytest.mark.parametrize(("name", "kind", "position"), AHEAD)
def test_a_frame_depends_on_the_look_ahead_of_its_chunk_and_on_nothing_after(name, kind, position):
    """However many layers there are."""
    encoder = ahead(name, kind, position, num_blocks=4)
    rate, span = encoder.subsampling
    features = torch.randn(1, 19 * rate + span, FEATURES)
    (before,) = at_once(encoder, features, [features.shape[1]])
    for chunk in (0, 2):
        visible = ((chunk + 1) * 4 + 3 - 1) * rate + span
        changed = features.clone()
        changed[:, visible:] += 1
        (after,) = at_once(encoder, changed, [features.shape[1]])
        assert torch.equal(before[: (chunk + 1) * 4], after[: (chunk + 1) * 4])
        changed[:, visible - 1] += 1  # only the last frame of the look-ahead has it
        (after,) = at_once(encoder, changed, [features.shape[1]])
        assert not torch.allclose(before[chunk * 4], after[chunk * 4])


def test_without_left_context_a_chunk_is_what_it_would_be_with_nothing_but_its_look_ahead():
    """By the definition: each chunk is encoded as an utterance of its own frames and those after it."""
    encoder = ahead("transformer", "mha", "rope", size=4, left=0, look_ahead=3)
    rate, span = encoder.subsampling
    features = torch.randn(1, 17 * rate + span, FEATURES)  # 18 frames
    (ours,) = at_once(encoder, features, [features.shape[1]])
    whole = copy.deepcopy(encoder)
    whole.set_chunks(chunk_size=-1)
    expected = []
    for begin in range(0, 18, 4):
        part = features[:, begin * rate : (min(begin + 7, 18) - 1) * rate + span]
        (out,) = at_once(whole, part, [part.shape[1]])
        expected.append(out[:4])
    assert_same([ours], [torch.cat(expected)])


def test_the_first_chunk_is_encoded_as_the_frames_that_it_sees_are_without_chunks():
    encoder = ahead(size=5, look_ahead=4)
    rate, span = encoder.subsampling
    features = torch.randn(1, 30 * rate + span, FEATURES)
    (ours,) = at_once(encoder, features, [features.shape[1]])
    encoder.set_chunks(chunk_size=-1)
    (expected,) = at_once(encoder, features[:, : 8 * rate + span], [8 * rate + span])
    assert_same([ours[:5]], [expected[:5]])


@pytest.mark.parametrize("kind", ["mha", "mla"])
def test_the_caches_are_those_of_the_same_chunks_without_look_ahead(kind):
    encoder, features = ahead(kind=kind, size=4, look_ahead=6), torch.randn(2, 200, FEATURES)
    with_, without = encoder.stream(rows=2), encoder.stream(rows=2, look_ahead=0)
    for begin in range(0, 200, 20):
        for state in (with_, without):
            encoder.forward_chunk(features[:, begin : begin + 20], state)
    assert with_.chunks == Chunks(4, LEFT, 6) and without.chunks == Chunks(4, LEFT)
    assert with_.past == without.past == 4 * LEFT
    assert (with_.attention_nbytes, with_.convolution_nbytes) == (without.attention_nbytes, without.convolution_nbytes)


def test_frames_that_were_looked_ahead_are_not_subsampled_again():
    encoder, features, given = ahead(size=4, look_ahead=6), torch.randn(1, 203, FEATURES), []
    encoder.embed.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].shape[1]))
    state = encoder.stream()
    for begin in range(0, 203, 16):
        encoder.forward_chunk(features[:, begin : begin + 16], state, last=begin + 16 >= 203)
    rate, span = encoder.subsampling
    first, new = 9 * rate + span, 3 * rate + span  # features of ten frames, and of four
    # At the end are six and two frames, which have all been looked ahead, and so are made again.
    assert given == [first, *[new] * 10, 5 * rate + span, rate + span] and state.embedded is None


def test_streams_join_and_leave_a_batch_at_any_time():
    encoder, features = ahead(), torch.randn(3, 200, FEATURES)
    expected = at_once(encoder, features, [200, 200, 150])
    first, later = encoder.stream(rows=2), encoder.stream()
    outs = [[], [], []]

    def feed(state, rows, begin, end, last):
        frames, counts = encoder.forward_chunk(features[rows, begin:end], state, last=last)
        for row, out, count in zip(rows, frames, counts, strict=True):
            outs[row].append(out[:count])

    feed(first, [0, 1], 0, 90, False)
    feed(later, [2], 0, 90, False)
    joined = chunked.StreamState.join([first, later])
    feed(joined, [0, 1, 2], 90, 150, [False, False, True])
    feed(joined.select([1, 0]), [1, 0], 150, 200, True)
    assert_same([torch.cat(out) for out in outs], expected)


def test_look_ahead_is_set_for_inference_and_for_a_stream():
    encoder, features = ahead(look_ahead=3), torch.randn(1, 100, FEATURES)
    by_conf = at_once(encoder, features, [100])
    assert encoder.set_chunks(look_ahead=8) == Chunks(4, LEFT, 8)
    longer = at_once(encoder, features, [100])
    assert not torch.allclose(longer[0], by_conf[0], atol=1e-3)
    assert_same(piecewise(encoder, features, [100], lambda _: 9), longer)
    assert_same(piecewise(encoder, features, [100], lambda _: 9, encoder.stream(look_ahead=3)), by_conf)
    assert encoder.set_chunks(chunk_size=-1) == Chunks(-1, LEFT)  # where nothing is ahead


def test_training_draws_a_look_ahead_for_each_batch_and_validation_keeps_to_the_configurations():
    conf = {"chunk_size": 4, "left_chunks": 2, "look_ahead": 3}
    assert {read(conf).draw() for _ in range(20)} == {Chunks(4, 2, 3)}
    drawn = read(conf | {"dynamic_look_ahead": [0, 5], "dynamic_chunk_sizes": [4, 6, -1]})
    assert {drawn.draw() for _ in range(200)} == {
        Chunks(4, 2), Chunks(4, 2, 5), Chunks(6, 2), Chunks(6, 2, 5), Chunks(-1, 2)
    }  # fmt: skip
    assert drawn.chunks == Chunks(4, 2, 3)


@pytest.mark.parametrize(("name", "kind", "position"), AHEAD)
def test_every_parameter_is_trained_and_padding_changes_nothing(name, kind, position):
    encoder = ahead(name, kind, position, dropout_rate=0.0, positional_dropout_rate=0.0).train()
    features = torch.randn(2, 90, FEATURES)
    out, lengths, _ = encoder(features, torch.tensor([90, 40]))
    assert lengths.tolist() == [21, 9] and out.shape == (2, 21, D)
    (out[0] * torch.randn_like(out[0])).sum().backward()
    for name_, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name_
        if "linear_k.bias" not in name_ and "depthwise_conv.bias" not in name_:  # which softmax and norm take away
            assert parameter.grad.abs().max() > 0, name_
    encoder.eval()
    assert_same(at_once(encoder, features, [90, 40])[1:], at_once(encoder, features[1:, :40], [40]))


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_outputs_of_layers_between_are_of_the_same_frames(name):
    conf = {"interctc_layer_idx": [1]} if name != "branchformer" else {}
    encoder, features = ahead(name, position="rope", **conf), torch.randn(2, 100, FEATURES)
    with torch.no_grad():
        out, lengths, _ = encoder(features, torch.tensor([100, 80]))
    between = [one for _, one in out[1]] if isinstance(out, tuple) else []
    out = out[0] if isinstance(out, tuple) else out
    assert out.shape == (2, 24, D) and all(one.shape == out.shape for one in between)
    assert bool(between) == bool(conf) and lengths.tolist() == [24, 19]


@pytest.mark.parametrize("position", ["rel_pos", "rope"])
def test_calibration_sees_the_queries_and_keys_of_each_chunk(position):
    encoder, seen, outs = ahead(kind="mha", position=position, left=1), [], []
    attention = encoder.encoders[0].self_attn
    attention.register_forward_pre_hook(lambda _, inputs: seen.extend(attention_context().each(inputs[0])))
    attention.register_forward_hook(lambda _, inputs, out: outs.extend(attention_context().rows(out)))
    at_once(encoder, torch.randn(1, 50, FEATURES), [50])  # 11 frames: the last chunk has 3, the one before 3 ahead
    assert [(query.shape[1], key.shape[1]) for query, key, _ in seen] == [(7, 7), (7, 11), (3, 7)]
    with torch.no_grad():
        for (query, key, place), out in zip(seen, outs, strict=True):
            alone = attention.attend(query, attention.project_kv(key), place, None)
            assert_same(alone, out[None, : query.shape[1]])
            at = None if place is None else place.double()
            _, weights = StatisticsAccumulator(attention).attend(query[0].double(), key[0].double(), at, None)
            values = attention.linear_v(key[0]).unflatten(-1, (4, -1)).transpose(0, 1)
            counted = attention.linear_out((weights.float() @ values).transpose(0, 1).flatten(-2))
            assert_same(alone, counted[None])


def test_distillation_compares_the_frames_of_blocks_without_copies():
    encoder, features = ahead(), torch.randn(2, 50, FEATURES)
    with distilled._outputs(encoder.encoders) as blocks:
        (out, *_) = encoder(features, torch.tensor([50, 50]))
    assert [block.shape for block in blocks] == [out.shape] * 2
    torch.testing.assert_close(encoder.after_norm(blocks[-1]), out)


WRONG = [
    ({"look_ahead": -1}, "streaming: look_ahead: -1 must be a number of encoder frames"),
    ({"look_ahead": 2.5}, "streaming: look_ahead: 2.5 must be a number of encoder frames"),
    ({"look_ahead": True}, "streaming: look_ahead: True must be a number"),
    ({"look_ahead": 4, "left_chunks": -1}, "look_ahead: 4 needs a number of left_chunks, not -1"),
    ({"dynamic_look_ahead": 4}, "dynamic_look_ahead: 4 must be a list of numbers of frames"),
    ({"dynamic_look_ahead": []}, r"dynamic_look_ahead: \[\] must be a list"),
    ({"dynamic_look_ahead": [0, "4"]}, "dynamic_look_ahead: '4' must be a number of encoder frames"),
    ({"dynamic_look_ahead": [0, 4], "left_chunks": -1}, "dynamic_look_ahead: 4 needs a number of left_chunks"),
]


@pytest.mark.parametrize(("conf", "message"), WRONG)
def test_a_wrong_value_is_refused_with_its_key_and_what_is_valid(conf, message):
    with pytest.raises(ValueError, match=message):
        build(streaming={"chunk_size": 4, "left_chunks": 2} | conf)


@pytest.mark.parametrize("kind", ["linear", "mtla"])
def test_an_attention_that_cannot_look_ahead_says_which_can(kind):
    left = -1 if kind == "linear" else 2
    conf = {"chunk_size": 4, "left_chunks": left, "look_ahead": 4}
    with pytest.raises(ValueError, match=f"look_ahead: 4: {kind} can't look ahead; mha, gqa, mla can"):
        build(kind=kind, position="rope", streaming=conf)


@pytest.mark.parametrize("position", ["rel_pos", "rope"])
def test_a_replica_of_data_parallel_training_which_has_no_parameters_looks_ahead(position, monkeypatch):
    encoder, features = ahead(position=position), torch.randn(1, 60, FEATURES)
    expected = at_once(encoder, features, [60])
    monkeypatch.setattr(encoder, "parameters", lambda *_: iter(()))
    assert_same(at_once(encoder, features, [60]), expected)


@pytest.mark.slow
def test_a_compiled_encoder_sees_the_same():
    encoder, features = ahead(), torch.randn(2, 100, FEATURES)
    expected = at_once(encoder, features, [100, 61])
    torch.compiler.reset()
    assert_same(at_once(torch.compile(encoder, backend="aot_eager"), features, [100, 61]), expected)

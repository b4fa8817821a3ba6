"""Caches in fewer bytes: codes by their definition, any cache in any type, and what a user sees of it."""

import contextlib
import shutil

import numpy as np
import pytest
import torch
from experiment import DECODING, add_variant, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoder import CHOICES as DECODERS
from test_decoder import VOCABULARY, chosen
from test_decoder import D as WIDTH
from test_streaming import CHOICES, FEATURES, build, piecewise

import espnet_mla
from espnet_mla import StreamingSpeech2Text, StreamPool
from espnet_mla.attention import CACHE_TYPES, FrameCache, RunningState, TokenTree
from espnet_mla.attention.cache_types import BITS, GROUP, dequantise, quantise
from espnet_mla.common.errors import UsageError, UserError
from espnet_mla.measure import profile
from espnet_mla.models.chunked import StreamState
from espnet_mla.streaming import command as stream_command
from espnet_mla.trained import transcribe
from espnet_mla.trained.inference import take_options

SPEECH = 16000


def _group(place, size):
    return slice(place // size * size, (place // size + 1) * size)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.sampled_from(sorted(BITS.values())), st.integers(0, 99), st.floats(-6, 6))
def test_a_number_is_its_code_times_the_scale_of_its_group(width, bits, seed, magnitude):
    torch.manual_seed(seed)
    x = torch.randn(2, 3, width) * 10**magnitude
    kept = quantise(x, bits)
    groups = -(-width // GROUP[bits])
    step = 16 // bits
    size = -(-width // (groups * step)) * step
    assert kept.dtype == torch.int8 and kept.shape == (2, 3, groups * size * bits // 8 + 2 * groups)
    scales = kept[..., -2 * groups :].view(torch.bfloat16)
    found = dequantise(kept, width, bits, torch.float32)
    largest = 2 ** (bits - 1) - 1
    for place, number in np.ndenumerate(x.numpy()):
        scale = scales[place[0], place[1], place[2] // size].item()
        code = found[place].item() / scale
        assert scale <= 1.02 * abs(x[place[:2]][_group(place[2], size)]).max() / largest, "no larger than need be"
        assert code == pytest.approx(round(code), abs=1e-3) and abs(round(code)) <= largest
        assert abs(found[place].item() - number) <= 0.501 * scale, "the nearest code"


@pytest.mark.parametrize("bits", BITS.values())
def test_zeros_stay_zeros_and_what_is_no_number_stays_none(bits):
    x = torch.randn(4, 70)
    x[0], x[1, 3], x[2, 5] = 0, float("nan"), float("inf")
    found = dequantise(quantise(x, bits), 70, bits, x.dtype)
    assert not found[0].any() and found[3].isfinite().all()
    for row, place in ((1, 3), (2, 5)):
        assert not found[row, place].isfinite() and found[row, -20:].isfinite().all()


@pytest.mark.parametrize("name", CACHE_TYPES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_kept_cache_is_appended_to_cut_and_joined_as_one_that_is_kept_later(name, data):
    """What is done to a cache does not change what it has kept: no rounding upon rounding."""
    widths = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=2))
    heads = data.draw(st.integers(1, 3))

    def frames(rows):
        time = data.draw(st.integers(0, 5))
        return FrameCache(tuple(torch.randn(rows, heads, time, width) for width in widths))

    rows = data.draw(st.integers(1, 3))
    plain, more, other = frames(rows), frames(rows), frames(2)
    kept = plain.stored_as(name)
    for one, expected in (
        (kept.append(more), plain.append(more)),
        (kept.append(more).keep_last(3), plain.append(more).keep_last(3)),
        (kept.select(torch.tensor([rows - 1, 0])), plain.select(torch.tensor([rows - 1, 0]))),
        (FrameCache.join([kept, other.stored_as(name)]), FrameCache.join([plain, other])),
    ):
        for value, right in zip(one.values(), expected.stored_as(name).values(), strict=True):
            assert torch.equal(value, right) and value.dtype == torch.float32
        assert one.nbytes == sum(tensor.nbytes for tensor in one.tensors)
        assert one.nbytes == one.nbytes_per_frame * len(one) * one.rows


def test_a_cache_of_one_type_is_not_taken_for_another():
    torch.manual_seed(0)
    cache = FrameCache((torch.randn(1, 4, 8),))
    for wrong in (
        lambda: cache.stored_as("int8").append(cache.stored_as("int4")),
        lambda: cache.append(cache.stored_as("int8")),
        lambda: cache.stored_as("int8").stored_as("bfloat16"),
    ):
        with pytest.raises(ValueError, match=r"cache_dtype: .*: this cache is kept in "):
            wrong()
    with pytest.raises(ValueError, match="caches of one batch"):
        FrameCache.join([cache, cache.stored_as("int8")])


@pytest.mark.parametrize("rotated", [False, True])
def test_sums_in_two_bytes_go_on_growing_and_are_the_same_in_every_row(rotated):
    """Each term is less than a rounding step of the sum: rounded to the nearest, it would be lost."""
    torch.manual_seed(0)
    one = RunningState(torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 16), 0, rotated)
    plain, kept = (state.select(torch.tensor([0, 0])) for state in (one, one.stored_as("bfloat16")))
    for _ in range(3000):
        new = torch.rand(1, 4, 16, 16) + 0.5
        term = RunningState(new, new.sum(-1), 16, rotated).select(torch.tensor([0, 0]))
        plain, kept = plain.append(term), kept.append(term)
    (sums, total), (expected, expected_total) = kept.values(), plain.values()
    assert torch.equal(total, expected_total) and torch.equal(sums[0], sums[1]) and len(kept) == 3000 * 16
    assert sums.dtype == torch.float32 and kept.numerator.dtype == torch.bfloat16
    assert (sums - expected).norm() < 0.1 * expected.norm(), "each is in error by some steps of rounding"
    assert abs((sums - expected).mean()) < 0.01 * expected.abs().mean(), "by none on average"
    for name in BITS:
        with pytest.raises(ValueError, match=f"cache_dtype: {name}: linear attention keeps running sums, in float32"):
            one.stored_as(name)


TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-3, "int8": 2e-3, "int4": 9e-3}
"""Relative; caches of zeros are further off than that of int4, in each of the cases."""


@pytest.mark.parametrize(
    "cache_dtype", [pytest.param(name, marks=() if name in BITS else pytest.mark.slow) for name in CACHE_TYPES]
)
@pytest.mark.parametrize(("name", "kind", "position"), CHOICES)
def test_streams_with_small_caches_are_near_those_with_large_ones(name, kind, position, cache_dtype):
    encoder = build(name, kind, position)
    for parameter in encoder.parameters():  # in which one frame does not decide all
        parameter.data *= 0.5
    lengths, features = [150, 90], torch.randn(2, 150, FEATURES)
    if kind == "linear" and cache_dtype in BITS:
        with pytest.raises(ValueError, match=f"cache_dtype: {cache_dtype}: linear attention keeps running sums"):
            encoder.stream(cache_dtype=cache_dtype)
        return
    state = encoder.stream(rows=2, cache_dtype=cache_dtype)
    ours = piecewise(encoder, features, lengths, lambda row: 20 + 7 * row, state)
    expected = piecewise(encoder, features, lengths, lambda _: 30)
    for one, other in zip(ours, expected, strict=True):
        assert (one - other).norm() / other.norm() < TOLERANCE[cache_dtype]
    plain = encoder.stream(rows=2)
    encoder.forward_chunk(features, plain)
    factor = {"float32": 1, "bfloat16": 2, "int8": 2, "int4": 2}[cache_dtype]  # or more, of rows as short as these
    if name != "transformer":  # which has none
        assert 0 < state.convolution_nbytes * factor <= plain.convolution_nbytes
    if kind != "linear":
        assert 0 < state.attention_nbytes * factor <= plain.attention_nbytes
    # A row alone has the same caches as in a batch.
    alone = encoder.stream(cache_dtype=cache_dtype)
    (single,) = piecewise(encoder, features[1:, :90], [90], lambda _: 27, alone)
    if kind != "linear":  # whose rounding depends on how the frames come in
        torch.testing.assert_close(single, ours[1], rtol=1e-3, atol=1e-3)


def test_a_stream_that_went_on_in_mixed_precision_joins_one_that_did_not():
    encoder = build()
    features, streams = torch.randn(1, 40, FEATURES), [encoder.stream(cache_dtype="int8") for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        encoder.forward_chunk(features, streams[0])
    both = StreamState.join(streams)
    encoder.forward_chunk(features.repeat(2, 1, 1), both)
    assert both.frames[0] > both.frames[1] > 0


def test_states_of_two_types_are_not_joined():
    encoder = build()
    with pytest.raises(ValueError, match="cache_dtype: 'int7': valid are float32, bfloat16, int8, int4"):
        encoder.stream(cache_dtype="int7")
    with pytest.raises(ValueError, match="same cache_dtype, but here are None and int8"):
        StreamState.join([encoder.stream(), encoder.stream(cache_dtype="int8")])


@pytest.mark.parametrize("cache_dtype", CACHE_TYPES)
@pytest.mark.parametrize(("kind", "options"), DECODERS)
def test_a_decoder_scores_nearly_the_same_from_small_caches(kind, options, cache_dtype):
    torch.manual_seed(1)
    decoder, x = chosen(kind, options), torch.randn(2, 30, WIDTH)
    tokens = torch.randint(0, VOCABULARY, (6, 25))

    def scores():
        state, found = decoder.batch_init_state(x), []
        for length in range(1, 25):
            out, state = decoder.batch_score(tokens[:, :length], state, x.repeat_interleave(3, 0))
            found.append(out)
            if length % 7 == 0:
                best = torch.tensor([[1, 0, 2], [2, 2, 0]])
                state = decoder.batch_select_state(state, best * VOCABULARY)
                tokens.copy_(tokens.view(2, 3, -1).take_along_dim(best.unsqueeze(-1), 1).flatten(0, 1))
        return torch.stack(found)

    before = tokens.clone()
    expected, large = scores(), decoder.cache_bytes
    tokens.copy_(before)
    decoder.cache_dtype = cache_dtype
    assert (scores() - expected).abs().mean() < {"float32": 1e-6, "bfloat16": 1e-3, "int8": 1e-3, "int4": 5e-3}[
        cache_dtype
    ]
    small = decoder.cache_bytes
    factor = {"float32": 1, "bfloat16": 2, "int8": 4 * 4 / 6, "int4": 4}[cache_dtype]  # heads of four numbers
    assert all(few * factor <= many + 1 for few, many in zip(small, large, strict=True))


def test_a_tree_that_is_made_anew_keeps_the_type():
    tree = TokenTree(cache_dtype="int8")
    held = torch.zeros(1, 1, 0).bool()
    for length in range(20):
        tree, held = tree.prepared(held, 1, length)
        held, _ = tree.seen(held)
        tree.append(0, FrameCache((torch.randn(1, 1, 8),)))
        tree.advance(1)
    (cache,) = tree.trimmed()
    assert cache.nbytes == 20 * (8 + 2) and cache.values()[0].shape == (1, 20, 8)


@pytest.fixture(scope="module")
def model(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("types") / "recipe"
    shutil.copytree(recipe, folder, symlinks=True)
    with contextlib.chdir(folder):
        add_variant("streaming", streaming={"chunk_size": 4, "left_chunks": 2})
    return folder / "exp/asr_streaming"


def test_a_stream_counts_what_it_keeps_of_the_encoders_output_too(model, recipe):
    held = {}
    for name in (None, *CACHE_TYPES):
        recogniser = StreamingSpeech2Text(model, cache_dtype=name)
        recogniser.accept(samples(recipe))
        state, stream = recogniser.stream.state, recogniser.stream
        held[name] = stream.nbytes - state.features_nbytes - stream._features.nbytes
        assert state.cache_dtype == name and recogniser.finish().final
    assert held[None] == held["float32"] > 1.9 * held["bfloat16"] > 3.3 * held["int8"] > 5 * held["int4"]


def test_what_from_pretrained_was_told_holds_for_streams_and_decoding(model):
    speech2text = espnet_mla.from_pretrained(model, cache_dtype="int8", **DECODING)
    assert StreamPool(speech2text).open().state.cache_dtype == "int8"
    assert StreamPool(speech2text, cache_dtype="int4").open().state.cache_dtype == "int4"
    assert speech2text.asr_model.decoder.cache_dtype == "int8"


def test_a_wrong_type_is_named(model):
    for make in (espnet_mla.from_pretrained, StreamPool):
        with pytest.raises(ValueError, match="cache_dtype: 'int7': valid are float32, bfloat16, int8, int4"):
            make(model, cache_dtype="int7")
    with pytest.raises(UsageError, match="cache_dtype: 'half': valid are"):
        take_options(["--cache_dtype", "half"])


def test_a_stream_that_comes_to_no_number_is_closed_with_one_line_and_the_others_go_on(model):
    pool = StreamPool(model, cache_dtype="int8")
    broken, whole = pool.open(), pool.open()
    rng = np.random.default_rng(0)
    for _ in range(2):
        for stream in (broken, whole):
            stream.accept(rng.uniform(-0.1, 0.1, SPEECH).astype(np.float32))
        while pool.advance():
            pass
    cache = next(iter(broken.state.attention.values()))
    with torch.inference_mode():
        cache.tensors[0].fill_(-1)  # as a scale not a number
    for stream in (broken, whole):
        stream.accept(rng.uniform(-0.1, 0.1, SPEECH).astype(np.float32))
    with pytest.raises(UserError, match=r"not numbers \(NaN\); it is closed"):
        pool.advance()
    whole.finish()
    while pool.advance():
        pass
    assert broken.closed and whole.result.final


def test_after_such_an_error_a_recogniser_begins_anew(model, recipe):
    recogniser, other = (StreamingSpeech2Text(model, cache_dtype="int8") for _ in range(2))
    for _ in range(2):
        recogniser.accept(samples(recipe)[:8000])
    with torch.inference_mode():
        next(iter(recogniser.stream.state.attention.values())).tensors[0].fill_(-1)
    with pytest.raises(UserError, match="it is closed"):
        recogniser.accept(samples(recipe)[:8000])
    for one in (recogniser, other):
        one.accept(samples(recipe))
    assert recogniser.finish().tokens == other.finish().tokens


def test_what_is_no_number_stays_none_in_a_sum():
    state = RunningState(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2), 0, False).stored_as("bfloat16")
    quiet = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0]).view(1, 1, 2, 2)
    quiet.view(torch.int32)[0, 0, 0, 0] = 0x7FFFFFFF  # as CUDA writes it
    found = state.append(RunningState(quiet, torch.ones(1, 1, 2), 4, False)).values()[0].flatten()
    assert found[0].isnan() and found.tolist()[1:] == [float("inf"), -float("inf"), 1.0]


def test_the_commands_take_it(model, recipe, capsys, monkeypatch):
    monkeypatch.chdir(model.parent.parent)
    assert stream_command.main([str(model), "speech.flac", "--cache_dtype", "int8"]) == 0
    more = ("--maxlenratio", "0.2", "--device", "cpu", "--cache_dtype")
    assert transcribe.main([str(model), "speech.flac", *more, "int4"]) == 0
    assert capsys.readouterr().out.startswith("speech.flac\t")
    for main, arguments in (
        (stream_command.main, [str(model), "speech.flac", "--cache_dtype", "int7"]),
        (transcribe.main, [str(model), "speech.flac", *more, "int7"]),
        (profile.main, ["--model_tag", str(model), "--cache_dtype", "int7"]),
    ):
        with contextlib.suppress(SystemExit):
            assert main(arguments)
        assert "cache_dtype: 'int7': valid are float32, bfloat16, int8, int4" in capsys.readouterr().err

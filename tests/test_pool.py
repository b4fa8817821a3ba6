"""Streams: the same text and the same times however the samples arrive, alone or in a pool."""

import contextlib
import copy
import random
import shutil

import numpy as np
import pytest
import soxr
import torch
import yaml
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from experiment import add_model, add_variant, samples

import espnet_mla
from espnet_mla import StreamingSpeech2Text, StreamPool
from espnet_mla.common.errors import UsageError
from espnet_mla.measure import streaming
from espnet_mla.streaming.search import PrefixBeam

CHUNK = 4
SPEECH = 16000


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    """A recipe's folder in which models may be made."""
    folder = tmp_path_factory.mktemp("streaming") / "recipe"
    shutil.copytree(recipe, folder, symlinks=True)
    return folder


@pytest.fixture(scope="module")
def make(folder):
    """Makes a tiny streaming model with random weights, and gives ESPnet's Speech2Text of it."""

    def make(tag, changed=None, left_chunks=2, **encoder_conf):
        config = folder / f"exp/asr_{tag}/config.yaml"
        with contextlib.chdir(folder):
            add_variant(tag, streaming={"chunk_size": CHUNK, "left_chunks": left_chunks}, **encoder_conf)
            if changed:
                config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | changed))
                (config.parent / "valid.acc.ave.pth").unlink()
                add_model(config.parent)
        return espnet_mla.from_pretrained(config.parent, beam_size=2, maxlenratio=0.2)

    return make


@pytest.fixture(scope="module")
def speech2text(make):
    return make("streaming")


@pytest.fixture(scope="module")
def speech(recipe):
    return samples(recipe)


def noise(seconds, seed=0):
    return (0.2 * np.random.default_rng(seed).standard_normal(round(seconds * SPEECH))).astype(np.float32)


def in_pieces(recogniser, speech, sizes):
    results, at = [], 0
    while at < len(speech):
        size = next(sizes)
        results.append(recogniser.accept(speech[at : at + size]))
        at += size
    return [result for result in results if result], recogniser.finish()


def sizes(*choices, seed=0):
    rng = random.Random(seed)
    return iter(lambda: rng.choice(choices), None)


def encoded(speech2text, speech):
    """The encoder's output for the whole utterance, in the configuration's chunks."""
    model = speech2text.asr_model
    with torch.no_grad():
        return model.encode(torch.from_numpy(speech).unsqueeze(0), torch.tensor([len(speech)]))[0][0]


def same(result, other):
    return (result.tokens, result.times, result.final) == (other.tokens, other.times, other.final) and (
        result.score == pytest.approx(other.score, rel=1e-4)
    )


@pytest.mark.parametrize("choices", [(1,), (7, 50, 4000), (1600,), (123456789,)])
def test_however_the_samples_arrive_the_result_is_that_of_one_pass_of_the_encoder(speech2text, speech, choices):
    recogniser = StreamingSpeech2Text(speech2text, beam_size=4, final_search="ctc")
    _, final = in_pieces(recogniser, speech, sizes(*choices))
    frames = encoded(speech2text, speech)
    beam = PrefixBeam(4)
    with torch.no_grad():
        beam.extend(speech2text.asr_model.ctc.log_softmax(frames.unsqueeze(0))[0])
    prefix, score = beam.best[0]
    best = beam.hypothesis(prefix)
    assert final.final and final.tokens, "a test that compares empty texts would say little"
    assert final.tokens == speech2text.converter.ids2tokens(best.tokens)
    assert final.times == [pytest.approx(0.04 * frame) for frame in best.frames]
    assert final.score == pytest.approx(score, rel=1e-4)


def test_text_grows_chunk_by_chunk_and_the_last_is_final(speech2text, speech):
    recogniser = StreamingSpeech2Text(speech2text)
    partial, final = in_pieces(recogniser, speech, sizes(1600))
    chunks = encoded(speech2text, speech).shape[0] // CHUNK
    assert len(partial) == chunks and not any(result.final for result in partial)
    assert [len(result.tokens) for result in partial] != [0] * chunks
    assert final.final and final.text == " ".join(final.text.split())


def test_there_is_no_new_result_before_a_chunk_is_complete(speech2text, speech):
    recogniser = StreamingSpeech2Text(speech2text)
    needed = (CHUNK * 4 + 3 - 1) * 160 + 256  # features that the chunk's last frame sees, and half a window
    assert recogniser.accept(speech[: needed - 1]) is None
    assert recogniser.accept(speech[needed - 1 : needed]) is not None


def test_the_final_text_is_that_of_espnets_search_with_times_of_its_words(speech2text, speech):
    recogniser = StreamingSpeech2Text(speech2text)
    partial, final = in_pieces(recogniser, speech, sizes(1600))
    text, tokens, _, hypothesis = speech2text(speech)[0]
    assert final.tokens == tokens and final.text == text != ""
    assert final.score == pytest.approx(float(hypothesis.score), rel=1e-4)
    assert all(result.words is None for result in partial)
    assert [word.text for word in final.words] == text.split()
    moments = [moment for word in final.words for moment in (word.start, word.end)]
    assert moments == sorted(moments) and moments[0] >= 0 and moments[-1] <= len(speech) / SPEECH
    assert all(0 < word.confidence <= 1 for word in final.words) and final.times == sorted(final.times)


def test_by_its_name_a_model_is_searched_with_the_options_of_the_stream(speech2text, folder, speech):
    name = folder / "exp/asr_streaming"
    recogniser = StreamingSpeech2Text(name, beam_size=3, ctc_weight=0.6, maxlenratio=0.2, device="cpu")
    recogniser.accept(speech)
    expected = espnet_mla.from_pretrained(name, beam_size=3, ctc_weight=0.6, maxlenratio=0.2, device="cpu")(speech)
    assert recogniser.finish().tokens == expected[0][1]


def test_where_ctc_cannot_spell_what_was_found_the_text_is_ctcs(speech2text, speech, monkeypatch):
    by_ctc, recogniser = StreamingSpeech2Text(speech2text, final_search="ctc"), StreamingSpeech2Text(speech2text)
    monkeypatch.setattr("espnet_mla.streaming.model.StreamingModel.search", lambda *_: ([5] * 100, 0.0))
    for one in (by_ctc, recogniser):
        one.accept(speech)
    assert same(recogniser.finish(), by_ctc.finish())


def test_the_rescored_text_is_the_hypothesis_that_ctc_and_decoder_together_score_best(speech2text, speech):
    weight = 0.4
    recogniser = StreamingSpeech2Text(speech2text, beam_size=6, ctc_weight=weight, final_search="rescore")
    recogniser.accept(speech)
    beam = recogniser.stream._beam
    final = recogniser.finish()
    model, frames = speech2text.asr_model, encoded(speech2text, speech)
    expected = {}
    for prefix, ctc in beam.best:
        tokens = torch.tensor(beam.hypothesis(prefix).tokens)
        given = torch.cat((torch.tensor([model.sos]), tokens)).unsqueeze(0)
        with torch.no_grad():
            out, _ = model.decoder(
                frames.unsqueeze(0), torch.tensor([len(frames)]), given, torch.tensor([given.shape[1]])
            )
        target = torch.cat((tokens, torch.tensor([model.eos])))
        decoder = out.log_softmax(-1)[0, torch.arange(len(target)), target].sum()
        expected[tuple(tokens.tolist())] = weight * ctc + (1 - weight) * float(decoder)
    best = max(expected, key=expected.get)
    assert len(expected) == 6
    assert final.tokens == speech2text.converter.ids2tokens(list(best))
    assert final.score == pytest.approx(expected[best], rel=1e-4)


LINEAR = {"attention_layer_type": "linear", "attention_conf": {}, "pos_enc_layer_type": "rope"}
CONFORMER = {
    "encoder": "conformer",
    "encoder_conf": {
        "output_size": 32, "attention_heads": 2, "num_blocks": 2, "linear_units": 32, "cnn_module_kernel": 7,
        "selfattention_layer_type": "gqa", "pos_enc_layer_type": "rope", "streaming": {"chunk_size": 3, "left_chunks": 4},
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=["mla", "linear", "conformer"])
def kind(request, make, speech2text):
    """Models of several kinds."""
    if request.param == "mla":
        return speech2text
    return make("linear", left_chunks=-1, **LINEAR) if request.param == "linear" else make("conformer", CONFORMER)


def test_streams_that_join_and_leave_at_any_time_have_the_results_of_streams_alone(kind, speech):
    speech2text = kind
    utterances = [speech, noise(0.9, 1), noise(2.1, 2), noise(0.02, 3), noise(1.3, 4), noise(0.5, 5)]
    alone = []
    for one in utterances:
        recogniser = StreamingSpeech2Text(speech2text, beam_size=3)
        recogniser.accept(one)
        alone.append(recogniser.finish())
    rng = random.Random(0)
    pool = StreamPool(speech2text, beam_size=3)
    streams, at, batches = {}, {}, []
    waiting = list(range(len(utterances)))
    while waiting or pool.streams:
        if waiting and rng.random() < 0.3:
            number = waiting.pop(0)
            streams[number], at[number] = pool.open(), 0
        for number, stream in streams.items():
            if stream in pool.streams and rng.random() < 0.7:
                size = rng.choice([100, 1600, 5000])
                stream.accept(utterances[number][at[number] : at[number] + size])
                at[number] += size
                if at[number] >= len(utterances[number]):
                    stream.finish()
                    while stream in pool.streams and rng.random() < 0.5:
                        batches.append(len(pool.advance()))
                    if stream in pool.streams:
                        while pool.advance():
                            pass
        batches.append(len(pool.advance()))
    assert max(batches) > 1, "no two streams were in one batch"
    for number, expected in enumerate(alone):
        assert same(streams[number].result, expected), number


def test_a_stream_that_is_closed_in_mid_chunk_leaves_the_pool(speech2text, speech):
    pool = StreamPool(speech2text)
    gone, other = pool.open(), pool.open()
    for piece in np.array_split(speech, 5)[:3]:
        gone.accept(piece)
        other.accept(piece)
        pool.advance()
    gone.accept(speech[:100])
    held = pool.nbytes
    gone.close()
    assert pool.streams == [other] and pool.nbytes < 0.7 * held
    assert not gone.result.final
    with pytest.raises(ValueError, match="this stream has ended"):
        gone.accept(speech)
    for piece in np.array_split(speech, 5)[3:]:
        other.accept(piece)
    other.finish()
    while pool.advance():
        pass
    alone = StreamingSpeech2Text(speech2text)
    alone.accept(speech)
    assert same(other.result, alone.finish())


def test_an_empty_stream_has_an_empty_text(speech2text, speech):
    recogniser = StreamingSpeech2Text(speech2text)
    for empty in ([], [np.zeros(0, np.float32)], [speech[:100]], [speech[:700]]):
        for samples_ in empty:
            assert recogniser.accept(samples_) is None
        result = recogniser.finish()
        assert (result.text, result.tokens, result.times, result.final) == ("", [], [], True)
    recogniser.accept(speech)
    assert recogniser.finish().tokens, "a stream after an empty one is a stream as any other"


def test_what_is_accepted_after_the_end_is_another_stream(speech2text, speech):
    recogniser = StreamingSpeech2Text(speech2text)
    recogniser.accept(speech)
    first = recogniser.finish()
    recogniser.accept(speech)
    assert same(recogniser.finish(), first) and len(recogniser.pool.streams) == 1


def test_minutes_of_silence_take_no_more_memory_than_seconds_of_it(speech2text):
    recogniser = StreamingSpeech2Text(speech2text, final_search="ctc")
    held = []
    for _ in range(130):
        recogniser.accept(np.zeros(SPEECH, np.float32))
        held.append(recogniser.stream.state.attention_nbytes + recogniser.stream.state.convolution_nbytes)
    assert len(set(held[3:])) == 1
    assert recogniser.stream.nbytes < held[-1] + 50_000
    assert recogniser.finish().final


def test_the_encoders_output_that_waits_for_the_final_search_is_counted(speech2text, speech):
    searched, by_ctc = StreamingSpeech2Text(speech2text), StreamingSpeech2Text(speech2text, final_search="ctc")
    for recogniser in (searched, by_ctc):
        recogniser.accept(speech)
    frames = encoded(speech2text, speech).shape[0] // CHUNK * CHUNK
    assert searched.stream.nbytes - by_ctc.stream.nbytes == frames * 32 * 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.full(10, np.nan, np.float32), "sample 0 of 10 is nan, not a finite number"),
        (np.array([0.0, np.inf]), "sample 1 of 2 is inf"),
        (np.zeros((100, 2), np.float32), r"samples of shape \(100, 2\): one channel"),
        (np.array([1e300]), "sample 0 of 1 is inf"),
        (np.array([0.0, 20000.0]), "samples reach 20000: floating-point ones are from -1 to 1"),
        (np.zeros(10, np.int32), "samples of int32: floating-point numbers from -1 to 1 or int16"),
    ],
)
def test_invalid_samples_are_refused_and_the_stream_goes_on_as_if_they_had_not_been_given(
    speech2text, speech, wrong, message
):
    recogniser = StreamingSpeech2Text(speech2text)
    recogniser.accept(speech)
    expected = recogniser.finish()
    recogniser.accept(speech[:9000])
    with pytest.raises(ValueError, match=message):
        recogniser.accept(wrong)
    recogniser.accept(speech[9000:])
    assert same(recogniser.finish(), expected)


def test_16_bit_integers_are_the_same_as_their_floating_point_values(speech2text, speech):
    integers = (speech * 32768).astype(np.int16)
    recogniser = StreamingSpeech2Text(speech2text)
    recogniser.accept(integers)
    first = recogniser.finish()
    recogniser.accept(torch.from_numpy(integers.astype(np.float32) / 32768).requires_grad_())
    assert same(recogniser.finish(), first)


def test_audio_of_another_rate_is_resampled_as_it_arrives(speech2text, speech):
    slower = soxr.resample(speech, 16000, 8000)
    back = soxr.resample(slower, 8000, 16000)
    recogniser = StreamingSpeech2Text(speech2text, final_search="ctc")
    recogniser.accept(back)
    expected = recogniser.finish()
    resampled = StreamingSpeech2Text(speech2text, final_search="ctc", fs=8000)
    partial, final = in_pieces(resampled, slower, sizes(1, 100, 1600))
    assert partial and final.tokens == expected.tokens
    assert final.score == pytest.approx(expected.score, rel=1e-2)


def test_look_ahead_waits_for_the_frames_after_a_chunk_and_is_what_one_pass_gives(speech2text, speech):
    recogniser = StreamingSpeech2Text(speech2text, look_ahead=6, final_search="ctc")
    model = recogniser.pool.model
    samples_of_a_frame = 640
    for begin in range(0, len(speech), samples_of_a_frame):
        recogniser.accept(speech[begin : begin + samples_of_a_frame])
        assert recogniser.stream.frames * samples_of_a_frame <= max(0, begin + samples_of_a_frame - 6 * 640)
    found = recogniser.finish()
    encoder = speech2text.asr_model.encoder
    try:
        encoder.set_chunks(look_ahead=6)
        log_probs = model.ctc_log_probs(encoded(speech2text, speech)[None])[0]
    finally:
        encoder.set_chunks()
    beam = PrefixBeam(model.beam_size)
    beam.extend(log_probs.detach())
    assert found.tokens == model.tokens(beam.hypothesis(beam.best[0][0]).tokens)
    assert found.score == pytest.approx(beam.best[0][1], rel=1e-4)


def test_a_stream_is_measured_with_full_caches_however_far_it_looks_ahead(speech2text, speech, monkeypatch):
    monkeypatch.setattr(streaming.speed, "measure_time", lambda *_: {})
    found = []
    try:
        for ahead in (0, 1, 5 * CHUNK):
            speech2text.asr_model.encoder.set_chunks(look_ahead=ahead)
            found.append(streaming.figures(speech2text, [torch.from_numpy(speech)], "cpu"))
    finally:
        speech2text.asr_model.encoder.set_chunks()
    assert len({figures["attention_bytes"] for figures in found}) == 1 and found[0]["attention_bytes"] > 0
    assert [figures["look_ahead"] for figures in found] == [0, 1, 5 * CHUNK]


def test_chunks_can_differ_from_the_configurations(speech2text, speech):
    encoder = speech2text.asr_model.encoder
    recogniser = StreamingSpeech2Text(speech2text, chunk_size=8, left_chunks=1, final_search="ctc")
    _, final = in_pieces(recogniser, speech, sizes(1600))
    whole = StreamingSpeech2Text(speech2text, chunk_size=-1, final_search="ctc")
    nothing, at_once = in_pieces(whole, speech, sizes(1600))
    assert nothing == []
    for result, chunks in ((final, (8, 1)), (at_once, (-1, None))):
        encoder.set_chunks(*chunks)
        beam = PrefixBeam(20)
        with torch.no_grad():
            beam.extend(speech2text.asr_model.ctc.log_softmax(encoded(speech2text, speech).unsqueeze(0))[0])
        assert result.score == pytest.approx(beam.best[0][1], rel=1e-4)
    encoder.set_chunks()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size: 0: a whole number of at least 1 is needed"),
        ({"ctc_weight": 1.5}, "ctc_weight: 1.5: a finite number from 0 to 1 is needed"),
        ({"chunk_size": 0}, "chunk_size: 0 must be a number of encoder frames"),
        ({"left_chunks": -2}, "left_chunks: -2 must be a number of chunks"),
        ({"device": "cuda"}, "device: not an option of a model that is loaded already"),
    ],
)
def test_a_wrong_option_is_named(speech2text, options, message):
    with pytest.raises(ValueError, match=message):
        StreamPool(speech2text, **options)


@pytest.mark.parametrize("fs", [0, -1, 1, 15000.5, True, 10**9, "16 kHz"])
def test_an_invalid_sampling_rate_is_refused(speech2text, fs):
    with pytest.raises(ValueError, match=f"fs: {fs}.* sampling rate"):
        StreamingSpeech2Text(speech2text, fs=fs)


def test_a_sampling_rate_that_is_meant_as_kilohertz_is_not_taken_as_hertz(speech2text):
    with pytest.raises(ValueError, match="fs: 16: .*did you mean 16k"):
        StreamPool(speech2text).open(fs=16)


@pytest.mark.parametrize("fs", ["16k", 16000.0, np.int64(16000)])
def test_a_sampling_rate_may_be_written_as_run_sh_takes_it(speech2text, speech, fs):
    plain, other = StreamingSpeech2Text(speech2text), StreamingSpeech2Text(speech2text, fs=fs)
    for one in (plain, other):
        one.accept(speech)
    assert same(plain.finish(), other.finish())


def test_set_chunks_does_not_change_the_chunks_of_a_pool(speech2text, speech):
    pool = StreamPool(speech2text)
    streams = [pool.open()]
    speech2text.asr_model.encoder.set_chunks(8)
    streams.append(pool.open())
    speech2text.asr_model.encoder.set_chunks()
    for stream in streams:
        stream.accept(speech)
        stream.finish()
    while pool.advance():
        pass
    assert same(streams[0].result, streams[1].result)


def test_a_batch_that_fails_leaves_every_stream_where_it_was(speech2text, speech, monkeypatch):
    pool = StreamPool(speech2text)
    streams = [pool.open(), pool.open()]
    encoder = speech2text.asr_model.encoder
    for piece in np.array_split(speech, 7):
        for stream in streams:
            stream.accept(piece)
        with monkeypatch.context() as broken:
            broken.setattr(encoder.encoders[1], "forward", lambda *_: 1 / 0)
            if streams[0].ready():
                with pytest.raises(ZeroDivisionError):
                    pool.advance()
        while pool.advance():
            pass
    for stream in streams:
        stream.finish()
    with monkeypatch.context() as broken:
        broken.setattr(encoder.encoders[1], "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pool.advance()
    while pool.advance():
        pass
    alone = StreamingSpeech2Text(speech2text)
    alone.accept(speech)
    expected = alone.finish()
    assert all(same(stream.result, expected) for stream in streams)


def test_audio_that_arrives_at_once_waits_as_samples_and_a_chunk_takes_its_features(speech2text, speech):
    """However long the audio, a step of the pool costs a chunk, and the state holds the features of one."""
    pool = StreamPool(speech2text)
    stream = pool.open()
    stream.accept(np.tile(speech, 10))
    steps = 0
    while pool.advance():
        steps += 1
        assert stream.state.frames == [steps * CHUNK]
        assert stream.state.features_nbytes == 4 * 80 * 3  # of the chunk before, for the subsampling
    assert steps == 10 * len(speech) // (CHUNK * 640)


@pytest.mark.parametrize(("final_search", "method"), [("search", "batch_score"), ("rescore", "forward")])
def test_where_the_final_search_runs_out_of_memory_the_text_is_ctcs(
    speech2text, speech, monkeypatch, caplog, final_search, method
):
    by_ctc = StreamingSpeech2Text(speech2text, final_search="ctc")
    by_ctc.accept(speech)
    expected = by_ctc.finish()
    recogniser = StreamingSpeech2Text(speech2text, final_search=final_search)
    recogniser.accept(speech)

    def no_memory(*_, **__):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(speech2text.asr_model.decoder, method, no_memory)
    assert same(recogniser.finish(), expected)
    assert "The final search failed; the best hypothesis of CTC is final: not enough memory" in caplog.text


def test_streams_that_are_longer_than_the_longest_utterances_are_not_searched(speech2text, speech, monkeypatch):
    monkeypatch.setattr("espnet_mla.streaming.stream.MAX_SECONDS", 1.0)
    by_ctc, recogniser = StreamingSpeech2Text(speech2text, final_search="ctc"), StreamingSpeech2Text(speech2text)
    for one in (by_ctc, recogniser):
        one.accept(speech)  # 1.5 s
    assert recogniser.stream.nbytes == by_ctc.stream.nbytes
    assert same(recogniser.finish(), by_ctc.finish())


def test_longer_ones_than_the_search_is_for_are_rescored(speech2text, speech, monkeypatch):
    monkeypatch.setattr("espnet_mla.streaming.final.MAX_SEARCH_SECONDS", 1.0)
    recogniser = StreamingSpeech2Text(speech2text)
    rescored = StreamingSpeech2Text(speech2text, final_search="rescore")
    for one in (recogniser, rescored):
        one.accept(speech)  # 1.5 s
    assert same(recogniser.finish(), rescored.finish())


def test_without_a_decoder_the_text_is_ctcs(make, speech):
    recogniser = StreamingSpeech2Text(make("ctc", {"model_conf": {"ctc_weight": 1.0}}))
    recogniser.accept(speech)
    result = recogniser.finish()
    assert result.final and result.tokens and recogniser.pool.model.final_search == "ctc"


def test_a_transducers_decoder_does_not_search(speech2text):
    other = copy.deepcopy(speech2text)
    other.asr_model.use_transducer_decoder = True  # building one needs a package that has no wheel
    assert StreamPool(speech2text).model.final_search == "search" and StreamPool(other).model.final_search == "ctc"


def test_a_final_search_that_there_is_not_is_refused(speech2text):
    with pytest.raises(UsageError, match="final_search: 'best': valid are search, rescore, ctc"):
        StreamPool(speech2text, final_search="best")


def test_a_result_counts_the_tokens_that_can_no_longer_change(speech2text, speech):
    recogniser = StreamingSpeech2Text(speech2text, final_search="ctc")
    results, final = in_pieces(recogniser, np.tile(speech, 12), sizes(16000))
    assert results[-1].settled > 0 and final.settled == len(final.tokens)
    for result in results:
        assert final.tokens[: result.settled] == result.tokens[: result.settled]
        assert final.times[: result.settled] == result.times[: result.settled]
    last = results[-1]
    assert last.text.endswith(last.text_from(last.settled))


def test_a_full_context_model_is_refused_with_the_key_that_it_lacks(recipe):
    with pytest.raises(ValueError, match="encoder_conf: streaming is missing"):
        StreamPool(recipe / "exp/asr_tiny")


@pytest.mark.parametrize(
    ("part", "module", "message"),
    [
        ("ctc", None, "model_conf: ctc_weight: 0: this model has no CTC branch"),
        ("preencoder", torch.nn.Linear(1, 1), "preencoder: Linear can't be streamed; it must be null"),
        ("encoder", ConformerEncoder(80, output_size=8, num_blocks=1), "encoder: ConformerEncoder can't be streamed"),
    ],
)
def test_a_part_that_cannot_be_streamed_is_named(speech2text, part, module, message):
    other = copy.deepcopy(speech2text)
    setattr(other.asr_model, part, module)
    with pytest.raises(ValueError, match=message):
        StreamPool(other)

"""Sentences end by the rules, each is what a search over it finds, and nothing is kept of those that have ended."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from experiment import add_variant, samples
from hypothesis import given, settings
from hypothesis import strategies as st

import espnet_mla
from espnet_mla import StreamingSpeech2Text, StreamPool
from espnet_mla.common.errors import UsageError, UserError
from espnet_mla.streaming import command, endpoint
from espnet_mla.streaming.endpoint import Endpointer, Endpointing

CHUNK, RATE, FRAME = 4, 16000, 0.04
RULES = ("trailing_silence", "initial_silence", "longest")
DECODING = {"beam_size": 2, "maxlenratio": 0.2, "device": "cpu"}


@pytest.fixture(scope="module")
def model(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("endpoint") / "recipe"
    shutil.copytree(recipe, folder, symlinks=True)
    with contextlib.chdir(folder):
        add_variant("streaming", streaming={"chunk_size": CHUNK, "left_chunks": 2})
    return folder / "exp/asr_streaming"


@pytest.fixture(scope="module")
def speech2text(model):
    return espnet_mla.from_pretrained(model, **DECODING)


@pytest.fixture(scope="module")
def speech(recipe):
    return np.tile(samples(recipe), 3)


def encoded(speech2text, speech):
    with torch.no_grad():
        asr = speech2text.asr_model
        return asr.encode(torch.from_numpy(speech)[None], torch.tensor([len(speech)]))[0][0]


def ends(silent, trailing, initial, longest):
    """After how many frames each sentence ends, by the rules."""
    found, begin = [], 0
    for now in range(1, len(silent) + 1):
        sentence = silent[begin:now]
        quiet = next((n for n, one in enumerate(reversed(sentence)) if not one), len(sentence))
        if quiet >= (initial if all(sentence) else trailing) or len(sentence) >= longest:
            found.append(now)
            begin = now
    return found


@settings(max_examples=60, deadline=None)
@given(
    silent=st.lists(st.booleans(), min_size=1, max_size=60),
    rules=st.tuples(*[st.none() | st.integers(1, 9)] * 2, st.none() | st.integers(10, 20)).filter(any),
    cut=st.integers(1, 7),
)
def test_sentences_end_by_the_rules_however_the_frames_come(silent, rules, cut):
    named = {name: frames and frames * FRAME for name, frames in zip(RULES, rules, strict=True)}
    endpointer, found = Endpointer(Endpointing(**named), 0, FRAME), []
    log_probs = torch.tensor([[0.95, 0.05] if one else [0.5, 0.5] for one in silent]).log()
    for start in range(0, len(silent), cut):
        piece, at = log_probs[start : start + cut], start
        while ended := endpointer.first_end(piece):
            end, spoken = ended
            begin, at = (found[-1] if found else 0), at + end
            assert spoken == (not all(silent[begin:at]))
            found.append(at)
            piece = piece[end:]
    assert found == ends(silent, *(frames or 10**6 for frames in rules))
    begin = found[-1] if found else 0
    assert endpointer.spoken == (not all(silent[begin:]))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"trailing_silence": 0}, "endpointing: trailing_silence: 0 must be a number of seconds, or none"),
        ({"longest": float("nan")}, "endpointing: longest: nan must be a number of seconds"),
        ({"longest": float("inf")}, "endpointing: longest: inf must be a number of seconds"),
        (dict.fromkeys(RULES), "endpointing: no rule is left by which a sentence could end"),
        ({"initial_silence": "2"}, "endpointing: initial_silence: '2' must be a number of seconds"),
        ({"initial_silence": 20}, "endpointing: initial_silence: 20 s never come: longest is 20 s"),
        ({"trailing_silence": 3, "longest": 2.5}, "trailing_silence: 3 s never come: longest is 2.5 s"),
        ({"silence": 1}, "endpointing: 'silence': its rules are trailing_silence, initial_silence, longest"),
        ("always", "endpointing: 'always': its rules are trailing_silence"),
    ],
)
def test_a_rule_that_can_never_hold_is_refused(speech2text, rules, message):
    with pytest.raises(UsageError, match=message):
        StreamPool(speech2text, endpointing=rules)


@pytest.mark.parametrize("piece", [1600, 7000, 10**6])
@pytest.mark.parametrize("frames", [CHUNK, 10])
def test_each_sentence_is_what_the_search_finds_in_its_frames(speech2text, speech, piece, frames):
    rules = {"longest": frames * FRAME, "trailing_silence": None, "initial_silence": None}
    recogniser, found = StreamingSpeech2Text(speech2text, endpointing=rules, reset=False), []
    for start in range(0, len(speech), piece):
        recogniser.accept(speech[start : start + piece])
        found += recogniser.take_sentences()
    last = recogniser.finish()
    rest = recogniser.take_sentences()
    assert not recogniser.take_sentences() and last.final
    found += rest
    parts = encoded(speech2text, speech).split(frames)
    assert len(found) == len(parts)
    for number, (sentence, part) in enumerate(zip(found, parts, strict=True)):
        _, tokens, _, hypothesis = speech2text._decode_single_sample(part)[0]
        assert sentence.final and sentence.tokens == [token for token in tokens if token != "<sos/eos>"]
        assert sentence.score == pytest.approx(float(hypothesis.score.detach()), rel=1e-3)
        begin, end = number * frames * FRAME, (number * frames + len(part)) * FRAME
        assert begin - FRAME - 1e-6 <= sentence.start <= sentence.end <= end + 1e-6  # heard a frame late
        assert all(begin <= time < end for time in sentence.times)


def test_a_partial_result_is_of_the_sentence_that_has_not_ended(speech2text, speech):
    rules = {"longest": 5 * CHUNK * FRAME}
    recogniser = StreamingSpeech2Text(speech2text, endpointing=rules, final_search="ctc")
    longest = 0
    for start in range(0, len(speech), 640 * CHUNK):
        if result := recogniser.accept(speech[start : start + 640 * CHUNK]):
            assert not result.final and result.frames < 5 * CHUNK
            longest = max(longest, result.frames)
    assert longest == 4 * CHUNK and len(recogniser.take_sentences()) >= 4


def test_nothing_is_reported_of_silence_and_nothing_kept(speech2text, speech, monkeypatch):
    monkeypatch.setattr(endpoint, "SILENT", -1.0)  # every frame is
    recogniser, held = StreamingSpeech2Text(speech2text, endpointing={"initial_silence": 2 * CHUNK * FRAME}), set()
    for start in range(0, len(speech), 640 * CHUNK):
        recogniser.accept(speech[start : start + 640 * CHUNK])
        held.add(len(recogniser.stream._encoder_out))
    assert recogniser.finish().text == "" and recogniser.take_sentences() == [] and max(held) <= 2


@pytest.mark.parametrize("final_search", ["search", "ctc"])
def test_a_long_stream_holds_no_more_than_a_short_one(speech2text, speech, final_search):
    rules = {"longest": 2.0}
    recogniser = StreamingSpeech2Text(speech2text, endpointing=rules, final_search=final_search)
    held = []
    for _ in range(12):
        for part in np.array_split(speech, 10):
            recogniser.accept(part)
            recogniser.take_sentences()
            held.append(recogniser.stream.nbytes)
    assert max(held[60:]) <= max(held[:60])


def test_sentences_that_ended_before_an_error_are_not_lost(speech2text, speech):
    recogniser = StreamingSpeech2Text(speech2text, endpointing={"longest": 2 * CHUNK * FRAME})
    ctc, calls = speech2text.asr_model.ctc, []

    def broken(frames):
        calls.append(frames)
        found = type(ctc).log_softmax(ctc, frames)
        return found * float("nan") if len(calls) > 12 else found

    ctc.log_softmax = broken
    try:
        with pytest.raises(UserError, match="are not numbers"):
            recogniser.accept(speech)
    finally:
        del ctc.log_softmax
    assert len(recogniser.take_sentences()) >= 2


@pytest.mark.parametrize("failing", [1, 3])
def test_where_a_search_fails_the_sentence_is_ctcs_and_no_frame_is_lost(speech2text, speech, monkeypatch, failing):
    rules, calls = {"longest": 10 * FRAME}, []
    search = espnet_mla.streaming.model.StreamingModel.search

    def sometimes(self, encoder_out, bias):
        calls.append(encoder_out)
        if len(calls) == failing:
            raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")
        return search(self, encoder_out, bias)

    monkeypatch.setattr("espnet_mla.streaming.model.StreamingModel.search", sometimes)
    recogniser = StreamingSpeech2Text(speech2text, endpointing=rules)
    recogniser.accept(speech)
    recogniser.finish()
    found = recogniser.take_sentences()
    assert found[failing - 1].words is None and all(one.words for n, one in enumerate(found, 1) if n != failing)
    assert sum(one.frames for one in found) == len(encoded(speech2text, speech))
    assert [one.first_frame for one in found] == [10 * n for n in range(len(found))]


def test_a_frame_without_a_token_has_no_text(speech2text, speech):
    """ESPnet's search leaves an <eos> where a hypothesis is as long as it may be."""
    frame, output = encoded(speech2text, speech)[:1], speech2text.asr_model.decoder.output_layer
    eos = speech2text.asr_model.eos
    bias = output.bias.detach().clone()
    with torch.no_grad():
        output.bias[eos] += 30
    try:
        assert "<sos/eos>" in str(speech2text._decode_single_sample(frame)[0][1]), "or there is nothing to be seen to"
        assert StreamPool(speech2text).model.search(frame)[0] == []
    finally:
        with torch.no_grad():
            output.bias.copy_(bias)


def test_with_reset_the_encoder_forgets_the_sentence_before(speech2text, speech):
    rules = {"longest": 2 * CHUNK * FRAME, "trailing_silence": None, "initial_silence": None}
    pool = StreamPool(speech2text, endpointing=rules)
    stream, frames = pool.open(), []
    stream.accept(speech)
    stream.finish()
    while pool.advance():
        frames.append(stream.state.frames[0])
    assert frames[:4] == [CHUNK, 0, CHUNK, 0] and not pool.streams
    found = stream.take_sentences()
    assert len(found) == len(encoded(speech2text, speech).split(2 * CHUNK))
    other = StreamingSpeech2Text(speech2text, endpointing=rules, reset=False)
    other.accept(speech)
    other.finish()
    kept = other.take_sentences()
    assert kept[0].score == pytest.approx(found[0].score) and kept[-1].score != pytest.approx(found[-1].score)


def run(model, *arguments):
    return command.main([str(model), *arguments, "--device", "cpu", "--beam_size", "2"])


def test_each_sentence_gets_a_line_and_a_place_in_the_file(model, speech, tmp_path, capfd):
    soundfile.write(tmp_path / "a b.wav", speech, RATE)
    rules = ["--endpointing", "--longest", "1", "--trailing_silence", "0", "--initial_silence", "0"]
    outputs = {}
    for kind in ("srt", "vtt", "ctm", "jsonl"):
        place = tmp_path / "made" / f"out.{kind}"
        assert run(model, str(tmp_path / "a b.wav"), *rules, "--output", str(place)) == 0
        lines = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
        outputs[kind] = place.read_text()
    assert len(lines) == 5 and all(float(start) < float(end) for start, end, _ in lines)
    assert outputs["srt"].count(" --> ") == outputs["vtt"].count(" --> ") == 5
    assert outputs["srt"].startswith("1\n00:00:0") and outputs["vtt"].startswith("WEBVTT\n\n00:00:0")
    assert outputs["vtt"].count("WEBVTT") == 1
    sentences = [json.loads(line) for line in outputs["jsonl"].splitlines()]
    assert [sentence["text"] for sentence in sentences] == [text for *_, text in lines]
    words = [word for sentence in sentences for word in sentence["words"]]
    assert [line.split()[4] for line in outputs["ctm"].splitlines()] == [word["text"] for word in words] != []
    assert all(line.startswith("a_b 1 ") for line in outputs["ctm"].splitlines())


def test_an_error_leaves_what_was_in_the_file(model, tmp_path, capfd):
    place = tmp_path / "keep.srt"
    place.write_text("kept")
    assert run(model, str(tmp_path / "nowhere.wav"), "--endpointing", "--output", str(place)) == 1
    assert place.read_text() == "kept" and "nowhere.wav does not exist" in capfd.readouterr().err
    assert run(model, "speech.flac", "--endpointing", "--output", "/dev/null/x/out.srt") == 1
    assert "error: --output /dev/null/x/out.srt" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--endpointing", "--output", "x.ctm", "--final_search", "ctc"),
            "the text of CTC alone has no times of words",
        ),
        (("--longest", "3"), "--longest 3: without --endpointing there are no rules"),
        (("--output", "x.srt"), "--output x.srt: sentences are what it is for: give --endpointing"),
        (("--endpointing", "--output", "x.doc"), "--output x.doc: its ending must be one of .srt, .vtt, .ctm, .jsonl"),
        (("--endpointing", "--times"), "--times: with --endpointing the times of words are in --output"),
        (("--endpointing", "--longest", "-1"), "endpointing: longest: -1.0 must be a number of seconds"),
    ],
)
def test_options_that_do_not_go_together_are_named(model, arguments, message, capfd):
    with pytest.raises(SystemExit, match="2"):
        run(model, "speech.flac", *arguments)
    assert message in " ".join(capfd.readouterr().err.split())

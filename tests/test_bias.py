"""Phrases that are favoured: their bonus against counting it out, in CTC's search, in ESPnet's, and by stream."""

import contextlib
import itertools
import random
import shutil

import pytest
import torch
from experiment import add_variant, samples
from hypothesis import given, settings
from hypothesis import strategies as st

import espnet_mla
from espnet_mla import StreamingSpeech2Text, StreamPool
from espnet_mla.common.errors import UsageError, UserError
from espnet_mla.streaming import command
from espnet_mla.streaming.bias import Bias, read_phrases, spelled
from espnet_mla.streaming.search import PrefixBeam

TOKENS = 4
STARTS = frozenset({0, 2})
phrase = st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=4).map(tuple)
phrases = st.dictionaries(phrase, st.sampled_from([0.5, 1.0, 3.0]), max_size=6)
text = st.lists(st.integers(0, TOKENS - 1), max_size=9)


def found_in(text, phrases, starts):
    """Bonus of the phrases that stand in a text, to the end of a word."""
    ends = [place for place in range(1, len(text)) if starts is None or text[place] in starts] + [len(text)]
    return sum(
        weight * len(phrase)
        for end in ends
        for phrase, weight in phrases.items()
        if tuple(text[max(0, end - len(phrase)) : end]) == phrase
    )


def with_what_goes_on(text, phrases, starts):
    """The same of a text that may go on: the most that may still become of its end counts."""
    before = found_in(text, phrases, starts) - ended_with(text, phrases)
    begun = [
        weight * size
        for phrase, weight in phrases.items()
        for size in range(1, min(len(phrase), len(text) + 1))
        if phrase[:size] == tuple(text[len(text) - size :])
    ]
    return before + max([ended_with(text, phrases), *begun])


def ended_with(text, phrases):
    return sum(
        weight * len(phrase)
        for phrase, weight in phrases.items()
        if text and len(phrase) <= len(text) and tuple(text[len(text) - len(phrase) :]) == phrase
    )


@settings(max_examples=300, deadline=None)
@given(phrases, text, st.sampled_from([None, STARTS]))
def test_a_text_has_the_bonus_of_the_phrases_that_stand_in_it(phrases, text, starts):
    bias = Bias(phrases, starts)
    assert bias.bonus(text) == pytest.approx(found_in(text, phrases, starts))
    state, total = bias.start, 0.0
    for place, token in enumerate(text):
        row = bias.row(state, TOKENS + 1, TOKENS)
        assert row[TOKENS] == pytest.approx(bias.end(state))
        assert row[:TOKENS].tolist() == pytest.approx([bias.step(state, other)[1] for other in range(TOKENS)])
        state, difference = bias.step(state, token)
        total += difference
        assert total == pytest.approx(with_what_goes_on(text[: place + 1], phrases, starts))


@settings(max_examples=30, deadline=None)
@given(phrases, st.integers(1, 5), st.integers(0, 10**6))
def test_ctcs_search_finds_the_text_of_the_highest_probability_with_its_bonus(phrases, frames, seed):
    log_probs = torch.randn(frames, TOKENS, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    phrases = {phrase: weight for phrase, weight in phrases.items() if 0 not in phrase}
    expected = {}
    for path in itertools.product(range(TOKENS), repeat=frames):
        score = float(sum(log_probs[frame, token] for frame, token in enumerate(path)))
        expected.setdefault(tuple(token for token, _ in itertools.groupby(path) if token), []).append(score)
    totals = {text: float(torch.tensor(scores).logsumexp(0)) for text, scores in expected.items()}
    beam = PrefixBeam(10**6, pre_beam_size=TOKENS, bias=Bias(phrases))
    for piece in log_probs.split(random.Random(seed).choice([1, 2, 6])):
        beam.extend(piece)
    for found, bonus in ((beam.best, with_what_goes_on), (beam.final, found_in)):
        ranks = {text: total + bonus(text, phrases, None) for text, total in totals.items()}
        texts = [tuple(beam.hypothesis(prefix).tokens) for prefix, _ in found]
        assert [ranks[text] for text in texts] == pytest.approx(sorted(ranks.values(), reverse=True), abs=1e-4)
        assert [score for _, score in found] == pytest.approx([totals[text] for text in texts], abs=1e-4)


@pytest.fixture(scope="module")
def model(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bias") / "recipe"
    shutil.copytree(recipe, folder, symlinks=True)
    with contextlib.chdir(folder):
        add_variant("streaming", streaming={"chunk_size": 4, "left_chunks": 2})
    return folder / "exp/asr_streaming"


@pytest.fixture(scope="module")
def speech2text(model):
    return espnet_mla.from_pretrained(model, beam_size=4, maxlenratio=0.2, device="cpu")


@pytest.fixture(scope="module")
def speech(recipe):
    return samples(recipe)


def final_text(speech2text, speech, bias=None, **options):
    recogniser = StreamingSpeech2Text(speech2text, bias=bias, **options)
    recogniser.accept(speech)
    return recogniser.finish()


@pytest.fixture(scope="module")
def other(speech2text, speech):
    """Words of the text that CTC finds the fifth most probable."""
    recogniser = StreamingSpeech2Text(speech2text, final_search="ctc")
    recogniser.accept(speech)
    model, beam = recogniser.pool.model, recogniser.stream._beam
    texts = [model.text(beam.hypothesis(prefix).tokens) for prefix, _ in beam.best]
    return next(text for text in texts[4:] if text not in texts[0])


@pytest.mark.parametrize("final_search", ["search", "rescore", "ctc"])
def test_every_final_search_finds_a_phrase_that_is_favoured_enough(speech2text, speech, other, final_search):
    other = "BIG CAT" if final_search == "search" else other  # its texts are short, see maxlenratio
    without = final_text(speech2text, speech, final_search=final_search)
    biased = final_text(speech2text, speech, {other: 30.0}, final_search=final_search)
    assert other not in without.text and other in biased.text
    assert biased.score < without.score  # which is without the bonus
    again = final_text(speech2text, speech, final_search=final_search)
    assert (again.text, again.score) == (without.text, without.score)


def test_each_stream_of_a_pool_has_its_own_phrases(speech2text, speech):
    pool = StreamPool(speech2text)
    wanted = [None, ["BIG CAT"], {"RED BARN": 30.0}, {"BIG CAT": 30.0}]
    streams = [pool.open(bias=bias) for bias in wanted]
    for stream in streams:
        stream.accept(speech)
        stream.finish()
    while pool.advance():
        pass
    for stream, bias in zip(streams, wanted, strict=True):
        alone = final_text(speech2text, speech, bias)
        assert (stream.result.text, stream.result.tokens) == (alone.text, alone.tokens)
    assert streams[2].result.text != streams[0].result.text != streams[3].result.text


def test_sentences_and_later_streams_are_favoured_too(speech2text, speech):
    recogniser = StreamingSpeech2Text(speech2text, bias={"BIG": 30.0}, endpointing={"longest": 0.8})
    for _ in range(2):
        recogniser.accept(speech)
        recogniser.finish()
        sentences = recogniser.take_sentences()
        assert len(sentences) > 1 and all(sentence.text.startswith("BI") for sentence in sentences)


class Spelling:
    """Tokens of characters, as ESPnet's tokenizer of token_type: char makes them."""

    token_list = ("<blank>", "<unk>", "<space>", "A", "N", "D", "O")
    token2id = {token: number for number, token in enumerate(token_list)}  # noqa: RUF012
    unk_id = 1

    def text2tokens(self, text):
        return ["<space>" if letter == " " else letter for letter in text]

    def tokens2ids(self, tokens):
        return [self.token2id.get(token, self.unk_id) for token in tokens]


@pytest.mark.parametrize(
    ("text", "bonus"),
    [("ANN", 4.0), ("AND ANN", 4.0), ("ANNO", 0.0), ("NANN", 0.0), ("ANN AND DAN ANN", 8.0), ("", 0.0)],
)
def test_of_characters_a_phrase_is_of_whole_words_too(text, bonus):
    spelling = Spelling()
    bias = spelled(["ANN"], spelling, spelling, "char")
    assert bias.bonus(spelling.tokens2ids(spelling.text2tokens(text))) == bonus


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ("CAT", r"bias: 'CAT': a list of phrases is needed, or their weights by phrase"),
        (7, r"bias: 7: a list of phrases is needed"),
        (["  "], r"bias: '  ': a phrase of at least one word is needed"),
        ([3], r"bias: 3: a phrase of at least one word is needed"),
        (["THE CAT", "cat"], r"bias: 'cat': the model's tokens can't spell 'cat'; its texts may be written in other "),
        ({"CAT": 0}, r"bias: 'CAT': its weight 0 must be a positive number"),
        ({"CAT": float("nan")}, r"bias: 'CAT': its weight nan must be a positive number"),
        ({"CAT": "much"}, r"bias: 'CAT': its weight 'much' must be a positive number"),
    ],
)
def test_phrases_that_cannot_be_favoured_are_named(speech2text, bias, message):
    with pytest.raises(UsageError, match=message):
        StreamPool(speech2text).open(bias=bias)


def test_no_phrases_are_no_bias(speech2text):
    assert StreamPool(speech2text).model.bias([]) is None


def test_espnets_time_synchronous_search_says_that_it_favours_nothing(model):
    synchronous = espnet_mla.from_pretrained(model, beam_size=4, time_sync=True, device="cpu")
    with pytest.raises(UsageError, match="bias: ESPnet's BeamSearchTimeSync favours no phrases: final_search"):
        StreamingSpeech2Text(synchronous, bias=["CAT"])
    StreamingSpeech2Text(synchronous, bias=["CAT"], final_search="ctc")


def test_a_file_has_a_phrase_on_each_line_and_maybe_its_weight(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("BIG CAT\n\nRED BARN\t2.5\n  DOG \n", encoding="utf-8")
    assert read_phrases(file, 1.5) == {"BIG CAT": 1.5, "RED BARN": 2.5, "  DOG ": 1.5}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"CAT\nDOG\tmuch\n", UsageError, r"names.txt: line 2: 'much' is no weight"),
        (b"\xff\xfe", UserError, r"names.txt: .*utf-8"),
        (None, UserError, r"names.txt: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, error, message):
    file = tmp_path / "names.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(error, match=message):
        read_phrases(file)


def test_the_command_takes_phrases_from_a_file(model, recipe, tmp_path, capfd):
    file = tmp_path / "names.txt"
    file.write_text("BIG CAT\t30\n", encoding="utf-8")
    arguments = [str(model), str(recipe / "speech.flac"), "--device", "cpu"]
    assert command.main([*arguments, "--bias", str(file)]) == 0
    assert "BIG CAT" in capfd.readouterr().out
    file.write_text("big cat\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        command.main([*arguments, "--bias", str(file)])
    assert "bias: 'big cat': the model's tokens can't spell" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        command.main([*arguments, "--bias_weight", "2"])
    assert "--bias_weight 2: give the phrases as well, with --bias" in capfd.readouterr().err

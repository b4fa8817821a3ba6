"""Phrases that are favoured: their bonus against counting it out, in CTC's search, in ESPnet's, and by stream."""

import contextlib
import itertools
import random
import shutil

import pytest
import sentencepiece
import torch
from espnet2.text.char_tokenizer import CharTokenizer
from espnet2.text.sentencepiece_tokenizer import SentencepiecesTokenizer
from espnet2.text.token_id_converter import TokenIDConverter
from experiment import add_variant, samples
from hypothesis import given, settings
from hypothesis import strategies as st

import espnet_mla
from espnet_mla import StreamingSpeech2Text, StreamPool
from espnet_mla.common.errors import UsageError, UserError
from espnet_mla.streaming import command, search
from espnet_mla.streaming.bias import Bias, BiasScorer, read_phrases, spelled
from espnet_mla.streaming.search import PrefixBeam

TOKENS = 4
WITHIN = frozenset({1, 3})
NAMES = ["▁a", "b", "▁c", "d", "<eos>"]
phrase = st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=4).map(tuple)
phrases = st.dictionaries(phrase, st.sampled_from([0.5, 1.0, 3.0]), max_size=6)
text = st.lists(st.integers(0, TOKENS - 1), max_size=9)


def found_in(text, phrases, within):
    """Bonus of the phrases that stand in a text, to the end of a word."""
    ends = [place for place in range(1, len(text)) if text[place] not in within] + [len(text)]
    return sum(
        weight * len(phrase)
        for end in ends
        for phrase, weight in phrases.items()
        if tuple(text[max(0, end - len(phrase)) : end]) == phrase
    )


def with_what_goes_on(text, phrases, within):
    """The same of a text that may go on: the most that may still become of its end counts."""
    before = found_in(text, phrases, within) - ended_with(text, phrases)
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
@given(phrases, text, st.sampled_from([frozenset(), WITHIN]))
def test_a_text_has_the_bonus_of_the_phrases_that_stand_in_it(phrases, text, within):
    bias = Bias(phrases, NAMES, within)
    assert bias.bonus(text) == pytest.approx(found_in(text, phrases, within))
    state, total = bias.start, 0.0
    for place, token in enumerate(text):
        row = bias.row(state, TOKENS)
        assert row[TOKENS] == pytest.approx(bias.end(state))
        assert row[:TOKENS].tolist() == pytest.approx([bias.step(state, other)[1] for other in range(TOKENS)])
        state, difference = bias.step(state, token)
        total += difference
        assert total == pytest.approx(with_what_goes_on(text[: place + 1], phrases, within))


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
    beam = PrefixBeam(10**6, pre_beam_size=TOKENS, bias=Bias(phrases, NAMES))
    for piece in log_probs.split(random.Random(seed).choice([1, 2, 6])):
        beam.extend(piece)
    for found, bonus in ((beam.best, with_what_goes_on), (beam.final, found_in)):
        ranks = {text: total + bonus(text, phrases, ()) for text, total in totals.items()}
        texts = [tuple(beam.hypothesis(prefix).tokens) for prefix, _ in found]
        assert [ranks[text] for text in texts] == pytest.approx(sorted(ranks.values(), reverse=True), abs=1e-4)
        assert [score for _, score in found] == pytest.approx([totals[text] for text in texts], abs=1e-4)


def test_settling_changes_neither_texts_nor_bonuses(monkeypatch):
    log_probs = (3 * torch.randn(300, 5, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    bias, found = Bias({(1, 2, 3): 2.0, (2, 4): 1.0, (3,): 0.5}, ["_", *NAMES[:4]]), []
    for interval in (1, 10**6):
        monkeypatch.setattr(search, "SETTLING_INTERVAL", interval)
        beam = PrefixBeam(4, bias=bias)
        beam.extend(log_probs)
        found.append([(beam.hypothesis(prefix).tokens, beam.bonus(prefix)) for prefix, _ in beam.final])
    assert [tokens for tokens, _ in found[0]] == [tokens for tokens, _ in found[1]]
    for tokens, bonus in itertools.chain(*found):
        assert bonus == pytest.approx(bias.bonus(tokens))


@pytest.fixture(scope="module")
def model(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bias") / "recipe"
    shutil.copytree(recipe, folder, symlinks=True)
    with contextlib.chdir(folder):
        add_variant("streaming", streaming={"chunk_size": 4, "left_chunks": 2})
    return folder / "exp/asr_streaming"


@pytest.fixture(scope="module")
def speech2text(model):
    return espnet_mla.from_pretrained(model, beam_size=4, maxlenratio=0.4, device="cpu")


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
    assert len({streams[number].result.text for number in (0, 2, 3)}) == 3


def test_sentences_and_later_streams_are_favoured_too(speech2text, speech):
    recogniser = StreamingSpeech2Text(speech2text, bias={"BIG": 30.0}, endpointing={"longest": 0.8})
    for _ in range(2):
        recogniser.accept(speech)
        recogniser.finish()
        sentences = recogniser.take_sentences()
        assert len(sentences) > 1 and all(sentence.text.startswith("BIG") for sentence in sentences)


TEXTS = ["ANN AND DAN, ANN'S DANN", "NOD AND ANN.", "我们去北京", "北京很好 北 京"]


@pytest.fixture(scope="module", params=["char", "bpe"])
def spelling(request, tmp_path_factory):
    """ESPnet's converter and tokeniser, of characters and of sentencepiece's pieces."""
    if request.param == "char":
        letters = sorted({letter for text in TEXTS for letter in text} - {" "})
        return TokenIDConverter(["<blank>", "<unk>", "<space>", *letters]), CharTokenizer()
    folder = tmp_path_factory.mktemp("spelling")
    (folder / "text").write_text("\n".join(TEXTS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.Train(
        input=str(folder / "text"), model_prefix=str(folder / "bpe"), model_type="char", vocab_size=40,
        character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "bpe.model"))
    return TokenIDConverter(list(map(model.id_to_piece, range(len(model))))), SentencepiecesTokenizer(
        str(folder / "bpe.model")
    )


@pytest.mark.parametrize(
    ("phrase", "text", "times"),
    [
        ("ANN", "ANN", 1),
        ("ANN", "AND ANN", 1),
        ("ANN", "DANN", 0),
        ("AN", "ANN", 0),
        ("ANN", "ANN AND DAN ANN", 2),
        ("ANN AND", "ANN AND ANN AND", 2),
        ("ANN", "DAN, ANN. ANN'S ANN", 3),
        ("ANN", "", 0),
        ("北京", "我们去北京", 1),
        ("北京", "北京很好", 1),
        ("北京", "北 京", 0),
    ],
)
def test_a_phrase_is_one_of_whole_words_where_there_are_spaces_between_words(spelling, phrase, text, times):
    converter, tokenizer = spelling
    bias = spelled({phrase: 1.0}, *spelling)
    each = bias.bonus(converter.tokens2ids(tokenizer.text2tokens(phrase)))
    assert len(phrase) <= each <= len(phrase) + 1
    assert bias.bonus(converter.tokens2ids(tokenizer.text2tokens(text))) == times * each


def test_pieces_that_begin_a_text_of_a_script_without_spaces_are_favoured_within_it_too():
    token_list = ["<unk>", "▁", "▁东京", "东京", "▁我们", "去", "我", "们", "。"]

    class Pieces(SentencepiecesTokenizer):
        def __init__(self):
            pass

        def text2tokens(self, text):
            return {"东京": ["▁东京"], "我们": ["▁我们"], "去": ["▁", "去"]}[text]

    converter = TokenIDConverter(token_list)
    bias = spelled(["东京", "我们", "去"], converter, Pieces())
    for text in (["▁东京", "。"], ["去", "东京", "去"], ["▁我们", "去", "东京"], ["东京", "我", "们"]):
        assert bias.bonus(converter.tokens2ids(text)) == 0.5 * (len(text) - text.count("。"))


def test_a_mark_that_belongs_to_a_letter_goes_on_with_its_word():
    converter = TokenIDConverter(["<unk>", "<space>", "र", "ा", "म", "e", "\u0301"])
    bias = spelled(["राम"], converter, CharTokenizer())
    texts = ["राम", "रामा", "राम राम"]
    assert [bias.bonus(converter.tokens2ids(CharTokenizer().text2tokens(text))) for text in texts] == [2.0, 0.0, 4.0]


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ("CAT", r"bias: 'CAT': a list of phrases is needed, or their weights by phrase"),
        (7, r"bias: 7: a list of phrases is needed"),
        (["  "], r"bias: '  ' is no phrase"),
        (["\u200b"], r"bias: the model's tokens can't spell '\\u200b'"),
        ([("CAT", 2.0)], r"bias: \('CAT', 2.0\) is no phrase; weights are given as a mapping, phrase: weight"),
        (["THE CAT", "cat", "THE 3"], r"can't spell 'cat' \('cat'\), 'THE 3' \('3'\); its texts may be written in "),
        ({"CAT": 0}, r"bias: 'CAT': its weight 0 must be a positive number"),
        ({"CAT": 10**400}, r"bias: 'CAT': its weight 1000.* must be a positive number of at most 1000"),
        ({"CAT": float("nan")}, r"bias: 'CAT': its weight nan must be a positive number"),
        ({"CAT": "much"}, r"bias: 'CAT': its weight 'much' must be a positive number"),
        (Bias({(1,): 1.0}, ["a", "b"]), "bias: it was made for a model with other tokens"),
    ],
)
def test_phrases_that_cannot_be_favoured_are_named(speech2text, bias, message):
    with pytest.raises(UsageError, match=message):
        StreamPool(speech2text).open(bias=bias)


def test_a_model_whose_tokens_are_none_of_espnets_spells_no_phrases():
    with pytest.raises(UsageError, match="bias: a model with object spells no phrases; with token_type bpe, char or"):
        spelled(["CAT"], object(), CharTokenizer())
    with pytest.raises(UsageError, match="bias: a model with no tokenizer spells no phrases"):
        spelled(["CAT"], TokenIDConverter(["<unk>"]), None)


def test_phrases_that_a_model_has_spelled_are_shared_by_its_streams(speech2text, speech):
    pool = StreamPool(speech2text)
    shared = pool.model.bias_of({"BIG CAT": 30.0})
    assert final_text(speech2text, speech, shared).text == final_text(speech2text, speech, {"BIG CAT": 30.0}).text
    assert pool.model.bias_of(shared) is shared


def test_a_search_that_fails_leaves_no_scorer_behind(speech2text, speech, monkeypatch):
    monkeypatch.setattr(BiasScorer, "batch_score", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        final_text(speech2text, speech, ["BIG CAT"])
    search = speech2text.beam_search
    assert not any("bias" in registered for registered in (search.scorers, search.full_scorers, search.weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scorer_has_a_row_for_each_hypothesis_and_goes_on_from_its_state(dtype):
    bias = Bias({(1, 2): 1.0, (2,): 0.5}, NAMES)
    scorer, xs = BiasScorer(bias, eos=4), torch.zeros(2, 3, 8, dtype=dtype)
    first, states = scorer.batch_score(torch.tensor([[4], [4]]), [None, None], xs)
    assert first.dtype == dtype and first.tolist() == [[0, 1, 0.5, 0, 0]] * 2
    rows, states = scorer.batch_score(torch.tensor([[4, 1], [4, 2]]), states, xs)
    assert rows.tolist() == [[-1, 0, 1.5, -1, -1], [0, 1, 0.5, 0, 0]]
    alone, state = scorer.score(torch.tensor([4, 1, 2]), states[0], xs)
    assert alone.tolist() == [0, 1, 0.5, 0, 0] and bias.end(state) == 0


def test_no_phrases_are_no_bias(speech2text):
    assert StreamPool(speech2text).model.bias_of([]) is None


def test_espnets_time_synchronous_search_says_that_it_favours_nothing(model):
    synchronous = espnet_mla.from_pretrained(model, beam_size=4, time_sync=True, device="cpu")
    with pytest.raises(UsageError, match="bias: ESPnet's BeamSearchTimeSync favours no phrases: final_search"):
        StreamingSpeech2Text(synchronous, bias=["CAT"])
    StreamingSpeech2Text(synchronous, bias=["CAT"], final_search="ctc")


def test_a_file_has_a_phrase_on_each_line_and_maybe_its_weight(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("BIG CAT\n\nRED BARN\t2.5\n  DOG \n", encoding="utf-8")
    assert read_phrases(file, 1.5) == {"BIG CAT": 1.5, "RED BARN": 2.5, "DOG": 1.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"CAT\nDOG\tmuch\n", r"names.txt: line 2: 'much' is no weight"),
        (b"CAT\t-1\n", r"names.txt: line 1: the weight -1.0 must be a positive number"),
        (b"CAT\tnan\n", r"names.txt: line 1: the weight nan must be a positive number"),
        (b"\t2\n", r"names.txt: line 1: '\\t2' is not a phrase, or a phrase, a tab and its weight"),
        (b"CAT\t2\tDOG\n", r"names.txt: line 1: .* is not a phrase"),
        (b"CAT\t2\nCAT\t3\n", r"names.txt: line 2: 'CAT' had another weight before, 2"),
        (b"\n \n", r"names.txt: there is no phrase in it"),
        (b"\xff\xfe", r"names.txt: .*utf-8"),
        (None, r"names.txt: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, message):
    file = tmp_path / "names.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_phrases(file)


def test_the_command_takes_phrases_from_a_file(model, recipe, tmp_path, capfd):
    file = tmp_path / "names.txt"
    file.write_text("BIG CAT\t30\n", encoding="utf-8")
    arguments = [str(model), str(recipe / "speech.flac"), "--device", "cpu"]
    assert command.main([*arguments, "--bias", str(file)]) == 0
    assert "BIG CAT" in capfd.readouterr().out
    file.write_text("BIG CAT\n", encoding="utf-8")
    assert command.main([*arguments, "--bias", str(file)]) == 0
    assert "BIG CAT" not in capfd.readouterr().out
    assert command.main([*arguments, "--bias", str(file), "--bias_weight", "30"]) == 0
    assert "BIG CAT" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        command.main([*arguments, "--bias", str(file), "--bias_weight", "-1"])
    assert "--bias_weight: -1.0 must be a positive number" in capfd.readouterr().err
    file.write_text("big cat\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        command.main([*arguments, "--bias", str(file)])
    assert "bias: the model's tokens can't spell 'big cat' ('big')" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        command.main([*arguments, "--bias_weight", "2"])
    assert "--bias_weight 2: give the phrases as well, with --bias" in capfd.readouterr().err

"""The list of tokens is the one that ESPnet's asr.sh makes, whole or not there."""

from pathlib import Path

import pytest
import sentencepiece

from espnet_mla.common.errors import UserError
from espnet_mla.recipe import tokens
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse

TEXT = "".join(f"utt{n} THE {colour} {thing} GOES HOME\n" for n, (colour, thing) in enumerate(
    (colour, thing) for colour in ("RED", "GREEN", "BLUE") for thing in ("FOX", "DOG", "CAT")))  # fmt: skip


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    (tmp_path / "dump" / "raw").mkdir(parents=True)
    (tmp_path / "dump" / "raw" / "lm_train.txt").write_text(TEXT, encoding="utf-8")

    def make(*arguments: str) -> Layout:
        sets = ("--train_set", "train", "--valid_set", "dev", "--test_sets", "test")
        return Layout(parse([*sets, "--bpe_train_text", "text", "--lang", "en", *arguments]))

    return make


def test_bpe_tokens_are_the_pieces_between_blank_and_end(layout):
    at = layout("--nbpe", "23")
    tokens.make_token_list(at)
    model = sentencepiece.SentencePieceProcessor(model_file=at.bpemodel)
    pieces = [model.id_to_piece(n) for n in range(3, 23)]
    assert at.token_list.read_text(encoding="utf-8").split("\n") == ["<blank>", "<unk>", *pieces, "<sos/eos>", ""]
    assert (at.bpedir / "train.txt").read_text().splitlines()[0] == "THE RED FOX GOES HOME"
    assert sorted(path.name for path in at.bpedir.iterdir()) == ["bpe.model", "bpe.vocab", "tokens.txt", "train.txt"]


@pytest.mark.parametrize(("mode", "nbpe"), [("unigram", 23), ("bpe", 23), ("char", 18), ("word", 12)])
def test_model_and_vocabulary_are_sentencepieces_own(layout, mode, nbpe):
    at = layout("--nbpe", str(nbpe), "--bpemode", mode)
    tokens.make_token_list(at)
    options = {"input": str(at.bpedir / "train.txt"), "vocab_size": nbpe, "model_type": mode, "character_coverage": 1.0}
    sentencepiece.SentencePieceTrainer.train(model_prefix="own", minloglevel=2, **options)
    assert (at.bpedir / "bpe.vocab").read_bytes() == Path("own.vocab").read_bytes()
    ours, own = (sentencepiece.SentencePieceProcessor(model_file=str(path)) for path in (at.bpemodel, "own.model"))
    assert ours.encode("THE RED FOX", out_type=str) == own.encode("THE RED FOX", out_type=str)


@pytest.mark.parametrize("kind", ["bpe", "word", "char"])
def test_words_are_the_same_whatever_white_space_stands_behind_the_key(layout, kind, tmp_path):
    at = layout("--nbpe", "23", "--token_type", kind)
    tokens.make_token_list(at)
    expected = at.token_list.read_text()
    for path in (tmp_path / "text", tmp_path / "dump" / "raw" / "lm_train.txt"):
        path.write_text(TEXT.replace(" THE", "\tTHE").replace("utt3 ", "utt3   ").replace("utt4 ", " utt4 \t"))
    tokens.make_token_list(at)
    assert at.token_list.read_text() == expected


def test_a_text_that_is_not_utf_8_is_named(layout, tmp_path):
    (tmp_path / "text").write_bytes(b"utt0 CAF\xc9\n")
    with pytest.raises(UserError, match="text is not UTF-8"):
        tokens.make_token_list(layout("--nbpe", "23"))


@pytest.mark.parametrize(("size", "name"), [(500, "bpe.model"), (50, "train.txt")])
def test_a_disk_that_fills_up_leaves_no_half_file(layout, largest_file, size, name):
    at = layout("--nbpe", "23")
    with largest_file(size), pytest.raises(UserError, match=f"cannot write {at.bpedir / name}"):
        tokens.make_token_list(at)
    left = [path.name for path in at.bpedir.iterdir()]
    assert left == (["train.txt"] if name == "bpe.model" else [])


def test_the_same_text_gives_the_same_model(layout):
    at = layout("--nbpe", "23")
    made = []
    for _ in range(2):
        tokens.make_token_list(at)
        made.append((at.bpedir / "bpe.model").read_bytes())
    assert made[0] == made[1]


def test_a_vocabulary_that_the_text_does_not_allow_is_refused_with_the_largest(layout):
    with pytest.raises(UserError, match=r"--nbpe 5000 .*at most (\d+) is possible") as refused:
        tokens.make_token_list(layout("--nbpe", "5000"))
    largest = str(refused.value).split("at most ")[1].split()[0]
    tokens.make_token_list(layout("--nbpe", largest))


def test_a_vocabulary_below_the_characters_is_refused_with_the_smallest(layout):
    with pytest.raises(UserError, match=r"--nbpe 8 .*at least \d+ is needed"):
        tokens.make_token_list(layout("--nbpe", "8"))


def test_a_refused_vocabulary_leaves_the_earlier_one_as_it_was(layout):
    at = layout("--nbpe", "23")
    tokens.make_token_list(at)
    before = at.token_list.read_text()
    (at.bpedir / "train.txt").unlink()
    with pytest.raises(UserError, match="holds no text"):
        (at.bpedir.parents[2] / "text").write_text("utt0\nutt1\n")
        tokens.make_token_list(at)
    assert at.token_list.read_text() == before


def test_symbols_are_kept_whole(layout, tmp_path):
    (tmp_path / "symbols").write_text("<noise>\n<laugh>\n")
    for given in ("<noise>,<laugh>", "symbols"):
        at = layout("--nbpe", "23", "--bpe_nlsyms", given)
        tokens.make_token_list(at)
        assert {"<noise>", "<laugh>"} <= set(at.token_list.read_text().split("\n"))


def test_words_and_characters_come_from_espnets_own_tokenizer(layout):
    at = layout("--token_type", "word")
    tokens.make_token_list(at)
    listed = at.token_list.read_text().split("\n")
    assert listed[:2] == ["<blank>", "<unk>"] and listed[-2:] == ["<sos/eos>", ""]
    assert set(listed[2:-2]) == {word for line in TEXT.splitlines() for word in line.split()[1:]}


@pytest.mark.parametrize("symbol", ["<unk>", "<s>", "</s>", "<blank>", "<sos/eos>"])
def test_a_symbol_that_is_a_token_anyhow_is_refused_by_its_option_and_not_by_the_size_of_the_vocabulary(layout, symbol):
    with pytest.raises(UserError, match=f"--bpe_nlsyms <a>,{symbol}: {symbol} can't be given, as BPE has it"):
        tokens.make_token_list(layout("--nbpe", "23", "--bpe_nlsyms", f"<a>,{symbol}"))


def test_a_symbol_that_is_given_twice_is_refused(layout, tmp_path):
    (tmp_path / "symbols").write_text("<a>\n<b>\n<a>\n")
    with pytest.raises(UserError, match="--bpe_nlsyms symbols: <a> can't be given, as BPE takes a symbol once only"):
        tokens.make_token_list(layout("--nbpe", "23", "--bpe_nlsyms", "symbols"))

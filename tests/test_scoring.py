"""The promises of recipe/scoring.py: ESPnet's files from ESPnet's files, nothing left out, and one RESULTS.md."""

import logging
from pathlib import Path

import pytest

from espnet_mla.common.errors import UserError
from espnet_mla.common.tables import write_table
from espnet_mla.recipe import scoring

TEXT = {"19-1-0000": "THE CAT SAT", "19-1-0001": "IT'S ON", "26-2-0000": "A MAT"}


@pytest.fixture
def decoded(tmp_path):
    """A function that writes a data folder and a decoding folder with these hypotheses, and returns both."""

    def write(hypotheses: dict[str, str], text: dict[str, str] = TEXT) -> tuple[Path, Path]:
        data, folder = tmp_path / "dump/raw/test", tmp_path / "exp/asr_x/decode_y/test"
        write_table(data / "text", text)
        write_table(data / "utt2spk", {utterance: utterance[:4] for utterance in text})
        write_table(folder / "text", hypotheses)
        return data, folder

    return write


def row(folder: Path, kind: str) -> str:
    """The Sum/Avg row as upstream's show_asr_result.sh turns it into Markdown."""
    lines = (folder / f"score_{kind}" / "result.txt").read_text(encoding="utf-8").split("\n")
    (line,) = (line for line in lines if "Avg" in line)
    return "|".join(line.replace("Sum/Avg", "").replace("|", " ").split())


def test_word_and_character_rates(decoded):
    data, folder = decoded({"19-1-0000": "the cat sad", "19-1-0001": "IT'S ON", "26-2-0000": "A A MAT"})
    scoring.score(data, folder)
    assert row(folder, "wer") == "3|7|85.7|14.3|0.0|14.3|28.6|66.7"
    assert row(folder, "cer") == "3|23|95.7|4.3|0.0|8.7|13.0|66.7"
    assert (folder / "score_wer/ref.trn").read_text().split("\n")[0] == "THE CAT SAT\t(19-1-19-1-0000)"
    assert (folder / "score_cer/hyp.trn").read_text().split("\n")[2] == "A <space> A <space> M A T\t(26-2-26-2-0000)"
    assert not (folder / "score_ter").exists()


def test_token_rate_uses_the_bpe_model(decoded, tmp_path):
    import sentencepiece

    (tmp_path / "train.txt").write_text("THE CAT SAT ON A MAT\nIT'S ON THE MAT\n" * 10)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "train.txt"), model_prefix=str(tmp_path / "bpe"), vocab_size=16, minloglevel=2
    )
    data, folder = decoded(TEXT)
    scoring.score(data, folder, ("ter",), bpemodel=tmp_path / "bpe.model")
    assert "▁" in (folder / "score_ter/hyp.trn").read_text(encoding="utf-8")
    assert row(folder, "ter").endswith("|100.0|0.0|0.0|0.0|0.0|0.0")


def test_missing_and_empty_hypotheses_count_as_deletions_and_are_named(decoded, caplog):
    data, folder = decoded({"19-1-0000": "", "26-2-0000": "A MAT"})
    with caplog.at_level(logging.WARNING):
        scoring.score(data, folder)
    assert row(folder, "wer") == "3|7|28.6|0.0|71.4|0.0|71.4|66.7"
    assert (folder / "score_wer/hyp.trn").read_text().split("\n")[:2] == ["\t(19-1-19-1-0000)", "\t(19-1-19-1-0001)"]
    result = (folder / "score_wer/result.txt").read_text()
    for text in (caplog.text, result):
        assert "have no hypothesis, all their words count as deleted: 19-1-0001" in text
        assert "have an empty hypothesis, all their words count as deleted: 19-1-0000" in text


def test_hypotheses_of_unknown_utterances_are_refused_by_name(decoded):
    data, folder = decoded({**TEXT, "77-7-0000": "WHO"})
    with pytest.raises(UserError, match="77-7-0000"):
        scoring.score(data, folder)


@pytest.mark.parametrize("name", ["dump/raw/test/text", "dump/raw/test/utt2spk", "exp/asr_x/decode_y/test/text"])
def test_a_missing_file_is_named(decoded, tmp_path, name):
    data, folder = decoded(TEXT)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=name):
        scoring.score(data, folder)


def test_what_sclite_would_take_for_a_comment_is_counted(decoded):
    data, folder = decoded({**TEXT, "26-2-0000": "** MAT"})
    scoring.score(data, folder, ("wer",))
    assert (folder / "score_wer/hyp.trn").read_text().split("\n")[2].startswith(" ** MAT")
    assert row(folder, "wer").startswith("3|7|85.7|14.3")


def test_what_sclite_would_not_read_as_words_is_counted_and_the_first_utterance_is_named(decoded, caplog):
    data, folder = decoded({**TEXT, "19-1-0001": "IT'S @", "26-2-0000": "A { MAT"})
    with caplog.at_level(logging.WARNING):
        scoring.score(data, folder)
    assert row(folder, "wer").startswith("3|7|85.7|14.3|0.0|14.3")
    (warning,) = caplog.messages
    assert "test: 2 utterances, the first is 19-1-0001, hold { or @" in warning


def test_symbols_that_are_no_language_do_not_count(decoded, tmp_path):
    (tmp_path / "nlsyms.txt").write_text("<NOISE>\n")
    data, folder = decoded({**TEXT, "26-2-0000": "A <NOISE> MAT"})
    scoring.score(data, folder, cleaner="none", hyp_cleaner="none", nlsyms_txt=tmp_path / "nlsyms.txt")
    for kind in ("wer", "cer"):
        assert row(folder, kind).endswith("|100.0|0.0|0.0|0.0|0.0|0.0")
    with pytest.raises(UserError, match="absent.txt"):
        scoring.score(data, folder, nlsyms_txt=tmp_path / "absent.txt")


def test_results_hold_the_environment_and_every_table_with_its_note(decoded, tmp_path):
    data, folder = decoded(TEXT)
    scoring.score(data, folder)
    scoring.score(data, folder)  # again: the same files
    text = scoring.write_results(tmp_path / "exp/asr_x", note="From the mini corpus.").read_text()
    assert text.startswith("<!-- Generated by")
    assert "# RESULTS\n## Environments\n- date: `" in text
    assert all(f"- {what} version: `" in text for what in ("python", "espnet", "pytorch"))
    assert text.count("From the mini corpus.\n\n|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|\n") == 2
    assert "### WER" in text and "### CER" in text and "### TER" not in text
    assert "\n|decode_y/test|3|7|100.0|0.0|0.0|0.0|0.0|0.0|\n" in text


def test_results_of_nothing_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="stage 12"):
        scoring.write_results(tmp_path)

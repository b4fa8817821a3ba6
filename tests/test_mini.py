"""espnet_mla.recipe.mini: a corpus of synthesised speech that is the same each time it is made."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_mla.common.errors import UserError
from espnet_mla.common.tables import read_table
from espnet_mla.recipe import librispeech, mini

SIZES = {"train-clean-100": 30, "dev-clean": 6, "dev-other": 4, "test-clean": 6, "test-other": 2}


def contents(corpus_dir):
    files = sorted(path for path in corpus_dir.rglob("*") if path.is_file())
    return {str(path.relative_to(corpus_dir)): path.read_bytes() for path in files}


def transcripts(corpus_dir, part):
    found = {}
    for path in sorted((corpus_dir / "LibriSpeech" / part).rglob("*.trans.txt")):
        found |= read_table(path)
    return found


@pytest.fixture(scope="module")
def corpus_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    mini.synthesise(folder, seed=3, nj=2, sizes=SIZES)
    return folder


def test_a_seed_gives_the_same_bytes_whatever_the_number_of_processes(corpus_dir, tmp_path):
    mini.synthesise(tmp_path, seed=3, nj=1, sizes=SIZES)
    assert contents(tmp_path) == contents(corpus_dir)


def test_another_seed_gives_other_sentences(corpus_dir):
    assert mini._sentences(3) != mini._sentences(4)
    assert sorted(mini._sentences(3)) == sorted(mini._sentences(4))


def test_every_part_has_its_size_and_no_sentence_occurs_twice(corpus_dir):
    parts = {part: transcripts(corpus_dir, part) for part in SIZES}
    assert {part: len(text) for part, text in parts.items()} == SIZES
    everything = [sentence for text in parts.values() for sentence in text.values()]
    assert len(set(everything)) == len(everything)


def test_test_sets_of_full_size_hold_only_words_that_training_holds():
    readers = mini._plan(Path(), 0, mini.SIZES)
    words = {part: set() for part in mini.SIZES}
    for reader in readers:
        words[reader.folder.name] |= {word for utterance in reader.utterances for word in utterance.text.split()}
    assert 40 <= len(words["train-clean-100"]) <= 60
    assert all(found <= words["train-clean-100"] for found in words.values())


def test_other_parts_have_voices_that_training_has_not(corpus_dir):
    lines = (corpus_dir / "LibriSpeech" / "SPEAKERS.TXT").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if not line.startswith(";")]
    voices = {part: {row[4] for row in rows if row[2] == part} for part in SIZES}
    assert voices["dev-clean"] == voices["test-clean"] == voices["train-clean-100"] and len(voices["dev-clean"]) == 6
    assert voices["dev-other"] == voices["test-other"] and not voices["dev-other"] & voices["train-clean-100"]
    readers = [row[0] for row in rows]
    assert len(set(readers)) == len(readers)


def test_the_speech_is_audible_and_has_silence_at_both_ends(corpus_dir):
    lengths = []
    for path in (corpus_dir / "LibriSpeech").rglob("*.flac"):
        samples, rate = soundfile.read(path)
        assert rate == 16000 and samples.ndim == 1
        assert np.abs(samples).max() > 0.1
        loud = np.flatnonzero(np.abs(samples) > 0.01)
        assert loud[0] >= 0.09 * rate and len(samples) - loud[-1] >= 0.09 * rate
        lengths.append(len(samples) / rate)
    assert min(lengths) > 1.0 and max(lengths) < 4.0
    assert 1.5 < np.mean(lengths) < 2.5


def test_it_is_prepared_as_librispeech_is(corpus_dir, tmp_path):
    librispeech.prepare(corpus_dir, tmp_path, nj=1)
    assert read_table(tmp_path / "train_clean_100" / "text") == transcripts(corpus_dir, "train-clean-100")
    assert len(read_table(tmp_path / "dev" / "wav.scp")) == SIZES["dev-clean"] + SIZES["dev-other"]
    assert set(read_table(tmp_path / "test_clean" / "spk2gender").values()) == {"f", "m"}


def test_a_rerun_makes_only_what_is_missing_or_asked_for_otherwise(tmp_path):
    sizes = {"test-other": 2}
    mini.synthesise(tmp_path, nj=1, sizes=sizes)
    first = contents(tmp_path)
    added = tmp_path / "LibriSpeech" / "untouched"
    added.touch()
    mini.synthesise(tmp_path, nj=1, sizes=sizes)
    assert added.exists()
    (tmp_path / "LibriSpeech" / ".complete").unlink()
    mini.synthesise(tmp_path, nj=1, sizes=sizes)
    assert contents(tmp_path) == first
    mini.synthesise(tmp_path, seed=1, nj=1, sizes=sizes)
    assert contents(tmp_path) != first


def test_a_corpus_that_was_not_made_here_is_never_overwritten(tmp_path):
    (tmp_path / "LibriSpeech").mkdir()
    (tmp_path / "LibriSpeech" / "SPEAKERS.TXT").write_text(";ID  |SEX| SUBSET           |MINUTES| NAME\n")
    with pytest.raises(UserError, match="not overwritten"):
        mini.synthesise(tmp_path, sizes={"test-other": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["LibriSpeech"]

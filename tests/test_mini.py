"""espnet_mla.recipe.mini: a corpus of synthesised speech that is the same each time it is made."""

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_mla.common.errors import UserError
from espnet_mla.common.tables import read_table
from espnet_mla.recipe import acoustics, espeak, grammar, librispeech, mini

SIZES = {
    "train-clean-100": 32, "dev-clean": 16, "dev-other": 4, "test-clean": 16, "test-other": 4, "test-noisy": 2, "test-long": 2
}  # fmt: skip


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


def test_every_part_has_its_size_and_no_sentence_occurs_twice(corpus_dir):
    parts = {part: transcripts(corpus_dir, part) for part in SIZES}
    assert {part: len(text) for part, text in parts.items()} == SIZES
    everything = [sentence for text in parts.values() for sentence in text.values()]
    assert len(set(everything)) == len(everything)


def test_test_sets_of_full_size_hold_only_words_that_training_holds():
    texts = {part: [] for part in mini.SIZES}
    for reader in mini._plan(Path(), mini.SIZES, 0, grammar.sentences(0)):
        texts[reader.folder.name] += [utterance.text.split() for utterance in reader.utterances]
    words = {part: {word for text in part_texts for word in text} for part, part_texts in texts.items()}
    assert 400 <= len(words["train-clean-100"]) <= 600
    assert all(found <= words["train-clean-100"] for found in words.values())
    number = {part: sum(map(len, part_texts)) for part, part_texts in texts.items()}
    assert all(number[part] >= 1500 for part in number if part.startswith("test-"))


def test_other_parts_have_voices_that_training_has_not(corpus_dir):
    lines = (corpus_dir / "LibriSpeech" / "SPEAKERS.TXT").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if not line.startswith(";")]
    voices = {part: {row[4] for row in rows if row[2] == part} for part in SIZES}
    assert voices["dev-clean"] == voices["test-clean"] == voices["train-clean-100"] and len(voices["dev-clean"]) == 16
    assert voices["dev-other"] == voices["test-other"] and not voices["dev-other"] & voices["train-clean-100"]
    assert voices["test-long"] | voices["test-noisy"] <= voices["train-clean-100"]
    readers = [row[0] for row in rows]
    assert len(set(readers)) == len(readers)


def test_the_speech_is_audible_and_has_the_length_of_its_words(corpus_dir):
    for path in (corpus_dir / "LibriSpeech").rglob("*.flac"):
        samples, rate = soundfile.read(path)
        assert rate == 16000 and samples.ndim == 1
        assert 0.1 < np.abs(samples).max() < 1.0
        words = transcripts(corpus_dir, path.parents[2].name)[path.stem].split()
        assert 0.15 < len(samples) / rate / len(words) < 0.8
        if path.parents[2].name == "test-long":
            assert 20 < len(samples) / rate < 60


def test_word_times_are_those_of_the_transcript_one_after_the_other(corpus_dir):
    for part in SIZES:
        words: dict[str, list[tuple[float, float, str]]] = {}
        for line in (corpus_dir / "LibriSpeech" / f"{part}.ctm").read_text().splitlines():
            name, channel, start, length, word = line.split()
            assert channel == "1"
            words.setdefault(name, []).append((float(start), float(length), word))
        texts = transcripts(corpus_dir, part)
        assert {name: " ".join(word for _, _, word in rows) for name, rows in words.items()} == texts
        for name, rows in words.items():
            assert all(length > 0 for _, length, _ in rows)
            ends = [start + length for start, length, _ in rows]
            assert all(end <= start + 0.011 for end, (start, _, _) in zip(ends, rows[1:], strict=False))
            path = next((corpus_dir / "LibriSpeech" / part).rglob(f"{name}.flac"))
            assert ends[-1] < soundfile.info(path).duration


def test_words_are_said_when_the_times_say_so():
    """Speech begins where the first word does, and silence is between the last of a sentence and the next one."""
    part = mini.PARTS["test-long"]
    utterance = mini._utterance(part, grammar.sentences(0), random.Random(0))
    samples, words = mini._say(espeak.Voice("m1"), utterance)
    loud = np.abs(samples) > 100
    place = 0
    for silence, sentence in zip(utterance.silences, utterance.sentences, strict=False):
        start = words[place].start
        assert not loud[start - int(0.9 * silence * mini.FS) : start].any()
        assert loud[start : start + mini.FS // 5].any()
        place += len(sentence.words)
    assert place == len(words)


def test_noise_is_as_loud_as_the_condition_says_and_moves_nothing():
    rng = np.random.default_rng(0)
    speech = np.zeros(32000, np.int16)
    speech[8000:24000] = rng.normal(0, 3000, 16000)
    for babble in (False, True):
        condition = acoustics.Condition(10.0, 0.2, (0.0,) * acoustics.BANDS, 0.0, babble, -6.0, seed=1)
        other = rng.normal(0, 500, 32000)
        recorded = acoustics.record(speech, 16000, condition, [], other).astype(float)
        assert np.abs(recorded).max() == pytest.approx(32767 * 10 ** (-6 / 20), rel=1e-3)
        noise, both = np.mean(recorded[:7000] ** 2), np.mean(recorded[8000:24000] ** 2)
        assert 10 * np.log10(both / noise - 1) == pytest.approx(10, abs=0.7)
        assert np.argmax(np.correlate(recorded[7900:9000], speech[8000:8500].astype(float))) == 100


def test_a_covered_word_is_under_noise_and_the_rest_is_not():
    speech = np.zeros(16000, np.int16)
    speech[2000:14000] = np.random.default_rng(0).normal(0, 3000, 12000)
    condition = acoustics.Condition(40.0, 0.1, (0.0,) * acoustics.BANDS, 0.0, False, -6.0, seed=1)
    plain, covered = (acoustics.record(speech, 16000, condition, spans, speech) for spans in ([], [(6000, 8000)]))
    gain = np.linalg.lstsq(plain[:5000, None].astype(float), covered[:5000].astype(float))[0][0]
    rest = covered - gain * plain
    assert np.std(rest[:6000]) < 0.01 * np.std(rest[6000:8000]) and np.std(rest[8000:]) < 0.01 * np.std(rest[6000:8000])


def test_it_is_prepared_as_librispeech_is(corpus_dir, tmp_path):
    librispeech.prepare(corpus_dir, tmp_path, nj=1)
    assert read_table(tmp_path / "train_clean_100" / "text") == transcripts(corpus_dir, "train-clean-100")
    assert len(read_table(tmp_path / "dev" / "wav.scp")) == SIZES["dev-clean"] + SIZES["dev-other"]
    assert set(read_table(tmp_path / "test_clean" / "spk2gender").values()) == {"f", "m"}
    mini.write_word_times(corpus_dir, tmp_path)
    for folder, parts in (("dev", ("dev-clean", "dev-other")), ("test_clean", ("test-clean",))):
        times = "".join((corpus_dir / "LibriSpeech" / f"{part}.ctm").read_text() for part in parts)
        assert (tmp_path / folder / "ctm").read_text() == times


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

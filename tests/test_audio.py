"""espnet_mla.recipe.audio: stages 2 to 4 leave upstream's folders, lose no utterance silently, and repeat nothing."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_mla.common.errors import UserError
from espnet_mla.common.tables import read_table, write_table
from espnet_mla.recipe import audio, datadir

FS = 16000


def tone(hertz, seconds, fs=FS):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * fs)) / fs)


def write_set(folder, wavs):
    """A data folder of tones: `wavs` gives each utterance's suffix, rate and channels."""
    tables = {"wav.scp": {}, "text": {}, "utt2spk": {}, "spk2gender": {}}
    for index, (suffix, fs, channels) in enumerate(wavs):
        utterance, speaker = f"s{index % 2}-{index:04d}", f"s{index % 2}"
        path = folder.parent.parent / "corpus" / f"{utterance}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.stack(channels * [tone(300 + index, 0.2 + index / 1000, fs)], axis=1), fs, "PCM_16")
        tables["wav.scp"][utterance] = str(path)
        tables["text"][utterance] = f"UTTERANCE {index}"
        tables["utt2spk"][utterance] = speaker
        tables["spk2gender"][speaker] = "f"
    datadir.save(folder, tables)
    return folder


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe folder, which is the current one, with data/train of four utterances."""
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "data/train", [("flac", FS, 1), ("wav", 8000, 1), ("flac", FS, 2), ("wav", FS, 1)])
    return tmp_path


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.suffix in (".flac", ".wav", ".ark")}


class TestPerturbSpeed:
    def test_folders_and_tables_are_upstreams(self, recipe):
        audio.perturb_speed(recipe / "data", "train", ["0.9", "1.0", "1.1"])
        assert {path.name for path in (recipe / "data").iterdir()} == {
            "train", "train_sp0.9", "train_sp1.1", "train_sp",
        }  # fmt: skip
        folder = recipe / "data/train_sp0.9"
        corpus = recipe / "corpus"
        assert read_table(folder / "wav.scp")["sp0.9-s0-0000"] == f"sox {corpus}/s0-0000.flac -t wav - speed 0.9 |"
        assert read_table(folder / "text")["sp0.9-s1-0001"] == "UTTERANCE 1"
        assert read_table(folder / "utt2spk")["sp0.9-s1-0001"] == "sp0.9-s1"
        assert read_table(folder / "utt2uniq")["sp0.9-s1-0001"] == "s1-0001"
        assert read_table(folder / "spk2utt")["sp0.9-s1"] == "sp0.9-s1-0001 sp0.9-s1-0003"
        assert read_table(folder / "spk2gender") == {"sp0.9-s0": "f", "sp0.9-s1": "f"}
        together = read_table(recipe / "data/train_sp/wav.scp")
        assert len(together) == 12 and together["s0-0000"] == f"{corpus}/s0-0000.flac"
        assert read_table(recipe / "data/train_sp/utt2uniq")["s0-0000"] == "s0-0000"

    def test_pipes_and_archives_are_perturbed_as_upstream_does(self, recipe):
        wavs = read_table("data/train/wav.scp")
        wavs |= {"s0-0000": "flac -c -d -s a.flac |", "s1-0001": "a.ark:12"}
        write_table("data/train/wav.scp", wavs)
        audio.perturb_speed(recipe / "data", "train", [1.1])
        perturbed = read_table("data/train_sp1.1/wav.scp")
        assert perturbed["sp1.1-s0-0000"] == "flac -c -d -s a.flac | sox -t wav - -t wav - speed 1.1 |"
        assert perturbed["sp1.1-s1-0001"] == "wav-copy a.ark:12 - | sox -t wav - -t wav - speed 1.1 |"

    def test_what_it_writes_is_read_at_that_speed(self, recipe):
        audio.perturb_speed(recipe / "data", "train", ["0.9"])
        samples, rate = audio.read(read_table("data/train_sp0.9/wav.scp")["sp0.9-s1-0001"])
        assert rate == 8000 and abs(len(samples) - 0.201 * 8000 / 0.9) <= 1

    def test_a_rerun_writes_the_same_bytes(self, recipe):
        audio.perturb_speed(recipe / "data", "train", ["0.9", "1.0"])
        first = contents(recipe / "data")
        audio.perturb_speed(recipe / "data", "train", ["0.9", "1.0"])
        assert contents(recipe / "data") == first

    @pytest.mark.parametrize("factors", [["fast"], ["0"], ["-1"], ["nan"], ["9e-1"], ["1.0", "1"], ["0.9", "0.9"], []])
    def test_impossible_factors_are_refused(self, recipe, factors):
        with pytest.raises(UserError, match="--speed_perturb_factors"):
            audio.perturb_speed(recipe / "data", "train", factors)

    def test_a_missing_set_is_named(self, recipe):
        with pytest.raises(UserError, match="data/nothing/wav.scp does not exist"):
            audio.perturb_speed(recipe / "data", "nothing", ["0.9"])


class TestFormatData:
    source, target = Path("data/train"), Path("dump/raw/org/train")

    def format(self, audio_format="flac", fs=FS, nj=1):
        audio.format_data(self.source, self.target, audio_format, fs, nj)
        return read_table(self.target / "wav.scp")

    @pytest.mark.parametrize("audio_format", audio.FORMATS)
    def test_all_audio_has_one_format_and_rate_and_espnet_reads_it(self, recipe, audio_format):
        from espnet2.train.dataset import ESPnetDataset

        self.format(audio_format, nj=2)
        kind = "kaldi_ark" if audio_format.endswith("ark") else "sound"
        dataset = ESPnetDataset([(str(self.target / "wav.scp"), "speech", kind)], preprocess=None)
        lengths = read_table(self.target / "utt2num_samples")
        for utterance in read_table(self.source / "text"):
            index = int(utterance[-4:])
            speech = dataset[utterance][1]["speech"]
            assert speech.shape == (int(lengths[utterance]),)
            expected = tone(300 + index, 0.2 + index / 1000)
            assert abs(len(speech) - len(expected)) <= 2
            inner = slice(300, min(len(speech), len(expected)) - 300)
            np.testing.assert_allclose(speech[inner], expected[inner], atol=5e-3)
        for name in ("text", "utt2spk", "spk2utt", "spk2gender"):
            assert (self.target / name).read_bytes() == (self.source / name).read_bytes()
        assert (self.target / "feats_type").read_text() == "raw\n"
        assert (self.target / "audio_format").read_text() == f"{audio_format}\n"

    def test_audio_that_is_right_already_stays_where_it_is(self, recipe):
        wavs = self.format("flac")
        assert wavs["s0-0000"] == str(recipe / "corpus/s0-0000.flac")
        assert wavs["s1-0001"] == "dump/raw/org/train/data/format.1/s1-0001.flac"
        assert wavs["s0-0002"] == "dump/raw/org/train/data/format.1/s0-0002.flac"  # two channels

    def test_the_number_of_jobs_is_the_number_of_folders(self, recipe):
        wavs = self.format("wav", fs=11025, nj=3)
        folders = [wavs[utterance].split("/")[-2] for utterance in sorted(wavs)]
        assert folders == sorted(folders) and set(folders) == {"format.1", "format.2", "format.3"}

    @pytest.mark.parametrize("audio_format", audio.FORMATS)
    def test_a_rerun_touches_no_audio(self, recipe, audio_format):
        self.format(audio_format, nj=2)
        before, written = times(self.target), contents(self.target)
        self.format(audio_format, nj=1)
        assert times(self.target) == before and contents(self.target) == written

    @pytest.mark.parametrize("audio_format", audio.FORMATS)
    def test_a_killed_run_is_finished(self, recipe, audio_format):
        self.format(audio_format)
        expected, before = contents(self.target), times(self.target)
        (self.target / "utt2num_samples").unlink()  # written last
        lost = sorted(before)[0]
        lost.unlink()
        self.format(audio_format)
        assert contents(self.target) == expected
        after = times(self.target)
        assert all(after[path] == before[path] for path in before if path != lost)

    @pytest.mark.parametrize("finished", [True, False])
    def test_new_audio_under_an_old_name_is_formatted_again(self, recipe, finished):
        self.format()
        if not finished:
            (self.target / "utt2num_samples").unlink()
        path = recipe / "corpus/s1-0001.wav"
        soundfile.write(path, tone(300, 1.0), FS)
        later = os.stat(self.target / "wav.scp").st_mtime + 10
        os.utime(path, (later, later))
        self.format()
        assert read_table(self.target / "utt2num_samples")["s1-0001"] == "16000"

    def test_audio_whose_header_lacks_its_length_is_written_anew(self, recipe):
        path = recipe / "corpus/s1-0003.wav"
        content = path.read_bytes()
        path.write_bytes(content.replace(b"data" + (len(content) - 44).to_bytes(4, "little"), b"data\0\0\0\0"))
        assert soundfile.info(path).frames == 0
        wavs = self.format("wav")
        assert wavs["s1-0001"] != str(path) != wavs["s1-0003"]
        assert soundfile.info(wavs["s1-0003"]).frames == (len(content) - 44) // 2

    def test_nothing_stale_stays_when_format_rate_or_entries_change(self, recipe):
        self.format("wav", fs=8000)
        self.format("flac", fs=8000)
        assert not list(self.target.rglob("*.wav"))
        self.format("flac", fs=FS)
        assert read_table(self.target / "utt2num_samples")["s0-0000"] == "3200"
        wavs = read_table(self.source / "wav.scp")
        write_table(self.source / "wav.scp", wavs | {"s1-0001": f"sox {wavs['s1-0001']} -t wav - speed 2.0 |"})
        self.format("flac", fs=FS)
        assert abs(int(read_table(self.target / "utt2num_samples")["s1-0001"]) - 1608) <= 1

    @pytest.mark.parametrize("audio_format", ["flac", "flac.ark"])
    def test_one_broken_utterance_in_a_hundred_is_named_and_left_out(self, recipe, caplog, audio_format):
        write_set(recipe / "data/train", 100 * [("flac", FS, 1)])
        (recipe / "corpus/s0-0042.flac").write_bytes(b"broken")
        self.format(audio_format)
        assert "s0-0042 is left out" in caplog.text and "1 of 100 utterances are broken" in caplog.text
        for name in (*datadir.REQUIRED, "utt2num_samples"):
            table = read_table(self.target / name)
            assert len(table) == 99 and "s0-0042" not in table
        (recipe / "corpus/s1-0043.flac").write_bytes(b"broken")
        later = os.stat(self.target / "wav.scp").st_mtime + 10
        os.utime(recipe / "corpus/s1-0043.flac", (later, later))
        with pytest.raises(UserError, match="2 of 100 utterances are broken.*s0-0042.*s1-0043"):
            self.format(audio_format)

    @pytest.mark.parametrize("audio_format", audio.FORMATS)
    @pytest.mark.parametrize("lacking", [1, 300])
    def test_a_file_whose_end_does_not_fit_on_the_disk_is_named_and_not_left(
        self, recipe, largest_file, audio_format, lacking
    ):
        write_set(recipe / "data/train", [("wav", 8000, 1)])
        self.format(audio_format)
        (written,) = (path for path in (self.target / "data").rglob("*") if path.is_file())
        size = written.stat().st_size
        written.unlink()
        with largest_file(size - lacking), pytest.raises(UserError, match=f"cannot write {written}"):
            self.format(audio_format)
        assert not [path for path in (self.target / "data").rglob("*") if path.is_file()]

    def test_an_unknown_format_is_refused_with_the_known_ones(self, recipe):
        with pytest.raises(UserError, match="--audio_format mp3: must be one of flac, wav, flac.ark, wav.ark"):
            self.format("mp3")

    def test_a_missing_input_is_named(self, recipe):
        (self.source / "text").unlink()
        with pytest.raises(UserError, match="data/train/text does not exist"):
            self.format()


class TestRemoveLongShort:
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(lengths=st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=8))
    def test_it_keeps_what_is_strictly_between_and_has_text(self, tmp_path, lengths):
        names = [f"s-{index}" for index in range(len(lengths))]
        tables = {
            "wav.scp": {name: f"{name}.flac" for name in names},
            "text": {name: "SPOKEN" if spoken else "" for name, (_, spoken) in zip(names, lengths, strict=True)},
            "utt2spk": dict.fromkeys(names, "s"),
            "utt2uniq": dict(zip(names, names, strict=True)),
            "utt2num_samples": {name: str(length) for name, (length, _) in zip(names, lengths, strict=True)},
        }
        datadir.save(tmp_path / "org", tables)
        kept = {name for name, (length, spoken) in zip(names, lengths, strict=True) if spoken and 10 < length < 30}
        if not kept:
            with pytest.raises(UserError, match="org: 0 of .* utterances kept"):
                audio.remove_long_short(tmp_path / "org", tmp_path / "new", 10, 1.0, 3.0)
            return
        audio.remove_long_short(tmp_path / "org", tmp_path / "new", 10, 1.0, 3.0)
        assert datadir.load(tmp_path / "new") == datadir.keep(tables, kept)

    def test_it_says_how_many_and_why_and_copies_what_the_audio_is(self, recipe, caplog):
        caplog.set_level("INFO")
        org, target = recipe / "dump/raw/org/train", recipe / "dump/raw/train"
        audio.format_data(recipe / "data/train", org, "flac", FS, 1)
        write_table(org / "text", read_table(org / "text") | {"s1-0003": ""})
        audio.remove_long_short(org, target, FS, 0.2, 20.0)  # the first is 0.2 s long, not longer
        assert "2 of 4 utterances kept; left out: 1 not longer than 0.2 s, " in caplog.text
        assert "0 not shorter than 20.0 s, 1 without transcript" in caplog.text
        assert set(read_table(target / "wav.scp")) == {"s1-0001", "s0-0002"}
        assert (target / "feats_type").read_text() == "raw\n" and (target / "audio_format").read_text() == "flac\n"

    def test_a_missing_input_is_named(self, recipe):
        with pytest.raises(UserError, match="utt2num_samples does not exist"):
            audio.remove_long_short(recipe / "data/train", recipe / "dump/raw/train", FS, 0.1, 20.0)

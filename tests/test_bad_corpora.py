"""Corpora and disks as they are: what is broken is named, nothing crashes late, no half file gets a final name."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recipes import SHORT, SMALL, recipe_folder, run

from espnet_mla.common.tables import read_table
from espnet_mla.recipe import audio, datadir, mini
from espnet_mla.recipe.__main__ import main

WORDS = {"train-clean-100": "ЖИЗНЬ ПРЕКРАСНА", "test-clean": "ÇA VA TRÈS BIEN"}  # the same letters in training and test


def noise(path: Path, seconds: float, rate: int = 16000, channels: int = 1) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.3, 0.3, (round(seconds * rate), channels)), rate, "PCM_16")


def odd_corpus(corpus: Path) -> None:
    """The mini corpus in small, a tenth of whose audio and transcripts is unusual but usable."""
    sizes = {"train-clean-100": 18, "dev-clean": 2, "dev-other": 2, "test-clean": 6, "test-other": 2}
    mini.synthesise(corpus, sizes=sizes, longest=SHORT)
    for part, words in WORDS.items():
        transcripts = sorted((corpus / "LibriSpeech" / part).rglob("*.trans.txt"))
        for path in transcripts:
            lines = path.read_text().splitlines()
            lines[0] = f"{lines[0].split()[0]} {' '.join(WORDS.values())} {words}"
            path.write_bytes("".join(f"{line}\r\n" for line in lines).encode())
        flacs = sorted((corpus / "LibriSpeech" / part).rglob("*.flac"))
        noise(flacs[0], 2, 8000)
        noise(flacs[1], 2, 44100, channels=2)
        noise(flacs[2], 0.05)
        if part == "train-clean-100":
            noise(flacs[3], 60)


@pytest.mark.slow
def test_odd_audio_and_letters_in_folders_with_a_shells_signs_go_through_every_stage(tmp_path):
    corpus, folder = tmp_path / "a b$(touch pwned);'c", tmp_path / "r e'c$(touch pwned)"
    odd_corpus(corpus)
    folder.mkdir()
    recipe_folder(folder)
    done = run(folder, corpus, *SMALL, "--nbpe", "45", "--speed_perturb_factors", "0.9 1.0", "--asr_tag", "tiny",
               "--test_sets", "test_clean", "--inference_args", "--beam_size 2 --maxlenratio 0.1")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.rglob("pwned"))
    tokens = (folder / "data/en_token_list/bpe_unigram45/tokens.txt").read_text()
    assert "Ж" in tokens and "È" in tokens
    # 0.05 s and 60 s, of each of the two speeds.
    trained, dumped = (read_table(folder / f"dump/raw{sub}/train_clean_100_sp/text") for sub in ("", "/org"))
    assert len(dumped) - len(trained) == 4 and "2 not longer than 0.1 s, 2 not shorter than 30.0 s" in done.stdout
    decoded = next((folder / "exp/asr_tiny").glob("decode_*")) / "test_clean"
    references = read_table(folder / "dump/raw/test_clean/text")
    assert read_table(decoded / "text").keys() == references.keys()  # the one of 0.05 s too
    first = (decoded / "score_wer" / "ref.trn").read_text().splitlines()[0]
    assert first.startswith("ЖИЗНЬ ПРЕКРАСНА ÇA VA TRÈS BIEN ÇA VA TRÈS BIEN\t(")
    words = sum(len(text.split()) for text in references.values())
    assert f"|{len(references)}|{words}|" in (folder / "exp/asr_tiny/RESULTS.md").read_text()


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A data folder of ten utterances of two seconds, at a rate that stage 3 has to change."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audio").mkdir()
    entries = {f"a-{number}": str(tmp_path / "audio" / f"{number}.wav") for number in range(10)}
    for path in entries.values():
        noise(Path(path), 2, 8000)
    speakers = dict.fromkeys(entries, "a")
    datadir.save(tmp_path / "data", {"wav.scp": entries, "text": dict.fromkeys(entries, "A"), "utt2spk": speakers})
    return Path("data")


def free(monkeypatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - count, count))


def test_what_stage_3_writes_is_estimated_with_speed_and_without_what_is_there(data):
    expected = 10 * 2 * 16000 * 2  # files, seconds, Hz, bytes
    target = Path("dump")
    assert audio.bytes_to_write(data, target, "wav", 16000) == expected
    assert audio.bytes_to_write(data, target, "flac", 16000) == pytest.approx(expected * audio.FLAC_SIZE)
    assert audio.bytes_to_write(data, target, "wav", 8000) == 0  # it is so already
    audio.format_data(data, target, "wav", 16000, 1)
    assert audio.bytes_to_write(data, target, "wav", 16000) == 0
    audio.perturb_speed(Path(), "data", ["0.5"])
    assert audio.bytes_to_write(Path("data_sp0.5"), target / "sp", "wav", 16000) == 2 * expected


def test_the_space_for_all_sets_is_asked_for_before_the_first(data, monkeypatch, capsys):
    for name in ("train", "dev", "test"):
        shutil.copytree(data, Path("data") / name)
    stage_3 = ["--train_set", "train", "--valid_set", "dev", "--test_sets", "test", "--audio_format", "wav", "--nj", "1",
               "--stage", "3", "--stop_stage", "3"]  # fmt: skip
    free(monkeypatch, 3 * 640_000 - 1)
    assert main(stage_3) == 1
    said = "error: dump/raw: 1.92MB are free, the audio of stage 3 needs 1.92MB\n"
    assert capsys.readouterr().err.endswith(said) and not list(Path("dump").rglob("wav.scp"))
    free(monkeypatch, 3 * 640_000)
    assert main(stage_3) == 0
    free(monkeypatch, 0)
    assert main(stage_3) == 0  # nothing is left to write


def test_what_is_too_short_for_a_frontend_is_named_and_left_out(tmp_path, monkeypatch, caplog):
    from espnet2.asr.frontend.default import DefaultFrontend

    monkeypatch.chdir(tmp_path)
    for samples in (audio.LEAST_SAMPLES - 1, audio.LEAST_SAMPLES):
        noise(tmp_path / f"{samples}.flac", samples / 16000)
    entries = {f"a-{n:03}": str(tmp_path / f"{audio.LEAST_SAMPLES - (n == 42)}.flac") for n in range(100)}
    tables = {"wav.scp": entries, "text": dict.fromkeys(entries, "A"), "utt2spk": dict.fromkeys(entries, "a")}
    datadir.save(Path("data"), tables)
    audio.format_data(Path("data"), Path("dump"), "flac", 16000, 1)
    assert "a-042 is left out" in caplog.text and "256 samples, at least 257" in caplog.text
    assert len(read_table("dump/wav.scp")) == 99
    frontend = DefaultFrontend(fs=16000)
    frontend(torch.zeros(1, audio.LEAST_SAMPLES), torch.tensor([audio.LEAST_SAMPLES]))
    with pytest.raises(RuntimeError):
        frontend(torch.zeros(1, audio.LEAST_SAMPLES - 1), torch.tensor([audio.LEAST_SAMPLES - 1]))


FORMAT = "from pathlib import Path; from espnet_mla.recipe import __main__, audio, stages\n"
FORMAT += "stages.perform = lambda at: audio.format_data(Path('data'), Path('dump'), 'wav', 16000, 1)\n"
FORMAT += "raise SystemExit(__main__.main(['--train_set', 'a', '--valid_set', 'b', '--test_sets', 'c']))"


def format_it(**options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", FORMAT], capture_output=True, text=True, **options)


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_half_file(data):
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # what stands for a full disk

    done = format_it(preexec_fn=full)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (
        len(errors) == 1 and "cannot write dump/data/format.1/a-0.wav" in errors[0] and "Traceback" not in done.stderr
    )
    assert not list(Path("dump").rglob("*.wav")) and not Path("dump/wav.scp").exists()
    assert format_it().returncode == 0
    assert len(list(Path("dump").rglob("*.wav"))) == 10 and not list(Path("dump").rglob("*.partial*"))


def test_a_folder_that_cannot_be_written_to_is_one_line(data):
    Path("dump").write_text("no folder")
    done = format_it()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if "dump" in line and line.startswith("error: ")]

"""Corpora and disks as they are: what is broken is named, nothing crashes late, no half file gets a final name."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_recipe import SMALL, recipe_folder, run

from espnet_mla.recipe import audio, datadir, mini
from espnet_mla.recipe.files import RecipeError, read_table

WORDS = {"train-clean-100": "ЖИЗНЬ ПРЕКРАСНА", "test-clean": "ÇA VA TRÈS BIEN"}  # the same letters in training and test


def noise(path: Path, seconds: float, rate: int = 16000, channels: int = 1) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.3, 0.3, (round(seconds * rate), channels)), rate, "PCM_16")


def odd_corpus(corpus: Path) -> None:
    """The mini corpus in small, a tenth of whose audio and transcripts is unusual but usable."""
    sizes = {"train-clean-100": 18, "dev-clean": 2, "dev-other": 2, "test-clean": 6, "test-other": 2}
    mini.synthesise(corpus, sizes=sizes)
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
    done = run(folder, corpus, *SMALL, "--nbpe", "70", "--speed_perturb_factors", "0.9 1.0", "--asr_tag", "tiny",
               "--test_sets", "test_clean", "--inference_args", "--beam_size 2 --maxlenratio 0.1")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.rglob("pwned"))
    tokens = (folder / "data/en_token_list/bpe_unigram70/tokens.txt").read_text()
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


def test_space_is_asked_for_before_stage_3_with_the_figure(data, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 500_000))
    # 10 files, 2 s, 16 kHz, 2 bytes.
    with pytest.raises(RecipeError, match=r"^dump: 500kB are free, the audio that stage 3 writes needs 640kB$"):
        audio.format_data(data, Path("dump"), "wav", 16000, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 640_001))
    audio.format_data(data, Path("dump"), "wav", 16000, 1)
    assert len(read_table("dump/wav.scp")) == 10
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    audio.format_data(data, Path("dump"), "wav", 16000, 1)  # nothing is left to write


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

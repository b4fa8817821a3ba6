"""espnet-mla transcribe prints a line for each file, and goes on past what it can't read."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from experiment import DECODING, samples

import espnet_mla
from espnet_mla.common.errors import UserError
from espnet_mla.trained import transcribe

FLAGS = [word for name, value in DECODING.items() for word in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_file_gets_a_line_and_what_cannot_be_done_is_named(
    recipe, archive, expected, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(recipe / "speech.flac", "plain.flac")
    speech = samples(recipe)
    soundfile.write("stereo.wav", np.stack([2 * speech, 0 * speech], axis=1), 16000, subtype="FLOAT")
    soundfile.write("faster.ogg", speech, 44100)
    soundfile.write("short.wav", speech[:100], 16000)
    soundfile.write("empty.wav", speech[:0], 16000)
    (tmp_path / "broken.flac").write_bytes((recipe / "speech.flac").read_bytes()[:5000])
    (tmp_path / "text.txt").write_text("no audio\n")
    soundfile.write("nan.wav", speech * np.nan, 16000, subtype="FLOAT")
    (tmp_path / "folder.wav").mkdir()
    cut_wav(tmp_path / "cut.wav", speech)
    latin = os.fsdecode(b"caf\xe9\t\n.wav")  # a name that is not UTF-8, and would break the line
    soundfile.write("gsm.wav", speech, 16000, subtype="GSM610")
    os.rename("gsm.wav", latin)
    bad = ["nan.wav", "broken.flac", "short.wav", "empty.wav", "text.txt", "cut.wav", "absent.flac", "touch run |"]
    bad.append("folder.wav")
    status = transcribe.main(
        [str(archive), "plain.flac", *bad, "stereo.wav", latin, "--device", "cpu", *FLAGS, "faster.ogg"]
    )
    out, err = capfd.readouterr()
    text = expected[0][0]
    assert out.splitlines()[:2] == [f"plain.flac\t{text}", f"stereo.wav\t{text}"]
    assert [line.split("\t")[0] for line in out.splitlines()[2:]] == [r"caf\xe9\t\n.wav", "faster.ogg"]
    assert status == 1
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert all(line.startswith(f"error: {name}") for line, name in zip(told, bad, strict=True)), told
    assert not [line for line in told if line.endswith((":", ": "))]
    assert "error: absent.flac does not exist" in told and "error: folder.wav is a folder" in err
    assert "short.wav: 0.006 s are too short for the model" in err and "cut.wav is cut off" in err
    assert not (tmp_path / "run").exists()


def cut_wav(path, speech):
    """A WAV file with half of what its header promises."""
    soundfile.write(path, speech, 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_an_error_without_a_text_is_shown_by_its_type():
    for error, said in ((NotImplementedError(), "NotImplementedError"), (RuntimeError("one\n  two"), "one two")):
        assert transcribe._trouble(transcribe.Outcome("a.wav", error, 1.0, 0.1)) == f"a.wav: {said}"


@pytest.mark.parametrize("wrong", [("--beam_size", "0"), ("--ctc_weight", "2"), ("--device", "bogus")])
def test_a_wrong_option_is_named(wrong, archive, capsys):
    with pytest.raises(SystemExit, match="2"):
        transcribe.main([str(archive), "speech.flac", *wrong])
    assert f"error: {' '.join(wrong)}" in capsys.readouterr().err.replace("2.0", "2")


def test_a_numbered_cpu_is_the_cpu(recipe, archive, expected, capfd):
    assert transcribe.main([str(archive), str(recipe / "speech.flac"), "--device", "cpu:0", *FLAGS]) == 0
    assert capfd.readouterr().out.rstrip("\n").partition("\t")[2] == expected[0][0]
    assert espnet_mla.from_pretrained(archive, device="cpu:0").device == "cpu"
    with pytest.raises(UserError, match="device bogus: valid are cpu, cuda"):
        espnet_mla.from_pretrained(archive, device="bogus")


def test_timing_gives_three_columns_more(recipe, archive, expected, capfd):
    speech = str(recipe / "speech.flac")
    assert transcribe.main([str(archive), speech, "--timing", "--device", "cpu", *FLAGS]) == 0
    path, text, seconds, taken, factor = capfd.readouterr().out.rstrip("\n").split("\t")
    assert (path, text, seconds) == (speech, expected[0][0], "1.50")
    assert float(factor) == pytest.approx(float(taken) / 1.5, abs=0.006)


def test_a_model_that_cannot_be_had_is_one_line(capsys):
    assert transcribe.main(["nowhere.zip", "speech.flac"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: nowhere.zip does not exist") and said.err.count("\n") == 1


@pytest.mark.parametrize("rate, channels", [(8000, 1), (16000, 2), (44100, 1)])
def test_any_rate_becomes_the_models(rate, channels, tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate) / 2
    soundfile.write(tmp_path / "tone.wav", np.stack([tone] * channels, axis=1), rate, subtype="FLOAT")
    read = transcribe.read(str(tmp_path / "tone.wav"), 16000)
    assert read.shape == (16000,) and read.dtype == np.float32
    middle = slice(2000, 14000)  # a resampler's ends are its own
    assert np.abs(read - np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) / 2)[middle].max() < 1e-2


def test_a_file_that_ends_early_is_refused(recipe, tmp_path):
    whole = (recipe / "speech.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError):
        transcribe.read(str(tmp_path / "cut.flac"), 16000)


def test_a_model_of_the_hub_is_taken_by_its_name(recipe, archive, expected, tmp_path):
    """Off line, from the hub's own cache, as it is after a download."""
    revision = "0" * 40
    cached = tmp_path / "hub" / "models--me--tiny"
    shutil.unpack_archive(archive, cached / "snapshots" / revision)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "espnet_mla.cli", "transcribe", "me/tiny", "speech.flac", *FLAGS]
    done = subprocess.run(command, cwd=recipe, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"speech.flac\t{expected[0][0]}\n"), done.stderr

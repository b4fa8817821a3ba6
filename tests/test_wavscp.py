"""espnet_mla.common.wavscp: every form of a wav.scp value gives the samples it stands for."""

import shlex
import shutil

import numpy as np
import pytest
import soundfile

from espnet_mla.common import wavscp
from espnet_mla.common.errors import UserError
from espnet_mla.recipe import audio

FS = 16000


def sine(hertz, seconds=1.0, fs=FS):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * fs)) / fs)


def frequency(samples, fs):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return spectrum.argmax() * fs / len(samples)


@pytest.fixture
def flac(tmp_path):
    path = tmp_path / "a b.flac"
    soundfile.write(path, sine(440), FS, "PCM_16")
    return path


@pytest.mark.parametrize(("suffix", "subtype"), [("flac", "PCM_16"), ("wav", "PCM_16"), ("wav", "FLOAT")])
def test_a_path_gives_the_files_samples(tmp_path, suffix, subtype):
    soundfile.write(tmp_path / f"a.{suffix}", sine(440), FS, subtype)
    samples, rate = wavscp.read(str(tmp_path / f"a.{suffix}"))
    assert rate == FS and samples.dtype == np.float32
    np.testing.assert_allclose(samples, sine(440), atol=1e-4)


def test_the_rate_is_the_files_own(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(440, fs=8000), 8000)
    samples, rate = wavscp.read(str(tmp_path / "a.wav"))
    assert (len(samples), rate) == (8000, 8000)


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([sine(440), 0.5 * sine(440)], axis=1), FS)
    samples, _ = wavscp.read(str(tmp_path / "a.wav"))
    np.testing.assert_allclose(samples, 0.75 * sine(440), atol=1e-4)


def test_flac_pipe_gives_what_its_file_gives(flac):
    np.testing.assert_array_equal(wavscp.read(f"flac -c -d -s {flac} |")[0], wavscp.read(str(flac))[0])


@pytest.mark.parametrize("factor", [0.9, 1.1, 2.0])
@pytest.mark.parametrize("form", ["sox {} -t wav - speed {} |", "flac -c -d -s {} | sox -t wav - -t wav - speed {} |"])
def test_speed_divides_the_time_and_multiplies_the_frequency(flac, form, factor):
    samples, rate = wavscp.read(form.format(flac, factor))
    assert rate == FS
    assert abs(len(samples) - FS / factor) <= 1
    assert frequency(samples, rate) == pytest.approx(440 * factor, abs=2)
    middle = samples[1000:-1000]
    assert np.sqrt(2) * middle.std() == pytest.approx(0.5, rel=0.01)


def test_a_path_with_a_shells_signs_needs_no_quotes(flac):
    path = flac.rename(flac.with_name("it's $(a) file.flac"))
    assert len(wavscp.read(f"sox {path} -t wav - speed 2.0 |")[0]) == FS / 2


@pytest.mark.parametrize(
    "name", ["it's a file.flac", "$(touch pwned);'c.flac", "a|b sox -t wav -.flac", "naïve ö.flac"]
)
def test_what_stage_2_writes_of_a_path_is_read_without_a_shell_and_means_the_same_to_one(flac, name, monkeypatch):
    monkeypatch.chdir(flac.parent)
    path = flac.rename(flac.with_name(name))
    entry = audio._faster(str(path), "2.0")
    assert shlex.split(entry)[:2] == ["sox", str(path)]
    monkeypatch.setattr(wavscp, "_read_command", None)
    assert wavscp.origin(entry) == path
    assert len(wavscp.read(entry)[0]) == FS / 2
    assert len(wavscp.read(audio._faster(entry, "2.0"))[0]) == FS / 4
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        wavscp.read(entry)


def test_speeds_multiply(flac):
    samples, rate = wavscp.read(f"sox {flac} -t wav - speed 0.9 | sox -t wav - -t wav - speed 0.5 |")
    assert abs(len(samples) - FS / 0.45) <= 2 and frequency(samples, rate) == pytest.approx(440 * 0.45, abs=2)


@pytest.mark.skipif(shutil.which("sox") is None, reason="needs the program sox to compare with")
def test_speed_is_soxs(flac):
    here, _ = wavscp.read(f"sox {flac} -t wav - speed 0.9 |")
    there, _ = wavscp.read(f"sox '{flac}' -t wav - speed 0.9 |")  # quotes: for the shell
    assert abs(len(here) - len(there)) <= 1
    count = min(len(here), len(there))
    np.testing.assert_allclose(here[100 : count - 100], there[100 : count - 100], atol=2e-3)


def test_any_other_pipe_is_run_by_the_shell(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(440), FS)
    np.testing.assert_allclose(wavscp.read(f"cat {tmp_path}/a.wav |")[0], sine(440), atol=1e-4)
    np.testing.assert_allclose(wavscp.read(f"true && cat '{tmp_path}/a.wav' | cat |")[0], sine(440), atol=1e-4)


def test_an_archive_gives_the_samples_at_an_offset(tmp_path):
    from omniio import kaldi

    for name, how in (("kaldi", {}), ("espnet", {"write_function": "soundfile", "write_kwargs": {"format": "flac"}})):
        ark, scp = str(tmp_path / f"{name}.ark"), str(tmp_path / f"{name}.scp")
        waves = {f"u{hertz}": (FS, (32767 * sine(hertz)).astype(np.int16)) for hertz in (300, 600)}
        kaldi.save_ark(ark, waves, scp=scp, **how)
        entry = open(scp).read().splitlines()[1].split()[1]
        samples, rate = wavscp.read(entry)
        assert rate == FS and samples.dtype == np.float32
        np.testing.assert_allclose(samples, sine(600), atol=1e-3)
        faster, _ = wavscp.read(f"wav-copy {entry} - | sox -t wav - -t wav - speed 1.1 |")
        assert frequency(faster, FS) == pytest.approx(660, abs=2)


def test_a_truncated_flac_is_refused_by_name(tmp_path):
    path = tmp_path / "cut.flac"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * FS)
    soundfile.write(path, noise, FS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert soundfile.info(path).frames == 3 * FS  # the header alone does not tell
    with pytest.raises(UserError, match="cut.flac"):
        wavscp.read(str(path))


@pytest.mark.parametrize("what", [b"", b"not audio at all"])
def test_a_file_that_is_no_audio_is_refused_by_name(tmp_path, what):
    (tmp_path / "bad.flac").write_bytes(what)
    with pytest.raises(UserError, match="bad.flac"):
        wavscp.read(str(tmp_path / "bad.flac"))


def test_empty_and_infinite_audio_are_refused(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), FS)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), FS, "FLOAT")
    with pytest.raises(UserError, match="no samples"):
        wavscp.read(str(tmp_path / "empty.wav"))
    with pytest.raises(UserError, match="finite"):
        wavscp.read(str(tmp_path / "nan.wav"))


def test_a_missing_file_or_failing_command_is_named():
    for entry in ("/nowhere/a.flac", "sox /nowhere/a.flac -t wav - speed 0.9 |", "/nowhere/a.ark:12"):
        with pytest.raises(UserError, match="/nowhere/a"):
            wavscp.read(entry)
    with pytest.raises(UserError, match="status 3: why"):
        wavscp.read("echo why >&2; exit 3 |")


def test_the_origin_of_an_entry_is_the_file_it_reads():
    assert str(wavscp.origin("/a/b.flac")) == "/a/b.flac"
    assert str(wavscp.origin("sox /a/b c.flac -t wav - speed 0.9 |")) == "/a/b c.flac"
    assert str(wavscp.origin("wav-copy /a/b.ark:7 - | sox -t wav - -t wav - speed 0.9 |")) == "/a/b.ark"
    assert str(wavscp.origin("/a/b.ark:7")) == "/a/b.ark"
    assert wavscp.origin("cat x.wav |") is None

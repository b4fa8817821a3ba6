"""The reader of audio files gives all that a header promises, or names the file."""

import io
import os
import struct

import numpy as np
import pytest
import soundfile

from espnet_mla.common import audiofile, wavscp
from espnet_mla.common.errors import UserError
from espnet_mla.common.filenames import escaped
from espnet_mla.trained import audio

FS = 16000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, FS)
SIZED = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "GSM610"), ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("NIST", "PCM_16"),
    ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip


def encoded(kind, subtype, samples=NOISE):
    file = io.BytesIO()
    soundfile.write(file, samples, FS, format=kind, subtype=subtype)
    return file.getvalue()


def wav(samples, data_size=None, riff_size=None, rate=FS):
    """A WAV file, with these sizes in its header."""
    content = np.asarray(samples, "<i2").tobytes()
    data_size = len(content) if data_size is None else data_size
    riff_size = data_size + 36 if riff_size is None else riff_size
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate & 0xFFFFFFFF, 2, 16)
    return struct.pack("<4sI8s", b"RIFF", riff_size & 0xFFFFFFFF, b"WAVEfmt ") + form + struct.pack(
        "<4sI", b"data", data_size
    ) + content  # fmt: skip


@pytest.mark.parametrize(("kind", "subtype"), SIZED)
def test_a_file_that_is_cut_off_is_refused_by_every_reader_and_a_whole_one_is_not(kind, subtype, tmp_path):
    path = tmp_path / "a.audio"
    path.write_bytes(encoded(kind, subtype))
    samples, rate = audiofile.read(str(path))
    assert rate == FS and len(NOISE) <= len(samples) <= len(NOISE) + 1200  # whole blocks
    for size in (path.stat().st_size // 2, path.stat().st_size - 200):
        path.write_bytes(encoded(kind, subtype)[:size])
        for read in (audiofile.read, wavscp.read, lambda path: audio.read(path, FS)):
            with pytest.raises(UserError, match=f"{path}.*(cut off|malformed)"):
                read(str(path))
        with pytest.raises(UserError, match="cut off|malformed"):
            wavscp.read(f"cat {path} |")


@pytest.mark.parametrize("seconds", [0.02, 0.999])
@pytest.mark.parametrize(("kind", "subtype"), SIZED)
def test_a_whole_file_of_any_length_is_read(kind, subtype, seconds):
    for length in (int(seconds * FS), int(seconds * FS) + 1):
        samples, _ = audiofile.read(encoded(kind, subtype, NOISE[:length]))
        assert length <= len(samples) <= length + 1200


@pytest.mark.parametrize(("data_size", "riff_size"), [
    (0, 0), (0, 36), (0, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF000, 0x7FFFF024), (0x80000000, 0x80000024),
    (2000, 2044), (2000, 0), (2000, 0xFFFFFFFF),
])  # fmt: skip
def test_a_header_that_was_written_to_a_pipe_is_no_promise(data_size, riff_size, tmp_path):
    content = wav(range(1000), data_size, riff_size)
    (tmp_path / "a.wav").write_bytes(content)
    for samples, _ in (audiofile.read(str(tmp_path / "a.wav")), wavscp.read(f"cat {tmp_path}/a.wav |")):
        np.testing.assert_array_equal(samples * 32768, np.arange(1000))


def test_a_header_alone_and_a_file_without_samples_are_refused():
    with pytest.raises(UserError, match="cut off: 0 of the 55412 bytes"):
        audiofile.read(wav([], 55412))
    with pytest.raises(UserError, match="no samples"):
        audiofile.read(wav([]))


@pytest.mark.parametrize(("rate", "possible"), [(1, 0), (999, 0), (1000, 1), (768000, 1), (768001, 0), (2**31 - 1, 0)])
def test_a_sampling_rate_that_no_microphone_has_is_refused(rate, possible):
    content = wav(range(1000), rate=rate)
    if possible:
        assert audiofile.read(content)[1] == rate
    else:
        with pytest.raises(UserError, match=f"says {rate} Hz"):
            audiofile.read(content)


@pytest.mark.parametrize("promised", [0, 2 * FS, 2**36 - 1])
def test_a_flac_header_that_promises_too_much_or_nothing_takes_no_memory_and_is_refused(promised):
    content = bytearray(encoded("FLAC", "PCM_16"))
    sizes = int.from_bytes(content[18:26], "big")  # the last 36 bits: samples
    content[18:26] = (sizes >> 36 << 36 | promised).to_bytes(8, "big")
    with pytest.raises(UserError, match="cut off|does not say how long"):
        audiofile.read(bytes(content))


def test_what_is_no_file_says_so(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "text.wav").write_text("no audio\n")
    (tmp_path / "empty.wav").touch()
    for name, why in {
        "folder.wav": " is a folder", "absent.wav": " does not exist", "text.wav": ": Format not", "empty.wav": ": Format",
        "text.wav/a.wav": ": Not a directory", "null\0.wav": ".*null",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=f"{tmp_path}/{escaped(name)}".replace("\\", ".") + why):
            audiofile.read(f"{tmp_path}/{name}")


def test_a_name_of_any_bytes_is_read_and_shown(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9\t.wav"
    with open(path, "wb") as file:
        file.write(wav(range(1000)))
    assert len(audiofile.read(os.fsdecode(path))[0]) == 1000
    with open(path, "wb") as file:
        file.write(wav(range(1000), 4000))
    with pytest.raises(UserError) as refused:
        audiofile.read(os.fsdecode(path))
    assert str(refused.value).startswith(rf"{tmp_path}/caf\xe9\t.wav is cut off")


def test_a_pipe_is_read_as_a_file_is():
    for content in (wav(range(1000)), wav(range(1000), 0), encoded("FLAC", "PCM_16", NOISE[:1000])):
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        assert len(audiofile.read(f"/dev/fd/{reading}")[0]) == 1000
        os.close(reading)

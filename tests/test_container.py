"""Files are told from samples by their first bytes."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from espnet_mla.streaming.container import bytes_needed, recognise

KINDS = [
    ("WAV", "PCM_16", "WAV"), ("WAVEX", "PCM_24", "WAV"), ("RF64", "PCM_16", "WAV"), ("W64", "PCM_16", "WAV"),
    ("FLAC", "PCM_16", "FLAC"), ("OGG", "VORBIS", "Ogg"), ("OGG", "OPUS", "Ogg"), ("AIFF", "PCM_16", "AIFF"),
    ("CAF", "PCM_16", "CAF"), ("AU", "PCM_16", "AU"), ("NIST", "PCM_16", "NIST"), ("MP3", "MPEG_LAYER_III", "MP3"),
]  # fmt: skip


def first_bytes(content):
    head = content[:8]
    while len(head) < min(bytes_needed(head), len(content)):
        head = content[: bytes_needed(head)]
    return head


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
@pytest.mark.parametrize(("kind", "subtype", "name"), KINDS)
def test_a_file_is_recognised_by_as_few_bytes_as_are_asked_for(kind, subtype, name, rate):
    content = io.BytesIO()
    soundfile.write(content, np.random.default_rng(0).uniform(-0.3, 0.3, rate), rate, format=kind, subtype=subtype)
    assert name in recognise(first_bytes(content.getvalue()))


@pytest.mark.parametrize("head", [b"\x1aE\xdf\xa3\1\2\3\4", b"\0\0\0 ftypM4A ", b"ID3\4\0\0\0\0"])
def test_files_that_only_other_programs_read_are_recognised_too(head):
    assert recognise(head)


@given(first=st.integers(-8193, -1), seed=st.integers(0, 1000))
def test_samples_that_look_like_the_beginning_of_an_mp3_frame_are_samples(first, seed):
    pcm = np.random.default_rng(seed).integers(-3000, 3000, 1000, dtype="<i2")
    pcm[0] = first
    assert recognise(first_bytes(pcm.tobytes())) is None

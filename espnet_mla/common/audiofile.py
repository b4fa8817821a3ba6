"""The one reader of audio files: all of the samples that the header promises, or an error that names the file."""

import contextlib
import io
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from espnet_mla.common.errors import UserError, one_line
from espnet_mla.common.filenames import escaped

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz; outside, a header is broken, and resampling would exhaust the memory
BLOCK = 1 << 22  # samples that are read at a time: a header may promise more than there is memory
UNKNOWN_FRAMES = 1 << 40  # from here on, libsndfile's number stands for a length that the header does not say
# What programs that write into a pipe give for a size that they cannot know is 0, or from here on: sox 0x7FFFF000,
# arecord 0x80000000, ffmpeg 0xFFFFFFFF.
UNKNOWN_SIZE = 0x7FFF0000
SPARE = 8  # bytes that a size may be wrong by in a whole file: padding, or the chunk's own header counted

# libsndfile reads a cut-off file as if it were whole, but its log has the size in the header and the one on the disk:
# of WAV and CAF (data), AU (Data Size), AIFF (SSND), SVX (BODY), RF64 (Riff size) and W64 (riff).
_SIZES = re.compile(r"^ *(?:data|Data Size|SSND|BODY|Riff size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
# Of Ogg and VOC, whose headers have no size of the whole.
_CUT = re.compile("lacks an end-of-stream bit|Junk after the last page|Seems to be a truncated file")


class Header(NamedTuple):
    """What the header of an audio file says; `frames` is None where it does not say the length."""

    format: str
    subtype: str
    rate: int
    channels: int
    frames: int | None


def read(source: str | bytes) -> tuple[np.ndarray, int]:
    """Read an audio file.

    Args:
        source: the path of what soundfile reads (FLAC, WAV, ...), of any bytes; or the content of such a file.

    Returns:
        samples: (time,), float32 in [-1, 1]; channels are averaged.
        rate: Hz.

    Raises:
        UserError: the file is missing, broken, cut off or empty; the message names it.
    """
    name = _name(source)
    with _opened(source) as file:
        samples = _samples(file, name)  # (time, channels)
        if not len(samples) and re.search("^data : 0$", file.extra_info, re.MULTILINE):
            samples = _unsized(file.name, name)
        rate = file.samplerate
    return mono(samples, name), rate


def mono(samples: np.ndarray, name: str) -> np.ndarray:
    """The average of the channels, (time,), of samples that are (time,) or (time, channels).

    Raises:
        UserError: there are none, or one is not a finite number; the message begins with `name`.
    """
    if not len(samples):
        raise UserError(f"{name}: no samples")
    if not np.isfinite(samples).all():
        raise UserError(f"{name}: samples that are not finite numbers")
    return samples.mean(axis=1) if samples.ndim == 2 else samples


def trouble(error: BaseException) -> str:
    """What went wrong with a file, on one line: libsndfile's errors name no file, and some errors say nothing."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    return getattr(error, "error_string", None) or one_line(error)


def header(path: str) -> Header:
    """Read the header of an audio file.

    Raises:
        UserError: as `read`, as far as the header and the size of the file tell.
    """
    with _opened(path) as file:
        frames = file.frames if file.frames < UNKNOWN_FRAMES else None
        return Header(file.format, file.subtype, file.samplerate, file.channels, frames)


@contextlib.contextmanager
def _opened(source: str | bytes) -> Iterator[soundfile.SoundFile]:
    """Open an audio file whose header is sane; what goes wrong until it is closed becomes a UserError with its name.

    The `name` of the SoundFile is the stream that it reads.
    """
    name = _name(source)
    try:
        with contextlib.ExitStack() as stack:
            # Opened by Python, whose errors are clearer and whose names may be any bytes.
            # To pathlib "" would be the current folder.
            stream: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: PTH123, SIM115
            stack.enter_context(stream)
            if not stream.seekable():  # a pipe
                stream = io.BytesIO(stream.read())
            file = stack.enter_context(soundfile.SoundFile(stream))
            _check(file, name)
            yield file
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder: an audio file is needed") from None
    # ValueError: a null character in the name; TypeError and AssertionError: how soundfile refuses odd headers.
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError, MemoryError) as error:
        raise UserError(f"{name}: {trouble(error)}") from None


def _check(file: soundfile.SoundFile, name: str) -> None:
    if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
        raise UserError(
            f"{name}: its header says {file.samplerate} Hz: sampling rates from {LOWEST_RATE} to {HIGHEST_RATE} Hz are "
            "possible"
        )
    for promised, present in (map(int, found) for found in _SIZES.findall(file.extra_info)):
        if present + SPARE < promised < UNKNOWN_SIZE:
            raise UserError(f"{name} is cut off: {present} of the {promised} bytes that its header promises are there")
    if file.format == "NIST":
        file.name.seek(0)
        count = re.search(rb"^sample_count -i (\d+)$", file.name.read(1024), re.MULTILINE)
        file.seek(0)
        if count and file.frames < int(count[1]):
            raise UserError(f"{name} is cut off: {file.frames} of {int(count[1])} samples are there")
    if _CUT.search(file.extra_info):
        raise UserError(f"{name} is cut off: its last part is missing or broken")


def _samples(file: soundfile.SoundFile, name: str) -> np.ndarray:
    """All of its samples, (time, channels)."""
    blocks, count, size = [], 0, max(1, BLOCK // file.channels)
    if file.frames >= UNKNOWN_FRAMES and file.format == "FLAC":
        raise UserError(f"{name}: its header does not say how long it is, as after a pipe: `ffmpeg -i IN OUT.flac`")
    try:
        while len(block := file.read(size, dtype="float32", always_2d=True)):
            blocks.append(block)
            count += len(block)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{name} is broken or cut off: {error.error_string}") from None
    if file.seekable() and count != file.frames < UNKNOWN_FRAMES:
        raise UserError(f"{name} is cut off: {count} of {file.frames} samples are there")
    return np.concatenate(blocks) if blocks else np.zeros((0, file.channels), np.float32)


def _unsized(stream: BinaryIO, name: str) -> np.ndarray:
    """The samples of a WAV file whose header was never given a size, (time, channels)."""
    stream.seek(0)
    content = stream.read().replace(b"data\0\0\0\0", b"data\xff\xff\xff\xff", 1)
    with soundfile.SoundFile(io.BytesIO(content)) as sized:
        return _samples(sized, name)


def _name(source: str | bytes) -> str:
    return "what it writes" if isinstance(source, bytes) else escaped(source) or "''"

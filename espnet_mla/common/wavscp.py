"""One value of wav.scp read as samples: a path, an archive's entry, or a pipe, whose common forms need no program."""

import contextlib
import math
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import soxr

from espnet_mla.common import audiofile
from espnet_mla.common.errors import UserError

ARCHIVED = re.compile(r"(?P<path>.+):\d+")
# How Kaldi's and ESPnet's scripts write a pipe: one program that reads, then any number of sox that change the speed.
READERS = (
    re.compile(r"flac -c -d -s (?P<path>[^-].*)"),
    re.compile(r"sox (?P<path>[^-].*) -t wav - speed (?P<factor>[0-9]*[.]?[0-9]+)"),
    re.compile(r"wav-copy (?P<path>[^-].*:\d+) -"),
)
SPEED = re.compile(r"\s*\|\s*sox -t wav - -t wav - speed (?P<factor>[0-9]*[.]?[0-9]+)")
PIPE = re.compile(rf"(?P<first>.+?)(?P<speeds>({SPEED.pattern.replace('?P<factor>', '?:')})*)\s*\|")
FOR_THE_SHELL = re.compile(r"""["'`$\\<>;&|*?(){}~]""")


def read(entry: str) -> tuple[np.ndarray, int]:
    """Read the audio that a value of wav.scp stands for.

    Args:
        entry: a path to what soundfile reads (FLAC, WAV, ...), `file.ark:offset`, or a command that ends in `|` and
            writes WAV. `flac -c -d -s PATH`, `sox PATH -t wav - speed F` and `sox -t wav - -t wav - speed F` are done
            here, where PATH is quoted as `shlex.quote` does it, or not at all; every other command is run by the shell.

    Returns:
        samples: (time,), float32 in [-1, 1]; channels are averaged.
        rate: Hz.

    Raises:
        UserError: the file is missing or broken, holds no samples, or the command fails.
    """
    entry = entry.strip()
    try:
        return _read(entry)
    except UserError as error:
        # The file's name is in it already.
        raise error if is_path(entry) else UserError(f"cannot read {entry}: {error}") from None


def is_path(entry: str) -> bool:
    """Whether the value is nothing but a path."""
    return not entry.rstrip().endswith("|") and (ARCHIVED.fullmatch(entry) is None or os.path.exists(entry))


def origin(entry: str) -> Path | None:
    """The file that the audio comes from, or None where only a shell could tell."""
    if is_path(entry):
        return Path(entry)
    path = entry
    if entry.rstrip().endswith("|"):
        native = _parse(entry)
        if native is None:
            return None
        path, _ = native
    archived = ARCHIVED.fullmatch(path)
    return Path(archived["path"] if archived else path)


def seconds(entry: str) -> float | None:
    """How long the audio is by the header of its file, or None where only reading could tell."""
    path, factors = (entry, []) if is_path(entry) else _parse(entry) or (None, [])
    try:
        header = audiofile.header(path) if path else None
    except UserError:
        return None
    return header.frames / header.rate / math.prod(factors) if header and header.frames is not None else None


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Play `factor` times as fast, pitch included, as sox's `speed` does: time / factor samples at the same rate."""
    return soxr.resample(samples, factor, 1.0)


def _read(entry: str) -> tuple[np.ndarray, int]:
    if not entry.endswith("|"):
        return _read_file(entry)
    native = _parse(entry)
    if native is None:
        return _read_command(entry[:-1])
    path, factors = native
    samples, rate = _read_file(path)
    for factor in factors:
        samples = change_speed(samples, factor)
    return samples, rate


def _parse(entry: str) -> tuple[str, list[float]] | None:
    """The file a pipe reads and the speed factors it applies, or None for a pipe that the shell has to run."""
    pipe = PIPE.fullmatch(entry.strip())
    if not pipe:
        return None
    command = next(filter(None, (reader.fullmatch(pipe["first"].strip()) for reader in READERS)), None)
    if not command or (path := _unquoted(command["path"])) is None:
        return None
    first = [command["factor"]] if "factor" in command.re.groupindex else []
    return path, [float(factor) for factor in (*first, *SPEED.findall(pipe["speeds"]))]


def _unquoted(path: str) -> str | None:
    """The path in a command, quoted as `shlex.quote` does it or not at all; None where only the shell can tell."""
    with contextlib.suppress(ValueError):  # a quote that does not end
        words = shlex.split(path)
        if len(words) == 1 and shlex.quote(words[0]) == path:
            return words[0]
    return path if not FOR_THE_SHELL.search(path) or os.path.exists(path) else None


def _read_file(path: str) -> tuple[np.ndarray, int]:
    return audiofile.read(path) if is_path(path) else _read_archived(path)


def _read_archived(entry: str) -> tuple[np.ndarray, int]:
    from omniio import kaldi  # ESPnet's own reader of archives; a second to import, and seldom needed

    try:
        rate, samples = kaldi.load_mat(entry)
    except Exception as error:  # the reader raises whatever it meets at a wrong offset
        raise UserError(f"{entry}: {audiofile.trouble(error)}") from None
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    return audiofile.mono(samples.astype(np.float32), entry), rate


def _read_command(command: str) -> tuple[np.ndarray, int]:
    try:
        done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except (OSError, ValueError) as error:
        raise UserError(audiofile.trouble(error)) from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise UserError(f"the command ended with status {done.returncode}: {said[-1]}")
    # A program that writes into a pipe cannot know the length when it writes the header.
    return audiofile.read(done.stdout)

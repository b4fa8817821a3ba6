"""Stages 2 to 4: speed perturbation, audio in one format and rate, no utterance too long or too short."""

import hashlib
import io
import json
import logging
import math
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from espnet_mla.common import audiofile, wavscp
from espnet_mla.common.errors import UserError
from espnet_mla.common.files import replacing, write_text
from espnet_mla.common.tables import read_table
from espnet_mla.common.wavscp import read
from espnet_mla.common.workers import map_in_processes
from espnet_mla.recipe import datadir

__all__ = ["bytes_to_write", "format_data", "perturb_speed", "read", "remove_long_short"]

logger = logging.getLogger(__name__)

FORMATS = ("flac", "wav", "flac.ark", "wav.ark")
SUBTYPE, BYTES_PER_SAMPLE = "PCM_16", 2
FLAC_SIZE = 0.6  # of the plain samples
SAMPLED = 200  # utterances whose length is looked at
LEAST_SAMPLES = 257  # ESPnet's frontend mirrors half a window of 512 at both ends, and fails at less


def perturb_speed(data_dir: Path, train_set: str, factors: Sequence[float | str]) -> None:
    """Stage 2: write `data_dir/<train_set>_sp<factor>` for every factor but 1, and all together as `<train_set>_sp`.

    No audio is written: wav.scp holds the commands that make it, as upstream writes them, with quotes where needed.

    Raises:
        UserError: the training set is missing or inconsistent, or a factor is no positive number or comes twice.
    """
    source = data_dir / train_set
    tables = datadir.load(source)
    if (source / "segments").exists():
        raise UserError(f"{source / 'segments'}: cutting recordings into utterances needs ESPNET_ROOT")
    folders: dict[float, Path] = {}
    for factor in map(str, factors):
        speed = _speed(factor)
        if speed in folders:
            raise UserError(f"--speed_perturb_factors {' '.join(map(str, factors))}: {factor} is given twice")
        if speed == 1.0:
            folders[speed] = source
            continue
        folders[speed] = data_dir / f"{train_set}_sp{factor}"
        datadir.save(folders[speed], _perturbed(tables, factor))
    if not folders:
        raise UserError("--speed_perturb_factors is empty: leave stage 2 out, or give factors such as 0.9 1.0 1.1")
    datadir.combine(data_dir / f"{train_set}_sp", list(folders.values()))


def bytes_to_write(source: Path, target: Path, audio_format: str, fs: int) -> float:
    """What `format_data` with the same arguments will add to the disk, estimated from the headers of some files."""
    entries = list(read_table(source / "wav.scp").values())
    sample = entries[:: len(entries) // SAMPLED + 1]
    lengths = [0.0 if _is_so_already(entry, audio_format, fs) else wavscp.seconds(entry) for entry in sample]
    known = [length for length in lengths if length is not None]
    if not known:
        return 0.0
    size = sum(known) / len(known) * len(entries) * fs * BYTES_PER_SAMPLE
    packed = FLAC_SIZE if audio_format.startswith("flac") else 1.0
    # What an earlier run has left is used again, or removed first.
    return max(0.0, size * packed - sum(path.stat().st_size for path in (target / "data").rglob("*.*")))


def format_data(source: Path, target: Path, audio_format: str, fs: int, nj: int) -> None:
    """Stage 3: copy a data folder, its audio mono, 16 bit, in one format and at one rate, under `target/data`.

    A file that is so already stays where it is. What an earlier, even a killed, run has done is not done again, unless
    the format, the rate, the entries of wav.scp or the files they name have changed.

    Args:
        source: a data folder.
        target: the folder to write; paths in its wav.scp begin with it, as given.
        audio_format: one of `FORMATS`.
        fs: Hz.
        nj: number of processes, and of the folders `target/data/format.<n>`.

    Raises:
        UserError: an unknown format, a folder that is missing or inconsistent, or more than 1 % broken utterances.
    """
    if audio_format not in FORMATS:
        raise UserError(f"--audio_format {audio_format}: must be one of {', '.join(FORMATS)}")
    tables = datadir.load(source)
    if (source / "segments").exists():
        raise UserError(f"{source / 'segments'}: cutting recordings into utterances needs ESPNET_ROOT")
    entries = dict(sorted(tables["wav.scp"].items(), key=lambda item: item[0].encode()))
    pieces = _resume(target, entries, audio_format, fs, nj)
    done = _done(target, entries)
    tasks = [
        _Task(utterance, entry, target / "data" / f"format.{1 + index * pieces // len(entries)}", audio_format, fs)
        for index, (utterance, entry) in enumerate(entries.items())
    ]
    todo = [task for task in tasks if task.utterance not in done]
    results = list(done.values())
    if audio_format.endswith(".ark"):
        # An archive cannot be mended: where one of its utterances has to be done, all of them are.
        folders = {task.folder for task in todo}
        archives = [[task for task in tasks if task.folder == folder] for folder in sorted(folders)]
        again = {task.utterance for archive in archives for task in archive}
        results = [result for result in results if result.utterance not in again]
        for archive in map_in_processes(_format_archive, archives, nj, f"{target}: archives"):
            results += archive
    else:
        results += map_in_processes(_format_file, todo, nj, f"{target}: audio")

    broken = {result.utterance: result.error for result in results if result.error}
    datadir.leave_out_broken(str(source), broken, len(entries))
    whole = {result.utterance: result for result in results if not result.error}
    tables["wav.scp"] = {utterance: result.entry for utterance, result in whole.items()}
    tables["utt2num_samples"] = {utterance: str(result.samples) for utterance, result in whole.items()}
    datadir.save(target, datadir.keep(tables, whole))
    write_text(target / "feats_type", "raw\n")
    write_text(target / "audio_format", f"{audio_format}\n")


def remove_long_short(org: Path, target: Path, fs: int, min_duration: float, max_duration: float) -> None:
    """Stage 4: copy a formatted folder without utterances that are too short, too long, or have no transcript.

    Args:
        org: what stage 3 wrote.
        target: the folder to write; the audio stays where it is.
        fs: Hz.
        min_duration, max_duration: seconds; an utterance is strictly between the two.

    Raises:
        UserError: the folder is missing or inconsistent, or nothing is left.
    """
    tables = datadir.load(org)
    lengths = read_table(org / "utt2num_samples")
    shortest, longest = int(min_duration * fs), int(max_duration * fs)
    remaining, short, long, empty = [], 0, 0, 0
    for utterance, text in tables["text"].items():
        samples = int(lengths.get(utterance, 0))
        short += samples <= shortest
        long += samples >= longest
        empty += not text and shortest < samples < longest
        if text and shortest < samples < longest:
            remaining.append(utterance)
    counts = (
        f"{len(remaining)} of {len(tables['text'])} utterances kept; left out: {short} not longer than "
        f"{min_duration} s, {long} not shorter than {max_duration} s, {empty} without transcript"
    )
    if not remaining:
        raise UserError(f"{org}: {counts}. Check --min_wav_duration, --max_wav_duration and {org / 'text'}")
    logger.info("%s: %s", target, counts)
    datadir.save(target, datadir.keep(tables, remaining))
    for name in ("feats_type", "audio_format"):
        if (org / name).exists():
            write_text(target / name, (org / name).read_text())


def _speed(factor: str) -> float:
    if not re.fullmatch(r"[0-9]*[.]?[0-9]+", factor) or float(factor) == 0:
        raise UserError(f"--speed_perturb_factors: {factor} is not a positive number such as 0.9")
    return float(factor)


def _perturbed(tables: datadir.Tables, factor: str) -> datadir.Tables:
    """The tables of a set played `factor` times as fast, with names of its own for utterances and speakers."""
    prefix = f"sp{factor}-"
    tables = {name: table for name, table in tables.items() if name != "utt2num_samples"}
    perturbed = {name: {prefix + key: value for key, value in table.items()} for name, table in tables.items()}
    perturbed["wav.scp"] = {key: _faster(value, factor) for key, value in perturbed["wav.scp"].items()}
    perturbed["utt2spk"] = {key: prefix + value for key, value in perturbed["utt2spk"].items()}
    unique = tables.get("utt2uniq") or {utterance: utterance for utterance in tables["utt2spk"]}
    perturbed["utt2uniq"] = {prefix + key: value for key, value in unique.items()}
    return perturbed


def _faster(entry: str, factor: str) -> str:
    if entry.endswith("|"):
        return f"{entry[:-1].rstrip()} | sox -t wav - -t wav - speed {factor} |"
    if wavscp.ARCHIVED.fullmatch(entry):
        return f"wav-copy {shlex.quote(entry)} - | sox -t wav - -t wav - speed {factor} |"
    return f"sox {shlex.quote(entry)} -t wav - speed {factor} |"


class _Task(NamedTuple):
    utterance: str
    entry: str
    folder: Path
    audio_format: str
    fs: int


class _Result(NamedTuple):
    utterance: str
    entry: str = ""
    samples: int = 0
    error: str = ""


def _resume(target: Path, entries: dict[str, str], audio_format: str, fs: int, nj: int) -> int:
    """Throw away what was formatted from other entries or to another format; return the number of format.<n>."""
    record = target / ".format.json"
    digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    current = {"audio_format": audio_format, "fs": fs, "wav.scp": digest}
    try:
        found = json.loads(record.read_text())
        pieces = int(found.pop("pieces"))
    except (OSError, ValueError, KeyError, AttributeError):
        found = None
    if found == current:
        return pieces
    pieces = max(1, min(nj, len(entries)))
    for name in ("wav.scp", "utt2num_samples"):
        (target / name).unlink(missing_ok=True)
    shutil.rmtree(target / "data", ignore_errors=True)
    write_text(record, json.dumps({**current, "pieces": pieces}))
    return pieces


def _done(target: Path, entries: dict[str, str]) -> dict[str, _Result]:
    """What an earlier run has finished, of the utterances whose source has not been written since."""
    finished = target / "utt2num_samples"
    if not finished.exists() or not (target / "wav.scp").exists():
        return {}
    paths, samples = read_table(target / "wav.scp"), read_table(finished)
    return {
        utterance: _Result(utterance, paths[utterance], int(samples[utterance]))
        for utterance, entry in entries.items()
        if utterance in paths
        and utterance in samples
        and (output := wavscp.origin(paths[utterance])) is not None
        and output.exists()
        and not _newer(entry, finished)
    }


def _newer(entry: str, output: Path) -> bool:
    """Whether the file that an entry names is gone or was written after `output`."""
    source = wavscp.origin(entry)
    try:
        return source is not None and source.stat().st_mtime_ns > output.stat().st_mtime_ns
    except FileNotFoundError:
        return True


def encoded(samples: np.ndarray, fs: int, audio_format: str) -> bytes:
    """A whole file of 16 bit audio.

    In memory, because libsndfile says nothing where the last block of a FLAC file does not fit on the disk.

    Args:
        samples: (time,), in [-1, 1].
        fs: Hz.
        audio_format: flac or wav.
    """
    file = io.BytesIO()
    soundfile.write(file, samples, fs, SUBTYPE, format=audio_format)
    return file.getvalue()


def _samples(task: _Task) -> np.ndarray:
    """The audio of an utterance at the rate of its task.

    Raises:
        UserError: it cannot be read, or is too short to be decoded.
    """
    samples, rate = read(task.entry)
    if rate != task.fs:
        samples = soxr.resample(samples, rate, task.fs)
    if len(samples) < LEAST_SAMPLES:
        raise UserError(f"{task.entry} has {len(samples)} samples, at least {LEAST_SAMPLES} are needed")
    return samples


def _format_file(task: _Task) -> _Result:
    output = task.folder / f"{task.utterance}.{task.audio_format}"
    if output.exists() and not _newer(task.entry, output):
        return _Result(task.utterance, str(output), audiofile.header(str(output)).frames or 0)
    try:
        samples = _samples(task)
    except UserError as error:
        return _Result(task.utterance, error=str(error))
    if _is_so_already(task.entry, task.audio_format, task.fs, len(samples)):
        return _Result(task.utterance, task.entry, len(samples))
    with replacing(output) as partial:
        partial.write_bytes(encoded(samples, task.fs, task.audio_format))
    return _Result(task.utterance, str(output), len(samples))


def _is_so_already(entry: str, audio_format: str, fs: int, samples: int | None = None) -> bool:
    """Whether ESPnet can read the file as it is; that its header has the number of `samples`, where it is given."""
    if not wavscp.is_path(entry) or not entry.endswith(f".{audio_format}"):
        return False
    try:
        header = audiofile.header(entry)
    except UserError:
        return False
    return (header.rate, header.channels, header.subtype, header.frames) == (
        fs, 1, SUBTYPE, header.frames if samples is None else samples,
    )  # fmt: skip


def _format_archive(tasks: list[_Task]) -> list[_Result]:
    """Write the audio of one format.<n> as one archive, each entry as ESPnet frames it: AUDIO, size, a whole file."""
    results = []
    output = tasks[0].folder / "data_wav.ark"
    with replacing(output) as partial, partial.open("wb") as archive:
        for task in tasks:
            try:
                samples = _samples(task)
            except UserError as error:
                results.append(_Result(task.utterance, error=str(error)))
                continue
            blob = encoded(samples, task.fs, task.audio_format.removesuffix(".ark"))
            archive.write(f"{task.utterance} ".encode())
            results.append(_Result(task.utterance, f"{output}:{archive.tell()}", len(samples)))
            width = max(1, math.ceil(len(blob).bit_length() / 8))
            archive.write(b"AUDIO" + bytes([width]) + len(blob).to_bytes(width, "little") + blob)
    return results

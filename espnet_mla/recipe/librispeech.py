"""The LibriSpeech corpus (Panayotov et al. 2015), downloaded from OpenSLR or found, as Kaldi data folders."""

import contextlib
import errno
import hashlib
import http.client
import logging
import os
import shutil
import ssl
import tarfile
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from espnet_mla.common import audiofile
from espnet_mla.common.errors import UserError
from espnet_mla.common.filenames import escaped
from espnet_mla.common.files import check_space
from espnet_mla.common.workers import map_in_processes
from espnet_mla.recipe import datadir

logger = logging.getLogger(__name__)

PARTS = ("dev-clean", "test-clean", "dev-other", "test-other", "train-clean-100")
URL = "https://www.openslr.org/resources/12"
MD5 = {
    "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
}
GIGABYTES = {"dev-clean": 0.337, "dev-other": 0.314, "test-clean": 0.346, "test-other": 0.328, "train-clean-100": 6.3}
"""Of each archive, by OpenSLR's page. Unpacked it takes as much: FLAC does not get smaller by gzip."""
TIMEOUT = 60  # seconds without a byte


def download(
    corpus_dir: Path,
    parts: Sequence[str] = PARTS,
    url: str = URL,
    checksums: Mapping[str, str] = MD5,
    gigabytes: Mapping[str, float] = GIGABYTES,
) -> None:
    """Bring the parts that `corpus_dir/LibriSpeech` lacks: download, check, unpack.

    A part that is there as a folder is taken as it is. A download that was cut off goes on where it stopped. An
    archive `corpus_dir/<part>.tar.gz` that is there already is used instead, and stays.

    Args:
        corpus_dir: the folder that holds, or will hold, LibriSpeech/.
        parts: names of LibriSpeech's parts.
        url: the folder of the archives `<part>.tar.gz`.
        checksums: MD5 of each archive.
        gigabytes: size of each archive.

    Raises:
        UserError: an unknown part, no network, a wrong checksum, no space.
    """
    for part in parts:
        if part not in checksums:
            raise UserError(f"{part} is no part of LibriSpeech known here: {', '.join(checksums)}")
    absent = [part for part in parts if not (corpus_dir / "LibriSpeech" / part).is_dir()]
    if absent:
        # All of it unpacked, and beside it one archive at a time.
        sizes = [gigabytes[part] for part in absent]
        check_space(corpus_dir, (sum(sizes) + max(sizes)) * 1e9, f"LibriSpeech's {', '.join(absent)}")
    for part in absent:
        with _disk_errors(corpus_dir):
            corpus_dir.mkdir(parents=True, exist_ok=True)
            given = corpus_dir / f"{part}.tar.gz"
            archive = given if given.exists() else corpus_dir / f".{part}.tar.gz.partial"
            if archive != given:
                _fetch(f"{url}/{part}.tar.gz", archive)
            found = _md5(archive)
            if found != checksums[part]:
                sums = f"the MD5 sum {found}, not {checksums[part]}"
                if archive == given:
                    raise UserError(f"{given} has {sums}: remove it, and it will be downloaded")
                wrong = corpus_dir / f"{part}.tar.gz.wrong"
                os.replace(archive, wrong)
                raise UserError(f"{url}/{part}.tar.gz came with {sums}: it is kept as {wrong}; run again")
            _unpack(archive, part, corpus_dir / "LibriSpeech")
            if archive != given:
                archive.unlink()


def prepare(corpus_dir: Path, data_dir: Path, nj: int, parts: Sequence[str] = PARTS) -> None:
    """Write a data folder for each part, `data_dir/dev_clean` and so on, and `data_dir/dev` of both dev parts.

    A speaker is a reader in a chapter, as in Kaldi's and ESPnet's recipes. Every FLAC is opened. What cannot be read,
    or lacks its transcript or its audio, is named, counted and left out.

    Args:
        corpus_dir: the folder that holds LibriSpeech/<part>/<reader>/<chapter>/.
        data_dir: where the data folders go.
        nj: number of processes.
        parts: folders of LibriSpeech/.

    Raises:
        UserError: a part is missing, holds no transcripts, or has more than 1 % broken utterances; or a speaker
            occurs in two parts.
    """
    corpus = corpus_dir.absolute() / "LibriSpeech"
    missing = [part for part in parts if not (corpus / part).is_dir()]
    if missing:
        raise UserError(
            f"{corpus} lacks {', '.join(missing)}: LIBRISPEECH must name the folder that holds "
            "LibriSpeech/<part>/<reader>/<chapter>/*.flac"
        )
    found = {part: _scan(corpus / part) for part in parts}
    _refuse_shared_speakers(found)

    paths = [path for part in found.values() for path in part.flacs.values()]
    unreadable = dict(zip(paths, map_in_processes(_trouble, paths, nj, "LibriSpeech: FLAC"), strict=True))
    genders = _genders(corpus / "SPEAKERS.TXT")
    for part, (flacs, text, bad_transcripts) in found.items():
        broken = {utterance: f"{flacs[utterance]} has no transcript" for utterance in flacs.keys() - text.keys()}
        broken |= dict.fromkeys(text.keys() - flacs.keys(), "a transcript without a FLAC")
        broken |= bad_transcripts
        broken |= {utterance: trouble for utterance, path in flacs.items() if (trouble := unreadable[path])}
        datadir.leave_out_broken(str(corpus / part), broken, len(flacs.keys() | text.keys()))
        tables: datadir.Tables = {
            "wav.scp": {utterance: str(path) for utterance, path in flacs.items()},
            "text": text,
            "utt2spk": {utterance: _speaker(utterance) for utterance in text},
        }
        speakers = set(tables["utt2spk"].values())
        lacking = sorted(speaker for speaker in speakers if speaker.split("-")[0] not in genders)
        if not lacking:
            tables["spk2gender"] = {speaker: genders[speaker.split("-")[0]] for speaker in speakers}
        elif genders:
            logger.warning("%s: no spk2gender, SPEAKERS.TXT lacks %s", part, datadir.first_few(lacking))
        datadir.save(data_dir / _set(part), datadir.keep(tables, text.keys() - broken.keys()))
    dev = [data_dir / _set(part) for part in parts if part.startswith("dev-")]
    if dev:
        datadir.combine(data_dir / "dev", dev)


def _set(part: str) -> str:
    return part.replace("-", "_")


def _speaker(utterance: str) -> str:
    return utterance.rpartition("-")[0]


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{folder}: no space left; LibriSpeech-100 needs about 15 GB") from None
        raise UserError(f"{error.filename or folder}: {error.strerror or error}") from None


def _fetch(url: str, path: Path) -> None:
    """Download to `path`, going on from the bytes that are there."""
    have = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            if reply.status != http.HTTPStatus.PARTIAL_CONTENT:
                have = 0  # the server sends the whole
            size = have + int(reply.headers["Content-Length"]) if reply.headers["Content-Length"] else None
            if size is not None:
                check_space(path.parent, size - have + size, path.name)  # the rest, and what it unpacks to
            with (
                path.open("ab" if have else "wb") as file,
                tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=url.rpartition("/")[2]) as bar,
            ):
                while block := reply.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is left to send: whether the file is whole, its checksum tells
        raise UserError(f"{url}: the server answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{url}: {reason}; run again to go on from there") from None
    if size is not None and path.stat().st_size < size:
        raise UserError(f"{url}: cut off after {path.stat().st_size} of {size} bytes; run again to go on from there")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _unpack(archive: Path, part: str, corpus: Path) -> None:
    """Unpack beside the place, then move: LibriSpeech's text files first, the part last."""
    partial = corpus / f".{part}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    logger.info("unpacking %s", archive)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        unpacked = partial / "LibriSpeech"
        if not (unpacked / part).is_dir():
            raise UserError(f"{archive} does not hold LibriSpeech/{part}")
        for path in unpacked.iterdir():
            if path.is_file():
                os.replace(path, corpus / path.name)
        (unpacked / part / ".complete").touch()
        os.replace(unpacked / part, corpus / part)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _folders(folder: Path) -> list[Path]:
    # Not glob, which passes over what it may not read.
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_file())


class _Part(NamedTuple):
    """What a part holds, by utterance: FLAC files, transcripts, and what is wrong with a transcript."""

    flacs: dict[str, Path]
    text: dict[str, str]
    bad_transcripts: dict[str, str]


def _scan(folder: Path) -> _Part:
    flacs: dict[str, Path] = {}
    text: dict[str, str] = {}
    bad_transcripts: dict[str, str] = {}
    for chapter in (chapter for reader in _folders(folder) for chapter in _folders(reader)):
        speaker = f"{chapter.parent.name}-{chapter.name}"
        transcripts = chapter / f"{speaker}.trans.txt"
        new_text = _transcripts(transcripts, bad_transcripts) if transcripts.exists() else {}
        new_flacs = {path.stem: path for path in sorted(chapter.iterdir()) if path.suffix.lower() == ".flac"}
        for utterance in [*new_text, *new_flacs]:
            if _speaker(utterance) != speaker:
                raise UserError(f"{chapter}: the utterance {utterance} should be named {speaker}-<number>")
        text |= new_text
        flacs |= new_flacs
    if not text:
        raise UserError(f"{folder} holds no transcripts <reader>/<chapter>/<reader>-<chapter>.trans.txt")
    return _Part(flacs, datadir.with_plain_blanks(text, str(folder)), bad_transcripts)


def _transcripts(path: Path, bad_transcripts: dict[str, str]) -> dict[str, str]:
    """The transcripts of a chapter; what is wrong with one goes into `bad_transcripts`."""
    text: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{escaped(path)} is not UTF-8: {error}") from None
    for line in lines:
        if not line.strip():
            continue
        # At any white space, as ESPnet's readers do: so no id has any.
        utterance, words = (*line.strip().split(maxsplit=1), "")[:2]
        if utterance in text:
            bad_transcripts[utterance] = f"{path} has it twice"
        elif not words:
            bad_transcripts[utterance] = f"{path} has no words for it"
        elif control := sorted({char for char in words if unicodedata.category(char) == "Cc" and not char.isspace()}):
            # As validate_data_dir.sh of Kaldi does.
            bad_transcripts[utterance] = f"{path} has the control character U+{ord(control[0]):04X} in it"
        text[utterance] = words
    return text


def _refuse_shared_speakers(found: Mapping[str, _Part]) -> None:
    """Refuse a speaker, a reader in a chapter, that two parts hold: utterances would have the same name."""
    part_of: dict[str, str] = {}
    for part, (flacs, text, _) in found.items():
        for speaker in sorted({_speaker(utterance) for utterance in flacs.keys() | text.keys()}):
            if part_of.setdefault(speaker, part) != part:
                reader, _, chapter = speaker.partition("-")
                raise UserError(f"{part_of[speaker]} and {part} both hold chapter {chapter} of the reader {reader}")


def _trouble(path: Path) -> str:
    """Why a FLAC cannot be used, or ""."""
    try:
        header = audiofile.header(str(path))
    except UserError as error:
        return str(error)
    if header.format != "FLAC":
        return f"{path} is {header.format}, not FLAC"
    return "" if header.frames != 0 else f"{path} holds no samples"


def _genders(speakers: Path) -> dict[str, str]:
    """SPEAKERS.TXT's second column by its first; empty where the file is missing."""
    if not speakers.exists():
        return {}
    rows = (line.split("|") for line in speakers.read_text(encoding="utf-8", errors="replace").splitlines())
    genders = {row[0].strip(): row[1].strip().lower() for row in rows if len(row) > 1}
    return {reader: gender for reader, gender in genders.items() if gender in ("m", "f")}

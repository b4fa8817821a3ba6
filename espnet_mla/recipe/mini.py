"""The mini corpus: a small language spoken by eSpeak NG in rooms and noise, in LibriSpeech's layout.

For trying the recipe out, and for comparing attentions on equal terms.
"""

import contextlib
import json
import logging
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr

from espnet_mla.common.errors import UserError
from espnet_mla.common.files import write_text
from espnet_mla.common.tables import read_table
from espnet_mla.common.workers import map_in_processes
from espnet_mla.recipe import acoustics, espeak, grammar
from espnet_mla.recipe.audio import encoded

logger = logging.getLogger(__name__)

VERSION = 2  # of the language, the voices and the rooms; a corpus of another version is made anew
FS = 16000
CHAPTER = 25  # utterances


class _Part(NamedTuple):
    """A part of the corpus.

    Args:
        size: utterances.
        reader: number of the first: a voice is another reader in each part, as LibriSpeech's parts have none in common.
        voices: eSpeak's variants.
        setting: what it is recorded in.
        words: least words of an utterance, from and to: of several sentences then.
    """

    size: int
    reader: int
    voices: tuple[str, ...]
    setting: acoustics.Setting
    words: tuple[int, int] = (1, 1)


_CLEAN = acoustics.Setting(snr=(20, 30), reverberation=(0.05, 0.2), microphone=4, covered=0.5)
_OTHER = acoustics.Setting(snr=(12, 20), reverberation=(0.1, 0.3), microphone=6, covered=0.5)
_NOISY = acoustics.Setting(snr=(5, 10), reverberation=(0.05, 0.2), microphone=4, covered=0)
_TRAINING = acoustics.Setting(snr=(10, 30), reverberation=(0.05, 0.3), microphone=6, covered=0.5)

PARTS = {
    "train-clean-100": _Part(3400, 101, espeak.VOICES, _TRAINING),
    "dev-clean": _Part(60, 201, espeak.VOICES, _CLEAN),
    "dev-other": _Part(60, 301, espeak.UNSEEN_VOICES, _OTHER),
    "test-clean": _Part(220, 401, espeak.VOICES, _CLEAN),
    "test-other": _Part(220, 501, espeak.UNSEEN_VOICES, _OTHER),
    "test-noisy": _Part(220, 601, espeak.VOICES, _NOISY),
    "test-long": _Part(20, 701, espeak.VOICES, _CLEAN, words=(70, 120)),
}
SIZES = {name: part.size for name, part in PARTS.items()}

MADE_HERE = "; Synthesised with eSpeak NG: for trying the recipe out, not for results."


def synthesise(
    corpus_dir: Path,
    seed: int = 0,
    nj: int = 2,
    sizes: Mapping[str, int] = SIZES,
    longest: int = grammar.MOST_WORDS,
) -> None:
    """Make `corpus_dir/LibriSpeech` with all its parts, or return at once where it is there with this seed and sizes.

    dev-clean, test-clean, test-noisy and test-long have the voices of the training set, dev-other and test-other four
    others. Beside each part stands when its words are said, `<part>.ctm` (NIST's: utterance, channel, start and length
    in seconds, word). No sentence occurs twice in the corpus. A seed gives the same transcripts, split and times on
    every machine with the same release of eSpeak NG, whatever `nj`, and the same audio but for rounding.

    Args:
        corpus_dir: the folder that will hold LibriSpeech/.
        seed: of sentences, speaking rates, pitches, pauses, rooms and noise.
        nj: number of processes.
        sizes: utterances of each part.
        longest: most words of a sentence; few, for a corpus that is soon made and heard.

    Raises:
        UserError: corpus_dir holds a LibriSpeech that was not made here, or espeakng-loader does not work.
    """
    corpus = corpus_dir / "LibriSpeech"
    marker = {"version": VERSION, "seed": seed, "sizes": dict(sizes), "longest": longest}
    if _read_marker(corpus) == marker:
        logger.info("%s is there already", corpus)
        return
    if corpus.exists() and not _made_here(corpus):
        raise UserError(f"{corpus} is not a mini corpus and is not overwritten: name another folder")
    espeak.load()  # says what is missing before any process is started

    corpus_dir.mkdir(parents=True, exist_ok=True)
    partial = corpus_dir / f".LibriSpeech.{os.getpid()}.partial"
    try:
        readers = _plan(partial, sizes, seed, grammar.sentences(seed, longest))
        voices = {reader.voice: [other for other in readers if other.voice == reader.voice] for reader in readers}
        spoken = map_in_processes(_speak, list(voices.values()), nj, f"{corpus}: voices", fresh=True)
        times = {name: words for part in spoken for name, words in part.items()}
        seconds = list(
            map_in_processes(
                _record,
                [(reader, {name: times[name] for name in reader.names()}) for reader in readers],
                nj,
                f"{corpus}: rooms",
            )
        )
        shutil.rmtree(partial / DRY)
        for part in sizes:
            names = [name for reader in readers if reader.folder.name == part for name in reader.names()]
            write_text(partial / f"{part}.ctm", "".join(_ctm(name, times[name]) for name in names))
        write_text(partial / "SPEAKERS.TXT", _speakers_txt(readers, seconds))
        write_text(partial / ".complete", json.dumps(marker) + "\n")
        shutil.rmtree(corpus, ignore_errors=True)
        os.replace(partial, corpus)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("%s: %d utterances, %.1f minutes", corpus, sum(sizes.values()), sum(seconds) / 60)


def write_word_times(corpus_dir: Path, data_dir: Path) -> None:
    """Write `ctm` into each folder of data_dir: when the words of its utterances are said."""
    lines: dict[str, list[str]] = {}
    for path in sorted((corpus_dir / "LibriSpeech").glob("*.ctm")):
        for line in path.read_text().splitlines(keepends=True):
            lines.setdefault(line.split(maxsplit=1)[0], []).append(line)
    for scp in sorted(data_dir.glob("*/wav.scp")):
        write_text(scp.parent / "ctm", "".join(line for name in read_table(scp) for line in lines.get(name, ())))


class _Utterance(NamedTuple):
    sentences: tuple[grammar.Sentence, ...]
    rate: int  # words a minute
    pitch: int  # eSpeak's scale, 50 is the voice's own
    silences: tuple[float, ...]  # seconds, before each sentence and at the end
    condition: acoustics.Condition
    covered: tuple[tuple[int, ...], ...]  # of each sentence the words under noise

    @property
    def text(self) -> str:
        return " ".join(sentence.text for sentence in self.sentences)


class _Reader(NamedTuple):
    folder: Path  # of the part
    number: int
    voice: str
    utterances: list[_Utterance]

    def names(self) -> list[str]:
        """Of the utterances, <reader>-<chapter>-<number>."""
        return [
            f"{self.number}-{self.number * 100 + 1 + index // CHAPTER}-{index % CHAPTER:04d}"
            for index in range(len(self.utterances))
        ]


class _Word(NamedTuple):
    word: str
    start: int  # samples
    end: int


_Times = dict[str, list[_Word]]  # of each utterance

DRY = ".dry"
"""The folder of the speech as it was said, while the corpus is made."""


def _plan(corpus: Path, sizes: Mapping[str, int], seed: int, sentences: Iterator[grammar.Sentence]) -> list[_Reader]:
    rng = random.Random(seed)
    readers = []
    for name, size in sizes.items():
        part = PARTS[name]
        spoken = [_utterance(part, sentences, rng) for _ in range(size)]
        readers += [
            _Reader(corpus / name, part.reader + index, voice, spoken[index :: len(part.voices)])
            for index, voice in enumerate(part.voices)
            if spoken[index :: len(part.voices)]
        ]
    return readers


def _utterance(part: _Part, sentences: Iterator[grammar.Sentence], rng: random.Random) -> _Utterance:
    least = rng.randint(*part.words)
    said = [next(sentences)]
    while sum(len(sentence.words) for sentence in said) < least:
        said.append(next(sentences))
    return _Utterance(
        tuple(said),
        rate=rng.randint(145, 180),
        pitch=rng.randint(35, 65),
        silences=(rng.uniform(0.1, 0.3), *(rng.uniform(0.4, 1.5) for _ in said[1:]), rng.uniform(0.1, 0.3)),
        condition=acoustics.draw(part.setting, rng),
        covered=tuple(
            tuple(word for word in sentence.implied if rng.random() < part.setting.covered) for sentence in said
        ),
    )


def _speak(readers: list[_Reader]) -> _Times:
    """Say what the readers of one voice say, and return when the words are said.

    In a process of its own, because eSpeak carries state from one utterance to the next: what a voice sounds like must
    not depend on what the process has said before.
    """
    voice = espeak.Voice(readers[0].voice)
    times: _Times = {}
    for reader in readers:
        folder = reader.folder.parent / DRY / reader.folder.name
        with _disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, utterance in zip(reader.names(), reader.utterances, strict=True):
                samples, times[name] = _say(voice, utterance)
                np.save(folder / f"{name}.npy", samples)
    return times


def _say(voice: espeak.Voice, utterance: _Utterance) -> tuple[np.ndarray, list[_Word]]:
    """(time,), int16, at FS, and when the words are said."""
    pieces: list[np.ndarray] = []
    words: list[_Word] = []
    position = 0
    for silence, sentence in zip(utterance.silences, utterance.sentences, strict=False):
        position += int(silence * FS)
        speech = voice.say(sentence.words, utterance.rate, utterance.pitch)
        samples = soxr.resample(speech.samples, voice.fs, FS)
        starts = [position + start * FS // voice.fs for start in speech.starts]
        position += len(samples)
        words += map(_Word, sentence.words, starts, [*starts[1:], position])
        pieces += [np.zeros(int(silence * FS), np.int16), samples]
    return np.concatenate([*pieces, np.zeros(int(utterance.silences[-1] * FS), np.int16)]), words


def _record(job: tuple[_Reader, _Times]) -> float:
    """Write the chapters of one reader; return their seconds."""
    reader, times = job
    dry = reader.folder.parent / DRY / reader.folder.name
    others = sorted(path for path in dry.glob("*.npy") if not path.name.startswith(f"{reader.number}-"))
    lines: dict[Path, list[str]] = {}
    seconds = 0.0
    with _disk_errors(reader.folder):
        for name, utterance in zip(reader.names(), reader.utterances, strict=True):
            folder = reader.folder / name.rpartition("-")[0].replace("-", "/")
            folder.mkdir(parents=True, exist_ok=True)
            speech = np.load(dry / f"{name}.npy")
            babble = _babble(len(speech), others or [dry / f"{name}.npy"], utterance.condition.seed)
            samples = acoustics.record(speech, FS, utterance.condition, _covered(utterance, times[name]), babble)
            (folder / f"{name}.flac").write_bytes(encoded(samples, FS, "flac"))
            lines.setdefault(folder / f"{name.rpartition('-')[0]}.trans.txt", []).append(f"{name} {utterance.text}\n")
            seconds += len(samples) / FS
        for path, transcripts in lines.items():
            write_text(path, "".join(transcripts))
    return seconds


def _covered(utterance: _Utterance, words: list[_Word]) -> list[tuple[int, int]]:
    """The samples from and to of the words under noise."""
    spans, first = [], 0
    for sentence, covered in zip(utterance.sentences, utterance.covered, strict=True):
        spans += [(words[first + index].start, words[first + index].end) for index in covered]
        first += len(sentence.words)
    return spans


def _babble(length: int, speech: list[Path], seed: int) -> np.ndarray:
    """(length,), five utterances at a time of those in the files."""
    rng = random.Random(seed)
    talkers = [np.resize(np.load(speech[rng.randrange(len(speech))]), length).astype(np.float64) for _ in range(5)]
    return np.sum(talkers, axis=0)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}") from None


def _ctm(name: str, words: list[_Word]) -> str:
    return "".join(f"{name} 1 {start / FS:.2f} {(end - start) / FS:.2f} {word}\n" for word, start, end in words)


def _speakers_txt(readers: list[_Reader], seconds: list[float]) -> str:
    rows = [
        f"{reader.number:<5}| {espeak.GENDERS[reader.voice]} | {reader.folder.name:<17}| "
        f"{length / 60:<5.2f} | eSpeak NG, {espeak.LANGUAGE}+{reader.voice}"
        for reader, length in zip(readers, seconds, strict=True)
    ]
    return "\n".join([MADE_HERE, ";ID  |SEX| SUBSET           |MINUTES| NAME", *rows]) + "\n"


def _read_marker(corpus: Path) -> object:
    try:
        return json.loads((corpus / ".complete").read_text())
    except (OSError, ValueError):
        return None


def _made_here(corpus: Path) -> bool:
    speakers = corpus / "SPEAKERS.TXT"
    return speakers.exists() and speakers.read_text(encoding="utf-8", errors="replace").startswith(MADE_HERE)

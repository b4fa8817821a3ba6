"""The mini corpus: a small grammar spoken by eSpeak NG, in LibriSpeech's layout, for trying the recipe out."""

import ctypes
import itertools
import json
import logging
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr

from espnet_mla.common.errors import UserError
from espnet_mla.common.files import write_text
from espnet_mla.common.workers import map_in_processes
from espnet_mla.recipe.audio import encoded

logger = logging.getLogger(__name__)

VERSION = 1  # of the grammar and the voices; a corpus of another version is made anew
SIZES = {"train-clean-100": 800, "dev-clean": 40, "dev-other": 40, "test-clean": 60, "test-other": 60}

LANGUAGE = "English (America)"
TRAINING_VOICES = ("f1", "m1", "f2", "m3", "f4", "m7")  # eSpeak's voice variants; their first letter is the gender
UNSEEN_VOICES = ("f3", "m2")
READERS = {  # a voice is another reader in each part, since LibriSpeech's parts have no reader in common
    "train-clean-100": (101, TRAINING_VOICES),
    "dev-clean": (201, TRAINING_VOICES),
    "dev-other": (301, UNSEEN_VOICES),
    "test-clean": (401, TRAINING_VOICES),
    "test-other": (501, UNSEEN_VOICES),
}
CHAPTER = 25  # utterances

WORDS = {  # no two sound alike: TWO and FOUR would be TO and FOR
    "CHANGE": "OPEN CLOSE FIND MOVE CLEAN",
    "MEET": "CALL MEET VISIT",
    "BRING": "BRING SEND SELL",
    "COLOUR": "RED BLUE GREEN YELLOW WHITE BLACK",
    "OBJECT": "DOOR WINDOW LAMP TABLE BOX CHAIR GARAGE",
    "THINGS": "APPLES BOOKS FLOWERS CARDS",
    "NUMBER": "THREE FIVE SIX SEVEN NINE TWELVE TWENTY",
    "NAME": "ANNA PETER MARY DAVID SUSAN OLIVER",
    "PLACE": "LONDON PARIS BERLIN MADRID OSLO VIENNA",
}
SENTENCES = (  # a word of WORDS' keys stands for each of its values, every other word for itself
    "CHANGE THE COLOUR OBJECT",
    "CHANGE THE OBJECT WITH NAME",
    "CHANGE THE OBJECT IN PLACE",
    "MEET NAME AT NUMBER",
    "MEET NAME IN PLACE AT NUMBER",
    "BRING NUMBER COLOUR THINGS",
    "BRING NAME NUMBER COLOUR THINGS",
    "DRIVE FROM PLACE TO PLACE WITH NAME",
)

MADE_HERE = "; Synthesised with eSpeak NG: for trying the recipe out, not for results."
ESPEAK_SYNCHRONOUS, ESPEAK_RATE, ESPEAK_PITCH, ESPEAK_UTF8 = 2, 1, 3, 1
FS = 16000


def synthesise(corpus_dir: Path, seed: int = 0, nj: int = 2, sizes: Mapping[str, int] = SIZES) -> None:
    """Make `corpus_dir/LibriSpeech` with all its parts, or return at once where it is there with this seed and sizes.

    dev-clean and test-clean have the voices of the training set, dev-other and test-other two others. No sentence
    occurs twice in the corpus. A seed gives the same transcripts, split and audio on every machine with the same
    release of eSpeak NG, whatever `nj`.

    Args:
        corpus_dir: the folder that will hold LibriSpeech/.
        seed: of sentences, speaking rates, pitches and pauses.
        nj: number of processes.
        sizes: utterances of each part.

    Raises:
        UserError: corpus_dir holds a LibriSpeech that was not made here, or espeakng-loader does not work.
    """
    corpus = corpus_dir / "LibriSpeech"
    marker = {"version": VERSION, "seed": seed, "sizes": dict(sizes)}
    if _read_marker(corpus) == marker:
        logger.info("%s is there already", corpus)
        return
    if corpus.exists() and not _made_here(corpus):
        raise UserError(f"{corpus} is not a mini corpus and is not overwritten: name another folder")
    _load_espeak()  # says what is missing before any process is started

    corpus_dir.mkdir(parents=True, exist_ok=True)
    partial = corpus_dir / f".LibriSpeech.{os.getpid()}.partial"
    try:
        readers = _plan(partial, seed, sizes)
        seconds = list(map_in_processes(_speak, readers, nj, f"{corpus}: readers", fresh=True))
        write_text(partial / "SPEAKERS.TXT", _speakers_txt(readers, seconds))
        write_text(partial / ".complete", json.dumps(marker) + "\n")
        shutil.rmtree(corpus, ignore_errors=True)
        os.replace(partial, corpus)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("%s: %d utterances, %.1f minutes", corpus, sum(sizes.values()), sum(seconds) / 60)


class _Utterance(NamedTuple):
    text: str
    rate: int  # words a minute
    pitch: int  # eSpeak's scale, 50 is the voice's own
    before: float  # seconds of silence
    after: float


class _Reader(NamedTuple):
    folder: Path
    number: int
    voice: str
    utterances: list[_Utterance]


def _sentences(seed: int) -> list[str]:
    """Every sentence of the grammar once, the kinds of sentences mixed, in an order that the seed decides."""
    rng = random.Random(seed)
    kinds = []
    for sentence in SENTENCES:
        choices = [WORDS.get(word, word).split() for word in sentence.split()]
        kind = [" ".join(words) for words in itertools.product(*choices) if len(set(words)) == len(words)]
        rng.shuffle(kind)
        kinds.append(kind)
    return [sentence for row in itertools.zip_longest(*kinds) for sentence in row if sentence]


def _plan(corpus: Path, seed: int, sizes: Mapping[str, int]) -> list[_Reader]:
    rng = random.Random(seed)
    sentences = _sentences(seed)[: sum(sizes.values())]
    if len(sentences) < sum(sizes.values()):
        raise ValueError(f"sizes ask for {sum(sizes.values())} sentences, the grammar has {len(sentences)}")
    rng.shuffle(sentences)
    readers = []
    for part, size in sizes.items():
        spoken, sentences = sentences[:size], sentences[size:]
        first, voices = READERS[part]
        for index, voice in enumerate(voices):
            utterances = [
                _Utterance(
                    text,
                    rate=rng.randint(145, 170),
                    pitch=rng.randint(44, 56),
                    before=rng.uniform(0.1, 0.2),
                    after=rng.uniform(0.1, 0.2),
                )
                for text in spoken[index :: len(voices)]
            ]
            readers.append(_Reader(corpus / part, first + index, voice, utterances))
    return readers


def _speak(reader: _Reader) -> float:
    """Write the chapters of one reader; return their seconds.

    In a process of its own, because eSpeak carries state from one utterance to the next: what a reader sounds like must
    not depend on what the process has said before.
    """
    espeak = _Espeak(f"{LANGUAGE}+{reader.voice}")
    starts = range(0, len(reader.utterances), CHAPTER)
    try:
        return sum(_speak_chapter(reader, number, start, espeak) for number, start in enumerate(starts, 1))
    except OSError as error:
        raise UserError(f"cannot write {reader.folder}: {error}") from None


def _speak_chapter(reader: _Reader, number: int, start: int, espeak: "_Espeak") -> float:
    chapter = f"{reader.number}-{reader.number * 100 + number}"
    folder = reader.folder / chapter.replace("-", "/")
    folder.mkdir(parents=True)
    lines, seconds = [], 0.0
    for index, utterance in enumerate(reader.utterances[start : start + CHAPTER]):
        name = f"{chapter}-{index:04d}"
        samples = soxr.resample(espeak.say(utterance), espeak.fs, FS)
        samples = np.pad(samples, [int(silence * FS) for silence in (utterance.before, utterance.after)])
        (folder / f"{name}.flac").write_bytes(encoded(samples, FS, "flac"))
        lines.append(f"{name} {utterance.text}\n")
        seconds += len(samples) / FS
    write_text(folder / f"{chapter}.trans.txt", "".join(lines))
    return seconds


class _Espeak:
    """The eSpeak NG library with one voice."""

    def __init__(self, voice: str) -> None:
        self._library, data = _load_espeak()
        self.fs = self._library.espeak_Initialize(ESPEAK_SYNCHRONOUS, 0, os.fsencode(data), 0)
        if self.fs <= 0:
            raise UserError(f"eSpeak NG does not start with its data in {data}")
        self._library.espeak_ng_SetRandSeed(0)  # breath is noise, which the clock would seed
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(f"eSpeak NG in {data} has no voice {voice}")
        self._chunks: list[np.ndarray] = []
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(
            self._receive
        )  # referenced here, since the library holds no reference that Python knows of
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, utterance: _Utterance) -> np.ndarray:
        """(time,), int16, at `fs`."""
        text = utterance.text.lower().encode()  # in capitals it would spell some words
        self._chunks.clear()
        self._library.espeak_SetParameter(ESPEAK_RATE, utterance.rate, 0)
        self._library.espeak_SetParameter(ESPEAK_PITCH, utterance.pitch, 0)
        failed = self._library.espeak_Synth(text, len(text) + 1, 0, 0, 0, ESPEAK_UTF8, None, None)
        if failed or not self._chunks:
            raise UserError(f"eSpeak NG says nothing for {utterance.text!r} (status {failed})")
        return np.concatenate(self._chunks)

    def _receive(self, samples, number: int, _events) -> int:
        if samples and number > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (number,)).copy())
        return 0


def _load_espeak() -> tuple[ctypes.CDLL, str]:
    """The library and the folder of its data."""
    try:
        import espeakng_loader

        library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(f"the mini corpus needs the pip package espeakng-loader: {error}") from None
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_Synth.argtypes = [
        *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
        *(ctypes.c_void_p, ctypes.c_void_p),
    ]
    return library, data


def _speakers_txt(readers: list[_Reader], seconds: list[float]) -> str:
    rows = [
        f"{reader.number:<5}| {reader.voice[0].upper()} | {reader.folder.name:<17}| {length / 60:<5.2f} "
        f"| eSpeak NG, {LANGUAGE}+{reader.voice}"
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

"""eSpeak NG: speech from text, and when each word begins."""

import ctypes
import os
from typing import NamedTuple

import numpy as np

from espnet_mla.common.errors import UserError

LANGUAGE = "English (America)"
_WOMEN = ("f1", "f2", "f3", "f4", "f5", "linda", "anika", "steph", "belinda")
_MEN = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "adam", "boris", "max")
GENDERS = dict.fromkeys(_WOMEN, "F") | dict.fromkeys(_MEN, "M")
"""eSpeak's voice variant -> gender."""
UNSEEN_VOICES = ("f3", "belinda", "m2", "m6")
"""Nobody in a training set has one of them."""
VOICES = tuple(voice for voice in GENDERS if voice not in UNSEEN_VOICES)

_SYNCHRONOUS, _RATE, _PITCH, _UTF8 = 2, 1, 3, 1
_END_OF_LIST, _WORD = 0, 1


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Speech(NamedTuple):
    """What was said.

    Args:
        samples: (time,), int16.
        starts: of each word, in samples.
    """

    samples: np.ndarray
    starts: list[int]


class Voice:
    """The eSpeak NG library with one voice.

    The library carries state from one utterance to the next: what is to sound the same each time is said in a process
    of its own.
    """

    def __init__(self, variant: str) -> None:
        self._library, data = load()
        self.fs = self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), 0)
        if self.fs <= 0:
            raise UserError(f"eSpeak NG does not start with its data in {data}")
        self._library.espeak_ng_SetRandSeed(0)  # breath is noise, which the clock would seed
        name = f"{LANGUAGE}+{variant}"
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise UserError(f"eSpeak NG in {data} has no voice {name}")
        self._chunks: list[np.ndarray] = []
        self._words: dict[int, int] = {}  # place in the text -> samples
        # Referenced here, since the library holds no reference that Python knows of.
        self._callback = _CALLBACK(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, words: tuple[str, ...], rate: int, pitch: int) -> Speech:
        """Say it, at `fs`.

        Args:
            words: ASCII letters.
            rate: words a minute.
            pitch: 50 is the voice's own.

        Raises:
            UserError: there is no sound.
        """
        text = " ".join(words).lower().encode()  # in capitals it would spell some words
        self._chunks.clear()
        self._words.clear()
        self._library.espeak_SetParameter(_RATE, rate, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        failed = self._library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
        if failed or not self._chunks:
            raise UserError(f"eSpeak NG says nothing for {text.decode()!r} (status {failed})")
        samples = np.concatenate(self._chunks)
        return Speech(samples, self._starts(words, len(samples)))

    def _starts(self, words: tuple[str, ...], end: int) -> list[int]:
        """When each word begins; one that eSpeak joins to the word before it (OF THE) by their numbers of letters."""
        places = np.cumsum([0, *(len(word) + 1 for word in words)])
        letters = [0, *(place for place in places if place in self._words and place), places[-1]]
        return [
            int(start) for start in np.interp(places[:-1], letters, [0, *(self._words[p] for p in letters[1:-1]), end])
        ]

    def _receive(self, samples, number: int, events) -> int:
        if samples and number > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (number,)).copy())
        index = 0
        while events[index].type != _END_OF_LIST:
            if events[index].type == _WORD:
                self._words[events[index].text_position - 1] = events[index].sample
            index += 1
        return 0


def phonemes(text: str) -> str:
    """How a text is pronounced, in eSpeak's own phonemes."""
    library, data = load()
    library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), 0)
    library.espeak_SetVoiceByName(LANGUAGE.encode())
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
    rest = ctypes.c_char_p(text.lower().encode())
    return library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, 0).decode()


def load() -> tuple[ctypes.CDLL, str]:
    """The library and the folder of its data.

    Raises:
        UserError: espeakng-loader is missing, or does not work here.
    """
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

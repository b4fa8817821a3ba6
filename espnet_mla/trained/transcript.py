"""What a recogniser makes of a recording, whichever task its model is of, in one piece, in a batch, or in segments."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from espnet_mla.trained import tasks
from espnet_mla.trained.tasks import Task
from espnet_mla.trained.words import Word, words_of

if TYPE_CHECKING:
    import numpy as np

LONGEST = 30.0
"""Seconds of a piece that a recording is cut into."""
SILENCE_DB = 40
"""What is so far below the loudest frame is silence."""
LEAST_SILENCE = 0.2
"""Seconds of a silence that a recording may be cut at."""


@dataclass(frozen=True)
class Segment:
    """A part of a recording.

    Args:
        start, end: in seconds.
        text: of it.
        words: of the text, with their times; None where they were not asked for.
    """

    start: float
    end: float
    text: str
    words: Sequence[Word] | None = None

    def later(self, seconds: float) -> "Segment":
        """The same of a recording that has so many seconds before."""
        words = self.words and [
            replace(word, start=word.start + seconds, end=word.end + seconds) for word in self.words
        ]
        return Segment(self.start + seconds, self.end + seconds, self.text, words)


@dataclass(frozen=True)
class Transcript:
    """The text of a recording.

    Args:
        text: of all of it.
        segments: with their times, where these are known.
        score: log probability of the text; None where it was put together from segments.
    """

    text: str
    segments: Sequence[Segment] = ()
    score: float | None = None


@dataclass(frozen=True)
class Transcriber:
    """A recogniser of one of ESPnet's tasks.

    Args:
        task: of its model.
        recogniser: ESPnet's.
        rate: Hz of the audio that it takes.
        with_words: whether the times of words are wanted, of a model for speech recognition.
    """

    task: Task
    recogniser: Any
    rate: int
    with_words: bool = False

    def short(self, samples: "np.ndarray") -> Transcript:
        """Of a recording (time,) that is decoded in one piece."""
        return self._best(self.task.decode(self.recogniser, samples), samples)

    def batch(self, recordings: "Sequence[np.ndarray]") -> list[Transcript]:
        """Of several in one beam search, whose recogniser was made with a `batch_size`."""
        found = self.recogniser.batch_decode(list(recordings))
        return [self._best(hypotheses, one) for one, hypotheses in zip(recordings, found, strict=True)]

    def long(self, samples: "np.ndarray") -> Transcript:
        """Of a recording of any length.

        OWSM's by ESPnet's `decode_long`, along the times that it predicts; others' piece by piece, cut at silences.
        """
        if self.task in (tasks.S2T, tasks.S2T_CTC):
            segments = [Segment(*one) for one in self.recogniser.decode_long(samples)]
        else:
            segments = [
                segment.later(first / self.rate)
                for first, last in pieces(samples, self.rate)
                for segment in self.short(samples[first:last]).segments
            ]
        segments = [replace(one, text=one.text.strip()) for one in segments]
        return Transcript(" ".join(one.text for one in segments if one.text), segments)

    def _best(self, hypotheses: list[tuple], samples: "np.ndarray") -> Transcript:
        best = hypotheses[0]
        if self.task is tasks.S2T and self.recogniser.predict_time:
            segments = [Segment(*one) for one in self.recogniser.window_utterances(best[2])]
        else:
            words = words_of(self.recogniser, samples, best) if self.with_words else None
            segments = [Segment(0.0, len(samples) / self.rate, self.task.text_of(best), words)]
        return Transcript(self.task.text_of(best), segments, float(best[-1].score))


def pieces(samples: "np.ndarray", rate: int) -> Iterator[tuple[int, int]]:
    """Cut a recording (time,) at silences into pieces of at most `LONGEST` seconds: first sample and last, exclusive.

    Silences longer than `LEAST_SILENCE` that fall between pieces are left out but for that; sound without one is cut
    at `LONGEST`.
    """
    import librosa

    margin, most = round(LEAST_SILENCE * rate / 2), round(LONGEST * rate)
    sounds = [
        (max(0, int(first) - margin), min(len(samples), int(last) + margin))
        for first, last in librosa.effects.split(samples, top_db=SILENCE_DB)
    ]
    begin = end = None
    for first, last in sounds:
        if begin is not None and end is not None and last - begin > most:
            yield from _parts(begin, end, most)
            begin = None
        begin, end = first if begin is None else begin, last
    if begin is not None and end is not None:
        yield from _parts(begin, end, most)


def _parts(first: int, last: int, most: int) -> Iterator[tuple[int, int]]:
    """A piece, in equal parts of at most so many samples."""
    number = -(-(last - first) // most)
    bounds = [first + (last - first) * n // number for n in range(number + 1)]
    yield from pairwise(bounds)

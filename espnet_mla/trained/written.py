"""Transcripts as they are written: a line of text, a line of JSON, or subtitles."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from espnet_mla.common.filenames import escaped
from espnet_mla.trained.transcript import Segment, Transcript

FORMATS = ("text", "json", "ctm", "srt", "vtt")
NO_WORDS = "CTC can't spell the text in so few frames: the times of its words are not known"
SUBTITLES = ("srt", "vtt")
"""Those that are a file for each recording."""


def line(file: str, transcript: Transcript, times: tuple[float, float] | None = None) -> str:
    """The file, a tab, the text; with the seconds of audio and those taken, these and their ratio."""
    more = (f"{times[0]:.2f}", f"{times[1]:.2f}", f"{times[1] / times[0]:.3f}") if times else ()
    return "\t".join((escaped(file), transcript.text, *more))


def json_line(file: str, transcript: Transcript, times: tuple[float, float]) -> str:
    """An object: file, text, score, segments with their times (and words), seconds of audio, and seconds taken."""
    segments = [_rounded(asdict(one)) for one in transcript.segments]
    content = {"file": escaped(file), "text": transcript.text, "score": transcript.score, "segments": segments}
    return json.dumps(content | {"seconds": round(times[0], 3), "taken": round(times[1], 3)}, ensure_ascii=False)


def _rounded(content: dict[str, Any]) -> dict[str, Any]:
    """Numbers to three digits, without what is None, and the same of a list of others."""
    rounded: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, list):
            rounded[name] = [_rounded(one) for one in value]
        elif value is not None:
            rounded[name] = round(value, 3) if isinstance(value, float) else value
    return rounded


def ctm(file: str, segments: Sequence[Segment]) -> str:
    """NIST's: the name of the file without its ending, the channel, start and duration in seconds, word, confidence."""
    name = "_".join(escaped(Path(file).stem).split())
    lines = [
        f"{name} 1 {word.start:.2f} {word.end - word.start:.2f} {word.text} {word.confidence:.2f}\n"
        for segment in segments
        for word in segment.words or ()
    ]
    return "".join(lines)


def segment_line(segment: Segment) -> str:
    """An object: start, end, text and words of a segment."""
    return json.dumps(_rounded(asdict(segment)), ensure_ascii=False)


def subtitles(transcript: Transcript, kind: str) -> str:
    """SubRip (`srt`) or WebVTT (`vtt`), a cue for each segment with a text."""
    blocks = [cue(one, number, kind) for number, one in enumerate((s for s in transcript.segments if s.text), 1)]
    return "\n".join([*(["WEBVTT\n"] if kind == "vtt" else []), *blocks])


def cue(segment: Segment, number: int, kind: str) -> str:
    """The cue of a segment, the first one being number 1."""
    mark = "," if kind == "srt" else "."
    times = f"{_clock(segment.start, mark)} --> {_clock(segment.end, mark)}"
    return (f"{number}\n" if kind == "srt" else "") + f"{times}\n{segment.text}\n"


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{mark}{milliseconds % 1000:03d}"

"""espnet-mla stream: the text of a file or of the standard input while it arrives."""

import argparse
import contextlib
import io
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from espnet_mla.common.errors import UsageError, UserError, one_line
from espnet_mla.common.filenames import escaped
from espnet_mla.common.units import hertz
from espnet_mla.streaming import container
from espnet_mla.trained import written
from espnet_mla.trained.audio import read
from espnet_mla.trained.decoding import FLAG, check
from espnet_mla.trained.options import add_cache_dtype, device_of
from espnet_mla.trained.transcript import Segment

if TYPE_CHECKING:
    import numpy as np

    from espnet_mla.streaming.endpoint import Endpointing
    from espnet_mla.streaming.recogniser import StreamingSpeech2Text
    from espnet_mla.streaming.result import Result

RULES = {
    "trailing_silence": "after so much silence behind a word (default: 0.8)",
    "initial_silence": "after so much silence without one, of which nothing is printed (default: 2.4)",
    "longest": "after so much of a sentence (default: 20)",
}
"""Options of endpointing, see `endpoint.Endpointing`."""
OUTPUTS = (".srt", ".vtt", ".ctm", ".jsonl")
STDIN = "-"
FILE_PIECE_SECONDS = 0.1  # of a file, that are recognised at a time
STDIN_BYTES = 1 << 14  # most bytes of the standard input that are read at a time

DESCRIPTION = """\
Recognise an audio file, or the standard input, piece by piece, and show the partial text; then print the final text as
espnet-mla transcribe does: the file, a tab, the text. With --endpointing each sentence is printed as it ends: the
seconds at which it begins and ends, and its text, with tabs between. Takes models that were trained with encoder_conf:
streaming.

    espnet-mla stream MODEL speech.flac
    arecord -t raw -f S16_LE -r 16000 | espnet-mla stream MODEL -
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Recognise the audio, and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.fs is not None and options.audio != STDIN:
        parser.error("--fs is the sampling rate of the standard input: a file has its own")
    try:
        check({"beam_size": options.beam_size, "ctc_weight": options.ctc_weight}, FLAG)
        options.fs = hertz(options.fs) if options.fs is not None else None
    except UsageError as error:
        parser.error(str(error))
    try:
        rules = _rules(options)
    except UsageError as error:
        parser.error(str(error))
    if options.bias_weight is not None and not options.bias:
        parser.error(f"--bias_weight {options.bias_weight:g}: give the phrases as well, with --bias")
    if options.audio == STDIN and sys.stdin is None:
        print("error: the standard input is closed", file=sys.stderr)
        return 1
    import espnet_mla
    from espnet_mla.streaming.bias import DEFAULT_WEIGHT, check_weight, read_phrases

    names = (
        "inference_asr_model",
        "chunk_size",
        "left_chunks",
        "look_ahead",
        "beam_size",
        "ctc_weight",
        "final_search",
        "cache_dtype",
    )
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    device = device_of(parser, options)
    try:
        weight = DEFAULT_WEIGHT if options.bias_weight is None else options.bias_weight
        check_weight(weight, "--bias_weight:")
        phrases = read_phrases(options.bias, weight) if options.bias else None
        recogniser = espnet_mla.StreamingSpeech2Text(
            options.model, fs=options.fs, device=device, endpointing=rules, bias=phrases, **given
        )
        if options.output and options.output.suffix.lower() == ".ctm" and recogniser.pool.model.final_search == "ctc":
            raise UsageError(
                f"--output {options.output}: the text of CTC alone has no times of words; --final_search search or "
                "rescore has, with a --ctc_weight of less than 1 and an attention decoder"
            )
        with _Sentences(options) as sentences:
            pieces = _pieces(options.audio, options.fs or recogniser.pool.model.fs)
            result = _recognise(recogniser, pieces, options, sentences)
    except UsageError as error:
        parser.error(str(error))
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if rules is not None:
        return 0
    text = result.text
    if options.times:
        text = "\n".join(f"{second:.2f}\t{token}" for second, token in zip(result.times, result.tokens, strict=True))
    print(text if options.audio == STDIN or options.times else f"{escaped(options.audio)}\t{text}", flush=True)
    return 0


def _rules(options: argparse.Namespace) -> "Endpointing | None":
    """The rules of endpointing that the options ask for, if they do.

    Raises:
        UsageError: they do not go together.
    """
    from espnet_mla.streaming.endpoint import Endpointing

    named = {name: value for name in RULES if (value := getattr(options, name)) is not None}
    if named and not options.endpointing:
        raise UsageError(
            f"--{next(iter(named))} {next(iter(named.values())):g}: without --endpointing there are no rules"
        )
    if options.output and not options.endpointing:
        raise UsageError(f"--output {options.output}: sentences are what it is for: give --endpointing")
    if options.output and options.output.suffix.lower() not in OUTPUTS:
        raise UsageError(f"--output {options.output}: its ending must be one of {', '.join(OUTPUTS)}")
    if options.endpointing and options.times:
        raise UsageError("--times: with --endpointing the times of words are in --output FILE.ctm or FILE.jsonl")
    # 0 is none: on a command line there is no other way to say so.
    return Endpointing.of({name: value or None for name, value in named.items()}) if options.endpointing else None


class _Sentences:
    """Where sentences go as they end: to the standard output, and to the file that --output names."""

    def __init__(self, options: argparse.Namespace):
        self.audio, self.output, self.number = options.audio, options.output, 0
        self.file: TextIO | None = None

    def __enter__(self) -> "_Sentences":
        if self.output:
            with self._telling():
                self.output.parent.mkdir(parents=True, exist_ok=True)
                if not os.access(self.output if self.output.exists() else self.output.parent, os.W_OK):
                    raise PermissionError("it can't be written to")
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        with self._telling():
            if self.output and not failed:  # a file without a sentence, if there was none
                self._open()
            if self.file:
                self.file.close()

    def write(self, sentence: "Result") -> None:
        """Write one; what has been written stays, whatever comes after."""
        self.number += 1
        print(f"{sentence.start:.2f}\t{sentence.end:.2f}\t{sentence.text}", flush=True)
        if self.output:
            if self.kind == "ctm" and not sentence.words:
                print(f"warning: {sentence.start:.2f} s: {written.NO_WORDS}", file=sys.stderr)
            with self._telling():
                file = self._open()
                file.write(self._formatted(Segment(sentence.start, sentence.end, sentence.text, sentence.words)))
                file.flush()

    def _open(self) -> TextIO:
        """The file: what was there before is replaced by the first sentence, not by an error before it."""
        if self.file is None:
            self.file = self.output.open("w", encoding="utf-8")
            self.file.write("WEBVTT\n\n" if self.kind == "vtt" else "")
        return self.file

    @property
    def kind(self) -> str:
        """Of the file, in small letters."""
        return self.output.suffix.removeprefix(".").lower()

    def _formatted(self, segment: Segment) -> str:
        if self.kind == "jsonl":
            return f"{written.segment_line(segment)}\n"
        if self.kind == "ctm":
            return written.ctm("stdin" if self.audio == STDIN else self.audio, [segment])
        return f"{written.cue(segment, self.number, self.kind)}\n"

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"--output {self.output}: {one_line(error)}") from None


def _recognise(
    recogniser: "StreamingSpeech2Text",
    pieces: Iterator["np.ndarray"],
    options: argparse.Namespace,
    sentences: _Sentences,
) -> "Result":
    """The final result; partial ones are displayed meanwhile. Ctrl-C ends the audio: a microphone has no other end."""
    display = _PartialTextDisplay()
    rate, samples, start = options.fs or recogniser.pool.model.fs, 0, time.monotonic()

    def write_sentences() -> None:
        for sentence in recogniser.take_sentences():
            display.clear()
            sentences.write(sentence)

    try:
        with _Interrupts() as interrupts:
            while (piece := interrupts.wait_for(lambda: next(pieces, None))) is not None:
                samples += len(piece)
                if options.realtime:
                    interrupts.wait_for(partial(_sleep_until, start + samples / rate))
                if result := recogniser.accept(piece):
                    write_sentences()
                    display.update(result, samples / rate)
        display.clear()
        stream, result = recogniser.stream, recogniser.finish()
    finally:
        write_sentences()
    if options.audio != STDIN and not stream.frames:
        raise UserError(f"{escaped(options.audio)}: {samples / rate:.3f} s are too short for the model")
    return result


def _sleep_until(end: float) -> None:
    """Sleep until `time.monotonic()` is `end`."""
    time.sleep(max(0.0, end - time.monotonic()))


class _Interrupts:
    """Ctrl-C, which ends a wait at once, but lets a computation finish."""

    def __init__(self) -> None:
        self._interrupted = self._waiting = False

    def __enter__(self) -> "_Interrupts":
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True
        if self._waiting:
            raise KeyboardInterrupt

    def wait_for(self, wait: Callable[[], "np.ndarray | None"]) -> "np.ndarray | None":
        """What `wait` returns; None after Ctrl-C."""
        self._waiting = True
        try:
            return None if self._interrupted else wait()
        except KeyboardInterrupt:
            return None
        finally:
            self._waiting = False


class _PartialTextDisplay:
    """Partial text on the standard error: on a terminal one line that is overwritten, else a line for each change.

    Of a long text, the end that fits into a line.
    """

    def __init__(self) -> None:
        self.terminal, self.text, self.settled = sys.stderr.isatty(), "", 0
        self.width = shutil.get_terminal_size().columns - 1 if self.terminal else 120

    def update(self, result: "Result", second: float) -> None:
        self.settled = min(self.settled, result.settled)  # of another sentence there are fewer
        text = result.text_from(max(0, self.settled - self.width))
        self.settled = result.settled
        room = self.width - 12
        text = text if len(text) <= room else f"...{text[3 - room :]}"
        if text == self.text:
            return
        self.text = text
        line = f"{second:8.2f} s  {text}"
        sys.stderr.write(f"\r\x1b[K{line}" if self.terminal else f"{line}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        self.text = ""
        if self.terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _pieces(audio: str, rate: int) -> Iterator["np.ndarray"]:
    """The samples of a file, resampled to `rate`, or of the standard input, which is of that rate, as they arrive.

    Raises:
        UserError: the file can't be read.
    """
    if audio != STDIN:
        samples = read(audio, rate)
        size = round(FILE_PIECE_SECONDS * rate)
        yield from (samples[begin : begin + size] for begin in range(0, len(samples), size))
        return
    try:
        yield from _pcm(cast("io.BufferedReader", sys.stdin.buffer), rate)
    except OSError as error:
        raise UserError(f"the standard input cannot be read: {one_line(error)}") from None


def _pcm(stdin: "io.BufferedReader", rate: int) -> Iterator["np.ndarray"]:
    """The samples of the standard input, as they arrive.

    Raises:
        UserError: it is an audio file with a header, which would be recognised as noise.
    """
    import numpy as np

    rest, checked = b"", False
    while data := stdin.read1(STDIN_BYTES):
        rest += data
        if not checked and len(rest) < container.bytes_needed(rest):
            continue
        if not checked:
            _refuse_container(rest, rate)
            checked = True
        even = len(rest) // 2 * 2
        yield np.frombuffer(rest[:even], "<i2")
        rest = rest[even:]
    if not checked:  # it is short
        _refuse_container(rest, rate)
        yield np.frombuffer(rest[: len(rest) // 2 * 2], "<i2")


def _refuse_container(head: bytes, rate: int) -> None:
    if name := container.recognise(head):
        raise UserError(
            f"the standard input is {name}, not 16-bit PCM without a header: give the file by its name, or send "
            f"`ffmpeg -i FILE -f s16le -ac 1 -ar {rate} -` (of arecord and sox: -t raw)"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="espnet-mla stream", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="archive (.zip), folder, or owner/name on the Hugging Face hub")
    parser.add_argument("audio", metavar="AUDIO", help="an audio file, or - for 16-bit PCM, one channel, little-endian")
    parser.add_argument("--realtime", action="store_true", help="at the speed of speech, not faster")
    parser.add_argument(
        "--times", action="store_true", help="print a line for each token: its onset in seconds, a tab, the token"
    )
    parser.add_argument(
        "--fs", metavar="HZ", help="sampling rate of the standard input, such as 16k (default: the model's)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")
    parser.add_argument("--inference_asr_model", help="model file of an experiment (default: valid.acc.ave.pth)")
    parser.add_argument("--chunk_size", type=int, metavar="N", help="encoder frames of a chunk (default: the model's)")
    parser.add_argument(
        "--left_chunks", type=int, metavar="N", help="chunks of left context; -1: all (default: the model's)"
    )
    parser.add_argument(
        "--look_ahead", type=int, metavar="N", help="encoder frames after a chunk that it sees (default: the model's)"
    )
    parser.add_argument("--beam_size", type=int, metavar="N", help="hypotheses of the searches (default: 20)")
    parser.add_argument(
        "--ctc_weight", type=float, metavar="W", help="weight of CTC in the score of the final text (default: 0.3)"
    )
    parser.add_argument(
        "--final_search", choices=("search", "rescore", "ctc"),
        help="the final text: of ESPnet's search over the whole; of CTC's hypotheses the best by CTC and decoder; or "
        "CTC's (default: search)",
    )  # fmt: skip
    add_cache_dtype(parser)
    parser.add_argument(
        "--bias", metavar="FILE", type=Path,
        help="phrases that the searches favour, such as names: one a line, maybe with a tab and its weight",
    )  # fmt: skip
    parser.add_argument(
        "--bias_weight", metavar="W", type=float,
        help="bonus of each token of a phrase, where its line has no weight (default: 0.5)",
    )  # fmt: skip
    rules = parser.add_argument_group("sentences")
    rules.add_argument(
        "--endpointing", action="store_true", help="end sentences at silences, and print each as it ends"
    )
    for name, meaning in RULES.items():
        rules.add_argument(f"--{name}", type=float, metavar="SECONDS", help=f"{meaning}; 0: never")
    rules.add_argument(
        "--output", metavar="FILE", type=Path,
        help=f"the sentences, as its ending says: {', '.join(OUTPUTS)} (subtitles, NIST's CTM of words, JSON lines)",
    )  # fmt: skip
    return parser

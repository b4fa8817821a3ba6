"""espnet-mla stream: the text of speech while it is heard, from a file or from the standard input."""

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from espnet_mla.common.errors import UserError
from espnet_mla.trained.audio import read
from espnet_mla.trained.options import device_of

if TYPE_CHECKING:
    import numpy as np

    from espnet_mla.streaming.recogniser import StreamingSpeech2Text
    from espnet_mla.streaming.result import Result

STDIN = "-"
PIECE = 0.1  # seconds of a file that are handed over at a time
READ = 1 << 14  # bytes of the standard input, at most

DESCRIPTION = """\
Hear an audio file, or the standard input, piece by piece, and show the text as it grows; then the whole text, as espnet-mla
transcribe shows it: the file, a tab, the text. Takes models that were trained with encoder_conf: streaming.

    espnet-mla stream MODEL speech.flac
    arecord -f S16_LE -r 16000 | espnet-mla stream MODEL -
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Hear the audio, and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.fs is not None and options.audio != STDIN:
        parser.error("--fs is the rate of the standard input: a file tells its own")
    if options.fs is not None and options.fs < 1:
        parser.error(f"--fs {options.fs}: at least 1 Hz is needed")
    import espnet_mla

    model = {"inference_asr_model": options.inference_asr_model} if options.inference_asr_model else {}
    given = {name: getattr(options, name) for name in ("chunk_size", "left_chunks", "beam_size", "ctc_weight")}
    device = device_of(parser, options)
    try:
        recogniser = espnet_mla.StreamingSpeech2Text(
            options.model,
            fs=options.fs,
            device=device,
            rescoring=not options.no_rescoring,
            **model,
            **{name: value for name, value in given.items() if value is not None},
        )
        heard = _listened(recogniser, _pieces(options.audio, recogniser.pool.fs), options)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    text = heard.text
    if options.times:
        text = "\n".join(f"{second:.2f}\t{token}" for second, token in zip(heard.times, heard.tokens, strict=True))
    print(text if options.audio == STDIN or options.times else f"{options.audio}\t{text}", flush=True)
    return 0


def _listened(
    recogniser: "StreamingSpeech2Text", pieces: Iterator["np.ndarray"], options: argparse.Namespace
) -> "Result":
    """The final result; the others are shown on the way. Ctrl-C ends the audio, as a microphone has no other end."""
    shown = _Shown()
    rate, taken, began = options.fs or recogniser.pool.fs, 0, time.monotonic()
    with _Interrupts() as interrupts:
        while (piece := interrupts.waiting(lambda: next(pieces, None))) is not None:
            taken += len(piece)
            if options.realtime:
                interrupts.waiting(lambda: time.sleep(max(0.0, began + taken / rate - time.monotonic())))
            if result := recogniser.accept(piece):
                shown.show(result, taken / rate)
    shown.clear()
    return recogniser.finish()


class _Interrupts:
    """Ctrl-C, which ends a wait at once, and lets what is computed come to its end."""

    def __init__(self) -> None:
        self._asked = self._waiting = False

    def __enter__(self) -> "_Interrupts":
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        self._asked = True
        if self._waiting:
            raise KeyboardInterrupt

    def waiting(self, wait: Callable[[], "np.ndarray | None"]) -> "np.ndarray | None":
        """What comes of waiting; None after Ctrl-C."""
        self._waiting = True
        try:
            return None if self._asked else wait()
        except KeyboardInterrupt:
            return None
        finally:
            self._waiting = False


class _Shown:
    """Partial text on the standard error: on a terminal one line that is written anew, else a line for each change.

    Of a long text its end, as much as a line holds.
    """

    def __init__(self) -> None:
        self.terminal, self.text, self.settled = sys.stderr.isatty(), "", 0
        self.width = shutil.get_terminal_size().columns - 1 if self.terminal else 120

    def show(self, result: "Result", second: float) -> None:
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
        if self.terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _pieces(audio: str, rate: int) -> Iterator["np.ndarray"]:
    """The samples of a file, at the model's rate, or of the standard input, as it comes.

    Raises:
        UserError: the file can't be read.
    """
    import numpy as np

    if audio != STDIN:
        try:
            samples = read(audio, rate)
        except UserError as error:
            raise UserError(f"{audio}: {error}") from None
        size = round(PIECE * rate)
        yield from (samples[begin : begin + size] for begin in range(0, len(samples), size))
        return
    rest = b""
    while data := sys.stdin.buffer.read1(READ):
        data = rest + data
        even = len(data) // 2 * 2
        rest = data[even:]
        yield np.frombuffer(data[:even], "<i2")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="espnet-mla stream", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="archive (.zip), folder, or owner/name on the Hugging Face hub")
    parser.add_argument("audio", metavar="AUDIO", help="an audio file, or - for 16-bit PCM, one channel, little-endian")
    parser.add_argument("--realtime", action="store_true", help="no faster than it was spoken")
    parser.add_argument(
        "--times", action="store_true", help="at the end a line for each token: its second, a tab, the token"
    )
    parser.add_argument("--fs", type=int, metavar="HZ", help="of the standard input (default: the model's)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")
    parser.add_argument("--inference_asr_model", help="of an experiment's folder: the model's file (valid.acc.ave.pth)")
    parser.add_argument(
        "--chunk_size", type=int, metavar="N", help="encoder frames that are heard at a time (default: the model's)"
    )
    parser.add_argument(
        "--left_chunks", type=int, metavar="N", help="chunks before them that are seen; -1: all (default: the model's)"
    )
    parser.add_argument("--beam_size", type=int, metavar="N", help="hypotheses of the CTC search (default: 20)")
    parser.add_argument("--ctc_weight", type=float, metavar="W", help="share of CTC in the final score (default: 0.3)")
    parser.add_argument(
        "--no_rescoring", action="store_true", help="the CTC search's text is final: the decoder isn't asked"
    )
    return parser

"""espnet-mla transcribe: the text of audio files, by a model from wherever `espnet_mla.from_pretrained` takes one."""

import argparse
import sys
import time
from collections.abc import Sequence

from espnet_mla.common.errors import UsageError, UserError, one_line
from espnet_mla.common.filenames import escaped
from espnet_mla.trained.audio import read
from espnet_mla.trained.decoding import DECODING, FLAG, check, check_for
from espnet_mla.trained.options import device_of
from espnet_mla.trained.pretrained import load

DESCRIPTION = """\
Print the text of each audio file, a line each: the file, a tab, the text. Takes whatever soundfile reads (FLAC, WAV,
OGG, MP3, ...), at any rate; channels are averaged. A file that can't be done is named on the standard error, the others
are done all the same, and the exit status is 1. In a file's name a tab is written \\t, a line feed \\n, a backslash
\\\\, and any other byte that would break the line \\xff.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Transcribe, and return the exit status."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    given = {name: getattr(options, name) for name in ("inference_asr_model", *DECODING)}
    try:
        check(given, FLAG)
    except UsageError as error:
        parser.error(str(error))
    device = device_of(parser, options)
    given = {name: value for name, value in given.items() if value is not None}
    try:
        speech2text = load(options.model, device=device, **given)
        check_for(vars(speech2text.asr_train_args), given, FLAG)
    except UsageError as error:
        parser.error(str(error))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from espnet_mla.trained.model import sampling_rate

    rate = sampling_rate(vars(speech2text.asr_train_args))
    status = 0
    for path in options.audio:
        began = time.perf_counter()
        samples = None
        try:
            samples = read(path, rate)
            results = speech2text(samples)
        except KeyboardInterrupt:
            return 130
        except Exception as error:  # a model raises whatever it raises, and the other files can be done
            print(f"error: {_trouble(path, error, None if samples is None else len(samples) / rate)}", file=sys.stderr)
            status = 1
            continue
        seconds, taken = len(samples) / rate, time.perf_counter() - began
        # With intermediate CTC the results come with those of the layers between.
        (text, *_), *_ = results[0] if isinstance(results, tuple) else results
        timing = (f"{seconds:.2f}", f"{taken:.2f}", f"{taken / seconds:.3f}") if options.timing else ()
        print(escaped(path), text, *timing, sep="\t", flush=True)
    return status


def _trouble(path: str, error: Exception, seconds: float | None) -> str:
    """Why a file was not transcribed; `seconds` is None where it could not be read."""
    if isinstance(error, UserError):
        return str(error)
    from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError

    why = one_line(error)
    # Of less than half a window it is torch that complains, about its padding.
    if seconds is not None and (isinstance(error, TooShortUttError) or "Padding size should be less" in why):
        why = f"{seconds:.3f} s are too short for the model"
    return f"{escaped(path)}: {why}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="espnet-mla transcribe", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="archive (.zip), folder, or owner/name on the Hugging Face hub")
    parser.add_argument("audio", metavar="AUDIO", nargs="+", help="audio files")
    parser.add_argument(
        "--timing",
        action="store_true",
        help="three more columns: seconds of audio, seconds from file to text, and the latter for a second of audio",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")
    parser.add_argument("--inference_asr_model", help="of an experiment's folder: the model's file (valid.acc.ave.pth)")
    for name, (kind, meaning) in DECODING.items():
        parser.add_argument(f"--{name}", type=kind, help=meaning)
    return parser

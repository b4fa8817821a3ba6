"""espnet-mla transcribe: the text of audio files, by a model from wherever `espnet_mla.from_pretrained` takes one."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from espnet_mla.common.errors import UsageError, UserError, one_line
from espnet_mla.common.filenames import escaped
from espnet_mla.common.files import write_text
from espnet_mla.trained import error_rates, tasks, words, written
from espnet_mla.trained.audio import read
from espnet_mla.trained.decoding import DECODING, FLAG, NUMBERS, check, check_for
from espnet_mla.trained.locate import locate
from espnet_mla.trained.names import MODEL_FILE
from espnet_mla.trained.options import add_cache_dtype, add_prompt, device_of, symbols
from espnet_mla.trained.pretrained import load
from espnet_mla.trained.transcript import Transcriber, Transcript

if TYPE_CHECKING:
    import numpy as np

DESCRIPTION = """\
Print the text of each audio file, a line each: the file, a tab, the text. Takes whatever soundfile reads (FLAC, WAV,
OGG, MP3, ...), at any rate; channels are averaged. A file that can't be done is named on the standard error, the others
are done all the same, and the exit status is 1. In a file's name a tab is written \\t, a line feed \\n, a backslash
\\\\, and any other byte that would break the line \\xff.
"""

LANGUAGE_MODEL: dict[str, tuple[type, str]] = {
    "lm_train_config": (str, "configuration of a language model, as exp/lm/config.yaml"),
    "lm_file": (str, "its parameters, as exp/lm/valid.loss.ave.pth"),
    "lm_weight": (float, "its share in the score"),
    "ngram_file": (str, "an n-gram model of KenLM"),
    "ngram_weight": (float, "its share in the score"),
}
"""Options of ESPnet's recognisers, as `DECODING`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Transcribe, and return the exit status."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    given = {
        name: getattr(options, name) for name in ("inference_asr_model", "cache_dtype", *DECODING, *LANGUAGE_MODEL)
    }
    try:
        check(given, FLAG)
        _check(options)
        device = device_of(parser, options)
        wanted = error_rates.references(options.text, options.audio) if options.text else {}
        transcriber = _load(options, {name: value for name, value in given.items() if value is not None}, device)
    except UsageError as error:
        parser.error(str(error))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        found, status = _transcribe(transcriber, options)
    except KeyboardInterrupt:
        return 130
    if wanted and found:
        print(error_rates.report(wanted, found, options.alignment), file=sys.stderr)
    return status


def _check(options: argparse.Namespace) -> None:
    """See that the options go together, as far as the model need not be known.

    Raises:
        UsageError: some do not.
    """
    if options.batch_size < 1:
        raise UsageError(f"--batch_size {options.batch_size}: {NUMBERS['batch_size'].needed}")
    if options.batch_size > 1 and options.long:
        raise UsageError(f"--batch_size {options.batch_size}: with --long recordings are decoded one at a time")
    if options.format in written.SUBTITLES and len(options.audio) > 1 and not options.output_dir:
        raise UsageError(f"--format {options.format}: of several files it needs --output_dir, for a file each")
    if options.output_dir and options.format not in written.SUBTITLES:
        raise UsageError(f"--output_dir {options.output_dir}: it is for srt and vtt; {options.format} is printed")
    if options.timing and options.format != "text":
        raise UsageError(f"--timing: --format {options.format} has no columns; json has the times anyway")
    if options.words and options.format != "json":
        raise UsageError(
            f"--words: --format {options.format} has no place for them; json has, and ctm has words anyway"
        )
    if options.alignment and not options.text:
        raise UsageError("--alignment needs --text, the references")
    if bool(options.lm_file) != bool(options.lm_train_config):
        raise UsageError("a language model needs both --lm_train_config and --lm_file")
    for name in ("lm_train_config", "lm_file", "ngram_file"):
        if (path := getattr(options, name)) and not Path(path).is_file():
            raise UsageError(f"--{name} {path}: there is no such file")
    stems = [Path(path).stem for path in options.audio]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice and options.format == "ctm":
        raise UsageError(f"--format ctm: two of the files would be {twice}")
    if options.output_dir and twice:
        raise UsageError(f"--output_dir {options.output_dir}: two of the files would be {twice}.{options.format}")


def _load(options: argparse.Namespace, given: dict[str, Any], device: str) -> Transcriber:
    """The model.

    Raises:
        UsageError: it can't bear the options.
        UserError: as `load`.
    """
    task = locate(options.model, options.inference_asr_model or MODEL_FILE).task
    if options.batch_size > 1 and task not in (tasks.ASR, tasks.S2T):
        raise UsageError(f"--batch_size {options.batch_size}: ESPnet has none for {task.title}")
    if options.predict_time and task is not tasks.S2T:
        raise UsageError(f"--predict_time: only a model for {tasks.S2T.title} does; this one is for {task.title}")
    with_words = options.words or options.format == "ctm"
    if with_words and task is not tasks.ASR:
        raise UsageError(f"the times of words are those of models for {tasks.ASR.title}; this one is for {task.title}")
    given |= symbols(options, task)
    given |= {"predict_time": True} if options.predict_time else {}
    given |= {"batch_size": options.batch_size} if options.batch_size > 1 else {}
    task, recogniser = load(options.model, audio=True, device=device, **given)
    from espnet_mla.trained.model import sampling_rate

    config = task.config_of(recogniser)
    check_for(task, config, given, FLAG)
    if with_words:
        words.check(recogniser.asr_model)
    return Transcriber(task, recogniser, sampling_rate(config), with_words)


class Outcome(NamedTuple):
    """What became of a file.

    Args:
        file: its name.
        result: its transcript, or why there is none.
        audio_seconds: of audio; None where it could not be read.
        seconds: that it took; in a batch a share of them.
    """

    file: str
    result: Transcript | Exception
    audio_seconds: float | None
    seconds: float


def _transcribe(transcriber: Transcriber, options: argparse.Namespace) -> tuple[dict[str, str], int]:
    """Transcribe and write every file; the text of each that could be done, and the exit status."""
    from tqdm import tqdm

    found: dict[str, str] = {}
    # disable=None: a bar only where somebody looks at it.
    with tqdm(total=len(options.audio), unit="file", disable=None) as bar:
        for files in batched(options.audio, options.batch_size):
            for outcome in _outcomes(transcriber, files, transcriber.long if options.long else transcriber.short):
                bar.update()
                with tqdm.external_write_mode():
                    if isinstance(outcome.result, Exception):
                        print(f"error: {_trouble(outcome)}", file=sys.stderr)
                    else:
                        found[outcome.file] = outcome.result.text
                        _write(outcome, outcome.result, options)
    return found, int(len(found) < len(options.audio))


def _outcomes(
    transcriber: Transcriber, files: Sequence[str], decode: "Callable[[np.ndarray], Transcript]"
) -> Iterator[Outcome]:
    """Of each file, in their order; those that can be read are decoded as a batch where they are several."""
    read_in = {}
    for file in files:
        began = time.perf_counter()
        try:
            read_in[file] = (read(file, transcriber.rate), time.perf_counter() - began)
        except UserError as error:
            yield Outcome(file, error, None, time.perf_counter() - began)
    results: dict[str, Transcript] = {}
    began = time.perf_counter()
    if len(read_in) > 1:
        try:
            transcripts = transcriber.batch([samples for samples, _ in read_in.values()])
            results = dict(zip(read_in, transcripts, strict=True))
        except Exception:  # one that is too short spoils it: they are decoded one by one
            results = {}
    share = (time.perf_counter() - began) / max(1, len(results))
    for file, (samples, reading) in read_in.items():
        began = time.perf_counter()
        try:
            result: Transcript | Exception = results.get(file) or decode(samples)
        except Exception as error:  # a model raises whatever it raises, and the other files can be done
            result = error
        taken = share if file in results else time.perf_counter() - began
        yield Outcome(file, result, len(samples) / transcriber.rate, reading + taken)


def _write(outcome: Outcome, transcript: Transcript, options: argparse.Namespace) -> None:
    """Print it, or write it to a file of its own."""
    if any(segment.text and segment.words == [] for segment in transcript.segments):
        print(f"warning: {escaped(outcome.file)}: {written.NO_WORDS}", file=sys.stderr)
    times = (outcome.audio_seconds or 0.0, outcome.seconds)
    if options.format == "text":
        print(written.line(outcome.file, transcript, times if options.timing else None), flush=True)
    elif options.format == "json":
        print(written.json_line(outcome.file, transcript, times), flush=True)
    elif options.format == "ctm":
        print(written.ctm(outcome.file, transcript.segments), end="", flush=True)
    elif options.output_dir:
        place = options.output_dir / f"{Path(outcome.file).stem}.{options.format}"
        write_text(place, written.subtitles(transcript, options.format))
    else:
        print(written.subtitles(transcript, options.format), end="", flush=True)


def _trouble(outcome: Outcome) -> str:
    """Why a file was not transcribed."""
    error, seconds = outcome.result, outcome.audio_seconds
    assert isinstance(error, Exception)
    if isinstance(error, UserError):
        return str(error)
    from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError

    why = one_line(error)
    # Of less than half a window it is torch that complains, about its padding.
    if seconds is not None and (isinstance(error, TooShortUttError) or "Padding size should be less" in why):
        why = f"{seconds:.3f} s are too short for the model"
    return f"{escaped(outcome.file)}: {why}"


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
    parser.add_argument(
        "--format", choices=written.FORMATS, default="text",
        help="text, a line of JSON for each file with segments and their times, a line for each word with its time and "
        "confidence (NIST's CTM), or subtitles (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--words", action="store_true", help="with --format json: the words of each segment too")
    parser.add_argument("--output_dir", metavar="FOLDER", type=Path, help="for subtitles, a file for each audio file")
    parser.add_argument(
        "--long",
        action="store_true",
        help="long recordings: OWSM's by ESPnet's decode_long, others' cut at silences into at most 30 s",
    )
    parser.add_argument(
        "--batch_size", metavar="N", type=int, default=1, help="files decoded in one beam search (default: %(default)s)"
    )
    parser.add_argument(
        "--text", metavar="TABLE", type=Path,
        help="references, as data/test/text: WER and CER are printed on the standard error",
    )  # fmt: skip
    parser.add_argument("--alignment", action="store_true", help="with --text: what was mistaken, word by word")
    add_prompt(parser)
    add_cache_dtype(parser)
    parser.add_argument("--predict_time", action="store_true", help="of OWSM: segments with their times")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")
    parser.add_argument(
        *(f"--inference_{key}_model" for key in tasks.KEYS),
        metavar="FILE",
        help="of an experiment's folder: the model's file (valid.acc.ave.pth)",
    )
    for name, (kind, meaning) in (DECODING | LANGUAGE_MODEL).items():
        parser.add_argument(f"--{name}", type=kind, help=meaning)
    return parser

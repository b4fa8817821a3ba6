"""espnet-mla profile: measure what a model costs and write figures.json beside it."""

import argparse
import inspect
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_mla.common.errors import UsageError
from espnet_mla.common.exit_status import exit_status
from espnet_mla.measure.names import check_seconds
from espnet_mla.trained import options as model_options
from espnet_mla.trained.decoding import DECODING, FLAG, check, check_for, naming, read_options
from espnet_mla.trained.locate import with_files
from espnet_mla.trained.names import FIGURES_FILE

if TYPE_CHECKING:
    from espnet_mla.trained.model import Source

DESCRIPTION = """\
Measure what a trained model costs, print it, and write it into figures.json beside the model: parameters; the size of
its caches, read off cache objects filled with speech; peak memory; encoder and decoding time; and, from the folder of
the experiment, training time, WER and CER. A plain ESPnet model is measured the same way.
"""
SECONDS = (10.0, 30.0, 60.0, 300.0)
DTYPES = ("float32", "float16", "bfloat16", "float64")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)

    def work() -> None:
        _check(options)
        options.device = model_options.check_device(options.device)
        _profile(options)

    return exit_status(parser, work, "stopped; figures.json stays as it was")


def _check(options: argparse.Namespace) -> None:
    model_options.check(options)
    check_seconds(options.seconds or ())
    if options.utterances < 1:
        raise UsageError(f"--utterances {options.utterances}: at least 1 is needed")
    check({name: getattr(options, name) for name in DECODING}, FLAG)


def _profile(options: argparse.Namespace) -> None:
    # Imported here because --help and a wrong option are answered at once.
    from espnet_mla import register
    from espnet_mla.common.log import log
    from espnet_mla.common.processes import end_on_signals
    from espnet_mla.measure import measuring
    from espnet_mla.measure.profile_table import table
    from espnet_mla.trained import figures
    from espnet_mla.trained.model import find

    end_on_signals()
    began = time.monotonic()
    register()
    source = find(options.asr_train_config, options.asr_model_file, options.model_tag)
    folder = _folder(options, source)
    measured = measuring.measure(
        source,
        name=Path(os.path.abspath(folder)).name,
        wav_scp=Path(options.wav_scp) if options.wav_scp else None,
        utterances=options.utterances,
        lengths=_lengths(options.seconds, source),
        prompt=model_options.prompt_of(options, source.task),
        device=options.device,
        dtype=options.dtype,
        cache_dtype=options.cache_dtype,
        decoding=_decoding(options, source),
    )
    figures.write(folder, measured)
    print(table(measured))
    log(f"{folder / FIGURES_FILE} is complete ({time.monotonic() - began:.0f} seconds)")


def _lengths(seconds: Sequence[float] | None, source: "Source") -> list[float]:
    """Of the speech to encode.

    Raises:
        UsageError: the model can't hear so long a one.
    """
    window = source.window
    if window is None:
        return list(dict.fromkeys(seconds or SECONDS))
    if seconds and max(seconds) > window:
        raise UsageError(f"--seconds {max(seconds):g}: this model hears {window:g} s, to which all speech is padded")
    return list(dict.fromkeys(seconds or [window]))


def _folder(options: argparse.Namespace, source: "Source") -> Path:
    """The folder for figures.json: the model's; for one from an archive or the hub, the one that asr.sh would use."""
    if options.output_dir:
        return Path(options.output_dir)
    if not source.packed:
        return source.model_file.parent
    tag = Path(options.model_tag)
    if not tag.exists():  # on the hub
        return Path("exp") / tag
    name = Path(os.path.abspath(tag)).name
    return Path("exp") / (name.removesuffix(".zip"))


def _decoding(options: argparse.Namespace, source: "Source") -> dict:
    """Options for ESPnet's recogniser: those of --inference_config, overridden by those of the command line.

    Raises:
        UserError: one can't have its value, or the model can't bear it.
    """
    own = ("device", "dtype")  # which this command has itself
    taken = inspect.signature(source.task.recogniser_class()).parameters.keys() - own
    configured = read_options(Path(options.inference_config), source.task) if options.inference_config else {}
    given = {name: value for name in DECODING if (value := getattr(options, name)) is not None}
    decoding = {name: value for name, value in configured.items() if name in taken} | given
    decoding |= model_options.symbols(options, source.task)
    named = naming(configured, options.inference_config, given)
    check(decoding, named)
    if options.wav_scp:  # else nothing is decoded
        check_for(source.task, with_files(source.config, source.root), decoding, named)
    return decoding


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="espnet-mla profile", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model_options.add(parser).add_argument(
        "--output_dir",
        metavar="FOLDER",
        help="for figures.json (default: the model's; for an archive or the hub exp/NAME)",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--wav_scp",
        metavar="FILE",
        help="speech, such as dump/raw/test_clean/wav.scp; without it, noise is encoded and no decoding is timed",
    )
    data.add_argument(
        "--utterances", metavar="N", type=int, default=10,
        help="how many of its utterances are decoded, evenly spaced over the file (default: %(default)s)",
    )  # fmt: skip
    data.add_argument(
        "--seconds", metavar="S", type=float, nargs="+",
        help="lengths of speech to encode, made by concatenating utterances (default: 10 30 60 300; of a model that "
        "pads its speech, as OWSM, what it pads to)",
    )  # fmt: skip
    computing = parser.add_argument_group("computing and decoding")
    computing.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    computing.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: %(default)s)")
    model_options.add_cache_dtype(computing)
    model_options.add_prompt(computing)
    computing.add_argument("--inference_config", metavar="FILE", help="decoding options, such as conf/decode_asr.yaml")
    for name, (kind, meaning) in DECODING.items():
        computing.add_argument(f"--{name}", type=kind, help=meaning)
    return parser

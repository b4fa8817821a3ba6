"""espnet-mla distill: a converted model learns from the one that it was converted from, without a transcript."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from espnet_mla.common.errors import UsageError, UserError
from espnet_mla.common.exit_status import exit_status
from espnet_mla.trained import options as model_options
from espnet_mla.trained.names import CONVERSION_FILE

DESCRIPTION = """\
Train a model that espnet-mla convert has left to be like its original, on speech alone: block by block, in what its
encoder puts out, and in its CTC posteriors. FOLDER/model.pth is the trained model then, and FOLDER/distill has the
log, and what a run that was broken off goes on from.
"""

NAMES = ("epochs", "lr", "batch_bins", "patience", "text", "labels", "use_amp", "seed")
"""Options of the training."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Distill, and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)

    def work() -> None:
        options.device = model_options.check_device(options.device)
        check(options)
        if not (options.folder / CONVERSION_FILE).is_file():
            raise UserError(
                f"{options.folder} has no {CONVERSION_FILE}: give the folder that espnet-mla convert has left"
            )
        run(options.folder, options.speech, options)

    return exit_status(parser, work, "stopped; the same command goes on from there")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="espnet-mla distill", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="of a converted model, as exp/A_mla64")
    parser.add_argument("--speech", metavar="WAV_SCP", type=Path, required=True, help="as data/train_clean_100/wav.scp")
    add_options(parser.add_argument_group("training"))
    model_options.add_prompt(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    return parser


def add_options(group: argparse._ArgumentGroup) -> None:
    """Those of the training."""
    group.add_argument("--epochs", type=int, default=10, metavar="N", help="over the speech (default: %(default)s)")
    group.add_argument("--lr", type=float, default=1e-3, help="highest learning rate (default: %(default)s)")
    group.add_argument(
        "--batch_bins", type=int, default=400_000, metavar="N", help="samples of a batch (default: %(default)s)"
    )
    group.add_argument(
        "--patience", type=int, metavar="N", help="end after so many epochs without improvement (default: none)"
    )
    group.add_argument("--text", metavar="TABLE", type=Path, help="transcripts, over which the decoder learns")
    group.add_argument(
        "--labels", type=float, default=0.0, metavar="WEIGHT",
        help="weight of ESPnet's own loss beside the distillation's, which needs --text (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--use_amp", action="store_true", help="mixed precision, on a GPU")
    group.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")


def check(options: argparse.Namespace) -> None:
    """See that the options of the training can be.

    Raises:
        UsageError: one can't.
    """
    for name, least in (("epochs", 1), ("batch_bins", 1), ("patience", 1)):
        if (value := getattr(options, name)) is not None and value < least:
            raise UsageError(f"--{name} {value}: at least {least} is needed")
    if not 0 < options.lr < 1:
        raise UsageError(f"--lr {options.lr:g}: more than 0 and less than 1 is needed")
    if options.labels < 0:
        raise UsageError(f"--labels {options.labels:g}: 0 or more is needed")
    if options.labels and not options.text:
        raise UsageError(f"--labels {options.labels:g} needs --text, the transcripts of the speech")
    if options.use_amp and options.device == "cpu":
        raise UsageError("--use_amp: mixed precision is for GPUs: --device cuda")


def check_needed(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """See that `espnet-mla convert` is given none of them where it is to distill nothing.

    Raises:
        UsageError: one is given, without --distill.
    """
    given = [name for name in NAMES if getattr(options, name) != parser.get_default(name)]
    if given and not options.distill:
        raise UsageError(f"--{given[0]} {getattr(options, given[0])}: only a distillation has it, give --distill")


def run(folder: Path, speech: Path, options: argparse.Namespace) -> None:
    """Distill with checked options."""
    from espnet_mla.common.log import log
    from espnet_mla.common.processes import end_on_signals
    from espnet_mla.convert.distillation import DistillationSpec, distill
    from espnet_mla.convert.experiment import MODEL
    from espnet_mla.models.encoding import Prompt
    from espnet_mla.trained.model import find

    end_on_signals()
    began = time.monotonic()
    given = {name: getattr(options, name) for name in (*NAMES, "device")}
    task = find(str(folder / "config.yaml"), str(folder / MODEL), None).task
    # Of the conversion, where no other one is given.
    record = json.loads((folder / CONVERSION_FILE).read_text(encoding="utf-8"))
    prompt = Prompt(**record.get("prompt", {}) | model_options.symbols(options, task))
    distill(folder, DistillationSpec(speech, **given, prompt=prompt))
    log(f"{folder / 'model.pth'} is distilled ({time.monotonic() - began:.0f} seconds)")

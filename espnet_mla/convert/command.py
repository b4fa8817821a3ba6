"""espnet-mla convert: a trained MHA model becomes an MLA, MTLA, GQA or linear one."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from espnet_mla.common.errors import UsageError
from espnet_mla.common.exit_status import exit_status
from espnet_mla.convert import distill_command
from espnet_mla.convert.spec import METHODS, MODULES, ConversionSpec
from espnet_mla.trained import options as model_options
from espnet_mla.trained.names import CONVERSION_FILE

DESCRIPTION = """\
Turn a trained ESPnet model with multi-head attention into one with a smaller KV cache, without training: one latent
for the keys and values of all heads (--attention mla), or fewer heads of keys and values (--attention gqa); or into one
with linear attention (--attention linear), which loses most before it has learnt. A model with latents becomes one with
a latent for several frames (--attention mtla). With --distill the converted model
learns from the original what it has lost. What is left is the folder of an experiment, ready to be decoded with (its
model is model.pth), to be scored by stage 12 and 13 (--asr_exp FOLDER), and to be trained on by stage 11 (--asr_config
FOLDER/finetune.yaml --pretrained_model FOLDER/model.pth).
"""

METHOD_HELP = """\
mla: attention (least error of what the attention puts out; the default with --calibration), covariance (of keys and
values), joint (of the weights; the default without), split (of the weights of keys and of values apart). gqa: aligned
(heads are turned until they agree, then pooled; the default with --calibration), mean (pooled as they are; the default
without). mtla, of an mla model: averaged (the latents of neighbouring frames). linear: copied (the weights as they
are, with rotary positions in place of relative ones)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)

    def work() -> None:
        spec = _spec(options)
        options.device = model_options.check_device(options.device)
        if options.device == "mps":
            raise UsageError(
                "--device mps: a conversion needs float64, which it lacks; valid are cpu, cuda, cuda:1, ..."
            )
        distill_command.check(options)
        distill_command.check_needed(options, parser)
        _convert(options, spec)

    going_on = " or a whole one, which espnet-mla distill goes on with" if options.distill else ""
    return exit_status(parser, work, f"stopped; no model was written{going_on}")


def _convert(options: argparse.Namespace, spec: ConversionSpec) -> None:
    # Imported here because --help and a wrong option are answered at once.
    from espnet_mla import register
    from espnet_mla.common.log import log
    from espnet_mla.common.processes import end_on_signals
    from espnet_mla.convert import experiment
    from espnet_mla.convert.distillation import check_model
    from espnet_mla.convert.model import convert
    from espnet_mla.trained import figures
    from espnet_mla.trained.model import find
    from espnet_mla.trained.tasks import S2T, S2T_CTC

    end_on_signals()
    began = time.monotonic()
    place = Path(options.output_dir)
    experiment.check_free(place, options.overwrite)
    register()
    source = find(options.asr_train_config, options.asr_model_file, options.model_tag)
    if options.distill:
        check_model(source, options.text, options.labels)
    prompt = model_options.prompt_of(options, source.task)
    result = convert(source, spec, options.device, prompt)
    with experiment.leaving(place, options.overwrite) as folder:
        experiment.write(folder, place, source, result.config, result.model.state_dict())
        files = {"config": source.config_file, "model": source.model_file}
        record = {"converted_from": experiment.origin(files, place, source), **result.record}
        if source.task in (S2T, S2T_CTC):
            record["prompt"] = vars(prompt)
        (folder / CONVERSION_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        figures.write(folder, figures.model_figures(result.model, source.fs, prompt=prompt))
    print(result.table())
    if options.distill:
        distill_command.run(place, options.distill, options)
    log(f"{place} is complete: {place / experiment.MODEL} ({time.monotonic() - began:.0f} seconds)")


def _spec(options: argparse.Namespace) -> ConversionSpec:
    """The options, checked as far as the model need not be known.

    Raises:
        UsageError: an option that does not go with the others.
    """
    model_options.check(options)
    methods = METHODS[options.attention]
    possible = [name for name, looks in methods.items() if options.calibration or not looks]
    method = options.method or possible[-1]
    if method not in methods:
        raise UsageError(f"--method {method}: --attention {options.attention} has {', '.join(methods)}")
    if method not in possible:
        raise UsageError(f"--method {method} needs --calibration, the wav.scp of some speech")
    if options.calibration_utterances < 1:
        raise UsageError(f"--calibration_utterances {options.calibration_utterances}: at least 1 is needed")
    modules = options.modules.split(",")
    if unknown := [name for name in modules if name not in MODULES]:
        raise UsageError(f"--modules {options.modules}: {unknown[0]!r} is unknown; valid are {', '.join(MODULES)}")
    of = dict.fromkeys(("kv_lora_rank", "kv_budget", "qk_rope_head_dim"), "mla")
    of |= {"num_kv_heads": "gqa", "down_rate": "mtla"}
    for name, attention in of.items():
        if getattr(options, name) is not None and options.attention != attention:
            raise UsageError(f"--{name}: --attention {options.attention} has no such option")
    sizes = None
    if options.attention == "gqa":
        sizes = _numbers("num_kv_heads", "1" if options.num_kv_heads is None else options.num_kv_heads)
    elif options.attention == "mtla":
        sizes = _numbers("down_rate", "2" if options.down_rate is None else options.down_rate, least=2)
    elif options.attention == "mla":
        if (options.kv_lora_rank is None) == (options.kv_budget is None):
            raise UsageError("--attention mla needs either --kv_lora_rank or --kv_budget")
        if options.kv_lora_rank is not None:
            sizes = _numbers("kv_lora_rank", options.kv_lora_rank)
        elif not 0 < options.kv_budget <= 0.5:
            raise UsageError(
                f"--kv_budget {options.kv_budget}: more than 0 and at most 0.5, which is what an exact conversion keeps"
            )
    return ConversionSpec(
        attention=options.attention,
        method=method,
        modules=tuple(dict.fromkeys(modules)),
        sizes=sizes,
        kv_budget=options.kv_budget,
        qk_rope_head_dim=options.qk_rope_head_dim,
        calibration=Path(options.calibration) if options.calibration else None,
        utterances=options.calibration_utterances,
    )


def _numbers(name: str, text: str, least: int = 1) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < least:
        raise UsageError(
            f"--{name} {text}: a whole number of at least {least}, or a list of them, one for each layer: 64,48,48"
        )
    return numbers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="espnet-mla convert", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model_options.add(parser)
    what = parser.add_argument_group("what it becomes")
    what.add_argument("--attention", choices=METHODS, default="mla", help="(default: %(default)s)")
    what.add_argument(
        "--kv_lora_rank", metavar="RANK", help="mla: size of the latent; a list has one for each layer: 64,48,48"
    )
    what.add_argument(
        "--kv_budget", metavar="SHARE", type=float,
        help="mla, in place of a rank: the share of the cache to keep, given to the layers as their spectra deserve",
    )  # fmt: skip
    what.add_argument(
        "--qk_rope_head_dim", metavar="SIZE", type=int,
        help="mla, of a model with rope: size of the rotary key that all heads share (default: half of a head's)",
    )  # fmt: skip
    what.add_argument("--num_kv_heads", metavar="HEADS", help="gqa: heads of keys and values (default: 1)")
    what.add_argument("--down_rate", metavar="FRAMES", help="mtla: frames that share a latent (default: 2)")
    what.add_argument(
        "--modules",
        metavar="PARTS",
        default="encoder",
        help=f"separated by commas, of {', '.join(MODULES)} (default: %(default)s)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--method", metavar="METHOD", help=METHOD_HELP)
    how.add_argument(
        "--calibration",
        metavar="WAV_SCP",
        help="speech to look at, as data/train_clean_100/wav.scp; for a decoder its text is read too",
    )
    how.add_argument(
        "--calibration_utterances", metavar="N", type=int, default=200,
        help="how many of them, at even distances over the file (default: %(default)s)",
    )  # fmt: skip
    model_options.add_prompt(how)
    how.add_argument(
        "--device",
        default="cpu",
        help="that runs the calibration speech: cpu, cuda, cuda:1, ... (default: %(default)s)",
    )
    distilled = parser.add_argument_group("distillation, see espnet-mla distill")
    distilled.add_argument(
        "--distill", metavar="WAV_SCP", type=Path, help="speech on which the converted model learns from the original"
    )
    distill_command.add_options(distilled)
    to = parser.add_argument_group("where to")
    to.add_argument("--output_dir", metavar="FOLDER", required=True, help="as exp/A_mla64; it must not exist")
    to.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what an earlier conversion has left there, with all that was added to it",
    )
    return parser

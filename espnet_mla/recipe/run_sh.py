"""`python -m espnet_mla.recipe.run_sh --option value ...`: run.sh, which calls ./asr.sh with the recipe's defaults.

Options that are given win. The stages of a corpus with a folder of its own (mini) run in that folder, so that nothing
is mixed up with LibriSpeech: mini/exp/A is exp/A to them, and either may be given.
"""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_mla.common.errors import UsageError, UserError
from espnet_mla.common.machine import CORES, visible_gpus
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.recipe import checkout
from espnet_mla.recipe.corpora import CORPORA, DEFAULT, Corpus
from espnet_mla.recipe.layout import experiment_tag
from espnet_mla.recipe.options import given_options, inference_jobs

LINKS = ("asr.sh", "path.sh", "cmd.sh", "db.sh", "local", "conf")
"""What a corpus's folder shares with the recipe's."""

READ = ("asr_config", "inference_config", "nlsyms_txt", "bpe_nlsyms")
READ_MANY = ("pretrained_model", "bpe_train_text", "lm_train_text")  # separated by spaces
MADE = ("asr_exp", "asr_stats_dir", "expdir", "dumpdir")
"""Options whose values are paths: of what a run reads, and of what it makes."""
MADE_IN = ("data", "dump", "exp", "downloads")
"""The folders that the stages work in: their names mean those of the corpus."""

OUTPUT_SIZE = 256
"""Width of a model whose configuration does not say it: the default of ESPnet's encoders."""
ATTENTION_CONFS = (
    ("encoder_conf", "attention_conf"),
    ("decoder_conf", "self_attention_conf"),
    ("decoder_conf", "src_attention_conf"),
)
SIZES = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
"""Options of attentions that are scaled with the width of the model, so that they keep the same share of it."""

BATCH_ON_GPU = 8
"""Utterances that a GPU decodes at a time."""

DEFAULTS = {
    "lang": "en",
    "feats_type": "raw",
    "audio_format": "flac",
    "max_wav_duration": "30",
    "token_type": "bpe",
    "use_lm": "false",
    "asr_config": "conf/branchformer_mla.yaml",
    "inference_config": "conf/decode_asr.yaml",
    "train_set": "train_clean_100",
    "valid_set": "dev",
    "bpe_train_text": "data/train_clean_100/text",
    "lm_train_text": "data/train_clean_100/text",
}

HELP = f"""\
usage: run.sh [--corpus NAME] [--option value ...]
       run.sh --unlink             remove the links that runs with ESPNET_ROOT have made

  --corpus                   {" or ".join(CORPORA)} [{DEFAULT}]
  --asr_config               configuration of model and training [{DEFAULTS["asr_config"]}]

All other options are those of asr.sh. Those of sets, texts, tokens and hardware have other defaults here.
"""


def asr_sh_options(arguments: Sequence[str]) -> tuple[Corpus, dict[str, str]]:
    """The options with which run.sh calls asr.sh, but for those of the hardware.

    For a corpus that scales configurations down, the configuration is read, relative to the current folder.

    Returns:
        The corpus, and option -> value, paths relative to the corpus's folder.

    Raises:
        UsageError: an option lacks its value, or there is no such corpus.
        UserError: the configuration is not YAML.
    """
    given = given_options(arguments)
    name = given.pop("corpus", DEFAULT)
    if name not in CORPORA:
        raise UsageError(f"--corpus {name}: valid are {' and '.join(CORPORA)}")
    corpus = CORPORA[name]
    defaults = {"local_data_opts": f"--corpus {name}", "nbpe": str(corpus.nbpe), "test_sets": corpus.test_sets}
    defaults |= {"speed_perturb_factors": corpus.speed_perturb_factors, "inference_args": corpus.inference_args}
    options = DEFAULTS | {name: value for name, value in defaults.items() if value} | given
    config = _found(options["asr_config"], corpus.folder)
    if corpus.folder != Path():
        for name, value in options.items():
            if name in (*READ, *MADE):
                options[name] = _from(corpus.folder, value, name)
            elif name in READ_MANY:
                options[name] = " ".join(_from(corpus.folder, word, name) for word in value.split())
    if corpus.scaling:
        # The name leaves the scaling out: every experiment of the corpus has it.
        options["asr_tag"] = options.get("asr_tag") or experiment_tag(
            {"asr_args": "", "speed_perturb_factors": "", **options}
        )
        options["asr_args"] = f"{_scaling(corpus, config)} {options.get('asr_args', '')}".strip()
    return corpus, options


def as_arguments(options: Mapping[str, str]) -> list[str]:
    """`{"nbpe": "60"}` -> `["--nbpe", "60"]`."""
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def _found(path: str, folder: Path) -> Path:
    """The file or folder that a path names, from here: what there is in `folder` comes first, as for the stages."""
    return inside if (inside := folder / path).exists() else Path(path)


def _from(folder: Path, value: str, name: str) -> str:
    """A path from here as the stages name it, which run in `folder`; what they find there stays as it is."""
    path, colon, parts = value.partition(":")  # --pretrained_model may have parts of a model behind a colon
    if not path or Path(path).is_absolute() or (folder / path).exists():
        return value
    place = Path(os.path.normpath(path))
    first = place.parts[0] if place.parts else ""
    if first not in LINKS and place.resolve().is_relative_to(folder.resolve()):
        place = place.resolve().relative_to(folder.resolve())
    elif place.is_relative_to(folder):  # by a link out of it, as mini/conf
        place = place.relative_to(folder)
    elif name not in MADE and first not in (*LINKS, *MADE_IN) and place.exists():
        place = Path(os.path.relpath(place, folder))
    else:
        return value
    return f"{place}{colon}{parts}"


def _scaling(corpus: Corpus, config: Path) -> str:
    """The options that make a configuration small; none for one below the corpus's folder, of a model trained there."""
    conf: dict[str, Any] = {}
    if config.is_file():  # else asr.sh says what is missing
        if config.resolve().is_relative_to(corpus.folder.resolve()):
            return ""
        conf = read_mapping(config)
    words = [corpus.scaling, f"--encoder_conf output_size={corpus.width}"]
    words.append(corpus.encoder_scaling.get(str(conf.get("encoder")), ""))
    width = _inner(conf, "encoder_conf").get("output_size", OUTPUT_SIZE)
    for part, options in ATTENTION_CONFS:
        for name, value in _inner(conf, part, options).items():
            # Only what is a size: training names what can't be one, which scaling would make right without a word.
            if name in SIZES and _is_size(value) and _is_size(width):
                scaled = 2 * max(1, round(value * corpus.width / width / 2))  # even, as rotary positions need it
                words.append(f"--{part} {options}.{name}={scaled}")
    return " ".join(filter(None, words))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _inner(conf: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """What stands below some keys; empty where that is nothing, or no mapping, which training refuses by name."""
    for key in keys:
        conf = value if isinstance(value := conf.get(key), dict) else {}
    return conf


def _hardware_options(given: Mapping[str, str]) -> dict[str, str]:
    """One GPU trains, and all decode, where there are some; without, or if `given` says so, all cores do."""
    some = bool(visible_gpus())
    on_gpus = given.get("gpu_inference", str(some).lower())
    return {"nj": str(CORES), "ngpu": str(int(some)), "gpu_inference": on_gpus,
            "inference_nj": str(inference_jobs(on_gpus == "true")),
            "batch_size": str(BATCH_ON_GPU if on_gpus == "true" else 1)}  # fmt: skip


def _link(folder: Path) -> None:
    """Make a folder in which ./asr.sh runs as it does here."""
    folder.mkdir(exist_ok=True)
    for name in LINKS:
        link, target = folder / name, os.path.relpath(name, folder)
        if not link.is_symlink() or str(link.readlink()) != target:  # untouched where it is right: others may run there
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def _unlink() -> None:
    for folder in {corpus.folder for corpus in CORPORA.values()}:
        if folder.is_dir():
            with contextlib.chdir(folder):
                checkout.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """Become ./asr.sh; the exit status where that is not possible: 1 after an error, 2 where an option is wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words == ["--unlink"]:
            _unlink()
            return 0
        asks_for_help = not {"--help", "-h"}.isdisjoint(words)
        corpus, options = asr_sh_options([] if asks_for_help else words)
        command = ["./asr.sh", *as_arguments(_hardware_options(options) | options)]
        if asks_for_help:
            print(HELP, flush=True)
            command.append("--help")
        if corpus.folder != Path():
            _link(corpus.folder)
            os.chdir(corpus.folder)
            os.environ.pop("LIBRISPEECH", None)  # it is meant for the real corpus
        # In place of this process: who ends run.sh ends what it has started.
        os.execv(command[0], command)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What may be asked of the recipe: the options of ESPnet's asr.sh as tables, and the parser that reads them."""

import difflib
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from espnet_mla.common.errors import UsageError
from espnet_mla.common.machine import CORES, visible_gpus
from espnet_mla.common.units import hertz


@dataclass(frozen=True)
class Option:
    """One option: the type of `default` is the type of its value."""

    name: str
    default: bool | int | float | str
    help: str
    choices: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()  # values that ESPnet's own asr.sh takes and this recipe does not
    least: float = -math.inf
    most: float = math.inf


LARGEST = 2**31 - 1
"""Of whole numbers: sentencepiece's are 32 bits wide, and no count of anything here is larger."""

FACTORS = 0.1, 10.0
"""Least and most of a factor of speed perturbation: beyond, nothing of speech is left."""
JOBS_A_GPU = 2
"""Jobs of decoding that share a GPU, unless --inference_nj says how many: one searches while the other encodes."""

OPTIONS = {
    "General": (
        Option("stage", 1, "first stage to perform"),
        Option("stop_stage", 10000, "last stage to perform"),
        Option("skip_stages", "", "stages to leave out, separated by spaces"),
        Option("skip_data_prep", False, "leave out data preparation (stages 1 to 5)"),
        Option("skip_train", False, "leave out training (stages 2 and 4 to 11)"),
        Option("skip_eval", False, "leave out decoding and scoring (stages 12 and 13)"),
        Option("skip_packing", True, "leave out packing (stage 14)"),
        Option("skip_upload_hf", True, "leave out the upload to the Hugging Face hub (stage 15)"),
        Option("eval_valid_set", False, "decode and score the validation set too"),
        Option("ngpu", 1, "GPUs that training uses; 0 trains on the CPU", least=0),
        Option("nj", CORES, "jobs side by side; by default one for each core", least=1),
        Option(
            "inference_nj",
            CORES,
            "jobs side by side in decoding; by default one for each core, or two for each GPU",
            least=1,
        ),
        Option("gpu_inference", False, "decode on the GPU"),
        Option("dumpdir", "dump", "folder for formatted audio"),
        Option("expdir", "exp", "folder for experiments"),
        Option("python", "", "what runs ESPnet's commands; empty: this Python with -m espnet_mla.run"),
    ),
    "Data preparation": (
        Option("local_data_opts", "", "options for local/data.sh, which stage 1 runs"),
        Option("speed_perturb_factors", "", 'factors of speed perturbation, for example "0.9 1.0 1.1"'),
        Option("feats_type", "raw", "feature type", ("raw",), ("raw_copy", "fbank_pitch", "fbank", "extracted")),
        Option("audio_format", "flac", "format of the audio in dumpdir", ("flac", "wav", "flac.ark", "wav.ark")),
        Option("fs", "16k", "sampling rate in Hz"),
        Option("min_wav_duration", 0.1, "shortest training utterance in seconds", least=0),
        Option("max_wav_duration", 20.0, "longest training utterance in seconds", least=0),
    ),
    "Tokens": (
        Option(
            "token_type",
            "bpe",
            "what a token is",
            ("bpe", "char", "word"),
            ("phn", "whisper_en", "whisper_multilingual", "hugging_face"),
        ),
        Option("nbpe", 30, "size of the BPE vocabulary", least=1),
        Option("bpemode", "unigram", "kind of sentencepiece model", ("unigram", "bpe", "char", "word")),
        Option("oov", "<unk>", "symbol of what is out of vocabulary"),
        Option("blank", "<blank>", "symbol of the CTC blank"),
        Option("sos_eos", "<sos/eos>", "symbol of start and end"),
        Option("bpe_input_sentence_size", 100000000, "most sentences that sentencepiece reads", least=101),
        Option("bpe_nlsyms", "", "symbols that BPE must not split: separated by commas, or a file with one a line"),
        Option("bpe_char_cover", 1.0, "share of the characters that BPE covers", least=0.98, most=1),
    ),
    "Model": (
        Option("asr_task", "asr", "task", ("asr",), ("asr_transducer",)),
        Option("asr_tag", "", "name of the experiment; empty: made from configuration and options"),
        Option("asr_exp", "", "folder of the experiment; empty: <expdir>/asr_<asr_tag>"),
        Option("asr_stats_dir", "", "folder of the statistics; empty: made from options"),
        Option("asr_config", "", "configuration of model and training"),
        Option("asr_args", "", 'options for asr_train that win over asr_config, for example "--max_epoch 10"'),
        Option("pretrained_model", "", "model to start from, as asr_train's --init_param takes it"),
        Option("ignore_init_mismatch", False, "leave out what of pretrained_model does not fit"),
        Option("feats_normalize", "global_mvn", "normalisation of features", ("global_mvn", "utterance_mvn")),
        Option("asr_speech_fold_length", 800, "fold_length of speech, for batch_type folded", least=1),
        Option("asr_text_fold_length", 150, "fold_length of text, for batch_type folded", least=1),
    ),
    "Decoding and scoring": (
        Option("batch_size", 1, "utterances decoded at a time", least=1),
        Option("inference_tag", "", "name of the decoding; empty: made from configuration and options"),
        Option("inference_config", "", "configuration of decoding"),
        Option("inference_args", "", 'options for asr_inference, for example "--beam_size 5"'),
        Option("inference_asr_model", "valid.acc.ave.pth", "file of the experiment to decode with"),
    ),
    "Sets and texts": (
        Option("train_set", "", "name of the training set"),
        Option("valid_set", "", "name of the validation set"),
        Option("test_sets", "", "names of the test sets, separated by spaces"),
        Option("bpe_train_text", "", "text files that BPE is trained on; empty: that of the training set"),
        Option("lm_train_text", "", "text files that char and word tokens come from; empty: that of the training set"),
        Option("nlsyms_txt", "none", "file of non-linguistic symbols"),
        Option("cleaner", "none", "text cleaner"),
        Option("hyp_cleaner", "none", "text cleaner for hypotheses"),
        Option("lang", "noinfo", "language, for the names of folders"),
    ),
    "Upload": (
        Option("hf_repo", "", "owner/name on the Hugging Face hub; the token comes from HF_TOKEN or the hub's login"),
        Option("hf_dry_run", False, "only write the folder that would be uploaded, <expdir>/hf_<hf_repo>"),
    ),
}
"""Group -> options that this recipe performs."""

ABSENT = {
    "num_nodes": "1", "use_lightning": "false",
    "post_process_local_data_opts": "", "auxiliary_data_tags": "", "multi_columns_input_wav_scp": "false",
    "multi_columns_output_wav_scp": "false", "hugging_face_model_name_or_path": "", "use_ngram": "false",
    "use_lm": "false", "use_word_lm": "false", "use_prompt": "false", "use_lang_prompt": "false",
    "use_nlp_prompt": "false", "num_splits_asr": "1", "num_ref": "1", "num_inf": "1", "sot_asr": "false",
    "use_k2": "false", "use_streaming": "false", "use_maskctc": "false", "download_model": "", "g2p": "none",
    "score_opts": "", "local_score_opts": "",
}  # fmt: skip
"""Option that only ESPnet's asr.sh has -> the value that asks for nothing, which is accepted."""

WITHOUT_EFFECT = (
    "ngram_exp", "ngram_num", "lm_tag", "lm_exp", "lm_stats_dir", "lm_config", "lm_args", "num_splits_lm",
    "word_vocab_size", "k2_ctc_decoding", "use_nbest_rescoring", "num_paths", "nll_batch_size", "k2_config",
    "inference_lm", "inference_ngram", "lm_dev_text", "lm_test_text", "lm_fold_length",
)  # fmt: skip
"""Options that mean something only beside one of ABSENT (a language model, k2): accepted, as ESPnet's asr.sh does."""

BY_NAME = {option.name: option for group in OPTIONS.values() for option in group}
NEEDS_ESPNET = "ESPnet's own asr.sh can do it: set ESPNET_ROOT to an ESPnet checkout"


def parse(arguments: Sequence[str]) -> SimpleNamespace:
    """Read `--name value` and `--name=value` into a namespace with every option of OPTIONS, checked one by one.

    Raises:
        UsageError: an option is unknown, lacks its value or has one that it cannot have.
    """
    settings = SimpleNamespace(**{name: option.default for name, option in BY_NAME.items()})
    given = given_options(arguments)
    for name, value in given.items():
        if name not in BY_NAME and name not in ABSENT and name not in WITHOUT_EFFECT:
            raise UsageError(f"unknown option --{name}{_closest(name)}")
        if name in BY_NAME:
            setattr(settings, name, _value(BY_NAME[name], value))
        elif name in ABSENT and value not in ("", ABSENT[name]):
            raise UsageError(f"--{name} {value} is not performed here. {NEEDS_ESPNET}")
    if "inference_nj" not in given:
        settings.inference_nj = inference_jobs(settings.gpu_inference)
    _check_together(settings)
    return settings


def inference_jobs(gpu_inference: bool) -> int:
    """Jobs of decoding, unless --inference_nj says how many: one for each core, or a few for each GPU."""
    return JOBS_A_GPU * max(1, len(visible_gpus())) if gpu_inference else CORES


def given_options(arguments: Sequence[str]) -> dict[str, str]:
    """Read `--name value` and `--name=value`, whatever the names; the last value of a name wins.

    Raises:
        UsageError: a word stands alone, or an option lacks its value.
    """
    given: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if not word.startswith("--"):
            raise UsageError(f"{word!r} stands alone: options have the form --name value")
        flag, equals, after = word.partition("=")
        value = after if equals else next(words, None)
        if value is None:
            raise UsageError(f"{flag} lacks its value")
        given[flag[2:].replace("-", "_")] = value
    return given


def help_text() -> str:
    """Every option with its meaning and default."""
    lines = ["usage: asr.sh --train_set NAME --valid_set NAME --test_sets NAMES [--option value ...]"]
    for group, options in OPTIONS.items():
        lines += ["", f"{group}:"]
        for option in options:
            meaning = option.help + (f" ({', '.join(option.choices)})" if len(option.choices) > 1 else "")
            default = _as_written(option.default)
            lines.append(_wrapped(f"--{option.name}", f"{meaning} [{default}]" if default else meaning))
    lines += ["", f"Only with ESPNET_ROOT (the value that asks for nothing is accepted): {NEEDS_ESPNET}."]
    lines.append(_columns([f"--{name} {value}".rstrip() for name, value in ABSENT.items()]))
    lines += ["", "Accepted, without effect where there is no language model and no k2:"]
    lines.append(_columns([f"--{name}" for name in WITHOUT_EFFECT]))
    return "\n".join(lines)


def _value(option: Option, text: str) -> bool | int | float | str:
    if text in option.elsewhere:
        raise UsageError(f"--{option.name} {text} is not performed here, only {_or(option.choices)}. {NEEDS_ESPNET}")
    if option.choices and text not in option.choices:
        raise UsageError(f"--{option.name} {text}: valid are {_or(option.choices)}")
    if isinstance(option.default, bool):
        if text not in ("true", "false"):
            raise UsageError(f"--{option.name} {text}: valid are true and false")
        return text == "true"
    if isinstance(option.default, str):
        return text
    kind = type(option.default)
    try:
        value = kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise UsageError(f"--{option.name} {text} is not {expected}") from None
    if not value >= option.least:
        raise UsageError(f"--{option.name} {text}: at least {option.least} is needed")
    most = min(option.most, LARGEST) if kind is int else option.most
    if value > most or not math.isfinite(value):
        raise UsageError(
            f"--{option.name} {text}: " + (f"at most {most} is possible" if most < math.inf else "not finite")
        )
    return value


def _check_together(settings: SimpleNamespace) -> None:
    hertz(settings.fs)
    if wrong := [word for word in settings.skip_stages.split() if not word.isdecimal()]:
        raise UsageError(
            f"--skip_stages {settings.skip_stages!r}: whole numbers, separated by spaces, are needed, not {wrong[0]!r}"
        )
    _check_factors(settings.speed_perturb_factors)
    if settings.max_wav_duration <= settings.min_wav_duration:
        raise UsageError(
            f"--max_wav_duration {settings.max_wav_duration} must be above "
            f"--min_wav_duration {settings.min_wav_duration}"
        )
    required = {"train_set": not settings.skip_train, "valid_set": not settings.skip_train or settings.eval_valid_set,
                "test_sets": not settings.eval_valid_set}  # fmt: skip
    for name, is_required in required.items():
        if is_required and not getattr(settings, name).strip():
            raise UsageError(f"--{name} is required")
    if settings.train_set and settings.train_set == settings.valid_set:
        raise UsageError(f"--train_set {settings.train_set} and --valid_set {settings.valid_set} must differ")
    if settings.train_set in settings.test_sets.split():
        raise UsageError(f"--test_sets {settings.test_sets!r} must not hold --train_set {settings.train_set}")


def _check_factors(text: str) -> None:
    needed = "numbers such as 0.9 from {:g} to {:g}, each once and separated by spaces, are needed".format(*FACTORS)
    speeds: set[float] = set()
    for word in text.split():
        # As audio lists have it, for sox: neither a sign nor an exponent.
        speed = float(word) if re.fullmatch(r"\d*[.]?\d+", word, re.ASCII) else 0.0
        if not FACTORS[0] <= speed <= FACTORS[1] or speed in speeds:
            raise UsageError(f"--speed_perturb_factors {text!r}: {needed}, not {word!r}")
        speeds.add(speed)


def _closest(name: str) -> str:
    matches = difflib.get_close_matches(name, [*BY_NAME, *ABSENT, *WITHOUT_EFFECT])
    return f"; closest: {', '.join('--' + match for match in matches)}" if matches else "; --help lists all"


def _or(words: Sequence[str]) -> str:
    return " or ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]


def _as_written(default: bool | int | float | str) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def _wrapped(flag: str, meaning: str) -> str:
    return textwrap.fill(f"{flag:<26} {meaning}", 118, initial_indent="  ", subsequent_indent=" " * 29,
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip


def _columns(words: list[str]) -> str:
    # A flag and its value stay on one line.
    text = textwrap.fill(", ".join(word.replace(" ", "\0") for word in words), 118, initial_indent="  ",
                         subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return text.replace("\0", " ")

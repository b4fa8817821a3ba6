"""The options of ESPnet's decoding: their types and ranges, and what a model can bear.

ESPnet takes any value of them, and ends in empty texts or in an error of a tensor.
"""

import argparse
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_mla.common.errors import UsageError, UserError, closest
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.trained.parsers import parse
from espnet_mla.trained.tasks import ASR, MT, S2T_CTC, ST, Task


@dataclass(frozen=True)
class Number:
    """A number among the options of ESPnet's Speech2Text and asr_inference.

    Args:
        kind: int or float.
        valid: what it must be, besides finite, in words; empty where that is all.
        holds: whether a finite number is so.
        meaning: for --help, of those that are options of the commands here.
    """

    kind: type
    valid: str = ""
    holds: Callable[[float], bool] = lambda value: True
    meaning: str = ""

    @property
    def needed(self) -> str:
        """What its value must be, in words."""
        return f"a {'whole' if self.kind is int else 'finite'} number{self.valid and ' '}{self.valid} is needed"

    def allows(self, value: Any) -> bool:
        """Whether it can have this value."""
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else int | float):
            return False
        return math.isfinite(value) and self.holds(value)


def _positive(meaning: str = "") -> Number:
    return Number(int, "of at least 1", lambda value: value >= 1, meaning)


def _share(meaning: str = "") -> Number:
    return Number(float, "from 0 to 1", lambda value: 0 <= value <= 1, meaning)


def _length(meaning: str) -> Number:
    """A number of tokens: for a frame of the encoder's output, or, negative, for an utterance."""
    return Number(float, "from 0, or of at most -1 for a number of tokens,", lambda v: v >= 0 or v <= -1, meaning)


NUMBERS = {
    "beam_size": _positive("hypotheses that the beam search follows"),
    "ctc_weight": _share("share of CTC in the score, from 0 to 1"),
    "penalty": Number(float, meaning="added to the score for each token"),
    "maxlenratio": _length("most tokens for an encoder frame; 0: no limit"),
    "minlenratio": _length("fewest tokens for an encoder frame"),
    "nbest": _positive(),
    "batch_size": _positive(),
    "lm_weight": Number(float),
    "ngram_weight": Number(float),
    "ctc_window_margin": Number(int, "from 0", lambda value: value >= 0),
    "threshold_probability": _share(),
    "max_seq_len": _positive(),
    "max_mask_parallel": Number(int, "of at least 1, or -1 for no limit,", lambda value: value >= 1 or value == -1),
    "ngpu": Number(int, "from 0", lambda value: value >= 0),
    "num_workers": Number(int, "from 0", lambda value: value >= 0),
    "seed": Number(int, "from 0", lambda value: value >= 0),
}
"""Option -> its type and range."""

DECODING: dict[str, tuple[type, str]] = {
    name: (number.kind, number.meaning) for name, number in NUMBERS.items() if number.meaning
}
"""Those that the commands here have: name -> type, meaning. Without them ESPnet's defaults hold."""

ONE_AT_A_TIME = ("transducer", "mlm")
"""Decoders whose searches take no batch."""

Named = Callable[[str, Any], str]
"""How an error names an option and its value."""

FLAG: Named = "--{} {}".format


def naming(configured: Mapping[str, Any], path: str, given: Mapping[str, Any], flag: Named = FLAG) -> Named:
    """How to name options of which `given` come from the command line, and `configured` from the file at `path`."""

    def named(name: str, value: Any) -> str:
        if name in given:
            return flag(name, value)
        return f"{path}: {name}: {value}" if name in configured else f"{name}: {value} (ESPnet's default)"

    return named


def check(options: Mapping[str, Any], named: Named = "{}: {!r}".format) -> None:
    """Check the numbers among options of ESPnet's decoding; None stands for ESPnet's default.

    Args:
        options: name -> value; names that are not in `NUMBERS` are passed over.
        named: how an error names an option and its value.

    Raises:
        UsageError: one is of another type, or out of its range.
    """
    for name, value in options.items():
        number = NUMBERS.get(name)
        if number is not None and value is not None and not number.allows(value):
            raise UsageError(f"{named(name, value)}: {number.needed}")
    most, least = options.get("maxlenratio") or 0, options.get("minlenratio") or 0
    if most * least > 0 and abs(least) > abs(most):
        raise UsageError(f"{named('minlenratio', least)}: it is more than maxlenratio, {most}")


def check_for(
    task: Task, config: Mapping[str, Any], options: Mapping[str, Any], named: Named = "{}: {!r}".format
) -> None:
    """Check that a model can bear options that `check` has let pass, and ESPnet's defaults of the others.

    Args:
        task: of the model.
        config: of the model's training, its paths whole.
        options, named: as in `check`.

    Raises:
        UsageError: a beam of as many hypotheses as there are tokens, weights that leave nothing to score with, or a
            batch that the decoder's search does not take.
    """
    if config.get("decoder") in ONE_AT_A_TIME and (options.get("batch_size") or 1) > 1:
        kind = config["decoder"]
        raise UsageError(f"{named('batch_size', options['batch_size'])}: ESPnet decodes decoder: {kind} by 1 at a time")
    if config.get("decoder") == "transducer":  # its search cuts the beam itself, and knows no CTC
        return
    defaults = defaults_of(task)
    given = {name: value for name, value in options.items() if value is not None}
    beam_size, ctc_weight = (defaults | given)["beam_size"], (defaults | given)["ctc_weight"]
    tokens = _vocabulary(config.get("token_list"))
    if tokens is not None and beam_size >= tokens:
        raise UsageError(
            f"{named('beam_size', beam_size)}: the model has {tokens} tokens: at most {tokens - 1} is possible"
        )
    if task in (ST, MT, S2T_CTC):  # whose models have no such weight
        return
    trained = (config.get("model_conf") or {}).get("ctc_weight", 0.5)
    if trained == 0 and ctc_weight > 0:
        raise UsageError(f"{named('ctc_weight', ctc_weight)}: the model has no CTC (model_conf: ctc_weight: 0): give 0")
    if trained == 1 and ctc_weight == 0:
        raise UsageError(f"{named('ctc_weight', ctc_weight)}: the model has no decoder (model_conf: ctc_weight: 1)")


def check_loadable(task: Task, config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Check an option with which ESPnet could not even load a model.

    Raises:
        UsageError: a translation is to be scored by a CTC that the model has not.
    """
    weight = options.get("ctc_weight") or 0
    if task is ST and weight > 0 and not (config.get("model_conf") or {}).get("st_mtlalpha"):
        raise UsageError(
            f"ctc_weight: {weight}: the model has no CTC of the translation (model_conf: st_mtlalpha: 0): give 0"
        )


def defaults_of(task: Task) -> dict[str, Any]:
    """The defaults of ESPnet's recogniser for the options of `DECODING`."""
    parameters = inspect.signature(task.recogniser_class()).parameters
    return {name: parameters[name].default for name in DECODING}


def read_options(path: Path, task: Task = ASR) -> dict[str, Any]:
    """The options in a configuration of decoding, such as conf/decode_asr.yaml, with ESPnet's types.

    A string is converted as on the command line, which ESPnet does too.

    Raises:
        UserError: the file can't be read, or has a key that is no option of ESPnet's program for the task, or a value
            that the option can't have.
    """
    actions = {action.dest: action for action in task.parser()._actions}
    options = {}
    for name, value in read_mapping(path).items():
        if name not in actions:
            raise UserError(f"{path}: {name} is no option of ESPnet's {task.key}_inference{closest(name, actions)}")
        options[name] = _typed(path, name, value, actions[name])
    check(options, lambda name, value: f"{path}: {name}: {value}")
    return options


def _typed(path: Path, name: str, value: Any, action: argparse.Action) -> Any:
    if value is None and action.default is not None:
        raise UserError(f"{path}: {name} has no value; without the key it is {action.default}")
    if isinstance(action.default, bool) and not isinstance(value, bool | str):
        raise UserError(f"{path}: {name}: {value}: valid are true and false")
    if isinstance(value, str) and callable(action.type):
        try:
            value = action.type(value)
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            needed = NUMBERS[name].needed if name in NUMBERS else "valid are true and false"
            raise UserError(f"{path}: {name}: {value!r}: {needed}") from None
    if action.choices and value not in action.choices:
        raise UserError(f"{path}: {name}: {value}: valid are {', '.join(map(str, action.choices))}")
    return value


def parse_arguments(arguments: Sequence[str], named: str, task: Task = ASR) -> dict[str, Any]:
    """The options of ESPnet's decoding program that are given on its command line.

    Args:
        arguments: `--name value`.
        named: what they come from, for errors.
        task: whose program it is.

    Raises:
        UsageError: one is unknown, lacks its value, or has one that it can't have.
    """
    parser = task.parser()
    for action in parser._actions:
        action.required = False
        if action.dest != "config":  # which its parser looks for
            action.default = argparse.SUPPRESS
    options = parse(parser, arguments, named, f"{task.key}_inference")
    given = {name: value for name, value in vars(options).items() if name != "config"}
    check(given, lambda name, value: f"{named}: {FLAG(name, value)}")
    return given


def _vocabulary(token_list: Any) -> int | None:
    """The number of tokens of `token_list`, as it stands in a configuration: the tokens, or their file."""
    if isinstance(token_list, list | tuple):
        return len(token_list)
    if isinstance(token_list, str) and Path(token_list).is_file():
        return len(Path(token_list).read_text(encoding="utf-8").splitlines())
    return None

"""The configuration of training, as ESPnet's asr_train takes it, with every value of the type that its option has.

ESPnet takes the values of a file as YAML gives them: `1e-6` is a string to YAML 1.1, and `"false"` is true.
"""

import argparse
import copy
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espnet_mla.common.errors import UsageError, UserError, closest
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.trained.parsers import parse

LEAST = {
    "accum_grad": 1, "batch_bins": 1, "batch_size": 1, "keep_nbest_models": 1, "log_interval": 1, "max_epoch": 1,
    "num_iters_per_epoch": 1, "num_workers": 0, "patience": 0, "seed": 0, "valid_batch_bins": 1, "valid_batch_size": 1,
}  # fmt: skip
"""Option of asr_train -> its least value, which ESPnet does not check."""
MOST = {"seed": 2**32 - 1}
"""Option of asr_train -> its largest value; NumPy takes no larger seed."""
NEEDED = {
    "int": "a whole number is needed", "int_or_none": "a whole number is needed", "float": "a number is needed",
    "float_or_none": "a number is needed", "str2bool": "valid are true and false",
}  # fmt: skip
"""Type of ESPnet's -> what it must be, in words."""

_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)  # as YAML 1.2 has it


@dataclass(frozen=True)
class Configuration:
    """What asr_train is given.

    Args:
        options: every option of asr_train -> its value.
        corrections: options for the end of its command line: where it would take a value as another type.
        classes: option of a part, as encoder_conf -> the class that it configures.
    """

    options: Mapping[str, Any]
    corrections: tuple[str, ...]
    classes: Mapping[str, type]

    def complete(self, name: str, conf: Mapping[str, Any] | None) -> dict[str, Any]:
        """A part's configuration with the defaults of the class for what it does not say."""
        parameters = inspect.signature(self.classes[name]).parameters if name in self.classes else {}
        defaults = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
        return defaults | dict(conf or {})


def read(config: str, arguments: Sequence[str]) -> Configuration:
    """Read a configuration, and the options that win over it.

    Args:
        config: the file; empty for none.
        arguments: options of asr_train, `--name value`, named --asr_args in errors.

    Raises:
        UserError: the file can't be read, or a key or option is unknown, or has a value that it can't have.
    """
    parser = _parser()
    configured = read_mapping(Path(config)) if config else {}
    corrected = _set_defaults(parser, config, configured)
    values = vars(parse(parser, arguments, "--asr_args", "asr_train"))

    def named(*keys: str) -> str:
        """Where a value comes from, and its key."""
        inner: Any = configured
        given: Any = values
        for key in keys:
            inner, given = (level.get(key) if isinstance(level, dict) else None for level in (inner, given))
        return f"{config if config and (inner is given or inner == given) else '--asr_args'}: {': '.join(keys)}"

    corrections: list[str] = []
    for name in corrected:
        if values[name] == configured[name]:
            listed = values[name] if isinstance(values[name], list) else [values[name]]
            corrections += [f"--{name}", *map(str, listed)]
    for name, value in values.items():
        _check_range(named(name), value, LEAST.get(name, -math.inf), MOST.get(name, math.inf))
    classes = _classes(values)
    for name, part in classes.items():
        parameters = _parameters(part)
        for key, value in (values[name] or {}).items():
            fixed = _argument(named(name, key), key, value, parameters)
            if fixed is not value:
                values[name][key] = fixed
                written = yaml.safe_dump(fixed, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()
                # Without spaces, at which ESPnet's asr.sh parts the options of --asr_args.
                corrections += [f"--{name}", f"{key}={written.replace(' ', '')}"]
    return Configuration(values, tuple(corrections), classes)


def _parser() -> argparse.ArgumentParser:
    import espnet_mla

    espnet_mla.register()
    from espnet2.tasks.asr import ASRTask

    return ASRTask.get_parser()


def _set_defaults(parser: argparse.ArgumentParser, config: str, configured: dict[str, Any]) -> list[str]:
    """Make a file's values the parser's defaults, of the options' types, which `configured` then has too.

    Returns:
        The options that asr_train would take as other types.
    """
    actions = {action.dest: action for action in parser._actions}
    corrected = []
    for name, value in configured.items():
        if name not in actions:
            raise UserError(f"{config}: {name} is no option of ESPnet's asr_train{closest(name, actions)}")
        configured[name], changed = _option(f"{config}: {name}", value, actions[name])
        corrected += [name] if changed else []
    parser.set_defaults(**copy.deepcopy(configured))
    return corrected


def _check_range(named: str, value: Any, least: float, most: float) -> None:
    for number in value if isinstance(value, list) else [value]:
        if not isinstance(number, int | float):
            continue
        if math.isnan(number):
            raise UsageError(f"{named}: {number}: a number is needed")
        if number < least:
            raise UsageError(f"{named}: {number}: at least {least} is needed")
        if number > most:
            raise UsageError(f"{named}: {number}: at most {most} is possible")


def _classes(options: Mapping[str, Any]) -> dict[str, type]:
    from espnet2.asr.ctc import CTC
    from espnet2.tasks.abs_task import optim_classes, scheduler_classes
    from espnet2.tasks.asr import ASRTask

    chosen = {choices.name: choices.classes.get(options[choices.name]) for choices in ASRTask.class_choices_list}
    chosen |= {"optim": optim_classes.get(options["optim"]), "scheduler": scheduler_classes.get(options["scheduler"])}
    return {f"{name}_conf": part for name, part in (chosen | {"ctc": CTC}).items() if part is not None}


def _parameters(part: type) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(part, eval_str=True).parameters
    except NameError:  # an annotation that is imported for type checkers only
        return inspect.signature(part).parameters


def _option(named: str, value: Any, action: argparse.Action) -> tuple[Any, bool]:
    """A value of the file as its option's type, and whether asr_train would not make it that by itself."""
    from espnet2.utils.nested_dict_action import NestedDictAction

    if value is None:
        if action.default is None or None in (action.choices or ()):
            return None, False
        default = "" if isinstance(action, NestedDictAction) else f"; without the key it is {action.default}"
        raise UserError(f"{named} has no value{default}")
    if isinstance(action, NestedDictAction):
        if not isinstance(value, dict):
            raise UserError(f"{named}: {value!r} must hold `key: value` lines")
        return value, False
    if isinstance(value, list) and (action.nargs is not None or isinstance(action, argparse._AppendAction)):
        if action.type not in (int, float):  # names, which have types of their own
            return value, False
        pairs = [_scalar(named, item, action) for item in value]
        return [item for item, _ in pairs], any(changed for _, changed in pairs)
    converted, changed = _scalar(named, value, action)
    if action.choices and converted not in action.choices:
        raise UserError(f"{named}: {value}: valid are {', '.join(map(str, action.choices))}")
    # A string becomes what its option is by asr_train's own parser, and what is no number is as YAML gives it.
    return (converted if changed or isinstance(value, str) else value), changed


def _scalar(named: str, value: Any, action: argparse.Action) -> tuple[Any, bool]:
    if not callable(action.type):
        return value, False
    number = _as_number(value)
    spellings = [str(value)] + ([str(int(number))] if _is_whole(number) else [])
    for spelling in spellings:
        try:
            return action.type(spelling), spelling != str(value)
        except Exception:  # whatever a type of ESPnet's raises
            continue
    needed = NEEDED.get(getattr(action.type, "__name__", ""), "ESPnet's asr_train can't take it")
    raise UserError(f"{named}: {value!r}: {needed}")


def _argument(named: str, key: str, value: Any, parameters: Mapping[str, inspect.Parameter]) -> Any:
    """An argument of a constructor: itself, or what it becomes by the type of its parameter.

    Raises:
        UsageError: the constructor has no such parameter, or the value is none of its type.
    """
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    if unfit := [number for number in _leaves(value) if isinstance(number, float) and not math.isfinite(number)]:
        raise UsageError(f"{named}: {unfit[0]}: a finite number is needed")
    parameter = parameters.get(key)
    if parameter is None:
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return value
        raise UsageError(f"{named}: {value}: there is no such option{closest(key, parameters)}")
    hint, kinds = _hint(parameter)
    of_numbers, of_truth = bool({int, float} & kinds), bool in kinds
    if str in kinds or Any in kinds or not (of_numbers or of_truth):
        return value
    if value is None and (parameter.default is None or types.NoneType in kinds):
        return None
    truth = [leaf for leaf in _leaves(value) if isinstance(leaf, bool)]
    for candidate in (value, _numbers(value), _numbers(value, whole=True)):
        if truth and not of_truth:
            break
        for spelled in (candidate, tuple(candidate)) if isinstance(candidate, list) else (candidate,):
            try:
                check_type(spelled, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
            except TypeCheckError:
                continue
            return candidate
    if value is None:
        default = "" if parameter.default is parameter.empty else f"; without the key it is {parameter.default}"
        raise UsageError(f"{named} has no value{default}")
    needed = "a number" if float in kinds else "a whole number" if int in kinds else "true or false"
    raise UsageError(f"{named}: {value!r}: {needed} is needed")


def _hint(parameter: inspect.Parameter) -> tuple[Any, set[Any]]:
    """The type of a parameter, by its annotation or else its default, and all that occur in it."""
    hint, default = parameter.annotation, parameter.default
    if hint is parameter.empty or isinstance(hint, str):
        hint = bool if isinstance(default, bool) else float if isinstance(default, int | float) else Any

    def kinds(of: Any) -> set[Any]:
        return {of}.union(*map(kinds, typing.get_args(of))) if typing.get_origin(of) is not typing.Literal else {Any}

    return hint, kinds(hint)


def _leaves(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    return [value] if inner is None else [leaf for item in inner for leaf in _leaves(item)]


def _numbers(value: Any, whole: bool = False) -> Any:
    """A value whose strings that are numbers to YAML 1.2 are numbers, with `whole` whole ones where they are."""
    if isinstance(value, list):
        return [_numbers(item, whole) for item in value]
    number = _as_number(value)
    return int(number) if whole and _is_whole(number) else number


def _as_number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _is_whole(number: Any) -> bool:
    return isinstance(number, float) and number.is_integer()

"""register(): the one place that writes into ESPnet's registries."""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

from espnet2.legacy.nets.scorers import ctc
from espnet2.train.class_choices import ClassChoices

from espnet_mla.models.ctc import PrefixScorer
from espnet_mla.models.decoder import DECODERS
from espnet_mla.models.distilled import DISTILLED
from espnet_mla.models.encoders import ENCODERS
from espnet_mla.models.frontend import FRONTENDS
from espnet_mla.models.padding import make_pad_mask

# ESPnet's tasks whose encoders and decoders are these.
_TASKS = ("asr", "st", "slu", "mt", "s2t", "s2t_ctc")

# ESPnet3's copy of `asr`, where this ESPnet has it.
_ESPNET3 = "espnet3.systems.esp2_asr.task"

# ESPnet's programs that decode with CTC prefix scores. They take the scorer's class by its name.
_PROGRAMS = (
    "asr_inference", "asr_inference_streaming", "mt_inference", "s2t_inference", "slu_inference", "st_inference",
    "st_inference_streaming",
)  # fmt: skip


def register() -> None:
    """Put our encoders, decoder and frontend behind ESPnet's own names in every task that has them.

    Calling it again changes nothing.
    """
    _provide_editdistance()
    module: Any
    tasks: list[tuple[str, Any]] = [(name, importlib.import_module(f"espnet2.tasks.{name}")) for name in _TASKS]
    with contextlib.suppress(ModuleNotFoundError):
        tasks.append(("asr", importlib.import_module(_ESPNET3)))
    for name, task in tasks:
        _put(task)
        if name in DISTILLED and hasattr(task, "model_choices"):
            task.model_choices.classes["distilled"] = DISTILLED[name]
    if copied := sys.modules.get("espnet2.tasks.enh_s2t"):  # with copies of its own, if it was imported before
        _put(copied)
    for encoder in ENCODERS:  # they take the function by its name
        module = importlib.import_module(f"espnet2.asr.encoder.{encoder}_encoder")
        module.make_pad_mask = make_pad_mask
    # A scorer of ESPnet's own that is built upon ESPnet's takes its class by the name, once.
    importlib.import_module("espnet2.legacy.nets.scorers.uasr")
    ctc.CTCPrefixScorer = PrefixScorer
    for program in _PROGRAMS:  # those that were imported before
        module = sys.modules.get(f"espnet2.bin.{program}")
        if module is not None:
            module.CTCPrefixScorer = PrefixScorer


def _put(task: types.ModuleType) -> None:
    """Put ours in place of ESPnet's classes wherever the task has one to choose: for its encoder, a second one, ..."""
    for choices in [value for value in vars(task).values() if isinstance(value, ClassChoices)]:
        for ours in (FRONTENDS, ENCODERS, DECODERS):
            espnets = choices.classes
            espnets.update(
                {name: new for name, new in ours.items() if name in espnets and issubclass(new, espnets[name])}
            )


def _provide_editdistance() -> None:
    """Stand in for the package editdistance, which ESPnet measures the error rates of validation with.

    It has no wheel for Python 3.13, and ESPnet wants nothing of it but eval(a, b).
    """
    if importlib.util.find_spec("editdistance") is None:
        from rapidfuzz.distance import Levenshtein

        stand_in: Any = types.ModuleType("editdistance")
        stand_in.eval = Levenshtein.distance
        stand_in.__spec__ = importlib.machinery.ModuleSpec("editdistance", loader=None)
        sys.modules["editdistance"] = stand_in

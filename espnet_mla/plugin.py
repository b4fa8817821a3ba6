"""register(): the one place that writes into ESPnet's registries."""

import importlib
import importlib.machinery
import importlib.util
import sys
import types

from espnet_mla.models.encoders import ENCODERS

# ESPnet's tasks whose encoders are these.
_TASKS = ("asr", "st", "slu", "s2t")


def register() -> None:
    """Put our encoders behind ESPnet's own names in every task that has them. Calling it again changes nothing."""
    _provide_editdistance()
    for task in _TASKS:
        choices = importlib.import_module(f"espnet2.tasks.{task}").encoder_choices
        choices.classes.update({name: encoder for name, encoder in ENCODERS.items() if name in choices.classes})


def _provide_editdistance() -> None:
    """Stand in for the package editdistance, which ESPnet measures the error rates of validation with.

    It has no wheel for Python 3.13, and ESPnet wants nothing of it but eval(a, b).
    """
    if importlib.util.find_spec("editdistance") is None:
        from rapidfuzz.distance import Levenshtein

        module = types.ModuleType("editdistance")
        module.eval = Levenshtein.distance
        module.__spec__ = importlib.machinery.ModuleSpec("editdistance", loader=None)
        sys.modules["editdistance"] = module

"""register(): the one place that writes into ESPnet's registries."""

import importlib

from espnet_mla.models.encoders import ENCODERS

# ESPnet's tasks whose encoders are these.
_TASKS = ("asr", "st", "slu", "s2t")


def register() -> None:
    """Put our encoders behind ESPnet's own names in every task that has them. Calling it again changes nothing."""
    for task in _TASKS:
        choices = importlib.import_module(f"espnet2.tasks.{task}").encoder_choices
        choices.classes.update({name: encoder for name, encoder in ENCODERS.items() if name in choices.classes})

"""torch.save that leaves either all of a file or none of it, for trainings that may be killed at any moment."""

import os
from pathlib import Path
from typing import Any

import torch

CHECKPOINT = "checkpoint.pth"
"""What training resumes from. ESPnet writes it before the model of the epoch, which a killed run would then lack."""

_save = torch.save
_waiting: dict[Path, Path] = {}


def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
    """torch.save, but a file gets its name when it is whole, and a checkpoint when the file saved after it is."""
    if not isinstance(f, str | os.PathLike):
        _save(obj, f, *args, **kwargs)
        return
    path = Path(f)
    partial = path.with_name(f".{path.name}.partial")
    _save(obj, partial, *args, **kwargs)
    if path.name == CHECKPOINT:
        _waiting[partial] = path
        return
    os.replace(partial, path)
    while _waiting:
        os.replace(*_waiting.popitem())


def install() -> None:
    """Put it in the place of torch.save."""
    torch.save = save

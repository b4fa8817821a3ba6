"""figures.json: what a model costs, read off its own parameters and caches, with what it was measured on."""

import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from espnet_mla.measure import caches
from espnet_mla.recipe.files import write_text

FILE = "figures.json"
PACKAGES = ("espnet", "espnet_mla", "torch")


def parameters(model: nn.Module) -> dict[str, int]:
    """How many parameters the model has: all, in the encoder, in the decoder, and in all attentions."""

    def count(module: nn.Module | None) -> int:
        return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0

    named = model.named_parameters()
    attention = sum(one.numel() for name, one in named if re.search(r"\.(self_attn|src_attn|attn)\.", name))
    return {
        "all": count(model),
        "encoder": count(model.encoder),
        "decoder": count(model.decoder),
        "attention": attention,
    }


def of_model(model: nn.Module, fs: int, speech: Sequence[Tensor] = ()) -> dict:
    """Parameters, and bytes of the caches.

    Args:
        model: ESPnetASRModel.
        fs: Hz of its audio.
        speech: utterances (time,) that the caches are filled by; without any, by two seconds of silence.
    """
    rate = caches.frame_rate(model, fs)
    found = caches.filled(model, list(speech) or [torch.zeros(2 * fs)])
    return {
        "parameters": parameters(model),
        "frames_per_second": rate,
        "kv_cache": {part: kept.figures(rate) for part, kept in found.items()},
        "measured_with": conditions(),
    }


def conditions() -> dict:
    """The machine and the versions of this process."""
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "dtype": "float32",
        "versions": versions,
    }


def write(folder: Path, figures: Mapping) -> None:
    """Leave them in the folder of an experiment."""
    write_text(folder / FILE, json.dumps(figures, indent=2) + "\n")


def processor() -> str:
    """The processor's name, as /proc/cpuinfo or else Python has it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()

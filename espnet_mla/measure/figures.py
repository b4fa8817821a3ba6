"""figures.json: what a model costs, read off its own parameters and caches, with what it was measured on."""

import json
import os
import platform
import re
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from espnet_mla.attention import Attention
from espnet_mla.models.decoder import KeepingAttention
from espnet_mla.recipe.files import write_text

FILE = "figures.json"
PACKAGES = ("espnet", "espnet_mla", "torch")


class Kept(NamedTuple):
    """What the attentions of one part of a model keep of the past, in float32.

    Args:
        attention: their choice.
        bytes_per_frame: of each layer; for the decoder's attention to itself of a token.
        fixed_bytes: of each layer, for a whole stream, where that is what is kept.
    """

    attention: str
    bytes_per_frame: list[int]
    fixed_bytes: list[int]


def kept(model: nn.Module) -> dict[str, Kept]:
    """What each part (encoder, decoder_self, decoder_src) keeps, read off caches that its attentions make.

    Only attentions of ours and those of our Transformer decoder are counted: the others keep nothing that could be read
    off.
    """
    parts: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Attention | KeepingAttention):
            parts.setdefault(part(name), []).append(module)
    found = {}
    with torch.inference_mode():
        for where, attentions in parts.items():
            caches = [attention.project_kv(torch.zeros(1, 1, attention.d_model)) for attention in attentions]
            per_frame = [cache.nbytes_per_frame for cache in caches]
            fixed = [0 if cache.nbytes_per_frame else cache.nbytes for cache in caches]
            found[where] = Kept(attentions[0].name, per_frame, fixed)
    return found


def part(name: str) -> str:
    """Which part of a model the attention of this name belongs to."""
    if name.startswith("encoder."):
        return "encoder"
    return "decoder_src" if name.endswith("src_attn") else "decoder_self"


def frame_rate(model: nn.Module, fs: int) -> float:
    """Encoder frames for a second of audio at `fs` Hz."""

    def frames(seconds: int) -> int:
        samples = torch.zeros(1, seconds * fs)
        return int(model.encode(samples, torch.tensor([samples.shape[1]]))[1][0])

    with torch.inference_mode():
        return (frames(11) - frames(1)) / 10  # the difference, because the ends of an utterance lose some


def parameters(model: nn.Module) -> dict[str, int]:
    """How many parameters the model has: all, in the encoder, in the decoder, and in all attentions."""

    def count(module: nn.Module | None) -> int:
        return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0

    attentions = {
        id(parameter): parameter.numel()
        for name, parameter in model.named_parameters()
        if re.search(r"\.(self_attn|src_attn|attn)\.", name)
    }
    return {
        "all": count(model),
        "encoder": count(model.encoder),
        "decoder": count(model.decoder),
        "attention": sum(attentions.values()),
    }


def of_model(model: nn.Module, fs: int) -> dict:
    """The figures of a model that need no speech: parameters, and bytes of its caches.

    Args:
        model: ESPnetASRModel.
        fs: Hz of its audio.
    """
    rate = frame_rate(model, fs)
    caches = {}
    for where, found in kept(model).items():
        unit = "token" if where == "decoder_self" else "frame"
        caches[where] = {
            "attention": found.attention,
            "layers": len(found.bytes_per_frame),
            f"bytes_per_{unit}": sum(found.bytes_per_frame),
            **({} if unit == "token" else {"bytes_per_second": round(sum(found.bytes_per_frame) * rate)}),
            "fixed_bytes": sum(found.fixed_bytes),
        }
    return {
        "parameters": parameters(model),
        "frames_per_second": rate,
        "kv_cache": caches,
        "measured_with": conditions(),
    }


def conditions() -> dict:
    """The machine and the versions of this process."""
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "dtype": "float32",
        "versions": versions,
    }


def write(folder: Path, figures: Mapping) -> None:
    """Leave them in the folder of an experiment."""
    write_text(folder / FILE, json.dumps(figures, indent=2) + "\n")


def _processor() -> str:
    """The processor's name, as /proc/cpuinfo or else Python has it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()

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

from espnet_mla.common.files import write_text
from espnet_mla.common.machine import processor
from espnet_mla.models import caches
from espnet_mla.models.encoding import encoder_of
from espnet_mla.trained.describe import with_list
from espnet_mla.trained.names import FIGURES_FILE

GIGABYTE = 10**9
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
    like = next(model.parameters())
    rate = caches.frame_rate(model, fs)
    found = caches.filled(model, encoder_of(model, max(speech, key=len, default=torch.zeros(2 * fs).to(like))))
    kept = {part: one.figures(rate) for part, one in found.items()}
    return {
        "parameters": parameters(model),
        "frames_per_second": rate,
        "kv_cache": kept,
        **(
            {"kv_bytes_per_second": sum(one.get("bytes_per_second", 0) for one in kept.values())}
            if whole(found)
            else {}
        ),
        "measured_with": conditions(str(like.device), str(like.dtype).removeprefix("torch.")),
    }


def whole(kept: Mapping[str, caches.CacheReport]) -> bool:
    """Whether the caches of all that grows with audio are known, so that they add up to something."""
    return "encoder" in kept


def at_length(kept: Mapping[str, caches.CacheReport]) -> dict[str, int]:
    """What the caches that grow with audio hold after an utterance, and how many such utterances fit a gigabyte.

    Args:
        kept: of each part, as `caches.filled` gives it.

    Returns:
        The bytes of the encoder's and of the decoder's source attention, as far as they are known, `bytes` of both
        together, where the encoder's are, and `per_gigabyte`, of 10^9 bytes. What the decoder keeps of its own tokens is not in it: it grows with
        the text.
    """
    parts = {part: one.nbytes for part, one in kept.items() if part != "decoder_self"}
    held = sum(parts.values())
    if not whole(kept):
        return parts
    return {**parts, "bytes": held, **({"per_gigabyte": GIGABYTE // held} if held else {})}


def conditions(device: str = "cpu", dtype: str = "float32") -> dict:
    """The machine and the versions of this process.

    Args:
        device, dtype: PyTorch's names of where and in what it computes.
    """
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "dtype": dtype,
        "versions": versions,
    }


def write(folder: Path, figures: Mapping) -> None:
    """Write figures.json into the folder of an experiment: the figures, and the list that describes each of them."""
    text = json.dumps(with_list(figures), indent=2)
    flat = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)  # a list of numbers on one line
    write_text(folder / FIGURES_FILE, flat + "\n")

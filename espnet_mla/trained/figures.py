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
from espnet2.mt.espnet_model import ESPnetMTModel
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_mla.common.files import write_text
from espnet_mla.common.machine import processor
from espnet_mla.models import caches
from espnet_mla.models.encoding import DEFAULT_PROMPT, Prompt, encoder_of
from espnet_mla.trained.describe import with_list
from espnet_mla.trained.names import FIGURES_FILE

ATTENTION = re.compile(r"\.(self_attn|src_attn|attn|cross_attn)\.")
"""In the name of a parameter that belongs to one."""
GIGABYTE = 10**9
TOKENS = 20  # of a text to translate
PACKAGES = ("espnet", "espnet_mla", "torch")


def parameters(model: AbsESPnetModel) -> dict[str, int]:
    """The number of parameters: all, of the encoder, of the decoder, and of all attentions."""

    def count(module: nn.Module | None) -> int:
        return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0

    named = model.named_parameters()
    attention = sum(weight.numel() for name, weight in named if ATTENTION.search(name))
    return {
        "all": count(model),
        "encoder": count(model.encoder),
        "decoder": count(getattr(model, "decoder", None)),
        "attention": attention,
    }


def model_figures(
    model: AbsESPnetModel, fs: int, speech: Sequence[Tensor] = (), prompt: Prompt = DEFAULT_PROMPT
) -> dict:
    """Parameters, and bytes of the caches; those for a second of audio are left out where a model takes text.

    Args:
        model: what is measured.
        fs: Hz of its audio.
        speech: utterances (time,), the longest of which fills the caches; without any, two seconds of silence do.
        prompt: for a model that takes one.
    """
    like = next(model.parameters())
    if isinstance(model, ESPnetMTModel):
        rate, utterance = None, torch.full((TOKENS,), 1, device=like.device)
    else:
        rate = caches.frame_rate(model, fs, prompt)
        utterance = max(speech, key=len, default=torch.zeros(2 * fs).to(like))
    filled = caches.fill_caches(model, encoder_of(model, utterance, prompt))
    parts = {part: report.figures(rate) for part, report in filled.items()}
    total = sum(figures.get("bytes_per_second", 0) for figures in parts.values())
    return {
        "parameters": parameters(model),
        **({"frames_per_second": rate} if rate else {}),
        "kv_cache": parts,
        **({"kv_bytes_per_second": total} if "encoder" in parts and rate else {}),
        "measured_with": conditions(str(like.device), str(like.dtype).removeprefix("torch.")),
    }


def cache_bytes(reports: Mapping[str, caches.CacheReport]) -> dict[str, int]:
    """What the caches that grow with audio hold after an utterance, and how many such utterances fit a gigabyte.

    Args:
        reports: of each part, as returned by `fill_caches`.

    Returns:
        The bytes of the encoder and of the decoder's source attention, as far as they are known; if the encoder's are,
        `bytes` of both together and `per_gigabyte`, of 10^9 bytes. The decoder's self-attention is not included: its
        cache grows with the text.
    """
    parts = {part: report.nbytes for part, report in reports.items() if part != "decoder_self"}
    if "encoder" not in parts:
        return parts
    total = sum(parts.values())
    return {**parts, "bytes": total, **({"per_gigabyte": GIGABYTE // total} if total else {})}


def conditions(device: str = "cpu", dtype: str = "float32") -> dict:
    """The machine and the versions of this process.

    Args:
        device, dtype: PyTorch's names of the device and the type of numbers computed with.
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

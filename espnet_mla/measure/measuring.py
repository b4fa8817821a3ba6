"""All that `espnet-mla profile` measures of one model, put together."""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from espnet2.bin.asr_inference import Speech2Text
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from torch import Tensor

from espnet_mla.common.errors import UserError
from espnet_mla.common.log import log
from espnet_mla.measure import identity, memory, scores, speed, streaming, training
from espnet_mla.models import caches
from espnet_mla.models.encoding import encoder_of
from espnet_mla.trained import figures
from espnet_mla.trained.decoding import DECODING
from espnet_mla.trained.model import Source
from espnet_mla.trained.speech import choose


def measure(
    source: Source,
    *,
    name: str,
    wav_scp: Path | None,
    utterances: int,
    lengths: Sequence[float],
    device: str,
    dtype: str,
    decoding: dict,
) -> dict:
    """The figures of a model, in JSON's types; see README for what each is.

    Args:
        source: the model.
        name: of the experiment.
        wav_scp: of speech; without any, noise is encoded and nothing is decoded.
        utterances: of it that are decoded, at most.
        lengths: of speech to encode, in seconds.
        device, dtype: PyTorch's names.
        decoding: options of Speech2Text.

    Raises:
        UserError: the model or the speech can't be had, or the device or the memory is not there.
    """
    # What is read first, so that nothing measured is lost where it is broken.
    trained = training.figures(source.config_file.parent) if not source.packed else None
    scored = scores.figures(source.config_file.parent, source.model_file) if not source.packed else {}
    model, _ = source.load()
    speech = [samples for _, samples in choose(wav_scp, utterances, source.fs)] if wav_scp else []
    with _explained(device, dtype):
        like = torch.zeros(0, device=device, dtype=getattr(torch, dtype))
        model = model.to(like)
        speech = [samples.to(like) for samples in speech]
        sounding = speech or [_noise(source.fs * 10).to(like)]
        measured = {"model": identity.figures(source, name), **figures.of_model(model, source.fs, speech)}
    measured["measured_with"]["speech"] = str(wav_scp) if wav_scp else "noise"
    measured["cache"], measured["encoder"] = {}, {}
    for seconds in lengths:
        length = memory.length_name(seconds)
        log(f"Encoding {length} s of {'speech' if speech else 'noise'}")
        samples = speed.of_length(sounding, round(seconds * source.fs))
        with _explained(device, dtype, length):
            encode = encoder_of(model, samples)
            measured["cache"][length] = figures.at_length(caches.filled(model, encode))
            measured["encoder"][length] = speed.timed(encode, device, seconds)
    if speech:
        log(f"Decoding {len(speech)} utterances")
        with _explained(device, dtype):
            measured["decoding"] = _decoding(source, speech, device, dtype, decoding)
    if getattr(model.encoder, "streaming", None):
        log("Hearing a stream")
        with _explained(device, dtype):
            measured["streaming"] = of_streams(source, sounding, device, dtype)
    del model
    if memory.measurable(device):
        log("Memory, in a process for each length")
        measured["peak_memory"] = memory.peaks(source, lengths, device, dtype)
    return measured | {"training": trained, "scores": scored}


def _decoding(source: Source, speech: list[Tensor], device: str, dtype: str, options: dict) -> dict:
    speech2text = source.speech2text(device=device, dtype=dtype, **options)
    seconds = sum(map(len, speech)) / source.fs
    speed.decode(speech2text, speech[:1])
    timed = speed.timed(lambda: speed.decode(speech2text, speech), device, seconds)
    defaults = {name: inspect.signature(Speech2Text).parameters[name].default for name in DECODING}
    return {**timed, "utterances": len(speech), "options": dict(sorted((defaults | options).items()))}


def of_streams(source: Source, speech: list[Tensor], device: str, dtype: str) -> dict | None:
    """What a stream costs, as `streaming.figures`; None, and a line that says why, where the model can't be streamed."""
    try:
        return streaming.figures(source.speech2text(device=device, dtype=dtype), speech, device)
    except ValueError as error:
        log(f"No stream can be heard: {error}")
        return None


@contextlib.contextmanager
def _explained(device: str, dtype: str, length: str = "") -> Iterator[None]:
    """Name the options where PyTorch lacks a device, a kernel for a type, or memory."""
    try:
        yield
    except (RuntimeError, AssertionError, TooShortUttError) as error:
        at = f", {length} s" if length else ""
        said = next(iter(str(error.args[0] if error.args else error).splitlines()), type(error).__name__)
        raise UserError(f"--device {device} --dtype {dtype}{at}: {said}") from None


def _noise(samples: int) -> Tensor:
    return torch.rand(samples, generator=torch.Generator().manual_seed(0)) - 0.5

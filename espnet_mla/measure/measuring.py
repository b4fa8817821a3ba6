"""Everything that `espnet-mla profile` measures of one model."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from torch import Tensor

from espnet_mla.common.errors import UserError
from espnet_mla.common.log import log
from espnet_mla.measure import identity, memory, scores, speed, streaming, training
from espnet_mla.models import caches
from espnet_mla.models.encoding import DEFAULT_PROMPT, Prompt, encoder_of
from espnet_mla.trained import figures, tasks
from espnet_mla.trained.decoding import defaults_of
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
    prompt: Prompt = DEFAULT_PROMPT,
    cache_dtype: str | None = None,
) -> dict:
    """The figures of a model, in JSON's types.

    Args:
        source: the model.
        name: of the experiment.
        wav_scp: of speech; without one, noise is encoded and nothing is decoded.
        utterances: the most that are decoded.
        lengths: of speech to encode, in seconds.
        device, dtype: PyTorch's names.
        decoding: options of ESPnet's recogniser.
        prompt: for a model that takes one.
        cache_dtype: in what caches are kept; None for as they are computed.

    Raises:
        UserError: the model or the speech can't be read, or the device or the memory is not available.
    """
    # Files are read first: one that is broken must not cost the measurements.
    trained = training.figures(source.config_file.parent) if not source.packed else None
    scored = scores.figures(source.config_file.parent, source.model_file) if not source.packed else {}
    model, _ = source.load()
    if cache_dtype:
        caches.set_cache_dtype(model, cache_dtype, measured=True)
    speech = [samples for _, samples in choose(wav_scp, utterances, source.fs)] if wav_scp else []
    with _naming_options(device, dtype):
        like = torch.zeros(0, device=device, dtype=getattr(torch, dtype))
        model = model.to(like)
        speech = [samples.to(like) for samples in speech]
        audio = speech or [_noise(source.fs * 10).to(like)]
        of_model = figures.model_figures(model, source.fs, [source.heard(samples) for samples in speech], prompt)
        measured = {"model": identity.figures(source, name), **of_model}
    measured["measured_with"] |= {"cache_dtype": cache_dtype} if cache_dtype else {}
    measured["measured_with"]["speech"] = str(wav_scp) if wav_scp else "noise"
    measured["cache"], measured["encoder"] = {}, {}
    for seconds in lengths:
        length = memory.length_name(seconds)
        log(f"Encoding {length} s of {'speech' if speech else 'noise'}")
        samples = speed.speech_of_length(audio, round(seconds * source.fs))
        with _naming_options(device, dtype, length):
            encode = encoder_of(model, source.heard(samples), prompt)
            measured["cache"][length] = figures.cache_bytes(caches.fill_caches(model, encode))
            measured["encoder"][length] = speed.measure_time(encode, device, seconds)
    if speech:
        log(f"Decoding {len(speech)} utterances")
        with _naming_options(device, dtype):
            measured["decoding"] = _decoding(source, speech, device, dtype, decoding, cache_dtype)
    if source.task is tasks.ASR and getattr(model.encoder, "streaming", None):
        log("Streaming")
        with _naming_options(device, dtype):
            measured["streaming"] = stream_figures(source, audio, device, dtype, cache_dtype)
    del model
    if memory.measurable(device):
        log("Measuring memory, in a process for each length")
        measured["peak_memory"] = memory.peaks(source, lengths, device, dtype, prompt)
    return measured | {"training": trained, "scores": scored}


def _decoding(
    source: Source, speech: list[Tensor], device: str, dtype: str, options: dict, cache_dtype: str | None
) -> dict:
    speech2text = source.speech2text(device=device, dtype=dtype, **options)
    if cache_dtype:
        caches.set_cache_dtype(source.task.model_of(speech2text), cache_dtype, measured=True)
    seconds = sum(map(len, speech)) / source.fs
    speed.decode(speech2text, speech[:1])
    timed = speed.measure_time(lambda: speed.decode(speech2text, speech), device, seconds)
    return {**timed, "utterances": len(speech), "options": dict(sorted((defaults_of(source.task) | options).items()))}


def stream_figures(
    source: Source, speech: list[Tensor], device: str, dtype: str, cache_dtype: str | None = None
) -> dict | None:
    """What a stream costs, as `streaming.figures`; None, and a line in the log, where the model can't be streamed."""
    try:
        return streaming.figures(source.speech2text(device=device, dtype=dtype), speech, device, cache_dtype)
    except ValueError as error:
        log(f"The model can't be streamed: {error}")
        return None


@contextlib.contextmanager
def _naming_options(device: str, dtype: str, length: str = "") -> Iterator[None]:
    """Name the options in the error where PyTorch lacks a device, a kernel for a type, or memory."""
    try:
        yield
    except (RuntimeError, AssertionError, TooShortUttError) as error:
        speech = f", {length} s" if length else ""
        message = next(iter(str(error.args[0] if error.args else error).splitlines()), type(error).__name__)
        raise UserError(f"--device {device} --dtype {dtype}{speech}: {message}") from None


def _noise(samples: int) -> Tensor:
    return torch.rand(samples, generator=torch.Generator().manual_seed(0)) - 0.5

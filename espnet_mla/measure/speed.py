"""How long a model takes: its encoder for speech of given lengths, and the whole way to text for real utterances."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from espnet2.bin.asr_inference import Speech2Text
from torch import Tensor

ENOUGH = {2: 20.0, 3: 2.0, 10: 0.0}
"""How often something is timed: once it ran so often (left), it is not run again if all runs took so many seconds."""


def of_length(speech: Sequence[Tensor], samples: int) -> Tensor:
    """The utterances (time,) one after the other, again and again, cut to so many samples."""
    joined = torch.cat(list(speech))
    return joined.repeat(-(-samples // len(joined)))[:samples]


def decode(speech2text: Speech2Text, speech: Sequence[Tensor]) -> None:
    """From samples to text, one utterance (time,) after the other."""
    for samples in speech:
        speech2text(samples)


def timed(run: Callable[[], object], device: str, audio_seconds: float) -> dict[str, float | int]:
    """What `run` takes, which has run before.

    Args:
        run: what is timed.
        device: PyTorch's name of where it computes.
        audio_seconds: of the speech that it works on.

    Returns:
        Seconds (the median), the least and the most of them, how many runs they come from, and the real-time factor:
        seconds for a second of audio.
    """
    taken: list[float] = []
    while not any(len(taken) >= runs and sum(taken) >= seconds for runs, seconds in ENOUGH.items()):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        taken.append(time.perf_counter() - began)
    median = statistics.median(taken)
    return {
        "audio_seconds": round(audio_seconds, 3),
        "seconds": median,
        "least": min(taken),
        "most": max(taken),
        "runs": len(taken),
        "real_time_factor": median / audio_seconds,
    }


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)

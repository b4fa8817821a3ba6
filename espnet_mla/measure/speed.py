"""How long a model takes: its encoder on speech of given lengths, and decoding of real utterances."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ENOUGH = {2: 20.0, 3: 2.0, 10: 0.0}
"""Number of runs -> seconds: timing ends after that many runs if together they took at least that long."""


def speech_of_length(speech: Sequence[Tensor], samples: int) -> Tensor:
    """The utterances (time,) concatenated, repeated as often as needed, cut to a number of samples."""
    joined = torch.cat(list(speech))
    return joined.repeat(-(-samples // len(joined)))[:samples]


def decode(speech2text: Callable[[Tensor], object], speech: Sequence[Tensor]) -> None:
    """Decode utterances (time,) one after the other."""
    for samples in speech:
        speech2text(samples)


def measure_time(run: Callable[[], object], device: str, audio_seconds: float) -> dict[str, float | int]:
    """The time that a call of `run` takes, which has been called before.

    Args:
        run: what is timed.
        device: PyTorch's name of the device that it computes on.
        audio_seconds: length of the speech that it processes.

    Returns:
        The median of the seconds, the least and the most, the number of runs, and the real-time factor: seconds for a
        second of audio.
    """
    seconds: list[float] = []
    while not any(len(seconds) >= runs and sum(seconds) >= total for runs, total in ENOUGH.items()):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    return {
        "audio_seconds": round(audio_seconds, 3),
        "seconds": median,
        "least": min(seconds),
        "most": max(seconds),
        "runs": len(seconds),
        "real_time_factor": median / audio_seconds,
    }


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)

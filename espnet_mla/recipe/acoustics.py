"""Where the mini corpus is recorded: a room, a microphone, noise, and noise that covers single words."""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BANDS = 8
"""Of a microphone, each with a gain of its own."""
TAPS = 129
"""Of a microphone's filter."""


class Setting(NamedTuple):
    """What a set is recorded in, as ranges from which each utterance draws.

    Args:
        snr: signal-to-noise ratio in dB.
        reverberation: seconds in which the room's sound falls by 60 dB.
        microphone: most dB that a band of the microphone is off.
        covered: probability that a word is covered by noise, of those that the others imply.
    """

    snr: tuple[float, float]
    reverberation: tuple[float, float]
    microphone: float
    covered: float


class Condition(NamedTuple):
    """What one utterance is recorded in.

    Args:
        snr: in dB.
        reverberation: in seconds.
        microphone: dB of each of BANDS bands.
        colour: of the noise, whose power falls as frequency to the power of it: 0 is white, 2 brown.
        babble: the noise is other speech.
        level: dB of the peak to full scale.
        seed: of the random samples.
    """

    snr: float
    reverberation: float
    microphone: tuple[float, ...]
    colour: float
    babble: bool
    level: float
    seed: int


def draw(setting: Setting, rng: random.Random) -> Condition:
    """Draw what an utterance is recorded in."""
    return Condition(
        snr=rng.uniform(*setting.snr),
        reverberation=rng.uniform(*setting.reverberation),
        microphone=tuple(rng.uniform(-setting.microphone, setting.microphone) for _ in range(BANDS)),
        colour=rng.uniform(0, 2),
        babble=rng.random() < 1 / 3,
        level=rng.uniform(-15, -3),
        seed=rng.randrange(2**32),
    )


def record(
    speech: np.ndarray, fs: int, condition: Condition, covered: Sequence[tuple[int, int]], babble: np.ndarray
) -> np.ndarray:
    """Record speech.

    Args:
        speech: (time,), 16-bit.
        fs: samples a second.
        condition: the room, the microphone, the noise.
        covered: samples from and to of what noise as loud as the speech covers.
        babble: (time,), other speech for such a noise.

    Returns:
        (time,), int16, nothing moved in time.
    """
    rng = np.random.Generator(np.random.PCG64(condition.seed))
    dry = speech.astype(np.float64)
    wet = _convolved(dry, _room(condition.reverberation, fs, rng))[: len(dry)]
    heard = _convolved(wet, _microphone(condition.microphone, fs))[TAPS // 2 :][: len(dry)]
    power = np.mean(heard[np.abs(dry) > 0] ** 2)  # of what is said, without the silences
    noise = (
        np.resize(babble, len(dry)).astype(np.float64) if condition.babble else _noise(len(dry), condition.colour, rng)
    )
    heard += noise * np.sqrt(power / np.mean(noise**2) * 10 ** (-condition.snr / 10))
    for start, end in covered:
        burst = _noise(end - start, 1.0, rng)
        heard[start:end] += 2 * burst * np.sqrt(power / np.mean(burst**2)) * np.hanning(end - start) ** 0.25
    peak = 10 ** (condition.level / 20) * np.iinfo(np.int16).max
    return np.round(heard * (peak / np.abs(heard).max())).astype(np.int16)


def _room(reverberation: float, fs: int, rng: np.random.Generator) -> np.ndarray:
    """An impulse response: the direct sound, and noise that decays, from 2 ms on and as strong as the direct sound."""
    times = np.arange(int(reverberation * fs)) / fs
    tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / reverberation)
    tail[: int(0.002 * fs)] = 0
    tail /= np.sqrt(np.sum(tail**2))
    tail[0] = 1
    return tail


def _microphone(gains: Sequence[float], fs: int) -> np.ndarray:
    """A symmetric filter whose gain goes through `gains`, in dB, at frequencies evenly spaced in octaves."""
    frequencies = np.fft.rfftfreq(TAPS, 1 / fs)
    centres = np.geomspace(100, fs / 2, len(gains))
    response = np.interp(np.log(np.maximum(frequencies, centres[0])), np.log(centres), gains)
    return np.fft.fftshift(np.fft.irfft(10 ** (response / 20), TAPS)) * np.hanning(TAPS)


def _convolved(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Not scipy.signal, whose import takes longer than all that is done here to a reader's speech.
    length = len(x) + len(y) - 1
    size = 2 ** (length - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(y, size), size)[:length]


def _noise(length: int, colour: float, rng: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum *= np.maximum(np.arange(len(spectrum)), len(spectrum) / 100) ** (-colour / 2)
    return np.fft.irfft(spectrum, length)

"""Confidence intervals of error rates: the bootstrap over utterances of Bisani and Ney ("Bootstrap estimates for
confidence intervals in ASR performance evaluation", ICASSP 2004)."""

import functools

import numpy as np

REPLICATES = 10_000
LEVEL = 95  # per cent of the replicates lie in an interval
_BLOCK = 4_000_000  # numbers drawn at a time, which bounds the memory


def replicates(errors: np.ndarray, words: np.ndarray, seed: int = 0) -> np.ndarray:
    """Error rates of test sets drawn from the utterances with replacement.

    All systems are scored on the same draws, so that their differences are not due to the draws.

    Args:
        errors: of each system and utterance, (systems, utterances).
        words: of each utterance, (utterances,).
        seed: of the draws.

    Returns:
        (REPLICATES, systems), in per cent; NaN where no word was drawn.
    """
    table = np.vstack([errors, words]).T.astype(np.float64)  # (utterances, systems + 1)
    counts, at_once = _counts(len(words), seed), max(1, _BLOCK // len(words))
    parts = (counts[start : start + at_once].astype(np.float64) for start in range(0, REPLICATES, at_once))
    summed = np.concatenate([part @ table for part in parts])
    return 100 * summed[:, :-1] / np.where(summed[:, -1:] > 0, summed[:, -1:], np.nan)


@functools.lru_cache(maxsize=4)  # LibriSpeech has four sets, and each of them several rates
def _counts(number: int, seed: int) -> np.ndarray:
    """How often each utterance is drawn in each replicate, (REPLICATES, number)."""
    rng, blocks, at_once = np.random.default_rng(seed), [], max(1, _BLOCK // number)
    for start in range(0, REPLICATES, at_once):
        size = min(at_once, REPLICATES - start)
        drawn = rng.integers(number, size=(size, number), dtype=np.int32)
        drawn += number * np.arange(size, dtype=np.int32)[:, None]
        blocks.append(np.bincount(drawn.ravel(), minlength=size * number).reshape(size, number).astype(np.uint16))
    return np.concatenate(blocks)


def interval(rates: np.ndarray) -> tuple[float, float]:
    """The LEVEL % confidence interval: percentiles of the replicates.

    Args:
        rates: of one system, (REPLICATES,).
    """
    outside = (100 - LEVEL) / 2
    low, high = np.nanpercentile(rates, [outside, 100 - outside])
    return float(low), float(high)


def better(rates: np.ndarray, baseline: np.ndarray) -> float:
    """The probability of improvement: the share of replicates in which a system has fewer errors than the baseline.

    Ties count half, so that the probability of a system against itself is 0.5.
    """
    drawn = np.isfinite(rates)
    return float(np.mean(rates[drawn] < baseline[drawn]) + np.mean(rates[drawn] == baseline[drawn]) / 2)

"""How sure an error rate is: the bootstrap over utterances of Bisani and Ney ("Bootstrap estimates for confidence intervals
in ASR performance evaluation", ICASSP 2004)."""

import functools

import numpy as np

REPLICATES = 10_000
LEVEL = 95  # per cent of the replicates lie in an interval
_AT_ONCE = 4_000_000  # numbers drawn at a time, for the memory's sake


def replicates(errors: np.ndarray, words: np.ndarray, seed: int = 0) -> np.ndarray:
    """Error rates over test sets that are drawn from the utterances, with replacement.

    All systems are scored on the same draws, so that their differences are due to them and not to the draws.

    Args:
        errors: of each system and utterance, (systems, utterances).
        words: of each utterance, (utterances,).
        seed: of the draws.

    Returns:
        (REPLICATES, systems), in per cent; not a number where no word was drawn.
    """
    table = np.vstack([errors, words]).T.astype(np.float64)  # (utterances, systems + 1)
    counts, at_once = _counts(len(words), seed), max(1, _AT_ONCE // len(words))
    parts = (counts[start : start + at_once].astype(np.float64) for start in range(0, REPLICATES, at_once))
    summed = np.concatenate([part @ table for part in parts])
    return 100 * summed[:, :-1] / np.where(summed[:, -1:] > 0, summed[:, -1:], np.nan)


@functools.lru_cache(maxsize=4)  # LibriSpeech has four sets, and each of them several rates
def _counts(number: int, seed: int) -> np.ndarray:
    """How often each of so many utterances is drawn in each replicate, (REPLICATES, number)."""
    rng, found, at_once = np.random.default_rng(seed), [], max(1, _AT_ONCE // number)
    for start in range(0, REPLICATES, at_once):
        size = min(at_once, REPLICATES - start)
        drawn = rng.integers(number, size=(size, number), dtype=np.int32)
        drawn += number * np.arange(size, dtype=np.int32)[:, None]
        found.append(np.bincount(drawn.ravel(), minlength=size * number).reshape(size, number).astype(np.uint16))
    return np.concatenate(found)


def interval(rates: np.ndarray) -> tuple[float, float]:
    """The least and the highest rate once the outer replicates, half on each side, are left out.

    Args:
        rates: of one system, (REPLICATES,).
    """
    outside = (100 - LEVEL) / 2
    low, high = np.nanpercentile(rates, [outside, 100 - outside])
    return float(low), float(high)


def better(rates: np.ndarray, baseline: np.ndarray) -> float:
    """The probability of improvement: the share of replicates in which a system has fewer errors than the baseline.

    Replicates in which both have as many count half, so that a system is as likely better as worse than itself.
    """
    drawn = np.isfinite(rates)
    return float(np.mean(rates[drawn] < baseline[drawn]) + np.mean(rates[drawn] == baseline[drawn]) / 2)

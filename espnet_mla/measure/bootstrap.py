"""How sure an error rate is: the bootstrap over utterances of Bisani and Ney ("Bootstrap estimates for confidence intervals
in ASR performance evaluation", ICASSP 2004)."""

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
    rng, number = np.random.default_rng(seed), len(words)
    table = np.vstack([errors, words]).T.astype(np.float64)  # (utterances, systems + 1)
    sums, left = [], REPLICATES
    while left:
        size = min(left, max(1, _AT_ONCE // number))
        drawn = rng.integers(number, size=(size, number)) + number * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * number).reshape(size, number)  # how often each was drawn
        sums.append(counts @ table)
        left -= size
    summed = np.concatenate(sums)
    return 100 * summed[:, :-1] / np.where(summed[:, -1:] > 0, summed[:, -1:], np.nan)


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

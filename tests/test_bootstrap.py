"""The bootstrap over utterances, against what statistics says that it must come to."""

import numpy as np
import pytest

from espnet_mla.measure import bootstrap


def definition(errors: list[int], words: list[int], draws: np.ndarray) -> list[float]:
    """The rate of each drawn test set."""
    return [100 * sum(errors[n] for n in drawn) / sum(words[n] for n in drawn) for drawn in draws]


def test_replicates_are_the_rates_of_sets_drawn_with_replacement():
    rng = np.random.default_rng(3)
    errors, words = rng.integers(0, 4, (2, 7)), rng.integers(3, 9, 7)
    found = bootstrap.replicates(errors, words, seed=5)
    draws = np.random.default_rng(5).integers(7, size=(bootstrap.REPLICATES, 7), dtype=np.int32)
    for system in range(2):
        wanted = definition(errors[system].tolist(), words.tolist(), draws)
        np.testing.assert_allclose(found[:, system], wanted)


def test_large_sets_are_drawn_in_parts_and_their_spread_is_the_binomials():
    rng = np.random.default_rng(0)
    number, wrong = 5000, 0.1
    errors = (rng.random((1, number)) < wrong).astype(int)
    rates = bootstrap.replicates(errors, np.ones(number, dtype=int))[:, 0]
    assert rates.shape == (bootstrap.REPLICATES,)
    share = errors.mean()
    deviation = 100 * np.sqrt(share * (1 - share) / number)
    assert rates.mean() == pytest.approx(100 * share, abs=5 * deviation / 100)
    assert rates.std() == pytest.approx(deviation, rel=0.05)
    low, high = bootstrap.interval(rates)
    assert (low, high) == pytest.approx(
        (100 * share - 1.96 * deviation, 100 * share + 1.96 * deviation), abs=deviation / 10
    )


def test_the_same_errors_are_as_likely_better_as_worse():
    rates = bootstrap.replicates(np.array([[0, 1, 2], [0, 1, 2]]), np.array([3, 3, 3]))
    assert bootstrap.better(rates[:, 0], rates[:, 1]) == 0.5


def test_one_utterance_that_is_better_counts_where_it_is_drawn():
    number = 20
    errors = np.array([[0] * number, [0] * (number - 1) + [1]])
    rates = bootstrap.replicates(errors, np.full(number, 5))
    drawn = 1 - (1 - 1 / number) ** number
    assert bootstrap.better(rates[:, 0], rates[:, 1]) == pytest.approx(1 - (1 - drawn) / 2, abs=0.01)
    assert bootstrap.better(rates[:, 1], rates[:, 0]) == pytest.approx((1 - drawn) / 2, abs=0.01)


def test_draws_are_the_same_each_time():
    errors, words = np.array([[1, 0, 2]]), np.array([3, 4, 5])
    np.testing.assert_array_equal(bootstrap.replicates(errors, words), bootstrap.replicates(errors, words))


def test_a_draw_without_words_does_not_break_an_interval():
    rates = bootstrap.replicates(np.array([[0, 1]]), np.array([0, 5]))  # a quarter of the draws have no word
    assert bootstrap.interval(rates) == (20.0, 20.0)

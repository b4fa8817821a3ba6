"""Each way of factorising is the best in what it calls close, and all of them are exact where that is possible."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_mla.convert import factors
from espnet_mla.convert.factors import METHODS, OutputError, Weights, allocate
from espnet_mla.convert.statistics import CalibrationStatistics

HEADS, D_HEAD = 2, 4
D = HEADS * D_HEAD


def random_weights(seed=0):
    torch.manual_seed(seed)
    k, v = (torch.randn(HEADS, D_HEAD, D, dtype=torch.double) for _ in range(2))
    return Weights(k, v, torch.randn(HEADS, D, D_HEAD, dtype=torch.double))


def covariances(*shape, size=D):
    root = torch.randn(*shape, size, size, dtype=torch.double) * torch.logspace(0, -1.5, size, dtype=torch.double)
    return root @ root.transpose(-1, -2)


def random_seen(seed=0, **given):
    torch.manual_seed(seed + 1000)
    return CalibrationStatistics(
        **{
            "frames": 100,
            "mean": torch.randn(D, dtype=torch.double),
            "covariance": covariances(),
            "queries": covariances(HEADS, size=D_HEAD),
            "keys": covariances(HEADS),
            "values": covariances(HEADS),
            "value_means": torch.randn(HEADS, D, dtype=torch.double),
        }
        | given
    )


def errors(weights, made):
    """Of keys and of values, (h, d_head, d)."""
    k, v = (up.unflatten(0, (HEADS, -1)) @ made.down for up in (made.k_up, made.v_up))
    return weights.k - k, weights.v - v


def lost(weights, seen, made):
    """What `attention` calls error, by its definition."""
    keys, values = errors(weights, made)
    total = 0.0
    for h in range(HEADS):
        total += torch.trace(seen.queries[h] / D_HEAD @ keys[h] @ seen.keys[h] @ keys[h].T)
        total += torch.trace(weights.out[h].T @ weights.out[h] @ values[h] @ seen.values[h] @ values[h].T)
    return total.item()


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), rank=st.integers(1, D))
def test_factors_have_the_sizes_of_their_rank_and_keep_a_share(method, seed, rank):
    weights = random_weights(seed)
    made = METHODS[method](weights, random_seen(seed)).factors(rank)
    assert made.down.shape == (rank, D)
    assert made.k_up.shape == made.v_up.shape == (HEADS * D_HEAD, rank)
    assert 0 < made.energy <= 1
    assert all(torch.isfinite(part).all() for part in (made.down, made.k_up, made.v_up, made.v_shift))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "split"])
def test_full_rank_is_exact(method):
    weights = random_weights()
    made = METHODS[method](weights, random_seen()).factors(D)
    for error in errors(weights, made):
        torch.testing.assert_close(error, torch.zeros_like(error))
    assert made.energy == 1
    assert not made.v_shift.any()


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 99))
def test_more_rank_keeps_more(method, seed):
    one = METHODS[method](random_weights(seed), random_seen(seed))
    kept = [one.factors(rank).energy for rank in range(1, D + 1)]
    assert kept == sorted(kept)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), rank=st.integers(1, D - 1))
def test_joint_has_the_least_error_of_the_weights(seed, rank):
    weights = random_weights(seed)
    error = torch.cat(errors(weights, METHODS["joint"](weights, None).factors(rank))).square().sum()
    least = torch.linalg.svdvals(weights.stacked)[rank:].square().sum()  # Eckart and Young
    torch.testing.assert_close(error, least)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), rank=st.integers(1, D - 1))
def test_split_has_the_least_error_of_keys_and_of_values_alone(seed, rank):
    weights = random_weights(seed)
    made = METHODS["split"](weights, None).factors(rank)
    for error, maps, size in zip(
        errors(weights, made), (weights.k, weights.v), ((rank + 1) // 2, rank // 2), strict=True
    ):
        least = torch.linalg.svdvals(maps.flatten(0, 1))[size:].square().sum()
        torch.testing.assert_close(error.square().sum(), least)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), rank=st.integers(1, D - 1))
def test_covariance_has_the_least_error_of_keys_and_values(seed, rank):
    weights, seen = random_weights(seed), random_seen(seed)

    def error(made):
        e = torch.cat([part.flatten(0, 1) for part in errors(weights, made)])
        return torch.trace(e @ seen.covariance @ e.T)

    root = torch.linalg.cholesky(seen.covariance)
    least = torch.linalg.svdvals(weights.stacked @ root)[rank:].square().sum()
    torch.testing.assert_close(error(METHODS["covariance"](weights, seen).factors(rank)), least, rtol=1e-4, atol=1e-6)
    assert error(METHODS["joint"](weights, None).factors(rank)) >= least * (1 - 1e-6)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99), rank=st.integers(1, D - 1))
def test_attention_loses_least_of_all_ways_in_what_it_looks_at(seed, rank):
    weights, seen = random_weights(seed), random_seen(seed)
    by = {method: lost(weights, seen, METHODS[method](weights, seen).factors(rank)) for method in METHODS}
    assert by["attention"] <= min(by.values()) * (1 + 1e-6)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99), rank=st.integers(1, D - 1))
def test_a_longer_search_for_the_latents_of_attention_finds_nothing_better(seed, rank):
    weights, seen = random_weights(seed), random_seen(seed)
    found = METHODS["attention"](weights, seen).factors(rank)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(factors, "ROUNDS", 40)
        patched.setattr(factors, "SETTLED", -1.0)
        best = METHODS["attention"](weights, seen).factors(rank)
    assert 1 - found.energy < 1.1 * (1 - best.energy) + 0.01


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99), rank=st.integers(1, D - 1))
def test_the_energy_that_attention_keeps_is_what_its_definition_says(seed, rank):
    weights, seen = random_weights(seed), random_seen(seed)
    made = METHODS["attention"](weights, seen).factors(rank)
    nothing = factors.Factors(made.down, 0 * made.k_up, 0 * made.v_up, made.v_shift, 0.0)
    share = lost(weights, seen, made) / lost(weights, seen, nothing)
    assert made.energy == pytest.approx(1 - share, rel=1e-3, abs=1e-4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), rank=st.integers(1, D - 1))
def test_where_all_heads_see_one_covariance_attention_is_a_singular_value_decomposition(seed, rank):
    covariance = random_seen(seed).covariance
    every = covariance.expand(HEADS, -1, -1)
    seen = random_seen(seed, keys=every, values=every)
    one = OutputError(random_weights(seed), seen)
    assert one.factors(rank).energy == pytest.approx((one.spectrum[:rank].sum() / one.spectrum.sum()).item(), rel=1e-4)


@pytest.mark.parametrize("method", ["covariance", "attention"])
def test_values_are_right_on_the_average_whatever_the_rank(method):
    weights, seen = random_weights(), random_seen()
    made = METHODS[method](weights, seen).factors(2)
    means = seen.value_means if method == "attention" else seen.mean.expand(HEADS, -1)
    values = (made.v_up.unflatten(0, (HEADS, -1)) @ made.down @ means.unsqueeze(-1)).flatten() + made.v_shift
    torch.testing.assert_close(values, (weights.v @ means.unsqueeze(-1)).flatten())


@pytest.mark.parametrize("method", ["covariance", "attention"])
def test_speech_that_never_goes_in_some_directions_is_enough(method):
    """As few frames as one short utterance has, of a layer with more dimensions."""
    few = torch.randn(3, D, dtype=torch.double)
    covariance = torch.cov(few.T, correction=0)
    seen = random_seen(
        covariance=covariance, keys=covariance.expand(HEADS, -1, -1), values=covariance.expand(HEADS, -1, -1)
    )
    made = METHODS[method](random_weights(), seen).factors(2)
    assert made.energy == pytest.approx(1, abs=1e-3)  # three frames about their mean have two dimensions
    assert torch.isfinite(made.down).all()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_allocation_keeps_the_largest_sum_of_shares_that_the_total_can(data):
    layers, size = data.draw(st.integers(1, 3)), 4
    numbers = st.lists(st.floats(0.01, 10), min_size=size, max_size=size)
    spectra = [torch.tensor(sorted(data.draw(numbers), reverse=True)) for _ in range(layers)]
    total = data.draw(st.integers(layers, layers * size))

    def kept(ranks):
        return sum(
            (spectrum[:rank].sum() / spectrum.sum()).item() for spectrum, rank in zip(spectra, ranks, strict=True)
        )

    ranks = allocate(spectra, total)
    assert sum(ranks) == total
    possible = (r for r in itertools.product(range(1, size + 1), repeat=layers) if sum(r) == total)
    assert kept(ranks) == pytest.approx(max(map(kept, possible)))


@pytest.mark.parametrize("total", [1, 9])
def test_a_total_that_cannot_be_given_out_is_refused(total):
    with pytest.raises(ValueError, match=f"{total} dimensions for 2 layers: there must be 2 to 8"):
        allocate([torch.ones(4), torch.ones(4)], total)

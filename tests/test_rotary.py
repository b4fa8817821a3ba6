"""An mha with rope as an mla: exact where all pairs are kept, and nearer the more of them are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_mla.attention import build_attention
from espnet_mla.convert import factors, layers, rotary
from espnet_mla.convert.statistics import StatisticsAccumulator

D, HEADS = 16, 2
D_HEAD = D // HEADS


def build(seed=0):
    torch.manual_seed(seed)
    attention = build_attention("mha", {}, d_model=D, num_heads=HEADS, position="rope", dropout_rate=0.0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    torch.nn.init.zeros_(attention.linear_k.bias)  # which an mla lacks
    return attention.double().eval()


def frames(seed, time=40, mean=0.0):
    return torch.randn(1, time, D, dtype=torch.double, generator=torch.Generator().manual_seed(seed)) + mean


def seen(attention, x):
    gathering = StatisticsAccumulator(attention)
    gathering.add(x, x, None, None)
    return gathering.statistics()


def converted(attention, x, size, rank=D):
    """The mla with a rotary key of this size, and that key."""
    statistics, weights = seen(attention, x), layers.weights_of(attention)
    bias = attention.linear_k.bias.detach().view(HEADS, D_HEAD)
    key = rotary.shared_key(weights.k, bias, statistics, size)
    made = factors.covariance(factors.Weights(key.rest, weights.v, weights.out), statistics).factors(rank)
    conf = {
        "kv_lora_rank": rank, "qk_nope_head_dim": D_HEAD, "qk_rope_head_dim": size, "rope_frequencies": key.frequencies,
    }  # fmt: skip
    new = build_attention("mla", conf, d_model=D, num_heads=HEADS, position="rope", dropout_rate=0.0).double().eval()
    new.load_state_dict(layers.as_rotary_mla(attention, made, key))
    return new, key


def error(attention, x, size):
    with torch.no_grad():
        out, expected = converted(attention, x, size)[0](x, x, x, None), attention(x, x, x, None)
    return ((out - expected).norm() / expected.norm()).item()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99))
def test_with_all_pairs_of_all_heads_the_output_is_the_same(seed):
    x = frames(seed)
    assert error(build(seed), x, D) < 1e-9


def test_the_more_is_kept_the_nearer_the_output_comes():
    errors = [error(build(3), frames(3), size) for size in (2, 6, 10, 14)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]


def test_as_many_pairs_are_chosen_as_there_is_room_for_and_what_they_keep_is_told():
    attention, x = build(5), frames(5)
    chosen = converted(attention, x, 6)[1]
    everything = converted(attention, x, D)[1]
    assert everything.energy == pytest.approx(1) and 0 < chosen.energy < 1
    assert len(chosen.frequencies) == 3 and chosen.frequencies == sorted(chosen.frequencies)


def test_keys_of_heads_that_agree_fit_into_one():
    """Then a rotary key of a head's size is enough, whatever each head makes of it."""
    attention, x = build(7), frames(7)
    with torch.no_grad():
        first, second = attention.linear_k.weight.view(2, 2, D_HEAD // 2, D)
        # The second head's pairs are the first one's, each turned and stretched: a complex number times it.
        second[0], second[1] = 0.6 * first[0] - 0.8 * first[1], 0.6 * first[1] + 0.8 * first[0]
    assert error(attention, x, D_HEAD) < 1e-9


def test_a_bias_of_the_keys_is_made_up_for_where_frames_have_a_mean():
    attention, x = build(9), frames(9, mean=3.0)
    torch.nn.init.constant_(attention.linear_k.bias, 0.5)
    without = build(9)
    with torch.no_grad():
        expected = attention(x, x, x, None)
        lacking = (without(x, x, x, None) - expected).norm()
        made_up = (converted(attention, x, D)[0](x, x, x, None) - expected).norm()
    assert made_up < 0.3 * lacking


def test_what_is_left_of_a_rotation_is_its_mean_over_what_is_looked_at():
    attention, x = build(11), frames(11, time=7)
    gathering = StatisticsAccumulator(attention)
    gathering.add(x, x, None, None)
    _, a = gathering.attend(x[0], x[0], None, None)
    v = attention.linear_v(x[0]).view(7, HEADS, D_HEAD).transpose(0, 1)
    out = attention.linear_out.weight.view(D, HEADS, D_HEAD).transpose(0, 1)
    for head in range(HEADS):
        made = (out[head] @ v[head].T).T  # (t, d) of each frame
        total, counts = torch.zeros(D_HEAD // 2, dtype=torch.cdouble), 0.0
        for i in range(7):
            mean = a[head, i] @ made
            n = sum(a[head, i, j] * (made[j] - mean).square().sum() for j in range(7))
            rates = 10000.0 ** (-torch.arange(D_HEAD // 2, dtype=torch.double) * 2 / D_HEAD)
            angles = [rates * (i - j) for j in range(7)]
            total += n * sum(a[head, i, j] * torch.polar(torch.ones_like(w), w) for j, w in enumerate(angles))
            counts += n
        torch.testing.assert_close(gathering.statistics().rotation[head], total / counts)

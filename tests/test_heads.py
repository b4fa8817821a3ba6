"""Pooled heads: exact where they agree, and where they can be turned so that they do."""

import pytest
import torch

from espnet_mla.attention import build_attention
from espnet_mla.convert import layers
from espnet_mla.convert.heads import METHODS
from espnet_mla.convert.statistics import StatisticsAccumulator

D, HEADS = 16, 4
POSITIONS = ("rel_pos", "abs_pos")


def build(kind, position, **conf):
    torch.manual_seed(3)
    attention = build_attention(kind, conf, d_model=D, num_heads=HEADS, position=position, dropout_rate=0.0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return attention.eval()


def call(attention, x):
    position = torch.randn(1, 2 * x.shape[1] - 1, D, generator=torch.Generator().manual_seed(0))
    return attention(x, x, x, *([position] if attention.position == "rel_pos" else []), None)


def converted(attention, method, kv_heads):
    gathering = StatisticsAccumulator(attention)
    x = torch.randn(1, 50, D)
    gathering.add(x, x, torch.randn(1, 99, D) if attention.position == "rel_pos" else None, None)
    pooled = METHODS[method](layers.weights_of(attention), gathering.statistics(), kv_heads)
    new = build("gqa", attention.position, num_kv_heads=kv_heads)
    new.load_state_dict(layers.as_gqa(attention, pooled))
    return new, pooled


def with_heads_alike(position, turn):
    """An attention in which the heads of each of two groups differ by `turn(head)` alone."""
    attention = build("mha", position)
    with torch.no_grad():
        for layer in (attention.linear_k, attention.linear_v):
            heads = layer.weight.unflatten(0, (HEADS, -1))
            for head in range(HEADS):
                heads[head] = turn(head) @ heads[head - head % 2]
    return attention


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("method", METHODS)
def test_as_many_kv_heads_as_heads_is_exact(method, position):
    attention = build("mha", position)
    new, pooled = converted(attention, method, HEADS)
    x = torch.randn(2, 9, D)
    torch.testing.assert_close(call(new, x), call(attention, x), rtol=1e-4, atol=1e-5)
    assert pooled.energy == pytest.approx(1)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("method", METHODS)
def test_heads_that_agree_are_pooled_exactly(method, position):
    attention = with_heads_alike(position, lambda head: torch.eye(D // HEADS))
    new, _ = converted(attention, method, 2)
    x = torch.randn(2, 9, D)
    torch.testing.assert_close(call(new, x), call(attention, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
def test_heads_that_differ_by_a_rotation_are_pooled_exactly_once_they_are_aligned(position):
    turns = [torch.linalg.qr(torch.randn(D // HEADS, D // HEADS)).Q for _ in range(HEADS)]
    attention = with_heads_alike(position, lambda head: turns[head] if head % 2 else torch.eye(D // HEADS))
    x = torch.randn(2, 9, D)
    aligned, pooled = converted(attention, "aligned", 2)
    torch.testing.assert_close(call(aligned, x), call(attention, x), rtol=1e-4, atol=1e-5)
    assert pooled.energy == pytest.approx(1)
    mean, _ = converted(attention, "mean", 2)
    assert (call(mean, x) - call(attention, x)).norm() > 0.1 * call(attention, x).norm()


def test_mean_is_the_mean_of_the_heads_of_a_group():
    attention = build("mha", "rel_pos")
    new, _ = converted(attention, "mean", 2)
    for name in ("linear_k", "linear_v"):
        heads = getattr(attention, name).weight.unflatten(0, (HEADS, -1))
        torch.testing.assert_close(
            getattr(new, name).weight, torch.cat([(heads[0] + heads[1]) / 2, (heads[2] + heads[3]) / 2])
        )


def test_no_further_turn_brings_a_head_nearer_to_the_mean_of_its_group():
    """Of the best rotations to a given mean, mean times turned head is symmetric and positive (Procrustes)."""
    attention = build("mha", "rel_pos")
    gathering = StatisticsAccumulator(attention)
    gathering.add(torch.randn(1, 50, D), torch.randn(1, 50, D), torch.randn(1, 99, D), None)
    seen, weights = gathering.statistics(), layers.weights_of(attention)
    pooled = METHODS["aligned"](weights, seen, 1)
    for turn, maps, mean in ((pooled.k_rotation, weights.k, pooled.k[0]), (pooled.v_rotation, weights.v, pooled.v[0])):
        product = mean @ seen.covariance @ (turn @ maps).transpose(1, 2)
        assert (product - product.transpose(1, 2)).norm() < 0.02 * product.norm()
        assert (torch.linalg.eigvalsh(product + product.transpose(1, 2)) > 0).all()


def test_pooled_values_are_right_on_the_average():
    attention = build("mha", "abs_pos")
    gathering = StatisticsAccumulator(attention)
    x = torch.randn(1, 50, D) + torch.randn(D)
    gathering.add(x, x, None, None)
    seen, weights = gathering.statistics(), layers.weights_of(attention)
    pooled = METHODS["aligned"](weights, seen, 2)
    shared = pooled.v.repeat_interleave(2, dim=0)
    values = pooled.v_rotation.transpose(1, 2) @ shared @ seen.value_means.unsqueeze(-1)
    torch.testing.assert_close(
        values.flatten() + pooled.v_shift, (weights.v @ seen.value_means.unsqueeze(-1)).flatten()
    )


def test_aligned_heads_have_more_in_common():
    attention = build("mha", "rel_pos")
    kept = {method: converted(attention, method, 1)[1].energy for method in METHODS}
    assert kept["aligned"] > kept["mean"]

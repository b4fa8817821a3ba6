"""What is gathered of calibration speech is what its definition says, in sums that do not grow."""

import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    MultiHeadedAttention,
    RelPositionMultiHeadedAttention,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import sinusoid

from espnet_mla.attention import build_attention
from espnet_mla.convert.statistics import StatisticsAccumulator

D, HEADS = 12, 3
KINDS = {
    "selfattn": lambda: MultiHeadedAttention(HEADS, D, 0.0),
    "rel_selfattn": lambda: RelPositionMultiHeadedAttention(HEADS, D, 0.0),
    "mha": lambda: build_attention("mha", {}, d_model=D, num_heads=HEADS, position="rel_pos", dropout_rate=0.0),
}


def build(kind, seed=0):
    torch.manual_seed(seed)
    attention = KINDS[kind]().double().eval()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def position_of(attention, time_q, time_k):
    """The position argument of a call, none or one."""
    if not hasattr(attention, "linear_pos"):
        return ()
    rows = [sinusoid(distance, D) for distance in range(time_k - 1, -time_q, -1)]
    return (torch.stack(rows)[None].double(),)


@pytest.mark.parametrize("kind", KINDS)
def test_its_weights_give_the_attentions_own_output(kind):
    attention = build(kind)
    x, mask = torch.randn(1, 7, D, dtype=torch.double), torch.ones(1, 7, 7).tril()
    place = position_of(attention, 7, 7)
    _, a = StatisticsAccumulator(attention).attend(x[0], x[0], place[0] if place else None, mask)
    v = attention.linear_v(x[0]).unflatten(-1, (HEADS, -1)).transpose(0, 1)
    out = attention.linear_out((a @ v).transpose(0, 1).flatten(1))
    torch.testing.assert_close(out, attention(x, x, x, *place, mask)[0])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3), seed=st.integers(0, 99), causal=st.booleans())
def test_statistics_equal_their_definition(kind, lengths, seed, causal):
    attention = build(kind, seed)
    utterances = [torch.randn(length, D, dtype=torch.double) for length in lengths]
    gathering = StatisticsAccumulator(attention)
    queries, keys, means, counts = ([[] for _ in range(HEADS)] for _ in range(4))
    for x in utterances:
        place = position_of(attention, len(x), len(x))
        mask = torch.ones(1, len(x), len(x)).tril() if causal else None
        gathering.add(x[None], x[None], *(place or (None,)), mask)
        _, a = gathering.attend(x, x, place[0] if place else None, mask)
        q = attention.linear_q(x).unflatten(-1, (HEADS, -1))
        q = (q + attention.pos_bias_u if place else q).transpose(0, 1)
        v = attention.linear_v(x).unflatten(-1, (HEADS, -1)).transpose(0, 1)
        out = attention.linear_out.weight.unflatten(1, (HEADS, -1))  # (d, h, d_head)
        for h in range(HEADS):
            for i in range(len(x)):
                m, o = a[h, i] @ x, a[h, i] @ v[h]
                n = sum(a[h, i, j] * (out[:, h] @ (v[h, j] - o)).square().sum() for j in range(len(x)))
                queries[h].append(n * torch.outer(q[h, i], q[h, i]))
                keys[h].append(n * sum(a[h, i, j] * torch.outer(x[j] - m, x[j] - m) for j in range(len(x))))
                means[h].append(m)
                counts[h].append(n)
    seen, frames = gathering.statistics(), torch.cat(utterances)
    assert seen.frames == len(frames)
    torch.testing.assert_close(seen.mean, frames.mean(0))
    torch.testing.assert_close(seen.covariance, torch.cov(frames.T, correction=0).reshape(D, D))
    for h in range(HEADS):
        stacked = torch.stack(means[h])
        torch.testing.assert_close(seen.value_means[h], stacked.mean(0))
        torch.testing.assert_close(seen.values[h], torch.cov(stacked.T, correction=0).reshape(D, D))
        torch.testing.assert_close(seen.queries[h], torch.stack(queries[h]).mean(0))
        if sum(counts[h]) > 1e-9:  # one frame alone has nothing to weigh
            torch.testing.assert_close(seen.keys[h], sum(keys[h]) / sum(counts[h]))


def test_what_is_held_does_not_grow_with_the_speech():
    gathering = StatisticsAccumulator(build("rel_selfattn"))

    def held():
        return sum(value.nbytes for value in vars(gathering).values() if isinstance(value, torch.Tensor))

    before = held()
    for _ in range(5):
        x = torch.randn(1, 9, D)
        gathering.add(x, x, torch.randn(1, 17, D), None)
    assert held() == before
    exact = (torch.double, torch.cdouble)
    assert all(value.dtype in exact for value in vars(gathering).values() if isinstance(value, torch.Tensor))


def test_queries_of_other_frames_than_the_keys_count_for_themselves():
    """As in a decoder's attention to the encoder: means over queries are over their number, not that of the frames."""
    gathering = StatisticsAccumulator(build("selfattn"))
    query, key = torch.randn(1, 3, D, dtype=torch.double), torch.randn(1, 8, D, dtype=torch.double)
    gathering.add(query, key, None, torch.ones(1, 1, 8))
    _, a = gathering.attend(query[0], key[0], None, None)
    seen = gathering.statistics()
    assert seen.frames == 8
    torch.testing.assert_close(seen.mean, key[0].mean(0))
    torch.testing.assert_close(seen.value_means, (a @ key[0]).mean(1))

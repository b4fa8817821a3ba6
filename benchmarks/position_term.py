"""Ways to the score of relative positions, side by side: one multi-head attention layer, 256 wide with 4 heads.

    python benchmarks/position_term.py [--cases 1x30 8x15] [--rounds 7]

- espnet: the product with every distance, padded, reshaped and copied;
- view: the same product, whose rows are read shifted (strides, no copy), and one fused kernel over all queries;
- factorised: sin(a - b) and cos(a - b) taken apart, so that positions become columns of queries and keys and no mask of
  scores is made;
- blocks: view, for a block of queries at a time, each utterance at its own length: what espnet_mla does.
"""

import argparse
import statistics
import time
from unittest import mock

import torch
from attention import D_MODEL, FRAMES_PER_SECOND, HEADS, machine, mask_for
from espnet2.legacy.nets.pytorch_backend.transformer.attention import RelPositionMultiHeadedAttention
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import RelPositionalEncoding
from torch import Tensor, nn

from espnet_mla.attention import build_attention, softmax


def factorised(layer: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """(q + v) . W_p r_{i-j} as (columns of i) . (columns of j): only for sinusoids without dropout."""
    time_ = x.shape[1]
    frequency = 10000 ** (-torch.arange(0, D_MODEL, 2) / D_MODEL)
    angle = torch.arange(time_)[:, None] * frequency  # (time, d_model / 2)
    sin, cos = angle.sin(), angle.cos()
    k, v = layer.project_kv(x).tensors
    q = layer._heads(layer.linear_q(x))
    w_p = layer.linear_pos.weight.unflatten(0, (HEADS, -1))  # (h, d_head, d_model)
    a = (q + layer.pos_bias_v.unsqueeze(-2)) @ w_p  # (b, h, t, d_model)
    a_sin, a_cos = a[..., 0::2], a[..., 1::2]
    # a_sin sin(i - j) + a_cos cos(i - j)
    columns_q = torch.cat((a_sin * sin + a_cos * cos, a_cos * sin - a_sin * cos), dim=-1)
    columns_k = torch.cat((cos, sin), dim=-1).expand(len(x), HEADS, -1, -1)
    q = torch.cat((q + layer.pos_bias_u.unsqueeze(-2), columns_q), dim=-1)
    k = torch.cat((k, columns_k), dim=-1)
    # The CPU's fused kernel wants values as wide as keys.
    v = nn.functional.pad(v, (0, D_MODEL))
    out = nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=None if mask.all() else mask.unsqueeze(1), scale=layer.d_head**-0.5
    )
    return layer.linear_out(out[..., : layer.d_head].transpose(1, 2).flatten(-2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["1x10", "1x30", "8x15", "1x120"])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(machine("cpu") + "\n\n| batch x seconds | | forward | training step |\n| --- | --- | --- | --- |")
    for case in options.cases:
        batch, seconds = map(int, case.split("x"))
        x = torch.randn(batch, seconds * FRAMES_PER_SECOND, D_MODEL)
        _, mask = mask_for(batch, x.shape[1], "cpu")
        position = RelPositionalEncoding(D_MODEL, 0.0)(x)[1]
        espnet = RelPositionMultiHeadedAttention(HEADS, D_MODEL, 0.0)
        layer = build_attention("mha", {}, d_model=D_MODEL, num_heads=HEADS, position="rel_pos", dropout_rate=0.0)
        layer.load_state_dict(espnet.state_dict())

        def view(x: Tensor, layer=layer, position=position, mask=mask) -> Tensor:
            whole = mock.patch.multiple(softmax, _rows_at_a_time=lambda q: q.shape[-2], _lengths=lambda *_: None)
            with whole:
                return layer(x, x, x, position, mask)

        ways = {
            "espnet": lambda x, m=espnet, p=position, mask=mask: m(x, x, x, p, mask),
            "view": view,
            "factorised": lambda x, m=layer, mask=mask: factorised(m, x, mask),
            "blocks": lambda x, m=layer, p=position, mask=mask: m(x, x, x, p, mask),
        }
        with torch.no_grad():
            expected = espnet(x, x, x, position, mask)[mask[:, 0]]
            for name, way in ways.items():
                torch.testing.assert_close(way(x)[mask[:, 0]], expected, rtol=1e-3, atol=1e-4, msg=name)
        taken = {name: ([], []) for name in ways}
        for number in range(options.rounds + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                with torch.no_grad():
                    way(x)
                between = time.perf_counter()
                way(x).square().mean().backward()
                if number:  # the first round warms up
                    taken[name][0].append(between - began)
                    taken[name][1].append(time.perf_counter() - between)
        medians = {name: [statistics.median(figures) for figures in pair] for name, pair in taken.items()}
        for name, pair in medians.items():
            ratios = (f"{figure / base:.2f}" for figure, base in zip(pair, medians["espnet"], strict=True))
            print(f"| {case} | {name} | {' | '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()

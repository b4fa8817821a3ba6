"""The definitions that the attentions are held to: loops and einsums in float64, from the papers' equations."""

import math

import torch
from torch import Tensor


def sinusoid(distance: int, d_model: int) -> Tensor:
    """The sinusoids of one distance (Vaswani et al. 2017, section 3.5), (d_model,)."""
    angles = [distance / 10000 ** (2 * i / d_model) for i in range(d_model // 2)]
    return torch.tensor([f(angle) for angle in angles for f in (math.sin, math.cos)], dtype=torch.float64)


def turn(x: Tensor, position: int, rates: list[float] | None = None) -> Tensor:
    """One vector (d,) turned by its rotary angles (Su et al. 2021, eq. 34), pairs being (i, i + d/2)."""
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = position * (rates[i] if rates else 10000 ** (-i / half))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i] * math.sin(angle) + x[i + half] * math.cos(angle)
    return out


def heads(x: Tensor, number: int) -> Tensor:
    """(time, number * d) -> (number, time, d)."""
    return x.unflatten(-1, (number, -1)).transpose(0, 1)


def relative_term(attention, q: Tensor, time_k: int) -> Tensor:
    """(q_i + v) . W_p r_{i-j} of one head's queries (h, t_q, d), the queries being the last of time_k frames."""
    num_heads, time_q, _ = q.shape
    term = torch.zeros(num_heads, time_q, time_k, dtype=q.dtype)
    for i in range(time_q):
        for j in range(time_k):
            r = sinusoid(time_k - time_q + i - j, attention.d_model)
            p = heads(attention.linear_pos(r)[None], num_heads)[:, 0]  # (h, d)
            term[:, i, j] = ((q[:, i] + attention.pos_bias_v) * p).sum(-1)
    return term


def weights(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of (h, t_q, t_k) over the keys that mask (t_q, t_k) allows; a row that may look nowhere has zeros."""
    out = torch.zeros_like(scores)
    for i in range(scores.shape[1]):
        allowed = mask[i].nonzero().flatten()
        if len(allowed):
            out[:, i, allowed] = scores[:, i, allowed].softmax(-1)
    return out


def softmax_reference(attention, query: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """mha, gqa and mla for one utterance: query (t_q, d), x (t_k, d), mask (t_q, t_k)."""
    n = attention.num_heads
    latent = attention.name == "mla"
    if latent:
        if attention.q_lora_rank:
            query = attention.linear_q_down(query)
        c = attention.linear_kv_down(x)  # eq. 9
        if not isinstance(attention.kv_norm, torch.nn.Identity):
            c = c / (c.square().mean(-1, keepdim=True) + 1e-6).sqrt() * attention.kv_norm.weight
        k, v = heads(attention.linear_k_up(c), n), heads(attention.linear_v_up(c), n)  # eq. 10, 11
    else:
        group = n // attention.num_kv_heads
        k, v = (
            heads(linear(x), attention.num_kv_heads).repeat_interleave(group, 0)
            for linear in (attention.linear_k, attention.linear_v)
        )
    q = heads(attention.linear_q(query), n)
    scale = 1 / math.sqrt(q.shape[-1])
    time_q, time_k = q.shape[1], k.shape[1]
    if attention.position == "rope":
        offset, rates = time_k - time_q, None
        if latent and attention.rope_frequencies:
            d_head = attention.d_model // n
            rates = [10000 ** (-2 * number / d_head) for number in attention.rope_frequencies]
        if latent:
            d_rope = attention.qk_rope_head_dim
            shared = attention.linear_k_rope(x).expand(n, -1, -1)  # eq. 15
            k = torch.cat(
                (k, torch.stack([turn(row, j, rates) for h in shared for j, row in enumerate(h)]).view(shared.shape)),
                -1,
            )
        else:
            d_rope = q.shape[-1]
            k = torch.stack([turn(row, j) for h in k for j, row in enumerate(h)]).view(k.shape)
        turned = torch.stack([turn(row[-d_rope:], offset + i, rates) for h in q for i, row in enumerate(h)])
        q = torch.cat((q[..., :-d_rope], turned.view(n, time_q, d_rope)), -1)
    if attention.position == "rel_pos":
        scores = (q + attention.pos_bias_u[:, None]) @ k.transpose(-1, -2) + relative_term(attention, q, time_k)
    else:
        scores = q @ k.transpose(-1, -2)
    out = weights(scores * scale, mask) @ v
    return attention.linear_out(out.transpose(0, 1).flatten(1))


def mtla_reference(attention, query: Tensor, x: Tensor, mask: Tensor, start: int = 0) -> Tensor:
    """mtla for one utterance, whose x begins with frame `start` of its stream, a group's first: a query at a time.

    To one that may see some frames of a group alone, the merged latent is the sum over those.
    """
    n, s, rank = attention.num_heads, attention.down_rate, attention.kv_lora_rank
    d_nope, d_rope = attention.qk_nope_head_dim, attention.qk_rope_head_dim
    if attention.q_lora_rank:
        query = attention.linear_q_down(query)
    q = heads(attention.linear_q(query), n)
    c = attention.linear_kv_down(x)
    if not isinstance(attention.kv_norm, torch.nn.Identity):
        c = c / (c.square().mean(-1, keepdim=True) + 1e-6).sqrt() * attention.kv_norm.weight
    w = []
    for i in range(len(x)):
        place = sinusoid((start + i) // s % 512, rank + rank % 2)[:rank]
        w.append(torch.sigmoid(attention.linear_merge(c[i]) @ attention.linear_merge_pos(place)))
    if d_rope:
        rates = [10000 ** (-2 * f / attention.d_head) for f in attention.rope_frequencies or []] or None
        rotary = torch.stack([turn(row, j, rates) for j, row in enumerate(attention.linear_k_rope(x))])
    else:
        term = relative_term(attention, q, len(x)) if attention.position == "rel_pos" else None
    outs = []
    for i in range(len(query)):
        groups = [g for g in range(0, len(x), s) if mask[i, g : g + s].any()]
        if not groups:
            outs.append(torch.zeros(n * attention.v_head_dim, dtype=x.dtype))
            continue
        m = torch.stack([sum(w[j] * c[j] for j in range(g, min(g + s, len(x))) if mask[i, j]) for g in groups])
        k, v = heads(attention.linear_k_up(m), n), heads(attention.linear_v_up(m), n)
        q_i = q[:, i, :d_nope]
        if attention.position == "rel_pos":
            scores = torch.einsum("hd,hgd->hg", q_i + attention.pos_bias_u, k) + term[:, i, groups]
        else:
            scores = torch.einsum("hd,hgd->hg", q_i, k)
        if d_rope:
            turned = torch.stack([turn(h, len(x) - len(query) + i, rates) for h in q[:, i, d_nope:]])
            scores = scores + turned @ rotary[groups].T
        weight = (scores / math.sqrt(d_nope + d_rope)).softmax(-1)
        outs.append(torch.einsum("hg,hgd->hd", weight, v).flatten())
    return attention.linear_out(torch.stack(outs))


def linear_reference(attention, query: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Linear attention for one utterance (Katharopoulos et al. 2020, eq. 4): similarities instead of sums."""
    n = attention.num_heads
    q, k, v = (heads(linear(y), n) for linear, y in
               ((attention.linear_q, query), (attention.linear_k, x), (attention.linear_v, x)))  # fmt: skip
    q, k = (torch.where(y > 0, y + 1, y.exp()) for y in (q, k))
    similarity = q @ k.transpose(-1, -2) * mask
    total = similarity.sum(-1, keepdim=True)
    if attention.position == "rope":
        offset = k.shape[1] - q.shape[1]
        q = torch.stack([turn(row, offset + i) for h in q for i, row in enumerate(h)]).view(q.shape)
        k = torch.stack([turn(row, j) for h in k for j, row in enumerate(h)]).view(k.shape)
        similarity = q @ k.transpose(-1, -2) * mask
    out = torch.where(total > 0, similarity @ v / total.clamp_min(1e-300), torch.zeros((), dtype=v.dtype))
    return attention.linear_out(out.transpose(0, 1).flatten(1))


def reference(attention, query: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What `attention` (in float64) must answer for one utterance; the queries are the last frames of x."""
    if mask is None:
        mask = torch.ones(len(query), len(x), dtype=torch.bool)
    function = {"linear": linear_reference, "mtla": mtla_reference}.get(attention.name, softmax_reference)
    return function(attention, query, x, mask)

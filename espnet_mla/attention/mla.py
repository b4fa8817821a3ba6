"""Multi-head latent attention: one small vector a frame stands for the keys and values of all heads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from espnet_mla.attention.base import SoftmaxAttention
from espnet_mla.attention.cache import FrameCache
from espnet_mla.attention.positions import CachedPosition, KeyPlaces, rotary_rates, rotate


class MLA(SoftmaxAttention):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1 and appendix C).

    ::

        c_j = W_dkv x_j                                    cached: kv_lora_rank numbers                (eq. 9)
        k_j = W_uk c_j,  v_j = W_uv c_j                    all heads, made anew from c_j               (eq. 10, 11)
        kr_j = rope(W_kr x_j)                              with rope only: one key for all heads       (eq. 15)
        score = (q_i . k_j + qr_i . kr_j) / sqrt(qk_nope_head_dim + qk_rope_head_dim)                  (eq. 18)

    With relative positions the score is that of `SoftmaxAttention`, its key k_j carrying no position, so nothing but
    c_j is cached. The paper normalises c_j (RMSNorm, with `kv_norm`); by default it stays as it is, so that an MHA
    layer becomes this one exactly by factorising [W_k; W_v].

    It is computed in one of two equal forms, which agree to rounding: expanded makes k and v and attends to them;
    absorbed carries the query into the latent space, q_i W_uk, and applies W_uv to the weighted sum of latents (the
    paper's section 2.1.2, last paragraph). The cheaper one is chosen by counting multiplications.

    Args:
        kv_lora_rank: size of c_j.
        q_lora_rank: size of the queries' latent, or None for plain queries (eq. 12, 13).
        qk_nope_head_dim: size of a head's q and k without position; default d_head, less qk_rope_head_dim with rope.
        qk_rope_head_dim: with rope, the size of kr_j; default d_head / 2.
        v_head_dim: size of a head's v; default d_head.
        kv_norm: normalise c_j before it is cached.
        rope_frequencies: with rope, which frequency turns each pair of kr_j's numbers: n stands for that of the n-th
            pair of a whole head, ROPE_BASE^(-2n / d_head). Default: those of a head of qk_rope_head_dim.
        Others as in `Attention`.

    Raises:
        ValueError: a size is not positive, does not fit, or is given for a position kind that has no such part.
    """

    def __init__(
        self,
        *,
        kv_lora_rank: int = 64,
        q_lora_rank: int | None = None,
        qk_nope_head_dim: int | None = None,
        qk_rope_head_dim: int | None = None,
        v_head_dim: int | None = None,
        kv_norm: bool = False,
        rope_frequencies: Sequence[int] | None = None,
        **sizes,
    ):
        super().__init__(**sizes)
        rope = self.position == "rope"
        if qk_rope_head_dim and not rope:
            raise ValueError(
                f"qk_rope_head_dim ({qk_rope_head_dim}) needs pos_enc_layer_type: rope, but it is {self.position}"
            )
        self.qk_rope_head_dim = (qk_rope_head_dim or self.d_head // 2) if rope else 0
        self.qk_nope_head_dim = qk_nope_head_dim or self.d_head - self.qk_rope_head_dim
        self.v_head_dim = v_head_dim or self.d_head
        self.kv_lora_rank = kv_lora_rank
        self.q_lora_rank = q_lora_rank
        self.rope_frequencies = None if rope_frequencies is None else tuple(rope_frequencies)
        self._check_sizes()
        self._rates = None
        if self.rope_frequencies is not None:
            self._rates = tuple(rotary_rates(self.d_head)[number] for number in self.rope_frequencies)

        d_query = self.num_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        if q_lora_rank:
            self.linear_q_down = nn.Linear(self.d_model, q_lora_rank, bias=False)
        self.linear_q = nn.Linear(q_lora_rank or self.d_model, d_query)
        self.linear_kv_down = nn.Linear(self.d_model, kv_lora_rank, bias=False)
        self.kv_norm = nn.RMSNorm(kv_lora_rank, eps=1e-6) if kv_norm else nn.Identity()
        # No biases: k's adds the same to every score of a row, v's is the same as one of linear_out.
        self.linear_k_up = nn.Linear(kv_lora_rank, self.num_heads * self.qk_nope_head_dim, bias=False)
        self.linear_v_up = nn.Linear(kv_lora_rank, self.num_heads * self.v_head_dim, bias=False)
        if rope:
            self.linear_k_rope = nn.Linear(self.d_model, self.qk_rope_head_dim, bias=False)
        self.linear_out = nn.Linear(self.num_heads * self.v_head_dim, self.d_model)
        if self.position == "rel_pos":
            self.add_relative_position(self.qk_nope_head_dim)

    def _check_sizes(self) -> None:
        for key in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim"):
            size = getattr(self, key)
            if size is not None and size < 1:
                raise ValueError(f"{key} ({size}) must be at least 1")
        if self.kv_lora_rank > 2 * self.d_model:
            raise ValueError(
                f"kv_lora_rank ({self.kv_lora_rank}) is more than keys and values have, 2 output_size "
                f"({2 * self.d_model}): it must be at most that"
            )
        if self.qk_rope_head_dim % 2 or self.qk_rope_head_dim < 0:
            raise ValueError(f"qk_rope_head_dim ({self.qk_rope_head_dim}) must be even and positive")
        if self.rope_frequencies is None:
            return
        if len(self.rope_frequencies) != self.qk_rope_head_dim // 2:
            raise ValueError(
                f"rope_frequencies ({list(self.rope_frequencies)}) must have one number for each pair of "
                f"qk_rope_head_dim ({self.qk_rope_head_dim})"
            )
        for number in self.rope_frequencies:
            if not 0 <= number < self.d_head // 2:
                raise ValueError(f"rope_frequencies: {number} must be from 0 to {self.d_head // 2 - 1}")

    def project_kv(self, x: Tensor, mask: Tensor | None = None, start: Tensor | int = 0) -> FrameCache:
        latent = self.kv_norm(self.linear_kv_down(x))
        if self.position == "rope":
            return FrameCache((latent, self.linear_k_rope(x)))
        return FrameCache((latent,))

    def absorbing_is_cheaper(self, time_q: int, time_k: int) -> bool:
        """Whether the absorbed form takes fewer multiplications for one utterance of these lengths."""
        rank, d_rope, d_value = self.kv_lora_rank, self.qk_rope_head_dim, self.v_head_dim
        projections = rank * (self.qk_nope_head_dim + d_value)
        expanded = time_k * projections + time_q * time_k * (self.qk_nope_head_dim + d_rope + d_value)
        absorbed = time_q * projections + time_q * time_k * 2 * (rank + d_rope)
        return absorbed < expanded

    def attend(
        self,
        query: Tensor,
        kv: FrameCache,
        position: Tensor | CachedPosition | None,
        mask: Tensor | None,
        *,
        self_attention: bool = False,
    ) -> Tensor:
        latent, *rotary = kv.values()
        return self.attend_to_latents(query, latent, rotary, position, mask, self_attention)

    def attend_to_latents(
        self,
        query: Tensor,
        latent: Tensor,
        rotary: Sequence[Tensor],
        position: Tensor | CachedPosition | None,
        mask: Tensor | None,
        self_attention: bool = False,
        places: KeyPlaces | None = None,
    ) -> Tensor:
        """Attend to latents.

        Args:
            latent: (b, t_k, rank).
            rotary: with rope the keys W_kr x, (b, t_k, qk_rope_head_dim); else none.
            places: where they stand, if not at every frame.
            Others as in `attend`.
        """
        time_q, time_k = query.shape[1], latent.shape[1]
        if self.q_lora_rank:
            query = self.linear_q_down(query)
        q = self.linear_q(query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (b, h, t_q, d_key)
        k_rope = None
        if self.position == "rope":
            q, q_rope = q.split((self.qk_nope_head_dim, self.qk_rope_head_dim), dim=-1)
            q_rope, k_rope = rotate(q_rope, self._rates), rotate(rotary[0].unsqueeze(1), self._rates, places)
            q = torch.cat((q, q_rope), dim=-1)
        # A quantised layer has no weight that could be absorbed.
        plain = isinstance(self.linear_k_up.weight, Tensor) and isinstance(self.linear_v_up.weight, Tensor)
        if plain and self.absorbing_is_cheaper(time_q, time_k):
            # One head of keys for all queries. Values are the latents too: the rotary columns ride along, so that keys
            # and values are one tensor of one width, which the fused kernels want, and are dropped after.
            shared = latent.unsqueeze(1)  # (b, 1, t_k, rank)
            if k_rope is not None:
                shared = torch.cat((shared, k_rope.to(shared.dtype)), dim=-1)
            summed = self.weighted_sum(q, shared, shared, position, mask, self_attention, self._to_latent_space, places)
            w_uv = self.linear_v_up.weight.unflatten(0, (self.num_heads, -1))  # (h, v_head_dim, rank)
            out = summed[..., : self.kv_lora_rank] @ w_uv.transpose(-1, -2)
        else:
            k, v = (
                linear(latent).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                for linear in (self.linear_k_up, self.linear_v_up)
            )
            if k_rope is not None:
                k = torch.cat((k, k_rope.to(k.dtype).expand(-1, self.num_heads, -1, -1)), dim=-1)
            out = self.weighted_sum(q, k, v, position, mask, self_attention, places=places)  # (b, h, t_q, v_head_dim)
        return self.linear_out(out.transpose(1, 2).flatten(-2))

    def _to_latent_space(self, q: Tensor) -> Tensor:
        """Queries (b, h, t_q, d_key) -> (b, h, t_q, rank + qk_rope_head_dim), W_uk absorbed into them."""
        content, rotary = q.split((self.qk_nope_head_dim, self.qk_rope_head_dim), dim=-1)
        w_uk = self.linear_k_up.weight.unflatten(0, (self.num_heads, -1))  # (h, qk_nope_head_dim, rank)
        return torch.cat((content @ w_uk, rotary), dim=-1)

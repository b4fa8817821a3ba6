"""Multi-head temporal latent attention: the latents of neighbouring frames merged into one."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from espnet_mla.attention.chunks import Chunks
from espnet_mla.attention.merged import MergedCache
from espnet_mla.attention.mla import MLA
from espnet_mla.attention.positions import CachedPosition, KeyPlaces
from espnet_mla.attention.tree import Past

PERIOD = 512
"""Groups after which their positions in the weights begin anew, so that those of a stream never run out."""


class MTLA(MLA):
    """Multi-head temporal latent attention (Deng and Woodland 2025, arXiv 2505.13544).

    ::

        w_i = sigmoid((W_c c_i + b_c) . (W_p pe_j + b_p))  j = i / down_rate, rounded down: the group of frame i
        m_j = sum of w_i c_i over the frames of group j    cached: kv_lora_rank numbers a group

    The rest is `MLA`, of m_j in place of c_j. A query that may see some frames of a group alone, as a causal mask has
    it, gets the sum over those: the paper's stride-aware causal mask.

    A merged key stands at the first frame of its group, with relative and with rotary positions (the rotary key is that
    frame's). The paper's code takes the newest one; but then a key would move while its group fills up, and for a
    query in the middle of a group stand where it does not for the next one.

    The sinusoids pe_j are as in the paper, but begin anew after PERIOD groups: 41 s of groups of two frames of 40 ms.

    Args:
        down_rate: frames of a group.
        Others as in `MLA`.

    Raises:
        ValueError: as `MLA`.
    """

    def __init__(
        self,
        *,
        down_rate: int = 2,
        kv_lora_rank: int = 64,
        q_lora_rank: int | None = None,
        qk_nope_head_dim: int | None = None,
        qk_rope_head_dim: int | None = None,
        v_head_dim: int | None = None,
        kv_norm: bool = False,
        rope_frequencies: Sequence[int] | None = None,
        **sizes,
    ):
        if down_rate < 1:
            raise ValueError(f"down_rate ({down_rate}) must be at least 1")
        super().__init__(
            kv_lora_rank=kv_lora_rank,
            q_lora_rank=q_lora_rank,
            qk_nope_head_dim=qk_nope_head_dim,
            qk_rope_head_dim=qk_rope_head_dim,
            v_head_dim=v_head_dim,
            kv_norm=kv_norm,
            rope_frequencies=rope_frequencies,
            **sizes,
        )
        self.down_rate = down_rate
        size = max(1, kv_lora_rank // 4)
        self.linear_merge = nn.Linear(kv_lora_rank, size)
        self.linear_merge_pos = nn.Linear(kv_lora_rank, size)

    def _weighted(self, x: Tensor, frame: Tensor | int) -> Tensor:
        """w_i c_i of frames x (b, t, d) with these numbers, (t,) or (b, t), or all with one: (b, t, rank)."""
        latent = self.kv_norm(self.linear_kv_down(x))
        group = frame // self.down_rate % PERIOD
        table = _sinusoids(latent)
        place = self.linear_merge_pos(table[group : group + 1] if isinstance(group, int) else table[group])
        weight = (self.linear_merge(latent) * place).sum(-1, keepdim=True).sigmoid()
        return weight.to(latent.dtype) * latent  # autocast sums in float32

    def project_kv(self, x: Tensor, mask: Tensor | None = None, start: Tensor | int = 0) -> MergedCache:
        """As in `Attention`; where `start` is a tensor, each of its numbers is a multiple of down_rate."""
        stride, time = self.down_rate, x.shape[1]
        frame = torch.arange(time, device=x.device) + (start.unsqueeze(-1) if isinstance(start, Tensor) else start)
        weighted = self._weighted(x, frame)
        if mask is not None:
            weighted = weighted.masked_fill(~mask.transpose(1, 2).bool(), 0)
        before = 0 if isinstance(start, Tensor) or not time else start % stride
        lacking = -(before + time) % stride

        def grouped(frames: Tensor) -> Tensor:  # (b, t, size) -> (b, groups, stride, size)
            frames = nn.functional.pad(frames, (0, 0, before, lacking))
            return frames.unflatten(1, (frames.shape[1] // stride, stride))

        tensors = [grouped(weighted).sum(2).to(weighted.dtype)]
        if self.position == "rope":
            tensors.append(grouped(self.linear_k_rope(x))[:, :, 0])
        return MergedCache(tuple(tensors), stride=stride, before=before, lacking=lacking)

    def attend(
        self,
        query: Tensor,
        kv: Any,
        position: Tensor | CachedPosition | None,
        mask: Tensor | None,
        *,
        self_attention: bool = False,
    ) -> Tensor:
        """As in `Attention`.

        Raises:
            ValueError: the frames of kv begin within a group, or the mask differs between queries, which would need
                sums over other frames.
        """
        if kv.before:
            raise ValueError(f"these frames begin after {kv.before} of a group of {self.down_rate}")
        if mask is not None:
            if mask.shape[1] != 1:
                raise ValueError(
                    f"mtla merges frames once for all queries: its mask is (batch, 1, time), not {tuple(mask.shape)}"
                )
            mask = self._of_groups(mask)
        return self._attend_to_groups(query, kv, position, mask)

    def _of_groups(self, mask: Tensor) -> Tensor:
        """A mask (..., t) of frames as one of groups: true where a frame of theirs may be seen."""
        whole = nn.functional.pad(mask.bool(), (0, -mask.shape[-1] % self.down_rate))
        return whole.unflatten(-1, (whole.shape[-1] // self.down_rate, self.down_rate)).any(-1)

    def _attend_to_groups(
        self, query: Tensor, kv: MergedCache, position: Tensor | CachedPosition | None, mask: Tensor | None
    ) -> Tensor:
        """As `attend`, the mask (b, 1 or t_q, groups)."""
        latent, *rotary = kv.values()
        window = (
            latent.shape[1] * kv.stride - kv.before - kv.lacking
        )  # and not len(kv), of which export makes a constant
        places = KeyPlaces(window, torch.arange(latent.shape[1], device=query.device) * kv.stride)
        return self.attend_to_latents(query, latent, rotary, position, mask, places=places)

    def attend_in_chunks(self, x: Tensor, position: Tensor | None, mask: Tensor | None, chunks: Chunks) -> Tensor:
        """As in `Attention`.

        Raises:
            ValueError: a chunk ends within a group.
        """
        if chunks.size % self.down_rate:
            raise ValueError(f"chunk_size ({chunks.size}) must be a multiple of down_rate ({self.down_rate})")
        visible = self._of_groups(chunks.mask(x, mask))
        return self._attend_to_groups(x, self.project_kv(x, mask), position, visible)

    def attend_to_frames(
        self, query: Tensor, x: Tensor, position: Tensor | None, mask: Tensor | None, self_attention: bool
    ) -> Tensor:
        """As in `Attention`.

        A mask (b, t_q, t_k) shows a query of each group its first frames, none, some or all, as causal ones do.
        """
        if mask is None or mask.shape[1] == 1:
            return super().attend_to_frames(query, x, position, mask, self_attention)
        stride, time = self.down_rate, x.shape[1]
        frame = torch.arange(time, device=x.device)
        weighted = nn.functional.pad(self._weighted(x, frame), (0, 0, 0, -time % stride))
        # At each frame the sum over its group up to there. A query sees that of the last frame it may see.
        sums = weighted.unflatten(1, (-1, stride)).cumsum(2).flatten(1, 2)[:, :time]
        next_too = nn.functional.pad(mask[..., 1:].bool(), (0, 1)) & ((frame + 1) % stride != 0)
        first = frame // stride * stride
        rotary = [self.linear_k_rope(x)[:, first]] if self.position == "rope" else []
        return self.attend_to_latents(
            query, sums, rotary, position, mask.bool() & ~next_too, places=KeyPlaces(time, first)
        )

    def forward(self, query: Tensor, key: Any, value: Any, *position_and_mask: Any, expand_kv: bool = False) -> Tensor:
        """As in `Attention`."""
        past = position_and_mask[-1]
        if not isinstance(past, Past):
            return super().forward(query, key, value, *position_and_mask, expand_kv=expand_kv)
        x, shared = (tokens.reshape(len(past.visible), -1, tokens.shape[-1]) for tokens in (key, query))
        new = self._weighted(x, past.length)
        (latent,) = past.append(MergedCache((new,), stride=self.down_rate)).values()
        return self.attend_to_latents(shared, latent, (), None, past.visible).view_as(query)


def _sinusoids(like: Tensor) -> Tensor:
    """Those of PERIOD positions (Vaswani et al. 2017, section 3.5), of the size of the last axis: (PERIOD, size)."""
    table = _table.__wrapped__ if torch.compiler.is_compiling() or type(like) is not Tensor else _table
    return table(like.shape[-1], like.dtype, like.device)


@lru_cache(maxsize=64)  # layers may be of different ranks
def _table(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # training may need them too
        rates = torch.exp(torch.arange(0, size, 2, dtype=torch.float32) * (-math.log(10000.0) / (size + size % 2)))
        angle = torch.arange(PERIOD, dtype=torch.float32).unsqueeze(-1) * rates
        return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :size].to(device, dtype)

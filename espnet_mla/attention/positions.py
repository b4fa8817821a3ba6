"""Where frames stand: rotary positions, and the score term of ESPnet's relative positions.

Positions are counted inside the window that is attended to: its last frame stands at 0, and the queries are its last
frames. Only differences matter, so nothing changes when a stream's old frames are dropped.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

ROPE_BASE = 10000.0


class KeyPlaces(NamedTuple):
    """Where keys stand that are not one for each frame.

    Args:
        window: frames of the window.
        frame: of each key, counted from the window's first, (t_k,), int64.
    """

    window: int
    frame: Tensor


type Rates = tuple[float, ...]
"""Radians by which each pair of a rotary vector turns from one frame to the next."""


def rotary_rates(size: int) -> Rates:
    """Those of a vector of this size (Su et al. 2021, eq. 15): ROPE_BASE^(-2i / size), i from 0 to size / 2 - 1."""
    return tuple(ROPE_BASE ** (-2 * i / size) for i in range(size // 2))


def rotate(x: Tensor, rates: Rates | None = None, places: KeyPlaces | None = None) -> Tensor:
    """Turn each pair (i, i + d/2) of x's last axis by its rotary angle (Su et al. 2021, eq. 34, in halves).

    The last frame stands at 0, the one before it at -1, and so on: queries that are the last frames of a window have
    the positions of its last keys.

    Args:
        x: (..., time, d), d even.
        rates: of the d/2 pairs; None for `rotary_rates(d)`.
        places: where the keys x stand, if not at every frame.
    """
    if places is None:
        return _turn(x, *_cos_sin(1 - x.shape[-2], 1, x, rates))
    return _turn(x, *(table[places.frame] for table in _cos_sin(1 - places.window, 1, x, rates)))


def rotate_back(x: Tensor, frames: int) -> Tensor:
    """x (..., d) turned to so many frames earlier, all of it by the same angles."""
    return _turn(x, *_cos_sin(-frames, 1 - frames, x))


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)  # few kernels for a GPU to launch


def _cos_sin(first: int, end: int, like: Tensor, rates: Rates | None = None) -> tuple[Tensor, Tensor]:
    """Of frames at `first` to before `end`: cosines, and sines with the signs they are multiplied by, (time, d)."""
    # bfloat16 can't tell frame 1000 from frame 1001.
    dtype = torch.promote_types(like.dtype, torch.float32)
    table = _table.__wrapped__ if torch.compiler.is_compiling() or type(like) is not Tensor else _table
    return table(first, end, like.shape[-1], rates, dtype, like.device)


@lru_cache(maxsize=8)  # every layer of a pass needs the same
def _table(
    first: int, end: int, size: int, rates: Rates | None, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # training may need them too
        frequency = torch.tensor(rates or rotary_rates(size), device=device, dtype=dtype)
        angle = torch.arange(first, end, device=device, dtype=dtype).unsqueeze(-1) * frequency  # (time, d / 2)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def relative_shift(product: Tensor, time_k: int, first: int) -> Tensor:
    """Read the score of query i and key j out of the scores of query i and every distance.

    Transformer-XL (Dai et al. 2019, appendix B) pads and reshapes; here row i is row i of `product` read from
    first - i on, which is a view: nothing is copied.

    Args:
        product: (..., time_q, distances), contiguous, the distances descending.
        time_k: the number of keys.
        first: the column of the distance between the first query and the first key.

    Returns:
        (..., time_q, time_k), a view of `product`.
    """
    if product.shape[-2] == 1:
        return product[..., first : first + time_k]
    return product.flatten(-2)[..., first:].unfold(-1, time_k, product.shape[-1] - 1)


class CachedPosition:
    """Sinusoids that are the same for every chunk of every stream, and their projections by the layers' linear_pos.

    Args:
        sinusoids: (1, distances, d).
    """

    def __init__(self, sinusoids: Tensor):
        self.sinusoids = sinusoids
        self._projected: dict[nn.Module, tuple[object, Tensor]] = {}

    def projected(self, linear_pos: nn.Linear) -> Tensor:
        """The sinusoids projected by `linear_pos`, computed again where its weight has changed."""
        weight = linear_pos.weight
        # A quantised weight, or one made in inference mode, does not tell whether it has changed.
        if torch.is_grad_enabled() or not isinstance(weight, Tensor) or weight.is_inference():
            return linear_pos(self.sinusoids)
        version = (weight.data_ptr(), weight._version, weight.dtype)
        cached = self._projected.get(linear_pos)
        if cached is None or cached[0] != version:
            cached = self._projected[linear_pos] = version, linear_pos(self.sinusoids)
        return cached[1]

"""ESPnet's padding mask, made in memory that grows with the frames and not with their square."""

from collections.abc import Callable

import torch
from espnet2.legacy.nets.pytorch_backend import nets_utils
from torch import Tensor


def make_pad_mask(lengths: Tensor, xs: Tensor | None = None, length_dim: int = -1, maxlen: int | None = None) -> Tensor:
    """As ESPnet's function of this name, to the bit.

    ESPnet picks rows of a table of maxlen times maxlen, of which it holds three: at five minutes of speech 2.7 GB, more
    than any attention here takes. What is asked for otherwise than by an encoder is left to it, and so is a graph that
    is being traced.

    Args:
        lengths: real frames of each utterance, (batch,).

    Returns:
        (batch, maxlen), true where there is padding.
    """
    plain = isinstance(lengths, Tensor) and xs is None and length_dim == -1 and maxlen is None
    if not plain or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return _espnets(lengths, xs, length_dim, maxlen)
    return torch.arange(int(lengths.max()), device=lengths.device) >= lengths.unsqueeze(-1)


_espnets: Callable[..., Tensor] = nets_utils.make_pad_mask

"""What must not be done in half precision: angles of thousands of frames, sums over thousands of frames."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """x in float32, or as it is where it has float64."""
    return x if x.dtype == torch.float64 else x.float()

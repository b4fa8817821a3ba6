"""ESPnet's frontend, whose features are computed in float32 where the model is in half precision."""

from collections.abc import Callable
from typing import Self

import torch
from espnet2.asr.frontend.default import DefaultFrontend
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


class Frontend(DefaultFrontend):
    """Spectrogram and log mel filter bank, ESPnet's default.

    The logarithm of silence has no number in float16: ESPnet's least energy, 1e-10, is zero there. So the filters stay
    in float32 when the model is converted, and the features get its precision at the end.
    """

    @property
    def features_dtype(self) -> torch.dtype:
        """The precision of the model, as far as it has been converted."""
        converted = self._buffers.get("_converted")
        return torch.float32 if converted is None else converted.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if "_converted" not in self._buffers:
            self.register_buffer("_converted", torch.zeros(0), persistent=False)

        def apply(x: Tensor) -> Tensor:
            new = fn(x)
            return x.to(new.device).float() if new.dtype in HALF and x is not self._converted else new

        return super()._apply(apply, recurse)

    def forward(self, input: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (batch, time) and their lengths -> features (batch, frames, n_mels) and theirs."""
        input = input.float() if input.dtype in HALF else input
        features, lengths = super().forward(input, input_lengths)
        return (features.to(self.features_dtype) if self.features_dtype in HALF else features), lengths


FRONTENDS = {"default": Frontend}

"""A model's encoder as a function without arguments, so that it can be run apart from what makes its features."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class _Seen(Exception):
    """What the encoder was called with."""


def encoder_of(model: nn.Module, samples: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """What runs the encoder alone, on the features of samples (time,), which are made once.

    ESPnet's features take longer and more memory than a small encoder, and would hide what the attention costs.
    """

    def stop(_: nn.Module, inputs: tuple, named: dict) -> None:
        raise _Seen(inputs, named)

    handle = model.encoder.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.inference_mode():
            model.encode(samples.unsqueeze(0), torch.tensor([len(samples)], device=samples.device))
    except _Seen as seen:
        inputs, named = seen.args
    finally:
        handle.remove()

    def run() -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return model.encoder(*inputs, **named)

    return run

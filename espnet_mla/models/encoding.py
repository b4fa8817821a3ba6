"""A model's encoder as a function without arguments, which can be timed apart from feature extraction."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from espnet2.asr.espnet_model import ESPnetASRModel


class _EncoderCalled(Exception):
    """Carries the arguments that the encoder was called with."""


def encoder_of(model: "ESPnetASRModel", samples: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """A function that runs the encoder alone, on features extracted once from samples (time,).

    ESPnet's feature extraction takes longer and more memory than a small encoder and would hide the attention's cost.
    """

    def stop(_: nn.Module, inputs: tuple, named: dict) -> None:
        raise _EncoderCalled(inputs, named)

    handle = model.encoder.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.inference_mode():
            model.encode(samples.unsqueeze(0), torch.tensor([len(samples)], device=samples.device))
    except _EncoderCalled as call:
        inputs, named = call.args
    finally:
        handle.remove()

    def run() -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return model.encoder(*inputs, **named)

    return run

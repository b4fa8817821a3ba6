"""Features are those of float32, whatever the precision of the model is."""

import copy
import pickle

import pytest
import torch
from espnet2.asr.frontend.default import DefaultFrontend

from espnet_mla.models.frontend import FRONTENDS, HALF, Frontend


def speech():
    """Noise, then digital silence, whose logarithm is the least there is."""
    torch.manual_seed(0)
    samples = 0.1 * torch.randn(2, 8000)
    samples[:, 4000:] = 0
    return samples.half().float(), torch.tensor([8000, 6000])


@pytest.mark.parametrize("dtype", HALF)
def test_features_in_half_precision_are_those_of_float32_rounded(dtype):
    frontend, (samples, lengths) = Frontend(), speech()
    expected, frames = DefaultFrontend()(samples, lengths)
    features, counts = frontend.to(dtype)(samples.half(), lengths)
    assert features.dtype == dtype and torch.isfinite(features).all() and torch.equal(counts, frames)
    torch.testing.assert_close(features, expected.to(dtype))


@pytest.mark.parametrize(
    "convert",
    [
        lambda frontend: frontend.half().to("cpu"),
        lambda frontend: copy.deepcopy(frontend.half()),
        lambda frontend: pickle.loads(pickle.dumps(frontend.half())),
        lambda frontend: frontend.double().half(),
    ],
)
def test_a_model_keeps_its_precision_when_it_is_moved_or_copied(convert):
    assert convert(Frontend())(*speech())[0].dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_other_precisions_it_is_espnets_to_the_bit(dtype):
    samples, lengths = speech()
    for frontend in (Frontend(), Frontend().half()):
        ours, theirs = frontend.to(dtype), DefaultFrontend().to(dtype)
        assert torch.equal(ours(samples.to(dtype), lengths)[0], theirs(samples.to(dtype), lengths)[0])


def test_it_adds_no_parameter_and_no_buffer_to_a_checkpoint():
    frontend = Frontend().half()
    assert frontend.state_dict().keys() == DefaultFrontend().state_dict().keys()
    assert not list(frontend.parameters())


def test_the_plugin_puts_it_behind_espnets_name():
    from espnet2.tasks.asr import frontend_choices

    import espnet_mla

    espnet_mla.register()
    assert frontend_choices.classes["default"] is FRONTENDS["default"] is Frontend

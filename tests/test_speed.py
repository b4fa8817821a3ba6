"""How times are taken."""

import time

import pytest
import torch
from test_figures import model

from espnet_mla.measure import speed
from espnet_mla.models.encoding import encoder_of


def test_speech_of_a_length_is_the_utterances_one_after_the_other():
    first, second = torch.arange(3.0), torch.arange(10.0, 12.0)
    assert speed.speech_of_length([first, second], 7).tolist() == [0, 1, 2, 10, 11, 0, 1]
    assert speed.speech_of_length([first, second], 2).tolist() == [0, 1]


def test_seconds_are_the_median_of_runs_and_their_spread_is_told(monkeypatch):
    now, pauses = [0.0], iter([0.03, 0.01, 0.02] + [0.02] * 7)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    found = speed.measure_time(lambda: now.append(now.pop() + next(pauses)), "cpu", 2.0)
    assert found["runs"] == 10
    assert [found[name] for name in ("least", "seconds", "most")] == pytest.approx([0.01, 0.02, 0.03])
    assert found["real_time_factor"] == found["seconds"] / 2.0


@pytest.mark.parametrize(("seconds", "runs"), [(0.001, 10), (0.9, 3), (12.0, 2)])
def test_what_takes_long_is_timed_less_often(monkeypatch, seconds, runs):
    clock = iter(n * seconds for n in range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert speed.measure_time(lambda: None, "cpu", 1.0)["runs"] == runs


def test_the_encoder_runs_alone_and_gives_what_it_gives_within_the_model():
    built = model("mla", {"kv_lora_rank": 6})
    samples = torch.rand(16000, generator=torch.Generator().manual_seed(0)) - 0.5
    run = encoder_of(built, samples)
    calls = []
    handle = built.frontend.register_forward_hook(lambda *_: calls.append("features"))
    with torch.inference_mode():
        out = run()
        assert calls == []  # made before
        wanted, _ = built.encode(samples.unsqueeze(0), torch.tensor([len(samples)]))
    handle.remove()
    torch.testing.assert_close(out[0], wanted)
    assert not built.encoder._forward_pre_hooks

"""Peak memory, of processes of their own."""

import os
import subprocess
import sys

import pytest

from espnet_mla.measure import memory

linux = pytest.mark.skipif(not memory.measurable("cpu"), reason="the peak of a process can only be had on Linux")


def in_a_process(code: str) -> str:
    command = [sys.executable, "-c", f"from espnet_mla.measure import memory\nimport torch\n{code}"]
    environment = {**os.environ, **memory.ENVIRONMENT}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@linux
def test_the_peak_is_what_was_held_at_once_and_nothing_that_was_there_before():
    code = """
before = torch.ones(100_000_000 // 4)                    # weights
torch.ones(400_000_000 // 4); torch.ones(50_000).sum()   # a higher peak, forgotten
def run(megabytes):
    for _ in range(3):
        torch.ones(megabytes * 1_000_000 // 4)           # one at a time
for megabytes in (200, 20, 200):
    print(memory.on_cpu(lambda: run(megabytes)))
"""
    assert [int(line) for line in in_a_process(code).splitlines()] == pytest.approx([200e6, 20e6, 200e6], rel=0.05)


@linux
@pytest.mark.slow
def test_more_speech_takes_more(recipe, monkeypatch):
    import espnet_mla
    from espnet_mla.trained.model import find

    monkeypatch.chdir(recipe)
    espnet_mla.register()
    source = find(None, "exp/asr_tiny/valid.acc.ave.pth", None)
    found = memory.peaks(source, [5, 60.0], "cpu", "float32")
    assert list(found) == ["5", "60"] and 0 < found["5"]["encoder"] < found["60"]["encoder"]
    assert found["60"]["features"] > 60 * 16000 * 4


def test_a_failing_process_is_reported(recipe, tmp_path, monkeypatch):
    from espnet_mla.common.errors import UserError
    from espnet_mla.trained.model import find

    monkeypatch.chdir(recipe)
    source = find(None, "exp/asr_tiny/valid.acc.ave.pth", None)
    with pytest.raises(UserError, match=r"measuring the memory for 1 s of speech failed: .*(CUDA|NVIDIA|device)"):
        memory.peaks(source, [1.0], "cuda:99", "float32")


def test_a_gpu_has_a_counter_and_a_cpu_only_where_linux_tells(monkeypatch):
    assert memory.measurable("cuda")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert not memory.measurable("cpu")

"""What a GPU would compute is what the CPU computes, and how: tests/on_device.py on a simulated device."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOME = (
    "(mla and rel_pos and (conformer or 8-18) and not branchformer and not (steps and dtype1) and not 6-dtype1 "
    "and not 6-dtype2) "
    "or search or kernel and 37 or transcribed or text"
)


def on_simulated_device(*arguments: str) -> str:
    """In a process of its own, which has no other device."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--device", "simulated"]
    done = subprocess.run([*command, *arguments, HERE / "on_device.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_a_device_computes_is_what_the_cpu_computes():
    assert " passed" in on_simulated_device("-k", SOME)


@pytest.mark.slow
def test_that_holds_for_every_choice_position_and_encoder():
    assert " passed" in on_simulated_device()

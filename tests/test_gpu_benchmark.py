"""benchmarks/gpu.py runs from end to end, if only on a CPU and on tiny cases."""

import subprocess
import sys

import pytest
from recipes import ROOT


@pytest.mark.slow
def test_every_part_leaves_its_table(tmp_path):
    made = tmp_path / "gpu.md"
    command = [sys.executable, "gpu.py", "--device", "cpu", "--quick", "--output", made]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = made.read_text()
    for part in ("pytest tests/on_device.py", "Beam search", "Streams", "A training step", "Kernels", "conformer, 12"):
        assert part in table

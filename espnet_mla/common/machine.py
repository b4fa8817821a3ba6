"""What this machine has and is called, for jobs, logs and figures."""

import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Cores that this process may use."""


def processor() -> str:
    """The processor's name, as /proc/cpuinfo or else Python has it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""What there is where a driver of NVIDIA's or AMD's GPUs is."""
_PYTORCH = "import torch; [print(torch.cuda.get_device_name(n)) for n in range(torch.cuda.device_count())]"


@cache
def gpus() -> tuple[str, ...]:
    """The name of each GPU, as nvidia-smi has it; where that is missing, as in many containers, as PyTorch has it."""
    if names := _lines("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"):
        return names
    if not any(driver.exists() for driver in DRIVERS):
        return ()
    return _lines(sys.executable, "-c", _PYTORCH)  # in another process: one that has initialised CUDA must not fork


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that a program sees, by their names for CUDA_VISIBLE_DEVICES."""
    names = tuple(str(number) for number in range(len(gpus())))
    if names and (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = tuple(name.strip() for name in chosen.split(",") if name.strip())
    return names


def _lines(*command: str) -> tuple[str, ...]:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ()
    return tuple(line.strip() for line in answer.splitlines() if line.strip())

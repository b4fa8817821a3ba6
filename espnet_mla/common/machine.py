"""What this machine has and is called, for jobs, logs and figures."""

import os
import platform
import re
import subprocess
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


def gpus() -> list[str]:
    """The name of each GPU, as nvidia-smi has it; none where that is missing."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [name.strip() for name in answer.splitlines() if name.strip()]

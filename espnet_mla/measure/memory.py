"""Peak memory of an encoder above the weights, measured in a fresh process for each length of speech."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from espnet_mla import register
from espnet_mla.common.errors import UserError
from espnet_mla.common.machine import CORES
from espnet_mla.common.processes import die_with_parent
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.models.encoding import DEFAULT_PROMPT, Prompt, encoder_of
from espnet_mla.trained.model import Source

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",  # waiting threads must not keep a core from the other processes
    # The C library then returns freed memory at once, so that the peak is what was in use, and reproducible.
    "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
}  # fmt: skip
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measurable(device: str) -> bool:
    """Whether the peak can be measured: CUDA counts it on a GPU, Linux counts it for a process."""
    return device.startswith("cuda") or os.access(CLEAR_REFS, os.W_OK)


def peaks(
    source: Source, lengths: Sequence[float], device: str, dtype: str, prompt: Prompt = DEFAULT_PROMPT
) -> dict[str, dict[str, int]]:
    """The peak memory of encoding one utterance, in bytes above what was allocated before, weights included.

    Args:
        source: the model.
        lengths: of the utterance, in seconds; each is measured in a separate process, because memory cached by an
            allocator would hide the next peak.
        device: PyTorch's name; on a GPU CUDA's counter is read, on a CPU the resident memory of the process.
        dtype: PyTorch's name.
        prompt: for a model that takes one.

    Returns:
        Length, as `length_name` writes it -> bytes of `features`, while ESPnet extracts them, and of the `encoder`
        afterwards.

    Raises:
        UserError: a process failed; the message ends with its last line.
    """
    files = {name: str(getattr(source, name).absolute()) for name in ("config_file", "model_file", "root")}

    def measure(length: float) -> dict[str, int]:
        arguments = json.dumps({**files, "seconds": length, "device": device, "dtype": dtype, "prompt": vars(prompt)})
        done = subprocess.run(
            [sys.executable, "-m", "espnet_mla.measure.memory", arguments], capture_output=True, text=True, check=False,
            preexec_fn=partial(die_with_parent, os.getpid()),
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **ENVIRONMENT},
        )  # fmt: skip
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise UserError(f"measuring the memory for {length_name(length)} s of speech failed: {lines[-1]}")
        return json.loads(done.stdout.splitlines()[-1])

    # In parallel on a CPU; the memory of a GPU might not be enough for all.
    with ThreadPoolExecutor(1 if device.startswith("cuda") else CORES) as pool:
        return dict(zip(map(length_name, lengths), pool.map(measure, lengths), strict=True))


def length_name(seconds: float) -> str:
    """A length as figures.json writes it: `10`, `2.5`."""
    return f"{seconds:g}"


def _peak(
    *, config_file: str, model_file: str, root: str, seconds: float, device: str, dtype: str, prompt: dict[str, str]
) -> dict[str, int]:
    """The bytes of one length, in a process that `peaks` has started."""
    register()
    source = Source(read_mapping(Path(config_file)), Path(config_file), Path(model_file), Path(root), packed=False)
    model, _ = source.load()
    model = model.to(device=device, dtype=getattr(torch, dtype))
    noise = torch.rand(round(seconds * source.fs)).to(device=device, dtype=getattr(torch, dtype)) - 0.5
    listening = partial(encoder_of, model, prompt=Prompt(**prompt))
    listening(noise[: source.fs])()  # allocates what is kept for later calls
    peak = partial(_on_gpu, device) if device.startswith("cuda") else on_cpu
    run: list[Callable[[], object]] = []
    features = peak(lambda: run.append(listening(source.heard(noise))))
    return {"features": features, "encoder": peak(run[0])}


def _on_gpu(device: str, run: Callable[[], object]) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def on_cpu(run: Callable[[], object]) -> int:
    """The peak of this process's resident memory while `run` is called, in bytes above what it was before."""
    # Memory that the C library keeps for reuse would not be counted; glibc can return it.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    CLEAR_REFS.write_text("5")  # Linux resets the peak
    before = _bytes("VmRSS")
    run()
    return _bytes("VmHWM") - before


def _bytes(field: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    print(json.dumps(_peak(**json.loads(sys.argv[1]))))

"""ESPnet's attention and ours, side by side: time and memory of one layer and of whole encoders, as ratios.

    python benchmarks/attention.py [--device cuda] [--only layer] [--cases 1x30 8x15] [--rounds 7] [--output x.json]

Everything is measured in one run: the subjects take turns, round by round, and a figure is the median of its rounds. On
a GPU it is bfloat16 autocast, on a CPU float32. Memory is what a forward or a training step needs at its peak above
the module and its input: on a CPU the resident set of a process forked for it, on a GPU the allocator's own count.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from espnet_mla.common.machine import processor

FRAMES_PER_SECOND = 25  # what 4-fold subsampling leaves of 100
D_MODEL, HEADS = 256, 4
LEAST_SECONDS = 30.0  # short steps are repeated for so long, since a busy machine makes single ones vary by half
CASES = ((1, 10), (1, 30), (8, 15), (1, 120))  # (batch, seconds)
BASELINE, BASELINE_SDPA = "espnet", "espnet use_sdpa"
OURS = {  # name -> (choice, position, attention_conf)
    "mha rel_pos": ("mha", "rel_pos", {}),
    "gqa rel_pos": ("gqa", "rel_pos", {"num_kv_heads": 1}),
    "mla rel_pos": ("mla", "rel_pos", {"kv_lora_rank": 64}),
    "mla rope": ("mla", "rope", {"kv_lora_rank": 64}),
    "linear rope": ("linear", "rope", {}),
}
SUBJECTS = (BASELINE, BASELINE_SDPA, *OURS)
ENCODERS = {
    "conformer": {"linear_units": 1024, "macaron_style": True, "rel_pos_type": "latest"},
    "branchformer": {"cgmlp_linear_units": 2048, "rel_pos_type": "latest"},
}


@dataclass
class Task:
    """One subject in one case: `run` performs it; `parameters` are what training has gradients of."""

    run: Callable[[], Tensor]
    module: nn.Module


def mask_for(batch: int, time_: int, device: str) -> tuple[Tensor, Tensor]:
    """Lengths and mask (batch, 1, time); in a batch of 8 a quarter of all frames is padding."""
    shortest = time_ if batch == 1 else time_ // 2
    lengths = torch.linspace(time_, shortest, batch).long().to(device)
    return lengths, (torch.arange(time_, device=device) < lengths[:, None])[:, None]


def layer_task(subject: str, batch: int, seconds: int, device: str) -> Task:
    """One attention layer with its position term."""
    from espnet2.legacy.nets.pytorch_backend.transformer import attention as espnet
    from espnet2.legacy.nets.pytorch_backend.transformer.embedding import RelPositionalEncoding

    from espnet_mla.attention import build_attention

    time_ = seconds * FRAMES_PER_SECOND
    position = "rel_pos"
    if subject in OURS:
        kind, position, conf = OURS[subject]
        module = build_attention(kind, conf, d_model=D_MODEL, num_heads=HEADS, position=position, dropout_rate=0.0)
    else:
        sdpa = subject == BASELINE_SDPA
        module = espnet.RelPositionMultiHeadedAttention(HEADS, D_MODEL, 0.0, use_sdpa=sdpa)
    module = module.to(device)
    x = torch.randn(batch, time_, D_MODEL, device=device)
    _, mask = mask_for(batch, time_, device)
    positions = [RelPositionalEncoding(D_MODEL, 0.0)(x)[1]] if position == "rel_pos" else []
    return Task(lambda: module(x, x, x, *positions, mask), module)


def encoder_task(architecture: str) -> Callable[[str, int, int, str], Task]:
    """The whole 12-block encoder, from features on; no dropout, which would be the same for all."""

    def task(subject: str, batch: int, seconds: int, device: str) -> Task:
        from espnet_mla.models.encoders import ENCODERS as CLASSES

        encoder_class = CLASSES[architecture]
        conf = {"use_sdpa": subject == BASELINE_SDPA}
        if subject in OURS:
            kind, position, attention_conf = OURS[subject]
            conf = {
                encoder_class.attention_key: kind,
                "pos_enc_layer_type": position,
                "attention_conf": attention_conf,
            }
        rates = dict.fromkeys(("dropout_rate", "positional_dropout_rate", "attention_dropout_rate"), 0.0)
        encoder = encoder_class(
            80, output_size=D_MODEL, attention_heads=HEADS, num_blocks=12, **rates, **ENCODERS[architecture], **conf
        ).to(device)
        x = torch.randn(batch, seconds * 100, 80, device=device)
        lengths, _ = mask_for(batch, seconds * 100, device)
        return Task(lambda: encoder(x, lengths)[0], encoder)

    return task


def forward(task: Task) -> None:
    """A forward in eval mode."""
    with torch.no_grad():
        task.run()


def training_step(task: Task) -> None:
    """A forward and a backward."""
    for parameter in task.module.parameters():
        parameter.grad = None
    task.run().float().square().mean().backward()


STEPS = {"forward": forward, "training step": training_step}


def with_precision(step: Callable[[Task], None], device: str) -> Callable[[Task], None]:
    """The step under bfloat16 autocast on a GPU."""

    def run(task: Task) -> None:
        task.module.train(step is training_step)
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            step(task)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def peak_memory(make: Callable[[], Task], step: Callable[[Task], None], device: str) -> int:
    """Bytes that `step` needs at its peak above what is there before it."""
    if device == "cuda":
        task = make()
        step(task)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(task)
        return torch.cuda.max_memory_allocated() - before
    reader, writer = os.pipe()
    if os.fork() == 0:  # a process of its own: memory that an allocator holds back would hide the next peak
        task = make()
        before = _status("VmRSS")
        step(task)
        os.write(writer, str(_status("VmHWM") - before).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        peak = int(answer.read())
    os.wait()
    return peak


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measure_memory(make_task, cases, device: str, results: dict) -> None:
    """Fill results[case][subject]["peak memory"], in bytes, of a training step."""
    for batch, seconds in cases:
        for subject in SUBJECTS:
            peak = peak_memory(
                partial(make_task, subject, batch, seconds, device),
                with_precision(training_step, device),
                device,
            )
            results.setdefault(f"{batch}x{seconds}", {}).setdefault(subject, {})["peak memory"] = peak


def measure_time(
    make_task, cases, device: str, rounds: int, results: dict, least_seconds: float = LEAST_SECONDS
) -> None:
    """Fill results[case][subject][step], in seconds: the subjects take turns. On a GPU also what else is measured."""
    for batch, seconds in cases:
        case = results.setdefault(f"{batch}x{seconds}", {})
        tasks = {subject: make_task(subject, batch, seconds, device) for subject in SUBJECTS}
        if device == "cuda":
            for subject, task in tasks.items():
                step = with_precision(training_step, device)
                case[subject] = {"peak memory": peak_memory(lambda task=task: task, step, device)}
                case[subject]["its kernels"] = kernel_seconds(task)
        for name, step in STEPS.items():
            run = with_precision(step, device)
            repeats = 2 if device == "cuda" else 1
            taken: dict[str, list[float]] = {subject: [] for subject in SUBJECTS}
            deadline = time.perf_counter() + least_seconds
            number = 0
            while number <= rounds or time.perf_counter() < deadline:
                for subject, task in tasks.items():
                    gc.collect()
                    if device == "cuda":  # collecting garbage empties the caches that launching kernels lives on
                        run(task)
                    began = time.perf_counter()
                    for _ in range(repeats):
                        run(task)
                    if number:  # the first round warms up
                        taken[subject].append((time.perf_counter() - began) / repeats)
                    for parameter in task.module.parameters():
                        parameter.grad = None
                number += 1
            for subject, values in taken.items():
                case.setdefault(subject, {})[name] = statistics.median(values)


def kernel_seconds(task: Task) -> float:
    """How long a GPU computes in a training step; the rest of its time it waits for a CPU to launch kernels."""
    from torch.profiler import ProfilerActivity, profile

    run = with_precision(training_step, "cuda")
    run(task)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run(task)
    return sum(event.self_device_time_total for event in profiled.key_averages()) / 1e6


def table(title: str, results: dict) -> str:
    """Ratios to ESPnet's default, and for the time also to the faster of ESPnet's two."""
    measured = next(iter(next(iter(results.values())).values()))
    columns = [name for name in ("forward", "training step", "its kernels", "peak memory") if name in measured]
    lines = [f"### {title}", "", "| batch x seconds | | " + " | ".join(columns) + " |"]
    lines.append("| --- " * (2 + len(columns)) + "|")
    for case, subjects in results.items():
        for subject, figures in subjects.items():
            cells = []
            for column in columns:
                ratio = f"{figures[column] / subjects[BASELINE][column]:.2f}"
                if column != "peak memory" and subject in OURS:
                    faster = min(subjects[BASELINE][column], subjects[BASELINE_SDPA][column])
                    ratio += f" ({figures[column] / faster:.2f})"
                if subject == BASELINE:
                    ratio += (
                        f" = {figures[column] / 1e6:.0f} MB"
                        if column == "peak memory"
                        else (f" = {figures[column] * 1e3:.1f} ms")
                    )
                cells.append(ratio)
            lines.append(f"| {case} | {subject} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine(device: str) -> str:
    """What the figures are from."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    precision = "bfloat16 autocast" if device == "cuda" else "float32"
    return (
        f"{name}, {torch.get_num_threads()} threads, {precision}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=("layer", *ENCODERS), nargs="+", default=["layer", *ENCODERS])
    parser.add_argument("--cases", nargs="+", default=[f"{batch}x{seconds}" for batch, seconds in CASES])
    parser.add_argument("--rounds", type=int, default=7, help="at least (default: %(default)s)")
    parser.add_argument("--no_memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    cases = [tuple(map(int, case.split("x"))) for case in options.cases]
    torch.manual_seed(0)
    makers = {"layer": layer_task, **{name: encoder_task(name) for name in ENCODERS}}
    results: dict[str, dict] = {name: {} for name in options.only}
    import espnet_mla.models.encoders  # noqa: F401  (before any process is forked)

    if options.device == "cpu" and not options.no_memory:
        for name, found in results.items():  # all of it first: a process that has computed is no good parent
            measure_memory(makers[name], cases, options.device, found)
    print(machine(options.device), flush=True)
    for name, found in results.items():
        measure_time(makers[name], cases, options.device, options.rounds, found)
        print("\n" + table("One attention layer" if name == "layer" else f"{name}, 12 blocks", found), flush=True)
    if options.output:
        options.output.write_text(json.dumps({"machine": machine(options.device), "figures": results}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

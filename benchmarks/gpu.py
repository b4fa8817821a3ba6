"""What a GPU makes of the package, in one command: whether it is right there, how fast, and what memory it takes.

    python benchmarks/gpu.py [--output gpu.md] [--only checks layers ...]
    python benchmarks/gpu.py --device cpu --quick     # every part, on tiny cases

First tests/on_device.py compares the GPU with the CPU. Then beam search of one utterance and of batches, by turns with
ESPnet's own; streams that are held in real time; a training step of each configuration of conf/ with a full batch of
its own batch_bins, with the hours that its max_epoch of LibriSpeech-100 would take at that pace; and, by turns with
ESPnet's own, an attention layer and whole encoders. Time is of bfloat16 autocast, as ESPnet trains, but for decoding
and streams, which are of float32. ESPnet's flash attention takes no relative positions, and has no row.
"""

import argparse
import contextlib
import gc
import io
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import attention
import decoding
import streaming
import torch
import yaml
from measuring import CONF

ROOT = Path(__file__).parents[1]
FS = 16000
SPEECH = 100.59 * 3600 * (1 / 0.9 + 1 + 1 / 1.1)  # seconds of train-clean-100 at the recipe's three speeds
MEAN, LONGEST = 12.7, 24.5 / 0.9  # seconds of its utterances
TOKENS_A_SECOND = 4
STEPS = 5


@dataclass(frozen=True)
class Sizes:
    """How much each part measures."""

    layers: tuple[str, ...]
    rounds: int
    seconds: float
    decoding: tuple[str, ...]
    decoding_rounds: int
    streams: tuple[int, ...]
    confs: tuple[str, ...]
    batch_bins: int | None
    checks: tuple[str, ...] = ()


ARCHITECTURES = ("conformer", "branchformer", "e_branchformer")
FULL = Sizes(
    layers=("8x15", "40x15", "1x120"),
    rounds=3,
    seconds=0.0,
    decoding=("20x25x100", "20x8*10x40", "20x32*10x40"),
    decoding_rounds=2,
    streams=(1, 8, 32, 64, 128, 256),
    confs=tuple(f"{name}_{kind}" for name in ARCHITECTURES for kind in ("mha", "gqa", "mla", "linear")),
    batch_bins=None,  # of each configuration
    checks=("-n", "12"),
)
QUICK = Sizes(
    layers=("1x2",),
    rounds=1,
    seconds=0.0,
    decoding=("2x2x3", "2x2*2x3"),
    decoding_rounds=1,
    streams=(1, 2),
    confs=("conformer_mla",),
    batch_bins=100_000,
    checks=("-k", "mla and rel_pos and conformer"),
)


def checks(sizes: Sizes, device: str) -> bool:
    """Print how many tests of tests/on_device.py pass on the device."""
    command = [sys.executable, "-m", "pytest", "-q", ROOT / "tests" / "on_device.py", "--device", device, *sizes.checks]
    command += ["-p", "no:cacheprovider", "-W", "ignore"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    print("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))), file=sys.stderr)
    print(f"\n`pytest tests/on_device.py --device {device}`: {lines[-1] if lines else done.stderr}")
    return not done.returncode


def layers(sizes: Sizes, device: str) -> None:
    """Print the tables of attention.py."""
    cases = [tuple(map(int, case.split("x"))) for case in sizes.layers]
    makers = {"layer": attention.layer_task, **{n: attention.encoder_task(n) for n in attention.ENCODERS}}
    for name, make in makers.items():
        found: dict[str, dict] = {}
        attention.measure_time(make, cases, device, sizes.rounds, found, sizes.seconds)
        title = "One attention layer" if name == "layer" else f"{name}, 12 blocks"
        print("\n" + attention.table(title, found), flush=True)
        release(device)


def kernels(sizes: Sizes, device: str) -> None:
    """Print which kernels compute the attention of a training step, and of a step with a padded batch."""
    from torch.profiler import ProfilerActivity, profile

    known = ("fmha", "flash", "cudnn", "softmax")
    print("\n### Kernels of a layer's training step\n\n| attention | batch x seconds | kernels |\n| --- | --- | --- |")
    for case in sizes.layers:
        for subject in attention.SUBJECTS:
            task = attention.layer_task(subject, *map(int, case.split("x")), device)
            step = attention.with_precision(attention.training_step, device)
            step(task)
            with profile(activities=[ProfilerActivity.CUDA if device != "cpu" else ProfilerActivity.CPU]) as profiled:
                step(task)
            names = {event.key.split("(")[0][:60] for event in profiled.key_averages()}
            found = sorted(name for name in names if any(part in name.lower() for part in known))
            print(f"| {subject} | {case} | {', '.join(found)} |", flush=True)
    release(device)


def searches(sizes: Sizes, device: str) -> None:
    """Print the table of decoding.py."""
    print(f"\n### Beam search, float32\n\n{decoding.HEAD}", flush=True)
    decoding.measure(decoding.SHAPES["conformer"], list(sizes.decoding), sizes.decoding_rounds, device)


def streams(sizes: Sizes, device: str) -> None:
    """Print how many streams run in real time."""
    with tempfile.TemporaryDirectory() as scratch:
        model = streaming.loaded(Path(scratch), "conformer_mla_streaming", device=device)
        print("\n### Streams of conformer_mla_streaming, float32, features and CTC search included", flush=True)
        streaming.held(model, sizes.streams, turns=12, warm=4)


def training(sizes: Sizes, device: str) -> None:
    """Print a training step of each configuration, and of ESPnet's attention in the same encoder."""
    print("\n### A training step with a full batch, bfloat16 autocast\n")
    print("| configuration | parameters | batch | step | peak memory, longest utterances | hours of LibriSpeech-100 |")
    print("| --- " * 6 + "|")
    for name in sizes.confs:
        config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
        architecture, kind = name.rsplit("_", 1)
        if kind == "mha" or len(sizes.confs) == 1:
            print(training_row(f"{architecture}, ESPnet's attention", espnets(config), sizes, device), flush=True)
        print(training_row(name, config, sizes, device), flush=True)


def espnets(config: dict) -> dict:
    """The configuration with ESPnet's own attention."""
    conf = {key: value for key, value in config["encoder_conf"].items() if key != "attention_conf"}
    for key in ("selfattention_layer_type", "attention_layer_type"):
        if key in conf:
            conf[key] = "rel_selfattn"
    return config | {"encoder_conf": conf | {"pos_enc_layer_type": "rel_pos", "rel_pos_type": "latest"}}


def training_row(name: str, config: dict, sizes: Sizes, device: str) -> str:
    """Of one configuration."""
    bins = sizes.batch_bins or config["batch_bins"]
    with tempfile.TemporaryDirectory() as scratch:
        model = asr_model(config, Path(scratch)).to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-5)
    seconds, shape, peak = 0.0, "", 0
    for length in (LONGEST, MEAN):
        batch = batch_of(bins, length, device)
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(list(steps(model, optimiser, batch, device))[1:])
        shape = f"{len(batch['speech'])} x {length:.1f} s"
        if device != "cpu":
            peak = max(peak, torch.cuda.max_memory_allocated())
    hours = seconds * SPEECH * FS / bins * config["max_epoch"] / 3600
    parameters = sum(parameter.numel() for parameter in model.parameters())
    del model, optimiser
    release(device)
    memory = f"{peak / 2**30:.1f} GiB" if peak else ""
    return f"| {name} | {parameters / 1e6:.1f} M | {shape} | {seconds:.3f} s | {memory} | {hours:.1f} |"


def steps(model: torch.nn.Module, optimiser: torch.optim.Optimizer, batch: dict, device: str) -> Iterator[float]:
    """Seconds of each of some training steps."""
    scaler = torch.amp.GradScaler(device)
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = model(**batch)[0]
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        if device != "cpu":
            torch.cuda.synchronize()
        yield time.perf_counter() - began


def asr_model(config: dict, scratch: Path) -> torch.nn.Module:
    """ESPnet's model of a configuration, with 5,000 tokens."""
    from espnet2.tasks.asr import ASRTask

    tokens = ["<blank>", "<unk>", *(f"t{number}" for number in range(4997)), "<sos/eos>"]
    (scratch / "tokens.txt").write_text("\n".join(tokens) + "\n")
    (scratch / "config.yaml").write_text(yaml.safe_dump(config))
    given = ["--config", scratch / "config.yaml", "--output_dir", scratch, "--token_list", scratch / "tokens.txt"]
    options = ["--token_type", "word", "--normalize", "utterance_mvn", "--frontend_conf", "fs=16k"]
    return ASRTask.build_model(ASRTask.get_parser().parse_args([*map(str, given), *options]))


def batch_of(bins: int, seconds: float, device: str) -> dict[str, torch.Tensor]:
    """As many utterances of noise as ESPnet's batches of `numel` have."""
    torch.manual_seed(0)
    samples, tokens = round(seconds * FS), round(seconds * TOKENS_A_SECOND)
    utterances = max(2, int(bins / (samples + tokens)))
    batch = {
        "speech": 0.1 * torch.randn(utterances, samples),
        "speech_lengths": torch.linspace(samples, 0.95 * samples, utterances).long(),  # of a sorted corpus
        "text": torch.randint(2, 4999, (utterances, tokens)),
        "text_lengths": torch.full((utterances,), tokens),
    }
    return {key: value.to(device) for key, value in batch.items()}


def release(device: str) -> None:
    """Give memory back, so that the next figure is its own."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


PARTS: dict[str, Callable[[Sizes, str], bool | None]] = {
    "checks": checks,
    "decoding": searches,
    "streams": streams,
    "training": training,
    "kernels": kernels,
    "layers": layers,
}


class Tee(io.TextIOBase):
    """Writes to the screen, and keeps what was written."""

    def __init__(self) -> None:
        self.screen, self.kept = sys.stdout, io.StringIO()

    def write(self, text: str) -> int:
        self.screen.write(text)
        self.screen.flush()
        return self.kept.write(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny cases, to see that every part runs")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--output", type=Path, help="write the tables as Markdown")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    import espnet_mla

    espnet_mla.register()
    written, failed = Tee(), []
    with contextlib.redirect_stdout(written):
        print(f"## {attention.machine(options.device)}")
        for name in options.only:
            began = time.perf_counter()
            try:
                if PARTS[name](QUICK if options.quick else FULL, options.device) is False:
                    failed.append(name)
            except Exception:  # the other parts are worth having
                failed.append(name)
                traceback.print_exc()
            print(f"\n({name}: {time.perf_counter() - began:.0f} s)", flush=True)
    if options.output:
        options.output.write_text(written.kept.getvalue())
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())

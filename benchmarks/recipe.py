"""How long data preparation takes with the built-in engine, and what memory it needs.

    python benchmarks/recipe.py --speech DIR       # a folder that holds LibriSpeech/: stages 1 to 5 and 10
    python benchmarks/recipe.py --sizes 3000 30000 # generated corpora of so many training utterances: stages 1, 4 and 5

A generated corpus has LibriSpeech's folders, 51 utterances to a chapter as train-clean-100, texts of random words, and
the same few short recordings again and again. Memory is the largest process's peak.
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import batched
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "egs2" / "librispeech_100" / "asr1"
CHAPTER, RECORDINGS, FS = 51, 50, 16000
OTHERS = ("dev-clean", "dev-other", "test-clean", "test-other")
OPTIONS = ("--ngpu", "0", "--gpu_inference", "false", "--asr_config", "conf/branchformer_mla.yaml")


def recipe_folder(folder: Path) -> Path:
    """A recipe's folder of its own."""
    folder.mkdir()
    for name in ("run.sh", "asr.sh", "path.sh", "cmd.sh", "db.sh", "local", "conf"):
        (folder / name).symlink_to(RECIPE / name)
    return folder


def perform(folder: Path, corpus: Path, first: int, last: int, *options: str) -> float:
    """Seconds for some stages."""
    environment = {**os.environ, "LIBRISPEECH": str(corpus.absolute())}
    environment.pop("ESPNET_ROOT", None)
    command = [str(folder / "run.sh"), *OPTIONS, *options, "--stage", str(first), "--stop_stage", str(last)]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - began


def generate(corpus: Path, utterances: int) -> None:
    """Write a corpus of `utterances` for training, and 51 in each other part."""
    rng = random.Random(0)
    words = vocabulary(rng)
    recordings = corpus / "recordings"
    recordings.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(RECORDINGS):
        soundfile.write(recordings / f"{number}.flac", noise.uniform(-0.3, 0.3, FS // 2), FS, "PCM_16")

    def made(size: int) -> Iterator[tuple[Path, str]]:
        for number in range(size):
            recording = recordings / f"{number % CHAPTER % RECORDINGS}.flac"
            yield recording, " ".join(rng.choices(words, k=rng.randint(10, 40)))

    write_tree(corpus, {"train-clean-100": made(utterances), **{part: made(CHAPTER) for part in OTHERS}})


def vocabulary(rng: random.Random) -> list[str]:
    """20,000 random words."""
    return ["".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(2, 9))) for _ in range(20_000)]


def write_tree(corpus: Path, parts: Mapping[str, Iterable[tuple[Path, str]]]) -> None:
    """Write LibriSpeech's folders: of each part the recordings, which are linked to, and their texts."""
    chapter = 0
    for part, utterances in parts.items():
        for of_chapter in batched(utterances, CHAPTER):
            chapter += 1
            name = f"{chapter}-{100_000 + chapter}"
            folder = corpus / "LibriSpeech" / part / name.replace("-", "/")
            folder.mkdir(parents=True)
            lines = []
            for number, (recording, text) in enumerate(of_chapter):
                os.link(recording, folder / f"{name}-{number:04}.flac")
                lines.append(f"{name}-{number:04} {text}\n")
            (folder / f"{name}.trans.txt").write_text("".join(lines))


def on_speech(corpus: Path, scratch: Path) -> None:
    folder = recipe_folder(scratch / "speech")
    print("| stages | seconds |\n| --- | --- |")
    total = 0.0
    for first, last in ((1, 5), (10, 10)):
        seconds = perform(folder, corpus, first, last, "--nbpe", "100")
        total += seconds
        print(f"| {first}{f' to {last}' if last > first else ''} | {seconds:.1f} |", flush=True)
    print(f"| together | {total:.1f} |\n")


def on_generated(sizes: list[int], scratch: Path) -> None:
    print(
        "| utterances | stage 1 | stage 4 | stage 5 | together | peak memory |\n| --- | --- | --- | --- | --- | --- |"
    )
    for size in sorted(sizes):  # the peak is that of all so far
        corpus = scratch / f"corpus{size}"
        generate(corpus, size)
        folder = recipe_folder(scratch / f"recipe{size}")
        options = ("--speed_perturb_factors", "")
        seconds = {1: perform(folder, corpus, 1, 1, *options)}
        perform(folder, corpus, 3, 3, *options)
        seconds |= {stage: perform(folder, corpus, stage, stage, *options) for stage in (4, 5)}
        cells = [f"{size:,}", *(f"{taken:.1f} s" for taken in (*seconds.values(), sum(seconds.values())))]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(f"| {' | '.join(cells)} | {peak / 2**30:.2f} GiB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.speech:
            on_speech(options.speech, Path(scratch))
        if options.sizes:
            on_generated(options.sizes, Path(scratch))


if __name__ == "__main__":
    main()

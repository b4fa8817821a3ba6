"""A dress rehearsal of the recipe at full size without LibriSpeech: data preparation, statistics, and training steps.

    python benchmarks/rehearsal.py FOLDER [--only prepare]

In FOLDER, a tree of LibriSpeech's shape with as many utterances as train-clean-100 has, of its
lengths (1.4 to 24.5 s, 12.7 on average), of noise that FLAC compresses as it does speech. Then stages 1 to 5 and 10
with the recipe's own options (three speeds, 5,000 tokens), how long each takes, the memory of its largest process and
the disk; and five steps of stage 11 on the CPU, where ESPnet trains in float32. FOLDER stays.
"""

import argparse
import random
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from recipe import CHAPTER, FS, OTHERS, perform, recipe_folder, vocabulary, write_tree

UTTERANCES = 28_539
SHORTEST, LONGEST, MEAN = 1.4, 24.5, 12.7  # seconds
WORDS_A_SECOND = 2.7
QUIET = 0.007  # noise of which FLAC needs half of the 16 bits
CONFS = ("conformer_mla", "e_branchformer_mla")
STEPS = "--max_epoch 1 --num_iters_per_epoch 5 --log_interval 1 --num_workers 1"


def lengths(number: int) -> list[float]:
    """Seconds of utterances, to a tenth: most from 12 to 17, as LibriSpeech was cut, the others mostly below."""
    rng = np.random.default_rng(0)
    most = rng.random(number) < 0.7
    seconds = np.where(most, rng.normal(14.8, 1.2, number), rng.uniform(SHORTEST, 14, number))
    seconds[: number // 500] = rng.uniform(17, LONGEST, number // 500)
    seconds[0], seconds[1] = SHORTEST, LONGEST
    return [round(float(one), 1) for one in np.clip(seconds + MEAN - seconds.mean(), SHORTEST, LONGEST)]


def generate(corpus: Path) -> None:
    """Write the tree. Utterances of a length are links to one recording."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    words, recordings = vocabulary(rng), corpus / "recordings"
    recordings.mkdir(parents=True)

    def made(seconds: Iterable[float]) -> Iterator[tuple[Path, str]]:
        for length in seconds:
            recording = recordings / f"{length}.flac"
            if not recording.exists():
                soundfile.write(recording, noise.uniform(-QUIET, QUIET, round(length * FS)), FS, "PCM_16")
            yield recording, " ".join(rng.choices(words, k=max(1, round(length * WORDS_A_SECOND))))

    others = {part: made([MEAN] * CHAPTER) for part in OTHERS}
    write_tree(corpus, {"train-clean-100": made(lengths(UTTERANCES)), **others})


def gigabytes(folder: Path) -> float:
    """Of all files below, each counted once."""
    files = {entry.stat().st_ino: entry.stat().st_size for entry in folder.rglob("*") if entry.is_file()}
    return sum(files.values()) / 1e9


def row(folder: Path, what: str, taken: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"| {what} | {taken / 60:.1f} min | {peak / 2**30:.1f} GiB | {gigabytes(folder):.1f} GB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("prepare", "train"), help="train needs what prepare has left in FOLDER")
    options = parser.parse_args()
    corpus, folder = options.folder / "corpus", options.folder / "recipe"
    if options.only != "train":
        began = time.perf_counter()
        generate(corpus)
        print(f"the tree: {gigabytes(corpus):.2f} GB, {time.perf_counter() - began:.0f} s\n")
        recipe_folder(folder)
    print("| | time | memory of the largest process so far | disk |\n| --- | --- | --- | --- |", flush=True)
    if options.only != "train":
        for stage in (1, 2, 3, 4, 5, 10):
            row(folder, f"stage {stage}", perform(folder, corpus, stage, stage, "--nj", "2"))
    if options.only != "prepare":
        for conf in CONFS:
            given = ("--asr_config", f"conf/{conf}.yaml", "--asr_args", STEPS, "--asr_tag", conf)
            row(folder, f"stage 11, {conf}, five steps", perform(folder, corpus, 11, 11, *given))


if __name__ == "__main__":
    main()

"""Our encoder with look-ahead and ESPnet's contextual block encoder, at the same latency: errors, and time.

    python benchmarks/look_ahead.py                # trains what is missing on the mini corpus, then prints the table
    python benchmarks/look_ahead.py --sets test_clean --seeds 1

Both take 640 ms at a time and see as much again ahead: 1316 ms with the subsampling and the window of the features.
conf/conformer_mla_look_ahead.yaml is decoded by StreamingSpeech2Text with its final search, ESPnet's
conf/contextual_block_conformer.yaml by its Speech2TextStreaming, all with a beam of 5; models of each seed are trained
as run.sh does it. Utterances are decoded by turns on one core; "time" is the seconds for a second of audio, of
features, encoder and searches. Brackets hold a 95 % bootstrap interval over utterances of the difference, all seeds
together.
"""

import argparse
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from conversion import RECIPE, SEEDS, SETS, test_sets, trained
from rapidfuzz.distance import Levenshtein
from streaming import DECODING, FS, SECONDS, espnets

import espnet_mla
from espnet_mla.measure.bootstrap import interval, replicates

CONFS = ("conformer_mla_look_ahead", "contextual_block_conformer")


def ours(model: object) -> Callable[[np.ndarray], str]:
    """What hears a recording in pieces as long as a chunk."""
    recogniser = espnet_mla.StreamingSpeech2Text(model, beam_size=DECODING["beam_size"])
    piece = round(SECONDS * FS)

    def hear(samples: np.ndarray) -> str:
        for begin in range(0, len(samples), piece):
            recogniser.accept(samples[begin : begin + piece])
        return recogniser.finish().text

    return hear


def decoded(seed: int, sets: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, float], np.ndarray]:
    """Of each configuration the errors of each utterance, and the time; and the words of each utterance."""
    recognisers = {}
    for conf in CONFS:
        folder = trained(RECIPE, conf, seed)
        with contextlib.chdir(RECIPE / "mini"):
            model = espnet_mla.from_pretrained(folder.relative_to(RECIPE / "mini"), device="cpu", **DECODING)
        recognisers[conf] = ours(model) if conf == CONFS[0] else espnets(model)[0]
    utterances = [one for name, of in test_sets(RECIPE).items() if name in sets for one in of]
    wrong: dict[str, list[int]] = {conf: [] for conf in CONFS}
    taken = dict.fromkeys(CONFS, 0.0)
    for (samples, text), conf in itertools.product(utterances, CONFS):
        began = time.perf_counter()
        found = recognisers[conf](samples)
        taken[conf] += time.perf_counter() - began
        wrong[conf].append(Levenshtein.distance(found.split(), text))
    audio = sum(len(samples) for samples, _ in utterances) / FS
    return (
        {conf: np.array(errors) for conf, errors in wrong.items()},
        {conf: seconds / audio for conf, seconds in taken.items()},
        np.array([len(text) for _, text in utterances]),
    )


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [decoded(seed, options.sets) for seed in options.seeds]
    words = found[0][2]
    print("\n| model | wrong words, by seed | WER | time, by seed |\n| --- | --- | --- | --- |")
    for conf in CONFS:
        wrong = [int(errors[conf].sum()) for errors, _, _ in found]
        times = ", ".join(f"{times[conf]:.3f}" for _, times, _ in found)
        print(f"| {conf} | {', '.join(map(str, wrong))} | {100 * np.mean(wrong) / words.sum():.2f} | {times} |")
    both = np.array([sum(errors[conf] for errors, _, _ in found) for conf in CONFS])
    drawn = replicates(both, len(found) * words)
    low, high = interval(100 * (drawn[:, 0] / drawn[:, 1] - 1))
    change = 100 * (both[0].sum() / both[1].sum() - 1)
    print(f"\nWrong words of ours against ESPnet's: {change:+.1f} % [{low:+.1f}, {high:+.1f}]")


if __name__ == "__main__":
    main()

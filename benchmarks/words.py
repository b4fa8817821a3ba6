"""How near the times of recognised words are to the true ones, and whether confidence tells the wrong ones.

    python benchmarks/words.py conformer_mha_streaming_raw_en_bpe60 ...    # on the mini corpus: mini/exp/asr_...

Every utterance of the test sets is decoded by StreamingSpeech2Text, in the chunks of the model's configuration; a
full-context model by `espnet_mla.from_pretrained`. Words that are right by the alignment of least errors are compared
with data/*/ctm: the median and the 95th percentile of the absolute error of their starts and ends, in milliseconds.
"AUC" is the area under the ROC curve of confidence for telling right words from wrong ones: the probability that a
right word has the higher one (Hanley and McNeil 1982).
"""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from conversion import RECIPE, SETS
from rapidfuzz.distance import Levenshtein
from scipy.stats import rankdata

import espnet_mla
from espnet_mla.common.tables import read_table
from espnet_mla.trained.audio import read
from espnet_mla.trained.words import Word

DECODING = {"beam_size": 5, "ctc_weight": 0.3}  # as the recipe's on the mini corpus
Spoken = tuple[str, float, float]  # a word, its start and its end


def spoken(ctm: Path) -> dict[str, list[Spoken]]:
    """The words of each utterance."""
    words: dict[str, list[Spoken]] = {}
    for line in ctm.read_text().splitlines():
        utterance, _, start, duration, word = line.split()[:5]
        words.setdefault(utterance, []).append((word, float(start), float(start) + float(duration)))
    return words


def right_ones(found: Sequence[Word], true: Sequence[Spoken]) -> dict[int, int]:
    """Number of each word that is right -> of that which was spoken."""
    blocks = Levenshtein.opcodes([word for word, *_ in true], [word.text for word in found])
    pairs = [
        zip(range(block.dest_start, block.dest_end), range(block.src_start, block.src_end), strict=True)
        for block in blocks
        if block.tag == "equal"
    ]
    return dict(pair for part in pairs for pair in part)


def area_under_curve(scores: np.ndarray, right: np.ndarray) -> float:
    """The probability that of a right and a wrong one the right one has the higher score; a tie counts half."""
    positive = right.sum()
    ranks = rankdata(scores)[right].sum()
    return (ranks - positive * (positive + 1) / 2) / (positive * (len(right) - positive))


def row(hear: Callable[[np.ndarray], Sequence[Word]], recipe: Path, rate: int) -> str:
    starts, ends, confidences, right = [], [], [], []
    for name in SETS:
        true = spoken(recipe / f"mini/data/{name}/ctm")
        for utterance, wav in read_table(recipe / f"mini/dump/raw/{name}/wav.scp").items():
            found = hear(read(recipe / "mini" / wav, rate))
            good = right_ones(found, true[utterance])
            for number, word in enumerate(found):
                confidences.append(word.confidence)
                right.append(number in good)
                if number in good:
                    _, start, end = true[utterance][good[number]]
                    starts.append(abs(word.start - start))
                    ends.append(abs(word.end - end))
    times = [
        f"{1000 * np.median(errors):.0f} | {1000 * np.percentile(errors, 95):.0f}"
        for errors in (np.array(starts), np.array(ends))
    ]
    auc = area_under_curve(np.array(confidences), np.array(right))
    return f"{len(right):,} | {np.mean(right):.1%} | {' | '.join(times)} | {auc:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", metavar="EXPERIMENT")
    parser.add_argument(
        "--recipe", type=Path, default=RECIPE, help="its folder, with mini/ (default: this repository's)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = options.recipe.resolve()
    print("| model | words | right | start, median | 95 % | end, median | 95 % | AUC |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.experiments:
        with contextlib.chdir(recipe / "mini"):
            model = espnet_mla.from_pretrained(f"exp/asr_{name}", device="cpu", **DECODING)

        def offline(samples: np.ndarray, model: object = model) -> Sequence[Word]:
            return espnet_mla.words(model, samples, model(samples)[0])

        hear = offline
        if getattr(model.asr_model.encoder, "streaming", None):
            recogniser = espnet_mla.StreamingSpeech2Text(model)

            def hear(samples: np.ndarray, recogniser: object = recogniser) -> Sequence[Word]:
                recogniser.accept(samples)
                return recogniser.finish().words or []

        print(f"| `{name.split('_raw_')[0]}` | {row(hear, recipe, 16000)} |", flush=True)


if __name__ == "__main__":
    main()

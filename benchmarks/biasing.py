"""What favouring phrases does to the errors: on the phrases that are spoken, and on all other words.

    python benchmarks/biasing.py conformer_mha_streaming_raw_en_bpe60_seed1 ...   # on the mini corpus: mini/exp/asr_...
    python benchmarks/biasing.py EXPERIMENT --sets dev --weights 0 0.5 1 2        # to choose the weight

The mini corpus has 54 names that are written in one way only, of people and cities. Five times a list of fifty is
favoured of which ten are spoken: each time ten others, and only utterances that have one of the ten and none of the
forty. Weight 0 is without a list. An error is on a name where a spoken word of the ten is wrong, or a word is inserted
that is one of the fifty, as in Le et al. 2021 (2104.02194); every other error is on the rest. Brackets hold 95 %
bootstrap intervals over utterances of the difference to the first weight. `search` is the final text by ESPnet's beam
search, `ctc` that of CTC's prefix search.
"""

import argparse
import contextlib
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from conversion import RECIPE, SETS
from rapidfuzz.distance import Levenshtein

import espnet_mla
from espnet_mla.common.tables import read_table
from espnet_mla.measure.bootstrap import interval, replicates
from espnet_mla.recipe.grammar import CITIES, MEN, WOMEN
from espnet_mla.streaming.bias import DEFAULT_WEIGHT
from espnet_mla.trained.audio import read

NAMES = (*MEN, *WOMEN, *CITIES)
LISTED, SPOKEN = 50, 10
DECODING = {"beam_size": 5, "ctc_weight": 0.3, "device": "cpu"}  # as the recipe's on the mini corpus


def lists() -> list[tuple[set[str], set[str]]]:
    """The ten that are spoken, and all fifty, five times."""
    names = list(NAMES)
    random.Random(1).shuffle(names)
    spoken = [names[start : start + SPOKEN] for start in range(0, LISTED, SPOKEN)]
    return [(set(ten), {*ten, *[name for name in names if name not in ten][: LISTED - SPOKEN]}) for ten in spoken]


def errors(spoken: Sequence[str], found: Sequence[str], ten: set[str], fifty: set[str]) -> tuple[int, int]:
    """On names, and on the rest."""
    on_names = total = 0
    for edit in Levenshtein.editops(spoken, found):
        total += 1
        inserted = edit.tag == "insert"
        on_names += found[edit.dest_pos] in fifty if inserted else spoken[edit.src_pos] in ten
    return on_names, total - on_names


def measure(model: object, recipe: Path, sets: Sequence[str], weights: Sequence[float], final_search: str) -> None:
    """Print a row for each weight."""
    recogniser = espnet_mla.StreamingSpeech2Text(model, final_search=final_search)
    of_lists = [
        (
            ten,
            fifty,
            {weight: recogniser.pool.model.bias_of(dict.fromkeys(fifty, weight)) for weight in weights if weight},
        )
        for ten, fifty in lists()
    ]
    counts: list[tuple[int, int]] = []  # words of each utterance: names of the ten, and the rest
    wrong: dict[float, list[tuple[int, int]]] = {weight: [] for weight in weights}
    for name in sets:
        texts = read_table(recipe / f"mini/dump/raw/{name}/text")
        for utterance, wav in read_table(recipe / f"mini/dump/raw/{name}/wav.scp").items():
            spoken = texts[utterance].split()
            for ten, fifty, biases in of_lists:
                if not ten & set(spoken) or (fifty - ten) & set(spoken):
                    continue
                samples = read(recipe / "mini" / wav, recogniser.pool.model.fs)
                counts.append((of_ten := sum(word in ten for word in spoken), len(spoken) - of_ten))
                for weight in weights:
                    stream = recogniser.pool.open(bias=biases.get(weight))
                    stream.accept(samples)
                    stream.finish()
                    while recogniser.pool.advance():
                        pass
                    wrong[weight].append(errors(spoken, stream.result.text.split(), ten, fifty))
    words = np.array(counts)
    for weight, both in wrong.items():
        cells = []
        for of, before in zip(np.array(both).T, np.array(wrong[weights[0]]).T, strict=True):
            drawn = replicates(np.array([of, before]), np.ones_like(of))
            low, high = interval(100 * (drawn[:, 0] / drawn[:, 1] - 1))
            change = f"{100 * (of.sum() / before.sum() - 1):+.1f} % [{low:+.1f}, {high:+.1f}]"
            cells += [str(of.sum()), change if weight != weights[0] else ""]
        print(f"| {final_search} | {weight:g} | {' | '.join(cells)} |", flush=True)
    print(f"| words | | {words[:, 0].sum():,} | | {words[:, 1].sum():,} | |", flush=True)


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", metavar="EXPERIMENT")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="its folder, with mini/ (default: this one's)")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--weights", nargs="+", type=float, default=[0, DEFAULT_WEIGHT])
    parser.add_argument("--searches", nargs="+", choices=("search", "rescore", "ctc"), default=["search", "ctc"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = options.recipe.resolve()
    for name, search in itertools.product(options.experiments, options.searches):
        with contextlib.chdir(recipe / "mini"):
            model = espnet_mla.from_pretrained(f"exp/asr_{name}", **DECODING)
        print(f"\n`{name.split('_raw_')[0]}`\n\n| final text | weight | on names | | on the rest | |")
        print("| --- | --- | --- | --- | --- | --- |")
        measure(model, recipe, options.sets, options.weights, search)


if __name__ == "__main__":
    main()

"""Whether sentences end where they should, what that does to their text, and what a stream of an hour holds.

    python benchmarks/endpoints.py wer conformer_mha_streaming_raw_en_bpe60 ...   # on the mini corpus: mini/exp/asr_...
    python benchmarks/endpoints.py hour                                          # 12 blocks of 256, random weights

`wer`: test_long, in which silences of 0.4 to 1.5 s stand between sentences, their true times in data/test_long/ctm. A
silence of 0.8 s or more is "found" where a sentence ends at most 0.3 s before or after the rule's silence has been
reached; a sentence is "cut" where one ends at no silence of 0.3 s. The text of all sentences together is compared with
that of a stream without endpointing, with `reset`, where the encoder forgets the sentences before, and offline, where
it hears the whole recording before it is cut into sentences.

`hour`: the bytes of a stream with endpointing in its second and in its last minute; and the time of a chunk with
endpointing, final searches and fifty phrases that are favoured, by turns, over that without: those in which no sentence
ends.
"""

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from conversion import RECIPE
from rapidfuzz.distance import Levenshtein
from streaming import SECONDS, loaded, noise
from words import spoken

import espnet_mla
from espnet_mla.attention import ALL
from espnet_mla.common.tables import read_table
from espnet_mla.streaming.bias import DEFAULT_WEIGHT, Bias
from espnet_mla.trained.audio import read

RATE, DECODING = 16000, {"beam_size": 5, "ctc_weight": 0.3}
LEAST, NEAR, PAUSE = 0.8, 0.3, 0.3
PIECE = 10240  # samples of a chunk


def heard(recogniser: object, samples: np.ndarray) -> tuple[str, list[float]]:
    """The text, and where sentences end, but for the last one."""
    sentences = []
    for begin in range(0, len(samples), PIECE):
        recogniser.accept(samples[begin : begin + PIECE])
        sentences += recogniser.take_sentences()
    last = recogniser.finish()
    sentences += recogniser.take_sentences() or [last]
    seconds = recogniser.pool.model.frame_seconds
    return (
        " ".join(sentence.text for sentence in sentences),
        [(sentence.first_frame + sentence.frames) * seconds for sentence in sentences[:-1]],
    )


def judged(ends: Sequence[float], true: Sequence[tuple[str, float, float]], rule: float) -> tuple[int, int, int]:
    """Long silences, those of them that were found, and sentences that were cut."""
    pauses = [(before[2], after[1]) for before, after in itertools.pairwise(true)]
    long = [(begin, end) for begin, end in pauses if end - begin >= LEAST]
    found = sum(any(abs(moment - begin - rule) <= NEAR for moment in ends) for begin, _ in long)
    cut = sum(
        moment < true[-1][2] and not any(begin <= moment <= end + NEAR for begin, end in pauses if end - begin >= PAUSE)
        for moment in ends
    )
    return len(long), found, cut


def wer(recipe: Path, experiments: Sequence[str], rules: Sequence[float]) -> None:
    torch.set_num_threads(1)
    folder = recipe / "mini/data/test_long"
    true, wavs = spoken(folder / "ctm"), read_table(folder / "wav.scp")
    print("| model | trailing silence | silences of 0.8 s | found | cut | sentences found | wrong words |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in experiments:
        with contextlib.chdir(recipe / "mini"):
            model = espnet_mla.from_pretrained(f"exp/asr_{name}", device="cpu", **DECODING)
        kinds = [("none", None, False, None)]
        kinds += [(f"{rule} s{', reset' * reset}", rule, reset, None) for rule in rules for reset in (False, True)]
        kinds += [(f"{rule} s, offline", rule, False, ALL) for rule in rules]
        for label, rule, reset, size in kinds:
            endpointing = None if rule is None else {"trailing_silence": rule}
            recogniser = espnet_mla.StreamingSpeech2Text(model, endpointing=endpointing, reset=reset, chunk_size=size)
            counts, wrong, words, sentences = np.zeros(3, int), 0, 0, 0
            for utterance, wav in wavs.items():
                text, ends = heard(recogniser, read(recipe / "mini" / wav, RATE))
                counts += judged(ends, true[utterance], rule or 0)
                wrong += Levenshtein.distance(text.split(), [word for word, *_ in true[utterance]])
                words += len(true[utterance])
                sentences += len(ends) + 1
            cells = [f"{counts[0]}", f"{counts[1]}", f"{counts[2]}", f"{sentences}"] if rule else ["", "", "", ""]
            print(
                f"| {name.split('_raw_')[0]} | {label} | {' | '.join(cells)} "
                f"| {wrong} of {words:,} ({100 * wrong / words:.2f} %) |",
                flush=True,
            )


def hour(minutes: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        model = loaded(Path(scratch), "conformer_mla_streaming")
    tokens = model.converter.token_list
    drawn = np.random.default_rng(1).integers(1, len(tokens), (50, 5)).tolist()
    bias = Bias({tuple(phrase): DEFAULT_WEIGHT for phrase in drawn}, tokens)
    options = {"endpointing": {"longest": 10.0}, "final_search": "rescore", "bias": bias}
    recogniser = espnet_mla.StreamingSpeech2Text(model, **options)
    plain = espnet_mla.StreamingSpeech2Text(model, final_search="ctc")
    pieces = itertools.cycle(np.split(noise(10 * SECONDS), 10))
    held: dict[int, list[int]] = {}
    taken: dict[bool, list[float]] = {True: [], False: []}
    for number in range(round(minutes * 60 / SECONDS)):
        piece, ended = next(pieces), False
        for which, one in ((True, recogniser), (False, plain)):
            began = time.perf_counter()
            one.accept(piece)
            sentences = one.take_sentences()
            seconds = time.perf_counter() - began
            ended = ended or bool(sentences)
            if not ended:
                taken[which].append(seconds)
        held.setdefault(int(number * SECONDS / 60), []).append(recogniser.stream.nbytes)
    second, last = max(held[1]), max(held[minutes - 1])
    print(f"\n{minutes} minutes: at most {second:,} B in the second one, {last:,} B in the last ({last / second:.4f})")
    with_, without = (statistics.median(taken[which]) for which in (True, False))
    print(
        f"a chunk: {1000 * with_:.1f} ms, without endpointing, final search and phrases {1000 * without:.1f} ms "
        f"({with_ / without:.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of = commands.add_parser("wer")
    of.add_argument("experiments", nargs="+", metavar="EXPERIMENT")
    of.add_argument("--rules", nargs="+", type=float, default=[0.5, 0.8], help="seconds (default: 0.5 0.8)")
    of.add_argument("--recipe", type=Path, default=RECIPE, help="its folder, with mini/ (default: this repository's)")
    commands.add_parser("hour").add_argument("--minutes", type=int, default=60, help="at least 3")
    options = parser.parse_args()
    if options.command == "wer":
        wer(options.recipe.resolve(), options.experiments, options.rules)
    else:
        hour(options.minutes)


if __name__ == "__main__":
    main()

"""What caches of fewer bytes cost: the error of each way to quantise, and the words that streams get wrong.

    python benchmarks/cache_types.py schemes EXPERIMENT           # of mini/exp/asr_EXPERIMENT
    python benchmarks/cache_types.py wer EXPERIMENT ... [--folder mini/exp/converted ...]
    python benchmarks/cache_types.py table                        # what `wer` has measured so far
    python benchmarks/cache_types.py decoding EXPERIMENT          # stage 12's search, 200 utterances

`schemes` sets the codes of espnet_mla.attention against others, those of KIVI (arXiv 2402.02750) among them, which
quantise keys by channel over a group of frames, and values by frame: the relative error of the attentions' output over
30 utterances of test_clean.

`wer` streams the test sets of the mini corpus, 640 ms at a time, with caches of every type, and rescores the text. Its
errors are kept in egs2/librispeech_100/asr1/results/mini/cache_types.json; what is in there is not measured again. The
table has the difference to float32 in points, and to the first row in per cent of its errors, with 95 % bootstrap
intervals over utterances (Bisani and Ney 2004), and what a second of audio leaves in the encoder's attention caches;
the plot beside the JSON file shows both.
"""

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import soundfile
import torch
import yaml
from conversion import RECIPE, ROOT, errors, test_sets
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from rapidfuzz.distance import Levenshtein
from torch import Tensor, nn

import espnet_mla
from espnet_mla.attention import CACHE_TYPES, Attention, FrameCache
from espnet_mla.attention.cache_types import BITS, dequantise, quantise
from espnet_mla.common.files import write_text
from espnet_mla.common.tables import read_table
from espnet_mla.measure.bootstrap import interval, replicates
from espnet_mla.models.caches import set_cache_dtype

SCORES = RECIPE / "results/mini/cache_types.json"
CHUNK, FS = 16, 16000  # frames; Hz
FRAMES_A_SECOND = 25
GROUP_OF_FRAMES = 16


def ours(x: Tensor, bits: int) -> Tensor:
    """As espnet_mla.attention: symmetric, by frame."""
    return dequantise(quantise(x, bits), x.shape[-1], bits, x.dtype)


def with_zero_point(x: Tensor, bits: int) -> Tensor:
    """By frame from the least to the largest number of a head, with two numbers of two bytes for each group."""
    least, largest = x.amin(-1, keepdim=True).bfloat16().float(), x.amax(-1, keepdim=True)
    step = ((largest - least) / (2**bits - 1)).bfloat16().float().clamp_min(1e-12)
    return ((x - least) / step).round().clamp(0, 2**bits - 1) * step + least


def by_channel(x: Tensor, bits: int) -> Tensor:
    """A scale for each channel of `GROUP_OF_FRAMES` frames."""
    time, most = x.shape[-2], 2 ** (bits - 1) - 1
    groups = nn.functional.pad(x.transpose(-1, -2), (0, -time % GROUP_OF_FRAMES)).unflatten(-1, (-1, GROUP_OF_FRAMES))
    step = (groups.abs().amax(-1, keepdim=True) / most).bfloat16().float().clamp_min(1e-12)
    return ((groups / step).round().clamp(-most, most) * step).flatten(-2)[..., :time].transpose(-1, -2)


SCHEMES: dict[str, tuple[Callable[[Tensor, int], Tensor], ...]] = {  # of the first tensor of a cache, of the others
    "by frame": (ours, ours),
    "by frame, with a zero point": (with_zero_point, with_zero_point),
    "by channel": (by_channel, by_channel),
    "keys by channel, values by frame": (by_channel, ours),
}


def schemes(experiment: str) -> None:
    """Print the error of each."""
    with contextlib.chdir(RECIPE / "mini"):
        model = espnet_mla.from_pretrained(f"exp/asr_{experiment}", device="cpu").asr_model
        files = list(read_table("dump/raw/test_clean/wav.scp").values())[:30]
    squares = {(bits, name): [0.0, 0.0] for bits in BITS.values() for name in SCHEMES}
    attentions = {module: module.attend for module in model.encoder.modules() if isinstance(module, Attention)}

    def compared(attend: Callable) -> Callable:
        def attend_and_compare(query: Tensor, kv: FrameCache, *given: object, **named: object) -> Tensor:
            out = attend(query, kv, *given, **named)
            for (bits, name), sums in squares.items():
                first, rest = SCHEMES[name]
                tensors = (first(kv.tensors[0], bits), *(rest(tensor, bits) for tensor in kv.tensors[1:]))
                sums[0] += (attend(query, FrameCache(tensors), *given, **named) - out).square().sum().item()
                sums[1] += out.square().sum().item()
            return out

        return attend_and_compare

    for module, attend in attentions.items():
        module.attend = compared(attend)
    with torch.inference_mode():
        for file in files:
            samples = torch.from_numpy(soundfile.read(file, dtype="float32")[0]).unsqueeze(0)
            model.encode(samples, torch.tensor([samples.shape[1]]))
    print(f"\n{experiment}\n\n| quantised | eight bits | four bits |\n| --- | --- | --- |")
    for name in SCHEMES:
        found = [(error / whole) ** 0.5 for error, whole in (squares[bits, name] for bits in (8, 4))]
        print(f"| {name} | {found[0]:.4f} | {found[1]:.4f} |")


def wer(folders: dict[str, Path], types: list[str]) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    data = test_sets(RECIPE)
    words = {name: [len(text) for _, text in utterances] for name, utterances in data.items()}
    for label, folder in folders.items():
        for cache_dtype in types:
            scores = read()
            if scores["words"] not in ({}, words):
                raise SystemExit(f"{SCORES} is of another version of the corpus: delete it")
            if cache_dtype in scores.get(label, {}):
                continue
            with contextlib.chdir(RECIPE / "mini"):
                recogniser = espnet_mla.StreamingSpeech2Text(
                    folder, device="cpu", chunk_size=CHUNK, cache_dtype=cache_dtype, final_search="rescore"
                )
            found = errors(data, lambda samples, recogniser=recogniser: streamed(recogniser, samples))
            state = recogniser.pool.model.new_state()
            per_frame = sum(cache.nbytes_per_frame for cache in state.attention.values())
            measured = {"bytes_per_second": per_frame * FRAMES_A_SECOND, "errors": found}
            scores = read()
            scores["words"] = words
            scores.setdefault(label, {})[cache_dtype] = measured
            lines = (f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in scores.items())
            write_text(SCORES, "{\n" + ",\n".join(lines) + "\n}\n")
            print(f"{label}, {cache_dtype}: {sum(map(sum, found.values()))} wrong words", flush=True)


def streamed(recogniser: espnet_mla.StreamingSpeech2Text, samples: np.ndarray) -> str:
    """The final text of samples that arrive a chunk at a time."""
    piece = round(CHUNK / FRAMES_A_SECOND * FS)
    for begin in range(0, len(samples), piece):
        recogniser.accept(samples[begin : begin + piece])
    return recogniser.finish().text


def decoding(experiment: str, number: int = 200) -> None:
    """Print how often the first hypothesis stays what it is, and the wrong words, by the type of the caches."""
    torch.set_num_threads(1)
    data = test_sets(RECIPE)
    utterances = [one for several in zip(*data.values(), strict=False) for one in several][:number]
    options = yaml.safe_load((ROOT / "conf/decode_asr.yaml").read_text()) | {"beam_size": 5}
    with contextlib.chdir(RECIPE / "mini"):
        speech2text = espnet_mla.from_pretrained(f"exp/asr_{experiment}", device="cpu", **options)
    found: dict[str, list[str]] = {name: [] for name in CACHE_TYPES}
    sizes = {}
    for samples, _ in utterances:
        for name, texts in found.items():
            set_cache_dtype(speech2text.asr_model, name)
            texts.append(speech2text(samples)[0][0])
            sizes[name] = speech2text.asr_model.decoder.cache_bytes
    words = sum(len(text) for _, text in utterances)
    head = "cache | of the last utterance, self + source | first hypothesis as with float32 | wrong words"
    print(f"\n{experiment}\n\n| {head} |")
    print("| --- | --- | --- | --- |")
    for name, texts in found.items():
        same = sum(map(str.__eq__, texts, found["float32"]))
        wrong = sum(
            Levenshtein.distance(text.split(), right) for text, (_, right) in zip(texts, utterances, strict=True)
        )
        size = " + ".join(f"{part:,} B" for part in sizes[name])
        print(f"| {name} | {size} | {same} of {len(utterances)} | {wrong} of {words:,} |")


def read() -> dict:
    return json.loads(SCORES.read_text()) if SCORES.exists() else {"words": {}}


def table() -> None:
    """Print what there is, and draw it."""
    scores = read()
    sets = sorted(scores.pop("words"))
    words = {name: np.array(read()["words"][name]) for name in sets}
    print(f"| model | cache | bytes a second | {' | '.join(sets)} | all | against float32 | against the first |")
    print(f"| --- {'| --- ' * (len(sets) + 5)}|")
    first = None
    points: dict[str, list[tuple[str, int, float, float, float]]] = {}
    for label, types in scores.items():
        plain = together(types["float32"]["errors"], sets) if "float32" in types else None
        for cache_dtype in CACHE_TYPES:
            if cache_dtype not in types:
                continue
            of, all_words = types[cache_dtype], np.concatenate([words[name] for name in sets])
            wrong = together(of["errors"], sets)
            low, high = interval(replicates(wrong[None], all_words)[:, 0])
            rate = 100 * wrong.sum() / all_words.sum()
            points.setdefault(label, []).append((cache_dtype, of["bytes_per_second"], rate, low, high))
            cells = [f"{100 * sum(of['errors'][name]) / words[name].sum():.2f}" for name in sets]
            difference = ""
            if plain is not None and cache_dtype != "float32":
                drawn = replicates(np.array([wrong, plain]), all_words)
                least, most = interval(drawn[:, 0] - drawn[:, 1])
                difference = f"{100 * (wrong - plain).sum() / all_words.sum():+.2f} [{least:+.2f}, {most:+.2f}]"
            more = ""
            if first is None:
                first = wrong
            else:
                drawn = replicates(np.array([wrong, first]), all_words)
                least, most = interval(100 * (drawn[:, 0] / drawn[:, 1] - 1))
                more = f"{100 * (wrong.sum() / first.sum() - 1):+.1f} % [{least:+.1f}, {most:+.1f}]"
            cells = [label, cache_dtype, f"{of['bytes_per_second']:,}", *cells, f"{rate:.2f}", difference, more]
            print(f"| {' | '.join(cells)} |")
    draw(points)


def together(found: dict[str, list[int]], sets: list[str]) -> np.ndarray:
    return np.concatenate([found[name] for name in sets])


def draw(points: dict[str, list[tuple[str, int, float, float, float]]]) -> None:
    """WER against bytes a second, a line for each model, with intervals."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "espnet_mla", "axes.grid": True}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for label, of in points.items():
            bytes_, rates, low, high = map(np.array, list(zip(*of, strict=True))[1:])
            axes.errorbar(bytes_, rates, (rates - low, high - rates), marker="o", capsize=3, label=label)
            for name, x, y, *_ in of:
                axes.annotate(name, (x, y), (5, 5), textcoords="offset points", fontsize=8)
        axes.set(xscale="log", xlabel="bytes a second of audio, encoder's attention caches", ylabel="WER, %")
        axes.margins(y=0.3)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(loc="upper left")
        for ending in ("svg", "png"):
            metadata = {"Date": None} if ending == "svg" else None
            figure.savefig(SCORES.with_suffix(f".{ending}"), dpi=120, metadata=metadata)


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("schemes").add_argument("experiment", metavar="EXPERIMENT")
    commands.add_parser("decoding").add_argument("experiment", metavar="EXPERIMENT")
    of = commands.add_parser("wer")
    of.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="as conformer_mla_streaming_raw_en_bpe60")
    of.add_argument("--folder", nargs="+", type=Path, default=[], help="others, such as converted models")
    of.add_argument("--types", nargs="+", choices=CACHE_TYPES, default=CACHE_TYPES)
    commands.add_parser("table")
    options = parser.parse_args()
    if options.command == "schemes":
        schemes(options.experiment)
        return
    if options.command == "decoding":
        decoding(options.experiment)
        return
    if options.command == "wer":
        folders = {name.split("_raw_")[0]: Path(f"exp/asr_{name}") for name in options.experiments}
        folders |= {path.name: path.resolve() for path in options.folder}
        wer(folders, options.types)
    table()


if __name__ == "__main__":
    main()

"""What a stream costs: its caches, the time of a chunk, how many run in real time; and what chunked inference
costs in words.

    python benchmarks/streaming.py speed                 # 12 blocks of 256, chunks of 16 frames (640 ms), 8 before them
    python benchmarks/streaming.py types                 # the same with caches of every type
    python benchmarks/streaming.py wer EXPERIMENT ...    # trained on the mini corpus: mini/exp/asr_EXPERIMENT

`speed` measures models with random weights, whose CTC is as undecided as can be, so that the search has as much to do
as it ever has. What is compared runs by turns, and of each the median is shown.

`wer` decodes every utterance with StreamingSpeech2Text, offline and at several latencies, with each final search;
through ESPnet's search, as stage 12 does; and ESPnet's contextual block models through ESPnet's own
Speech2TextStreaming, in pieces as long as their hop; on one core, on the test sets of the mini corpus. The models are
trained by

    ./run.sh --corpus mini --asr_config conf/conformer_mla_streaming.yaml --asr_args "--max_epoch 24" --stop_stage 11
"""

import argparse
import contextlib
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from conversion import RECIPE, Utterances, test_sets
from measuring import build
from rapidfuzz.distance import Levenshtein

import espnet_mla
from espnet_mla.attention import CACHE_TYPES, Chunks
from espnet_mla.models.latency import latency
from espnet_mla.streaming.model import FINAL_SEARCHES

CHUNK = 16  # frames
FS = 16000
SECONDS = 0.64  # of a chunk
DECODING = {"beam_size": 5, "ctc_weight": 0.3}  # of ESPnet's searches, as the recipe's on the mini corpus
FRAME, AHEAD = 40, 36  # milliseconds: of a frame, and that the last one sees ahead
STREAMS = (1, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64)
HOUR = 60  # minutes that the long stream runs
STREAMING = [
    f"--encoder_conf streaming.{key}={value}".split() for key, value in (("chunk_size", CHUNK), ("left_chunks", 8))
]


def loaded(scratch: Path, conf: str, *options: str, device: str = "cpu") -> object:
    """A Speech2Text with random weights."""
    folder = scratch / "_".join((conf, *options)).replace("/", "_")
    build(folder, conf, "--normalize", "none", *options)
    return espnet_mla.from_pretrained(folder, device=device)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * FS))).astype(np.float32)


def by_turns(runs: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """The median seconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def recogniser_of(speech2text: object, minutes: float, **options: object) -> tuple[object, Callable[[], object]]:
    """A recogniser after so many minutes of audio, and a function that gives it a chunk more."""
    recogniser = espnet_mla.StreamingSpeech2Text(speech2text, final_search="ctc", **options)
    pieces = itertools.cycle(np.split(noise(10 * SECONDS), 10))
    for _ in range(round(minutes * 60 / SECONDS)):
        recogniser.accept(next(pieces))
    return recogniser, lambda: recogniser.accept(next(pieces))


def encoding(speech2text: object) -> Callable[[], object]:
    """A function that has an encoder alone encode a chunk more of a stream whose caches are full."""
    encoder = speech2text.asr_model.encoder
    state, features = encoder.stream(), torch.randn(1, 4 * CHUNK, 80)

    def run() -> None:
        with torch.inference_mode():
            encoder.forward_chunk(features, state)

    for _ in range(20):
        run()
    return run


def caches(models: dict[str, object]) -> None:
    """The table of what a stream keeps."""
    print("\n| attention | caches of the attentions | of the convolutions | of both | streams per GB |")
    print("| --- | --- | --- | --- | --- |")
    for name, model in models.items():
        recogniser, _ = recogniser_of(model, 0.5)
        state = recogniser.stream.state
        attention, convolution = state.attention_nbytes, state.convolution_nbytes
        both = attention + convolution
        print(f"| {name} | {attention:,} B | {convolution:,} B | {both:,} B | {10**9 // both:,} |", flush=True)


def types() -> None:
    """The table of what a stream keeps and of the time of a chunk, by the type of its caches."""
    with tempfile.TemporaryDirectory() as scratch:
        models = {
            "mha": loaded(Path(scratch), "conformer_mha_streaming"),
            "mla 64": loaded(Path(scratch), "conformer_mla_streaming"),
            "mla 32": loaded(
                Path(scratch), "conformer_mla_streaming", "--encoder_conf", "attention_conf.kv_lora_rank=32"
            ),
            "mtla 64": loaded(Path(scratch), "conformer_mtla", *itertools.chain(*STREAMING)),
        }
        recognisers = {
            (name, cache_dtype): recogniser_of(model, 0.2, cache_dtype=cache_dtype)
            for name, model in models.items()
            for cache_dtype in CACHE_TYPES
        }
        taken = by_turns({key: run for key, (_, run) in recognisers.items()}, 100)
    print("\n| attention | cache | of the attentions | of the convolutions | of both | streams per GB | a chunk |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (name, cache_dtype), (recogniser, _) in recognisers.items():
        state, seconds = recogniser.stream.state, taken[name, cache_dtype]
        attention, convolution = state.attention_nbytes, state.convolution_nbytes
        both = attention + convolution
        ratio = "" if cache_dtype == "float32" else f" ({seconds / taken[name, 'float32']:.2f})"
        cells = [f"{attention:,} B", f"{convolution:,} B", f"{both:,} B", f"{10**9 // both:,}"]
        print(f"| {' | '.join([name, cache_dtype, *cells])} | {1000 * seconds:.1f} ms{ratio} |")


def held(model: object, numbers: Sequence[int] = STREAMS, turns: int = 30, warm: int = 10) -> None:
    """How many streams run in real time; the caches are full after the first `warm` turns."""
    print("\n| streams | seconds for 0.64 s of each, median | the longest |\n| --- | --- | --- |")
    for streams in numbers:
        pool = espnet_mla.StreamPool(model, final_search="ctc")
        opened = [pool.open() for _ in range(streams)]
        sound = [itertools.cycle(np.split(noise(10 * SECONDS, number), 10)) for number in range(streams)]
        taken = []
        for turn in range(turns):
            began = time.perf_counter()
            for stream, pieces in zip(opened, sound, strict=True):
                stream.accept(next(pieces))
            while pool.advance():
                pass
            if turn >= warm:
                taken.append(time.perf_counter() - began)
        print(f"| {streams} | {statistics.median(taken):.3f} | {max(taken):.3f} |", flush=True)
        if statistics.median(taken) > SECONDS:
            break


def blocks(model: object) -> Callable[[], object]:
    """What has ESPnet's contextual block encoder encode a hop more of a stream."""
    encoder, features = model.asr_model.encoder, torch.randn(1, 4 * CHUNK, 80)
    states = None

    def run() -> None:
        nonlocal states
        with torch.inference_mode():
            _, _, states = encoder(features, torch.tensor([4 * CHUNK]), states, is_final=False, infer_mode=True)

    for _ in range(20):
        run()
    return run


def speed() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        more = list(itertools.chain(*STREAMING))
        models = {
            "mha": loaded(place, "conformer_mha_streaming"),
            "gqa": loaded(place, "conformer_gqa", *more),
            "mla": loaded(place, "conformer_mla_streaming"),
            "linear": loaded(place, "conformer_linear", *more[:-1], "streaming.left_chunks=-1"),
        }
        caches(models)
        alone = by_turns({name: encoding(model) for name, model in models.items()}, 100)
        whole = by_turns({name: recogniser_of(model, 0.2)[1] for name, model in models.items()}, 100)
        print("\n| attention | encoder, a chunk | features, encoder and CTC search, a chunk | real-time factor |")
        print("| --- | --- | --- | --- |")
        for name in models:
            print(
                f"| {name} | {1000 * alone[name]:.1f} ms | {1000 * whole[name]:.1f} ms | {whole[name] / SECONDS:.3f} |"
            )
        print(f"\nmla against mha: encoder {alone['mla'] / alone['mha']:.3f}, whole {whole['mla'] / whole['mha']:.3f}")

        for name in ("mha", "mla"):
            young, a_chunk = recogniser_of(models[name], 1)
            bytes_ = young.stream.state.nbytes
            whole_bytes = young.stream.nbytes
            old, a_late_chunk = recogniser_of(models[name], HOUR)
            seconds = by_turns({"1": a_chunk, "60": a_late_chunk}, 100)
            print(
                f"\n{name}, after {HOUR} minutes against after 1: {seconds['60'] / seconds['1']:.3f} "
                f"({1000 * seconds['60']:.1f} and {1000 * seconds['1']:.1f} ms), the state grew by "
                f"{old.stream.state.nbytes - bytes_} B, "
                f"the tokens and their times by {old.stream.nbytes - whole_bytes} B",
                flush=True,
            )
        held(models["mla"])
        theirs = loaded(place, "contextual_block_conformer")
        ours = {f"conformer_{kind}_streaming": encoding(models[kind]) for kind in ("mha", "mla")}
        ours["conformer_mla_look_ahead"] = encoding(loaded(place, "conformer_mla_look_ahead"))
        seconds = by_turns(ours | {"contextual_block_conformer": blocks(theirs)}, 100)
        print("\n| encoder | seconds for a second of audio |\n| --- | --- |")
        for name, taken in seconds.items():
            print(f"| {name} | {taken / SECONDS:.4f} |")


def words(hear: Callable[[np.ndarray], str], data: dict[str, Utterances]) -> str:
    """The cells of a row: the errors in each set, and the seconds for a second of audio."""
    counts, taken, audio = [], 0.0, 0.0
    for utterances in data.values():
        wrong = 0
        for samples, text in utterances:
            began = time.perf_counter()
            heard = hear(samples)
            taken += time.perf_counter() - began
            audio += len(samples) / FS
            wrong += Levenshtein.distance(heard.split(), text)
        counts.append((wrong, sum(len(text) for _, text in utterances)))
    counts.append(tuple(map(sum, zip(*counts, strict=True))))
    cells = [f"{100 * wrong / count:.2f} ({wrong} of {count:,})" for wrong, count in counts]
    return " | ".join([*cells, f"{taken / audio:.4f}"])


def ours(model: object, size: int, final: str) -> Callable[[np.ndarray], str]:
    recogniser = espnet_mla.StreamingSpeech2Text(model, chunk_size=size, final_search=final)
    piece = round((SECONDS if size < 0 else size * recogniser.pool.model.frame_seconds) * FS)

    def hear(samples: np.ndarray) -> str:
        for begin in range(0, len(samples), piece):
            recogniser.accept(samples[begin : begin + piece])
        return recogniser.finish().text

    return hear


def searched(model: object, size: int) -> Callable[[np.ndarray], str]:
    """As stage 12 decodes: ESPnet's search over what the encoder makes in these chunks."""
    model.asr_model.encoder.set_chunks(size)
    return lambda samples: model(samples)[0][0]


def espnets(model: object) -> tuple[Callable[[np.ndarray], str], str]:
    from espnet2.bin.asr_inference_streaming import Speech2TextStreaming

    logging.disable(logging.WARNING)  # it warns with every piece that ends no hypothesis
    recogniser = Speech2TextStreaming(
        asr_model=model.asr_model,
        asr_train_args=model.asr_train_args,
        token_type=model.asr_train_args.token_type,
        bpemodel=model.asr_train_args.bpemodel,
        **DECODING,
    )
    encoder = model.asr_model.encoder
    piece = round(FRAME * encoder.hop_size / 1000 * FS)

    def hear(samples: np.ndarray) -> str:
        pieces = [samples[begin : begin + piece] for begin in range(0, len(samples), piece)]
        results = []
        for number, one in enumerate(pieces):
            results = recogniser(one, is_final=number == len(pieces) - 1)
        return results[0][0] if results else ""

    takes = FRAME * (encoder.hop_size + encoder.look_ahead) + AHEAD
    return hear, f"{takes} ms, at the beginning {FRAME * encoder.block_size + AHEAD}"


def wer(recipe: Path, experiments: Sequence[str], sets: Sequence[str], sizes: Sequence[int]) -> None:
    from espnet_mla.models.streaming import StreamingEncoder

    torch.set_num_threads(1)
    data = {name: utterances for name, utterances in test_sets(recipe).items() if name in sets or not sets}
    print(f"| model | latency | final text | {' | '.join(data)} | all | seconds for a second of audio |")
    print(f"| {' | '.join(['---'] * (len(data) + 5))} |")
    for name in experiments:
        with contextlib.chdir(recipe / "mini"):
            model = espnet_mla.from_pretrained(f"exp/asr_{name}", device="cpu", **DECODING)
        label = name.split("_raw_")[0]

        def row(takes: str, final: str, hear: Callable[[np.ndarray], str], label: str = label) -> None:
            print(f"| {label} | {takes} | {final} | {words(hear, data)} |", flush=True)

        if not isinstance(model.asr_model.encoder, StreamingEncoder):
            hear, takes = espnets(model)
            row(takes, "searched", hear)
            continue
        for size in sizes:
            takes = "offline" if size < 0 else f"{latency(model.asr_model, FS, Chunks(size, 8)).milliseconds:g} ms"
            for final in FINAL_SEARCHES[::-1]:
                row(takes, final, ours(model, size, final))
            row(takes, "stage 12", searched(model, size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("speed")
    commands.add_parser("types")
    of = commands.add_parser("wer")
    of.add_argument("experiments", nargs="+", metavar="EXPERIMENT", help="as conformer_mla_streaming_raw_en_bpe60")
    of.add_argument("--chunk_size", nargs="+", type=int, default=[-1, 32, 16, 8], help="(default: -1 32 16 8)")
    of.add_argument("--sets", nargs="+", default=[], help="some of the sets (default: all)")
    of.add_argument("--recipe", type=Path, default=RECIPE, help="its folder, with mini/ (default: this repository's)")
    options = parser.parse_args()
    if options.command == "speed":
        speed()
    elif options.command == "types":
        types()
    else:
        wer(options.recipe.resolve(), options.experiments, options.sets, options.chunk_size)


if __name__ == "__main__":
    main()

"""ESPnet's beam search with its own decoder and CTC scorer and with ours, side by side.

    python benchmarks/decoding.py [--device cuda] [--cases 20x25x100] [--rounds 5] [--output results.json]
    python benchmarks/decoding.py --model owsm_base [--memory]
    python benchmarks/decoding.py --long 300
    python benchmarks/decoding.py --parts 20x25x100
    python benchmarks/decoding.py --same exp/asr_x/config.yaml exp/asr_x/valid.acc.ave.pth dump/raw/test_clean/wav.scp

The first times a Conformer 12 x 256 with a 6-block decoder and 5,000 tokens, weights random from a fixed seed: encoder
and search, CTC weight 0.3, all in one run whose subjects take turns; a figure is the median of its rounds. Every case
also compares the five best hypotheses. The second does so with the shape of OWSM's base model: E-Branchformer 6 x 384,
6-block decoder, 50,000 tokens, without CTC, which is ESPnet's default there; with `--memory` it prints the peak memory
of the search above what was there before, in a process for each subject. The third has a whole model of that shape
decode one recording of so many seconds by ESPnet's `decode_long`, windows of 30 s and at most 100 tokens, once each.
The fourth says where ours spends its time. The fifth decodes every utterance of a list with a trained model, with every
option that the recipe's decoding uses, and counts the lists that differ.
"""

import argparse
import contextlib
import gc
import importlib
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from attention import machine
from torch import Tensor

from espnet_mla.measure.memory import ENVIRONMENT, on_cpu

BLOCKS = 6  # of the decoder


@dataclass(frozen=True)
class Shape:
    """A model to time.

    Args:
        encoder: module and class in espnet2.asr.encoder, and the constructor's arguments.
        vocabulary, d_model, heads: its sizes.
        ctc_weight: of the search.
        cases: beam x [utterances *] seconds x tokens.
    """

    encoder: tuple[str, str, dict]
    vocabulary: int
    d_model: int
    heads: int
    ctc_weight: float
    cases: tuple[str, ...]


SHAPES = {
    "conformer": Shape(
        ("conformer_encoder", "ConformerEncoder", {
            "num_blocks": 12, "linear_units": 1024, "macaron_style": True, "rel_pos_type": "latest",
        }),
        5000, 256, 4, 0.3, ("20x10x40", "20x25x100", "20x8*10x40", "10x25x100", "1x10x40"),
    ),
    "owsm_base": Shape(
        ("e_branchformer_encoder", "EBranchformerEncoder", {
            "num_blocks": 6, "linear_units": 1536, "cgmlp_linear_units": 1536, "use_ffn": True, "macaron_ffn": True,
            "attention_heads": 6, "rel_pos_type": "latest",
        }),
        50000, 384, 6, 0.0, ("5x30x100",),
    ),
}  # fmt: skip
ESPNET = "espnet"
MLA = {
    "self_attention_layer_type": "mla",
    "self_attention_conf": {"kv_lora_rank": 64},
    "src_attention_layer_type": "mla",
    "src_attention_conf": {"kv_lora_rank": 64},
}
MTLA = MLA | {"self_attention_layer_type": "mtla"}
OURS = {  # name -> keys of decoder_conf, and in what the caches are kept
    "mha": ({}, None),
    "mla 64": (MLA, None),
    "mla 64 int8": (MLA, "int8"),
    "mtla 64": (MTLA, None),
}
NBEST = 5
CLOSE, ROUNDING = 1e-4, 4 * torch.finfo(torch.float32).eps  # absolute, and of scores that float32 has no such steps for


def parse(case: str) -> tuple[int, int, int, int]:
    """beam, utterances, seconds, tokens."""
    beam, speech, tokens = case.split("x")
    utterances, _, seconds = speech.rpartition("*")
    return int(beam), int(utterances or 1), int(seconds), int(tokens)


def subject(shape: Shape, name: str, beam: int, device: str):
    """The beam search of one subject, with a CTC layer that all share by their seed."""
    from espnet2.asr.ctc import CTC
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder as EspnetDecoder
    from espnet2.legacy.nets.batch_beam_search import BatchBeamSearch
    from espnet2.legacy.nets.scorers.length_bonus import LengthBonus

    from espnet_mla.models.ctc import PrefixScorer
    from espnet_mla.models.decoder import TransformerDecoder

    torch.manual_seed(0)
    ctc = CTC(shape.vocabulary, shape.d_model).eval()
    torch.nn.init.normal_(ctc.ctc_lo.weight, std=0.3)  # frames that differ, as a trained layer's do
    decoder_class = EspnetDecoder if name == ESPNET else TransformerDecoder
    conf, cache_dtype = OURS.get(name, ({}, None))
    torch.manual_seed(1)
    sizes = {"num_blocks": BLOCKS, "attention_heads": shape.heads}
    decoder = decoder_class(shape.vocabulary, shape.d_model, **sizes, **conf).eval()
    decoder.cache_dtype = cache_dtype
    last = shape.vocabulary - 1
    scorer_class = PrefixScorer.__mro__[1] if name == ESPNET else PrefixScorer
    scorers = {
        "decoder": decoder,
        "ctc": scorer_class(ctc, last, window_margin=100),  # ESPnet's default
        "length_bonus": LengthBonus(shape.vocabulary),
    }
    weights = {"decoder": 1 - shape.ctc_weight, "ctc": shape.ctc_weight, "length_bonus": 0.0}
    search = BatchBeamSearch(scorers, weights, beam, shape.vocabulary, last, last, pre_beam_score_key="full")
    ctc.to(device)  # no part of the search, which is handed its log probabilities
    return search.to(device).eval()


def encoder(shape: Shape, device: str):
    """The encoder that all subjects share."""
    module, name, sizes = shape.encoder
    torch.manual_seed(2)
    encoder_class = getattr(importlib.import_module(f"espnet2.asr.encoder.{module}"), name)
    return encoder_class(80, output_size=shape.d_model, **sizes).to(device).eval()


@torch.no_grad()
def run(network, search, features: Tensor, tokens: int) -> list[list]:
    """n-best lists of all utterances."""
    lengths = torch.full((len(features),), features.shape[1], device=features.device)
    out, out_lengths, _ = network(features, lengths)
    if len(features) == 1:
        return [search(out[0], maxlenratio=-float(tokens))]
    return search(out, maxlenratio=-float(tokens), x_lengths=out_lengths)


def different(found: list, expected: list) -> bool:
    """Whether two n-best lists differ, in a token or in a score."""
    return any(
        a is None
        or b is None
        or a.yseq.tolist() != b.yseq.tolist()
        or abs(float(a.score) - float(b.score)) > max(CLOSE, ROUNDING * abs(float(b.score)))
        for a, b in itertools.zip_longest(found[:NBEST], expected[:NBEST])
    )


def measure(shape: Shape, cases: list[str], rounds: int, device: str) -> dict:
    """results[case] of all subjects: seconds, bytes of the caches, and whether the n-best lists of mha are ESPnet's."""
    network, results = encoder(shape, device), {}
    for case in cases:
        beam, utterances, seconds, tokens = parse(case)
        features = torch.randn(utterances, 100 * seconds, 80, device=device)
        searches = {name: subject(shape, name, beam, device) for name in (ESPNET, *OURS)}
        taken: dict[str, list[float]] = {name: [] for name in searches}
        found = {}
        for number in range(rounds + 1):
            for name, search in searches.items():
                gc.collect()
                began = time.perf_counter()
                found[name] = run(network, search, features, tokens)
                if device == "cuda":
                    torch.cuda.synchronize()
                if number:  # the first round warms up
                    taken[name].append(time.perf_counter() - began)
        wrong = sum(different(a, b) for a, b in zip(found["mha"], found[ESPNET], strict=True))
        results[case] = {"different": wrong, "utterances": utterances}
        for name, search in searches.items():
            results[case][name] = {"seconds": statistics.median(taken[name])}
            if name != ESPNET:
                results[case][name] |= search.nn_dict["decoder"].cache_bytes._asdict()
        print(row(case, results[case]), flush=True)
    return results


def memory(shape: Shape, name: str, case: str) -> None:
    """Print the peak of the search of one subject, in bytes above what was there before."""
    beam, _, seconds, tokens = parse(case)
    search = subject(shape, name, beam, "cpu")
    with torch.no_grad():
        features = torch.randn(1, 100 * seconds, 80)
        out, _, _ = encoder(shape, "cpu")(features, torch.tensor([features.shape[1]]))
        search(out[0], maxlenratio=-2.0)  # allocates what is kept for later calls
        print(on_cpu(lambda: search(out[0], maxlenratio=-float(tokens))))


def memories(model: str, cases: list[str]) -> None:
    """Print the peak of each subject."""
    print(f"| case | {' | '.join((ESPNET, *OURS))} | ESPnet / mha |\n| --- {'| --- ' * (2 + len(OURS))}|")
    for case in cases:
        peaks = []
        for name in (ESPNET, *OURS):
            command = [sys.executable, __file__, "--model", model, "--memory_of", name, "--cases", case]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
            peaks.append(int(done.stdout.split()[-1]))
        cells = [f"{peak / 1e6:.1f} MB" for peak in peaks]
        print(f"| {case} | {' | '.join(cells)} | {peaks[0] / peaks[1]:.1f} |", flush=True)


def parts(shape: Shape, case: str, rounds: int, device: str) -> None:
    """Print the seconds that each part of our decoding takes, medians."""
    beam, utterances, seconds, tokens = parse(case)
    network, search = encoder(shape, device), subject(shape, "mha", beam, device)
    features = torch.randn(utterances, 100 * seconds, 80, device=device)
    decoder, ctc = search.nn_dict["decoder"], search.part_scorers.get("ctc")
    calls = {
        "encoder": (network, "forward"),
        "decoder": (decoder, "batch_score"),
        "its output layer": (decoder.output_layer, "forward"),
        **({"CTC": (ctc, "batch_score_partial")} if ctc else {}),
    }
    taken: dict[str, list[float]] = {name: [] for name in (*calls, "all")}

    def timed(name: str, call):
        def wrapper(*args, **kwargs):
            began = time.perf_counter()
            result = call(*args, **kwargs)
            if device == "cuda":
                torch.cuda.synchronize()
            taken[name][-1] += time.perf_counter() - began
            return result

        return wrapper

    for name, (owner, method) in calls.items():
        setattr(owner, method, timed(name, getattr(owner, method)))
    everything = timed("all", run)
    for _ in range(rounds + 1):
        for figures in taken.values():
            figures.append(0.0)
        everything(network, search, features, tokens)
    print("| part | seconds |\n| --- | --- |")
    for name, figures in taken.items():
        print(f"| {name} | {statistics.median(figures[1:]):.2f} |")


def row(case: str, result: dict) -> str:
    beam, utterances, seconds, tokens = parse(case)
    espnet = result[ESPNET]["seconds"]
    speech = f"{utterances} x {seconds} s" if utterances > 1 else f"{seconds} s"
    cells = [f"beam {beam}, {speech}, {tokens} tokens", f"{espnet:.2f} s"]
    for name in OURS:
        ours = result[name]
        cells.append(f"{espnet / ours['seconds']:.1f} ({ours['seconds']:.2f} s)")
    for name in OURS:
        ours = result[name]
        cells.append(f"{ours['self_attention'] / 1e6:.2f} + {ours['source_attention'] / 1e6:.2f} MB")
    cells.append(f"{result['different']} of {utterances}")
    return f"| {' | '.join(cells)} |"


HEAD = (
    f"| case | ESPnet | ESPnet / {' | ESPnet / '.join(OURS)} | cache of {' | cache of '.join(OURS)} "
    "| n-best lists that differ |\n"
    f"| --- {'| --- ' * (2 + 2 * len(OURS))}|"
)

OPTIONS = [
    {"ctc_weight": 0.3},
    {"ctc_weight": 0.0},
    {"ctc_weight": 1.0},
    {"ctc_weight": 0.3, "penalty": 0.5},
    {"ctc_weight": 0.3, "maxlenratio": 0.4, "minlenratio": 0.05},
    {"ctc_weight": 0.3, "maxlenratio": -12.0},
    {"ctc_weight": 0.3, "normalize_length": True},
    {"ctc_weight": 0.3, "ctc_window_margin": 0},
]


@contextlib.contextmanager
def espnets_own(task: str = "asr"):
    """ESPnet's decoder and CTC scorer behind their names."""
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder

    from espnet_mla.models.ctc import PrefixScorer

    program: Any = importlib.import_module(f"espnet2.bin.{task}_inference")
    choices = importlib.import_module(f"espnet2.tasks.{task}").decoder_choices.classes
    ours = choices["transformer"]
    choices["transformer"], program.CTCPrefixScorer = TransformerDecoder, PrefixScorer.__mro__[1]
    try:
        yield
    finally:
        choices["transformer"], program.CTCPrefixScorer = ours, PrefixScorer


def owsm(shape: Shape, folder: Path) -> tuple[str, str]:
    """Configuration and model file of a whole model, with random weights, that never predicts a time."""
    import yaml
    from espnet2.tasks.s2t import S2TTask

    times = [f"<{tick / 50:.2f}>" for tick in range(1501)]
    symbols = ["<na>", "<nolang>", "<eng>", "<asr>", "<notimestamps>", *times, "<sop>", "<sos>", "<eos>"]
    words = [f"w{number}" for number in range(shape.vocabulary - 2 - len(symbols))]
    tokens = ["<blank>", "<unk>", *words, *symbols]
    config = S2TTask.get_default_config()
    defaults = config["preprocessor_conf"]
    config |= {key: {} for key in config if key.endswith("_conf")}
    config |= {
        "token_list": tokens, "token_type": "word", "bpemodel": None, "normalize": None,
        "frontend": "default", "frontend_conf": {"fs": 16000, "hop_length": 160},
        "encoder": "e_branchformer",
        "encoder_conf": {"output_size": shape.d_model, "input_layer": "conv2d", **shape.encoder[2]},
        "decoder": "transformer", "decoder_conf": {"num_blocks": BLOCKS, "attention_heads": shape.heads},
        "preprocessor_conf": defaults | {"speech_length": 30.0},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(0)
    model, _ = S2TTask.build_model_from_file(folder / "config.yaml")
    state = model.state_dict()
    state["decoder.output_layer.bias"][tokens.index(times[0]) : tokens.index(times[-1]) + 1] = -1e4
    torch.save(state, folder / "model.pth")
    return str(folder / "config.yaml"), str(folder / "model.pth")


def long_form(shape: Shape, seconds: int) -> None:
    """Time ESPnet's `decode_long` with its own decoder and with ours, and compare what they say."""
    import numpy as np

    import espnet_mla

    espnet_mla.register()
    from espnet2.bin.s2t_inference import Speech2Text

    speech = np.random.default_rng(0).uniform(-0.3, 0.3, 16000 * seconds).astype(np.float32)
    options = {"beam_size": 5, "ctc_weight": 0.0, "maxlenratio": -100.0, "lang_sym": "<eng>", "task_sym": "<asr>"}
    with tempfile.TemporaryDirectory() as scratch:
        files = owsm(shape, Path(scratch))
        ours = Speech2Text(*files, **options)
        with espnets_own("s2t"):
            theirs = Speech2Text(*files, **options)
    found, taken = [], []
    for recogniser in (ours, theirs):
        recogniser(speech[:16000])  # warms up
        began = time.perf_counter()
        found.append(recogniser.decode_long(speech))
        taken.append(time.perf_counter() - began)
    print("| speech | windows | ESPnet | ESPnet / mha | the same |\n| --- | --- | --- | --- | --- |")
    same = "yes" if found[0] == found[1] else "no"
    cells = [f"{seconds} s", len(found[0]), f"{taken[1]:.1f} s", f"{taken[1] / taken[0]:.1f} ({taken[0]:.1f} s)", same]
    print(f"| {' | '.join(map(str, cells))} |")


def same(config: str, model: str, wav_scp: str, beam: int) -> None:
    """Decode all utterances both ways with every set of OPTIONS; print how many n-best lists differ."""
    import soundfile

    import espnet_mla

    espnet_mla.register()
    from espnet2.bin.asr_inference import Speech2Text

    from espnet_mla.common.tables import read_table

    speech = [soundfile.read(path, dtype="float32")[0] for path in read_table(wav_scp).values()]
    print("| options | utterances | n-best lists that differ | ESPnet's time / ours |\n| --- | --- | --- | --- |")
    for options in OPTIONS:
        given = dict(nbest=NBEST, beam_size=beam, lm_weight=0.0, **options)
        ours = Speech2Text(config, model, **given)
        with espnets_own():
            theirs = Speech2Text(config, model, **given)
        wrong, seconds = 0, [0.0, 0.0]
        for samples in speech:
            found = []
            for which, decode in enumerate((ours, theirs)):
                began = time.perf_counter()
                found.append([best[3] for best in decode(samples)])
                seconds[which] += time.perf_counter() - began
            wrong += different(*found)
        told = ", ".join(f"{key} {value}" for key, value in options.items())
        print(f"| {told} | {len(speech)} | {wrong} | {seconds[1] / seconds[0]:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=SHAPES, default="conformer")
    parser.add_argument("--cases", nargs="+", help="beam x seconds x tokens (default: those of the model)")
    parser.add_argument("--long", type=int, metavar="SECONDS", help="a long recording, by a model of OWSM's shape")
    parser.add_argument("--memory", action="store_true", help="the peak memory of the search, on the CPU")
    parser.add_argument("--memory_of", choices=(ESPNET, *OURS), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--parts", metavar="CASE", help="where the time of one case goes")
    parser.add_argument("--same", nargs=3, metavar=("CONFIG", "MODEL", "WAV_SCP"))
    parser.add_argument("--beam", type=int, default=10, help="of --same (default: %(default)s)")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.same:
        same(*options.same, options.beam)
        return
    shape = SHAPES[options.model]
    cases = options.cases or list(shape.cases)
    if options.long:
        long_form(SHAPES["owsm_base"], options.long)
        return
    if options.memory_of:
        memory(shape, options.memory_of, cases[0])
        return
    if options.memory:
        memories(options.model, cases)
        return
    if options.parts:
        parts(shape, options.parts, options.rounds, options.device)
        return
    print(f"{machine(options.device)}\n\n{HEAD}", flush=True)
    results = measure(shape, cases, options.rounds, options.device)
    if options.output:
        options.output.write_text(json.dumps({"machine": machine(options.device), "figures": results}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

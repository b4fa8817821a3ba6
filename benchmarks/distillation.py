"""What distillation gives back of what a conversion costs: errors before and after, on the mini corpus.

    python benchmarks/distillation.py                       # measures what is missing, then prints the tables
    python benchmarks/distillation.py --table               # only prints what is there
    python benchmarks/distillation.py --confs conformer_mha --seeds 1 --only "*6.25 %*"

Each model is trained as run.sh does it with conf/<conf>.yaml on the mini corpus (one of them also with rotary
positions), converted with 200 utterances of its training set, and distilled on that set without its transcripts. Six
epochs are 2,550 steps; the original was trained for 3,000. Both are decoded as stage 12 does, and by CTC alone: the
best label of each frame, to which the encoder matters most.

The errors are kept in egs2/librispeech_100/asr1/results/mini/distillation.json: what is in there is not measured again.
They are added over sets and seeds; brackets hold 95 % bootstrap intervals over utterances of the difference to the
original (Bisani and Ney 2004).
"""

import argparse
import contextlib
import fnmatch
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import yaml
from conversion import CONFS, RECIPE, SEEDS, Utterances, decoded, decoded_by_ctc, test_sets, trained, tune

from espnet_mla.common.files import write_text
from espnet_mla.common.log import log
from espnet_mla.common.tables import read_table
from espnet_mla.convert import distill_command
from espnet_mla.convert.command import main as convert
from espnet_mla.convert.experiment import finetuning
from espnet_mla.measure.bootstrap import interval, replicates
from espnet_mla.trained.tasks import ASR

SCORES = Path("results/mini/distillation.json")
EXP, DATA = Path("mini/exp"), Path("mini/data/train_clean_100")
ORIGINAL, ORIGINAL_TUNED = "original", "original, trained on with labels, 6 epochs"
WHOLE = ("--modules", "encoder,decoder_self,decoder_src")
CONVERSIONS = {  # name -> options of espnet-mla convert
    "mla 12.5 %": ("--kv_lora_rank", "24"),
    "mla 6.25 %": ("--kv_lora_rank", "12"),
    "mla 3.1 %": ("--kv_lora_rank", "6"),
    "mla 6.25 %, decoder too": ("--kv_lora_rank", "12", *WHOLE),
    "gqa, one head, 25 %": ("--attention", "gqa", "--num_kv_heads", "1"),
    "linear": ("--attention", "linear"),
}
ROPE = "conformer_mha, rope"
MODELS = {conf: (conf, "") for conf in CONFS} | {ROPE: ("conformer_mha", "--encoder_conf pos_enc_layer_type=rope")}
"""Name -> configuration, and what is changed of it."""
OF_ROPE = {"mla 12.5 %": ("--kv_lora_rank", "16", "--qk_rope_head_dim", "8")}
METHODS = ("split", "joint", "covariance")  # and attention, which is the default
EPOCHS = {"mla 6.25 %": (2, 3, 6)}
MINUTES = {5: 80, 20: 20, 60: 7}  # of speech -> epochs, as many steps as two over all 199 minutes
LABELS = ("--text", str(DATA / "text"), "--labels", "1")


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        name: of it.
        conversion: options of espnet-mla convert.
        epochs: of distillation; 0 for none.
        minutes: of speech to distil on; None for all.
        options: of the distillation, beside these.
    """

    name: str
    conversion: tuple[str, ...] = ()
    epochs: int = 0
    minutes: int | None = None
    options: tuple[str, ...] = ()


def rows(model: str) -> Iterator[Row]:
    """Those of its table, but for the originals."""
    for name, options in (OF_ROPE if model == ROPE else CONVERSIONS).items():
        yield Row(name, options)
        if name == "mla 6.25 %":
            yield from (Row(f"{name}, by {method}", (*options, "--method", method)) for method in METHODS)
        for epochs in EPOCHS.get(name, (6,)):
            yield Row(f"{name}, distilled, {epochs} epochs", options, epochs)
        if name == "mla 6.25 %":
            for minutes, epochs in MINUTES.items():
                yield Row(f"{name}, distilled on {minutes} minutes", options, epochs, minutes)
            yield Row(f"{name}, distilled with labels, 6 epochs", options, 6, options=LABELS)


Scores = dict[str, dict]  # model, seed and row, or "words" -> way of decoding -> set -> errors of each utterance


def measure(conf: str, seed: int, only: str, ways: dict[str, Callable[[Path, dict[str, Utterances]], dict]]) -> None:
    """What is missing of one model."""
    name, args = MODELS[conf]
    source, data = trained(RECIPE, name, seed, args), None
    folder = EXP / "distillation" / f"{conf}_{seed}".replace(", ", "_")
    for row in (Row(ORIGINAL), *rows(conf), Row(ORIGINAL_TUNED)):
        key = f"{conf} seed {seed} {row.name}"
        todo = [way for way in ways if way not in read().get(key, {})]
        if not todo or not (row.name == ORIGINAL or fnmatch.fnmatch(row.name, only)):
            continue
        data, model = data or test_sets(RECIPE), folder / row.name.replace(" ", "_")
        model, seconds = (source, 0.0) if row.name == ORIGINAL else made(row, source, model)
        found = {way: ways[way](model, data) for way in todo}
        keep(
            key,
            found | {"seconds": round(seconds)},
            {name: [len(words) for _, words in of] for name, of in data.items()},
        )
        log(f"{key}: " + ", ".join(f"{way} {sum(map(sum, one.values()))}" for way, one in found.items()))
        if row.name != ORIGINAL:
            shutil.rmtree(model)


def made(row: Row, source: Path, model: Path) -> tuple[Path, float]:
    """A row's model, in a folder, and the seconds that its training took."""
    if row.name == ORIGINAL_TUNED:
        config = finetuning(yaml.safe_load((source / "config.yaml").read_text()), ASR) | {"max_epoch": 6}
        conf = model.with_name(f"{model.name}.yaml")
        write_text(conf, yaml.safe_dump(config))
        began = time.monotonic()
        tune(RECIPE, RECIPE / conf, source / "valid.acc.ave.pth", RECIPE / model)
        return model, time.monotonic() - began
    began = time.monotonic()
    perform(convert, "--asr_model_file", str(source / "valid.acc.ave.pth"), "--calibration", str(DATA / "wav.scp"),
            *row.conversion, "--output_dir", str(model), "--overwrite")  # fmt: skip
    if row.epochs:
        speech = DATA / "wav.scp" if row.minutes is None else part(row.minutes, model.with_name(f"{model.name}.scp"))
        began = time.monotonic()
        perform(distill_command.main, str(model), "--speech", str(speech), "--epochs", str(row.epochs), *row.options)
    return model, time.monotonic() - began


def part(minutes: int, path: Path) -> Path:
    """A wav.scp of so many minutes of the training set, from all of it."""
    entries = list(read_table(DATA / "wav.scp").items())
    whole = sum(soundfile.info(file).duration for _, file in entries)
    chosen = entries[:: round(whole / 60 / minutes)]
    write_text(path, "".join(f"{key} {file}\n" for key, file in chosen))
    return path


def perform(command: Callable[[list[str]], int], *arguments: str) -> None:
    """A command of espnet-mla, in this process."""
    with contextlib.redirect_stdout(None):
        if command(list(arguments)):
            raise SystemExit(f"failed: {' '.join(arguments)}")


WAYS = {"beam": decoded, "ctc": decoded_by_ctc}


def read() -> Scores:
    return json.loads(SCORES.read_text()) if SCORES.exists() else {"words": {}}


def keep(key: str, found: dict, words: dict[str, list[int]]) -> None:
    """Add what was found to what is kept."""
    scores = read()
    if scores["words"] not in ({}, words):
        raise SystemExit(f"{SCORES} is of another version of the corpus: delete it")
    scores["words"] = words
    scores[key] = scores.get(key, {}) | found
    lines = (f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in scores.items())
    write_text(SCORES, "{\n" + ",\n".join(lines) + "\n}\n")


def print_table(conf: str) -> None:
    """Print what there is, each way of decoding over the seeds that it was measured with."""
    scores = read()
    words = np.concatenate([scores["words"][name] for name in sorted(scores["words"])])
    head = " | ".join(f"{way}, seeds | {way}, WER | against the original" for way in WAYS)
    print(f"\n{conf}\n\n| | {head} | seconds |\n| --- |{' --- |' * (3 * len(WAYS) + 1)}")
    for row in (ORIGINAL, ORIGINAL_TUNED, *(row.name for row in rows(conf))):
        seeds = [seed for seed in SEEDS if f"{conf} seed {seed} {row}" in scores]
        if not seeds:
            continue
        seconds = np.mean([scores[f"{conf} seed {seed} {row}"]["seconds"] for seed in seeds])
        cells = [cell for way in WAYS for cell in compared(scores, words, conf, row, way)]
        print(f"| {row} | {' | '.join(cells)} | {f'{seconds:.0f}' if seconds else ''} |")


def compared(scores: Scores, words: np.ndarray, conf: str, row: str, way: str) -> tuple[str, str, str]:
    """Seeds, WER, and how much more errors than the original."""
    keys = {seed: [f"{conf} seed {seed} {one}" for one in (row, ORIGINAL)] for seed in SEEDS}
    seeds = [seed for seed, both in keys.items() if all(way in scores.get(key, {}) for key in both)]
    if not seeds:
        return "", "", ""
    wrong, before = (
        sum(
            np.concatenate([scores[keys[seed][which]][way][name] for name in sorted(scores["words"])]) for seed in seeds
        )
        for which in (0, 1)
    )
    listed, rate = ", ".join(map(str, seeds)), f"{100 * wrong.sum() / words.sum() / len(seeds):.2f}"
    if row == ORIGINAL:
        return listed, rate, ""
    drawn = replicates(np.array([wrong, before]), len(seeds) * words)
    low, high = interval(100 * (drawn[:, 0] / drawn[:, 1] - 1))
    return listed, rate, f"{100 * (wrong.sum() / before.sum() - 1):+.1f} % [{low:+.1f}, {high:+.1f}]"


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--confs", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of the rows' names")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of decoding")
    options = parser.parse_args()
    os.chdir(RECIPE)
    if not options.table:
        for seed, conf in itertools.product(options.seeds, options.confs):
            measure(conf, seed, options.only, {way: WAYS[way] for way in options.ways})
    for conf in options.confs:
        print_table(conf)


if __name__ == "__main__":
    main()

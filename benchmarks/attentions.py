"""What the mini corpus tells of attentions: errors by what they hear, and by what they keep.

    python benchmarks/attentions.py controls                # trains what is missing, then prints the table
    python benchmarks/attentions.py cache --jobs 2          # so many models at a time, cores shared out among them
    python benchmarks/attentions.py cache --table           # only prints what is there

`controls`: whether the corpus needs attention at all. Models whose attention hears too little, or that have none,
against `mha`; and ESPnet's own encoder. `cache`: `gqa`, `mla` and `linear` at an eighth of the cache of `mha`, and
`mla` of ranks from 8 to 64, and `mtla`.

Each model is trained and decoded with three seeds, as run.sh does it with conf/<name>.yaml on the mini corpus; no more
is changed than the name of the row says. The scores are kept in egs2/librispeech_100/asr1/results/mini/attentions.json:
what is in there is not trained again. Errors are added over sets and seeds; brackets hold 95 % bootstrap intervals over
utterances, and P is the probability that `mha` of the same encoder makes fewer errors (Bisani and Ney 2004).
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from espnet_mla import run
from espnet_mla.attention import ATTENTIONS, MHA
from espnet_mla.common.files import write_text
from espnet_mla.common.jobs import Job, run_side_by_side
from espnet_mla.common.log import log
from espnet_mla.common.machine import CORES
from espnet_mla.measure.bootstrap import better, interval, replicates
from espnet_mla.measure.scores import figures
from espnet_mla.recipe.corpora import CORPORA
from espnet_mla.recipe.run_sh import asr_sh_options

RECIPE = Path(__file__).parents[1] / "egs2" / "librispeech_100" / "asr1"
SCORES, FIGURES = Path("results/mini/attentions.json"), Path("results/mini/figures")
SEEDS = (1, 2, 3)
REACH = 8  # frames of 40 ms


class LocalAttention(MHA):
    """Multi-head attention that sees REACH frames to either side."""

    def attend(self, query, kv, position, mask, *, self_attention: bool = False) -> Tensor:
        places = torch.arange(query.shape[1], device=query.device)
        near = (places[:, None] - places).abs() <= REACH
        mask = near[None] if mask is None else mask.bool() & near
        # A frame of padding sees itself: a row without any frame would make NaN of it.
        mask = mask | torch.eye(len(places), dtype=torch.bool, device=query.device)
        return super().attend(query, kv, position, mask, self_attention=False)


@dataclass(frozen=True)
class Model:
    """A row of a table: `conf/<conf>.yaml` with `options` for its encoder."""

    name: str
    conf: str
    options: str = ""

    def arguments(self, seed: int) -> list[str]:
        """Options of run.sh, which names the experiment as for run_all_baselines.sh: what both need is trained once."""
        options = " ".join([*(f"--encoder_conf {option}" for option in self.options.split()), f"--seed {seed}"])
        return ["--corpus", "mini", "--asr_config", f"conf/{self.conf}.yaml", "--asr_args", options]

    def folder(self, seed: int) -> Path:
        """Its experiment's."""
        corpus, options = asr_sh_options(self.arguments(seed))
        return corpus.folder / "exp" / f"asr_{options['asr_tag']}"

    def key(self, seed: int) -> str:
        """Of its scores."""
        return f"{self.conf} {self.options} seed {seed}".replace("  ", " ")

    @property
    def encoder(self) -> str:
        return self.conf.partition("_")[0]


CONFORMER, BRANCHFORMER = Model("Conformer, `mha`", "conformer_mha"), Model("Branchformer, `mha`", "branchformer_mha")
NARROW = f"Conformer, attention over {REACH} frames to either side"
TABLES = {
    "controls": (
        CONFORMER,
        Model("Conformer, `mla` of rank 1", "conformer_mla", "attention_conf.kv_lora_rank=1"),
        Model(NARROW, "conformer_mha", "selfattention_layer_type=local"),
        BRANCHFORMER,
        Model("Branchformer without its attention branch", "branchformer_mha", "use_attn=false"),
        Model("Conformer, ESPnet's own encoder", "conformer_mha", "selfattention_layer_type=rel_selfattn"),
    ),
    "cache": (
        CONFORMER,
        Model("`gqa`, 1 kv head of 8, 12.5 %", "conformer_gqa", "attention_heads=8 attention_conf.num_kv_heads=1"),
        Model("`linear`, 12.5 % after 4 s", "conformer_linear"),
        *(
            # 24 is what scaling makes of the rank in the configuration.
            Model(
                f"`mla` of rank {rank}, {100 * rank / 192:.1f} %",
                "conformer_mla",
                f"attention_conf.kv_lora_rank={rank}" if rank != 24 else "",
            )
            for rank in (8, 16, 24, 32, 48, 64)
        ),
        Model("`mtla` of rank 24, two frames merged, 6.3 %", "conformer_mtla"),
    ),
}

Scores = dict[str, dict[str, list[int]]]  # model and seed, or "words" -> set -> of each utterance


def train(models: Sequence[Model], jobs: int) -> bool:
    """Train, decode and score what is missing, and go on where it was broken off; whether all of it is there then."""
    todo = {model.key(seed): (model, seed) for model, seed in missing(models)}
    exp = CORPORA["mini"].folder / "exp"
    if todo and not (exp / "asr_stats_raw_en_bpe60/valid/text_shape.bpe").exists():
        subprocess.run(["./run.sh", *CONFORMER.arguments(SEEDS[0]), "--stop_stage", "10"], check=True)
    cores, failed = max(1, CORES // jobs), []

    def start(key: str, slot: int) -> Job:
        model, seed = todo[key]
        command = ["./run.sh", *model.arguments(seed), "--stage", "11", "--stop_stage", "13"]
        command += ["--python", f"{sys.executable} {Path(__file__).resolve()}"]
        share = f"{slot * cores}-{slot * cores + cores - 1}"
        return Job(["taskset", "-c", share, *command], exp / "attentions" / f"{model.folder(seed).name}.log")

    def end(key: str, job: Job, status: int) -> None:
        if status:
            failed.append(key)
            log(f"{key}: failed, see {job.log} [{job.seconds:.0f} s]")
        else:
            keep(*todo[key])
            log(f"{key}: done [{job.seconds:.0f} s]")

    run_side_by_side(todo, slots=jobs, start=start, end=end)
    return not failed


def missing(models: Sequence[Model]) -> list[tuple[Model, int]]:
    """The models and seeds without scores; those of what run_all_baselines.sh has trained are added to the others."""
    for model, seed in itertools.product(models, SEEDS):
        if model.key(seed) not in read_scores() and scored(model, seed):
            keep(model, seed)
    return [(model, seed) for model, seed in itertools.product(models, SEEDS) if model.key(seed) not in read_scores()]


def read_scores() -> Scores:
    return json.loads(SCORES.read_text()) if SCORES.exists() else {"words": {}}


def scored(model: Model, seed: int) -> dict:
    """The scores of its experiment, or of the figures that run_all_baselines.sh has kept of it; none where there are
    none."""
    folder, kept = model.folder(seed), FIGURES / model.folder(seed).name / "figures.json"
    if (folder / "RESULTS.md").exists():
        return figures(folder, folder / "valid.acc.ave.pth")
    return json.loads(kept.read_text())["scores"] if kept.exists() else {}


def keep(model: Model, seed: int) -> None:
    """Add the scores of a model to those that are kept."""
    scores = read_scores()
    (decoding,) = scored(model, seed).values()
    words = {name: one["wer"]["words"] for name, one in decoding.items()}
    if scores["words"] not in ({}, words):
        raise SystemExit(f"{SCORES} is of another version of the corpus: delete it")
    scores["words"] = words
    scores[model.key(seed)] = {name: one["wer"]["errors"] for name, one in decoding.items()}
    lines = (f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in scores.items())
    write_text(SCORES, "{\n" + ",\n".join(lines) + "\n}\n")


def print_table(models: Sequence[Model]) -> None:
    """Print what is there."""
    scores = read_scores()
    complete = [model for model in models if all(model.key(seed) in scores for seed in SEEDS)]
    if not complete:
        raise SystemExit("no model is trained and scored with all seeds yet")
    sets = {name: np.array(words) for name, words in scores["words"].items()}
    each = np.concatenate(list(sets.values()))  # words of each utterance
    wrong = {  # errors of each seed and utterance, (seeds, utterances)
        model: np.array([np.concatenate([scores[model.key(seed)][name] for name in sets]) for seed in SEEDS])
        for model in complete
    }
    columns = [*sets, "all (each seed)", "errors", "P"]
    print(f"| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for model in complete:
        cells = [
            f"{100 * sum(sum(scores[model.key(seed)][name]) for seed in SEEDS) / words.sum() / len(SEEDS):.2f}"
            for name, words in sets.items()
        ]
        by_seed = 100 * wrong[model].sum(1) / each.sum()
        cells.append(f"{by_seed.mean():.2f} ({', '.join(f'{rate:.2f}' for rate in by_seed)})")
        baseline = next(
            (one for one in complete if one in (CONFORMER, BRANCHFORMER) and one.encoder == model.encoder), model
        )
        if model != baseline:
            errors = np.array([wrong[one].sum(0) for one in (model, baseline)])
            drawn = replicates(errors, len(SEEDS) * each)
            low, high = interval(100 * (drawn[:, 0] / drawn[:, 1] - 1))
            more = 100 * (errors[0].sum() / errors[1].sum() - 1)
            cells += [f"{more:+.0f} % [{low:+.0f}, {high:+.0f}]", f"{better(drawn[:, 1], drawn[:, 0]):.3f}"]
        else:
            cells += ["", ""]
        print(f"| {model.name} | {' | '.join(cells)} |")
    print(f"\n{', '.join(f'{name}: {words.sum()} words' for name, words in sets.items())}; {len(SEEDS)} seeds each")
    # How sure a single model's WER is, by which the size of the sets is chosen.
    name, words = next(iter(sets.items()))
    for seed in SEEDS:
        errors = np.array([scores[complete[0].key(seed)][name]])
        low, high = interval(replicates(errors, words)[:, 0])
        print(
            f"{complete[0].name}, seed {seed}, {name}: {100 * errors.sum() / words.sum():.2f} [{low:.2f}, {high:.2f}]"
        )


def main(arguments: Sequence[str]) -> None:
    """What the module says, or, for run.sh, one of ESPnet's programs."""
    ATTENTIONS["local"] = LocalAttention
    if arguments[:1] == ["-m"]:
        run.main(list(arguments))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", choices=TABLES)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time (default: %(default)s)")
    options = parser.parse_args(arguments)
    os.chdir(RECIPE)
    complete = not missing(TABLES[options.models]) or options.table or train(TABLES[options.models], options.jobs)
    print_table(TABLES[options.models])
    if not complete:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])

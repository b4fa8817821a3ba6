"""Whether the mini corpus can tell attentions apart: models whose attention hears too little, against `mha`.

    python benchmarks/attention_needed.py                   # trains what is missing, then prints the table
    python benchmarks/attention_needed.py --jobs 2          # so many models at a time, cores shared out among them
    python benchmarks/attention_needed.py --table           # only prints what is there

Each control is trained as run.sh trains conf/conformer_mha.yaml and conf/branchformer_mha.yaml on the mini corpus, with
three seeds, and decoded as there, on all its test sets; no more is changed than the name of the row says. The last row
is ESPnet's own encoder. Errors are added over sets and seeds; brackets hold 95 % bootstrap intervals over utterances,
and P is the probability that `mha` of the same encoder makes fewer errors (Bisani and Ney 2004).
"""

import argparse
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
from espnet_mla.common.jobs import Job, run_side_by_side
from espnet_mla.common.log import log
from espnet_mla.common.machine import CORES
from espnet_mla.measure.bootstrap import better, interval, replicates
from espnet_mla.measure.scores import figures

RECIPE = Path(__file__).parents[1] / "egs2" / "librispeech_100" / "asr1"
EXP = Path("mini/exp")
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
class Control:
    """A row of the table: `conf/<conf>.yaml` with `options` for its encoder."""

    name: str
    conf: str
    options: str = ""

    def tag(self, seed: int) -> str:
        """The name of its experiment."""
        words = "_".join(option.partition("=")[2] for option in self.options.split())
        return f"needed_{self.conf}{'_' * bool(words)}{words}_seed{seed}"

    def arguments(self, seed: int) -> str:
        """Options of training."""
        return " ".join([*(f"--encoder_conf {option}" for option in self.options.split()), f"--seed {seed}"])


CONTROLS = (
    Control("Conformer, `mha`", "conformer_mha"),
    Control("Conformer, `mla` of rank 1", "conformer_mla", "attention_conf.kv_lora_rank=1"),
    Control(
        f"Conformer, attention over {REACH} frames to either side", "conformer_mha", "selfattention_layer_type=local"
    ),
    Control("Branchformer, `mha`", "branchformer_mha"),
    Control("Branchformer without its attention branch", "branchformer_mha", "use_attn=false"),
    Control("Conformer, ESPnet's own encoder", "conformer_mha", "selfattention_layer_type=rel_selfattn"),
)


def train(jobs: int) -> bool:
    """Train, decode and score what is missing, and go on where it was broken off; whether all of it is there then."""
    todo = {
        control.tag(seed): (control, seed)
        for seed in SEEDS
        for control in CONTROLS
        if not (EXP / f"asr_{control.tag(seed)}/RESULTS.md").exists()
    }
    if todo and not (EXP / "asr_stats_raw_en_bpe60/valid/text_shape.bpe").exists():
        command = [
            "./run.sh",
            "--corpus",
            "mini",
            "--asr_config",
            f"conf/{CONTROLS[0].conf}.yaml",
            "--stop_stage",
            "10",
        ]
        subprocess.run(command, check=True)
    cores, failed = max(1, CORES // jobs), []

    def start(tag: str, slot: int) -> Job:
        control, seed = todo[tag]
        command = ["./run.sh", "--corpus", "mini", "--asr_config", f"conf/{control.conf}.yaml", "--asr_tag", tag]
        command += ["--stage", "11", "--stop_stage", "13", "--python", f"{sys.executable} {Path(__file__).resolve()}"]
        share = f"{slot * cores}-{slot * cores + cores - 1}"
        command = ["taskset", "-c", share, *command, "--asr_args", control.arguments(seed)]
        return Job(command, EXP / f"needed/{tag}.log")

    def end(tag: str, job: Job, status: int) -> None:
        failed.extend([tag] if status else [])
        log(f"{tag}: {'done' if not status else f'failed, see {job.log}'} [{job.seconds:.0f} s]")

    run_side_by_side(todo, slots=jobs, start=start, end=end)
    return not failed


def table() -> None:
    """Print what is there."""
    wrong, words, baselines = {}, {}, {}
    for control in CONTROLS:
        counted = [scored(EXP / f"asr_{control.tag(seed)}") for seed in SEEDS]
        if all(counted):
            for name in counted[0]:
                wrong[control, name] = np.array([one[name][0] for one in counted])  # (seeds, utterances)
                words[name] = np.array(counted[0][name][1])
            if not control.options:
                baselines[control.conf.partition("_")[0]] = control
    sets = list(words)
    if not sets:
        raise SystemExit("no model is trained and scored with all seeds yet")
    print(f"| | {' | '.join(sets)} | all | errors | P |\n| --- |{' --- |' * (len(sets) + 3)}")
    for control in CONTROLS:
        if (control, sets[0]) not in wrong or control.conf.partition("_")[0] not in baselines:
            continue
        cells = [rate(wrong[control, name], words[name]) for name in sets]
        of = [np.concatenate([wrong[one, name].sum(0) for name in sets])
              for one in (control, baselines[control.conf.partition("_")[0]])]  # fmt: skip
        drawn = replicates(np.array(of), len(SEEDS) * np.concatenate([words[name] for name in sets]))
        low, high = interval(100 * (drawn[:, 0] / drawn[:, 1] - 1))
        whole = sum(words[name].sum() for name in sets)
        each = [100 * sum(wrong[control, name][seed].sum() for name in sets) / whole for seed in range(len(SEEDS))]
        cells.append(f"{100 * of[0].sum() / whole / len(SEEDS):.2f} ({', '.join(f'{one:.2f}' for one in each)})")
        more = 100 * (of[0].sum() / of[1].sum() - 1)
        same = of[0] is of[1] or np.array_equal(*of)
        cells += (
            ["", ""]
            if same
            else [f"{more:+.0f} % [{low:+.0f}, {high:+.0f}]", f"{better(drawn[:, 1], drawn[:, 0]):.3f}"]
        )
        print(f"| {control.name} | {' | '.join(cells)} |")
    print(f"\n{', '.join(f'{name}: {words[name].sum()} words' for name in sets)}; {len(SEEDS)} seeds each")


def scored(folder: Path) -> dict[str, tuple[list[int], list[int]]]:
    """Set -> errors and words of each utterance; empty where nothing is scored."""
    decodings = figures(folder, folder / "valid.acc.ave.pth")
    return {
        name: (scores["wer"]["errors"], scores["wer"]["words"])
        for sets in decodings.values()
        for name, scores in sets.items()
    }


def rate(wrong: np.ndarray, words: np.ndarray) -> str:
    """WER in per cent, of all seeds together."""
    return f"{100 * wrong.sum() / words.sum() / len(SEEDS):.2f}"


def main(arguments: Sequence[str]) -> None:
    """What the module says, or, for run.sh, one of ESPnet's programs."""
    ATTENTIONS["local"] = LocalAttention
    if arguments[:1] == ["-m"]:
        run.main(list(arguments))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time (default: %(default)s)")
    options = parser.parse_args(arguments)
    os.chdir(RECIPE)
    complete = options.table or train(options.jobs)
    table()
    if not complete:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])

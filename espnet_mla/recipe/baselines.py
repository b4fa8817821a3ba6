"""run_all_baselines.sh: every configuration trained, scored and measured, and all of them compared."""

import argparse
import fnmatch
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from espnet_mla.recipe.files import RecipeError
from espnet_mla.recipe.jobs import POLL_SECONDS, Job, end_on_signals, failure, threads_for
from espnet_mla.recipe.layout import config_name
from espnet_mla.recipe.machine import gpus
from espnet_mla.recipe.options import CORES, UsageError
from espnet_mla.recipe.report import duration, log

DESCRIPTION = """\
Train, decode and score every pair of architecture and attention, measure each, and compare all. What is done is skipped; a
pair that fails is shown with its log at the end, and the others go on. Options that are not listed here go to run.sh, as
--ngpu, --nbpe or --asr_args.
"""
ARCHITECTURES = ("conformer", "branchformer", "e_branchformer")
ATTENTIONS = ("mha", "gqa", "mla", "linear")
PAIRS = tuple(f"{architecture}_{attention}" for architecture in ARCHITECTURES for attention in ATTENTIONS)
MODEL = "valid.acc.ave.pth"
LONGEST_NAME = 255  # of a file, in Linux's and macOS's file systems
OWN = ("stage", "stop_stage", "asr_config", "asr_tag", "asr_exp", "inference_asr_model")  # run.sh's, set here


@dataclass(frozen=True)
class Corpus:
    """What depends on the corpus.

    Args:
        place: the folder below the recipe's where run.sh works.
        nbpe: size of the vocabulary, as run.sh has it.
        speeds: of speed perturbation, as run.sh has them.
        decoding: options of decoding that run.sh adds to conf/decode_asr.yaml.
    """

    place: Path
    nbpe: str
    speeds: str
    decoding: tuple[str, ...]


CORPORA = {
    "librispeech_100": Corpus(Path("."), "5000", "0.9 1.0 1.1", ()),
    "mini": Corpus(Path("mini"), "60", "", ("--beam_size", "5")),
}


@dataclass
class Experiment:
    """One configuration with one seed, and how far it has come.

    Args:
        name: as it is called in tables.
        config: of the model.
        asr_args: options of training.
        folder: of the experiment.
        done: what was done, or found done: `trained`, `measured`.
        failed: what went wrong.
        seconds: that its commands took.
        log: of its last command.
    """

    name: str
    config: Path
    asr_args: str
    folder: Path
    done: list[str] = field(default_factory=list)
    failed: str = ""
    seconds: float = 0.0
    log: Path | None = None


@dataclass(frozen=True)
class Plan:
    """Which experiments there are, and the command of each step."""

    corpus: str
    stats: Path
    experiments: list[Experiment]
    jobs: int
    output: Path
    for_run_sh: tuple[str, ...]
    seconds: tuple[str, ...]
    gpus: int

    @property
    def _of(self) -> Corpus:
        return CORPORA[self.corpus]

    @property
    def exp(self) -> Path:
        """Where experiments lie."""
        return self._of.place / "exp"

    def run_sh(self, first: int, last: int, *more: str) -> list[str]:
        """The recipe from stage `first` to stage `last`."""
        stages = ("--stage", str(first), "--stop_stage", str(last))
        return ["./run.sh", "--corpus", self.corpus, *stages, *more, *self.for_run_sh]

    @property
    def prepare(self) -> list[str]:
        """Data and statistics, which all share."""
        return self.run_sh(1, 10, "--asr_config", str(self.experiments[0].config))

    def train(self, one: Experiment) -> list[str]:
        """Training, decoding and scoring."""
        shared = ("--nj", str(threads_for(self.jobs)), "--inference_nj", str(threads_for(self.jobs)))
        tag = one.folder.name.removeprefix("asr_")
        args = ("--asr_args", one.asr_args) if one.asr_args else ()
        return self.run_sh(
            11, 13, "--asr_config", str(one.config), "--asr_tag", tag, *args, *(shared if self.jobs > 1 else ())
        )

    def profile(self, one: Experiment) -> list[str]:
        """Its figures."""
        speech = self._of.place / "dump" / "raw" / "test_clean" / "wav.scp"
        command = ["espnet-mla", "profile", "--asr_model_file", str(one.folder / MODEL), "--wav_scp", str(speech)]
        command += ["--inference_config", "conf/decode_asr.yaml", *self._of.decoding]
        command += ["--seconds", *self.seconds] if self.seconds else []
        return command + (["--device", "cuda"] if self.gpus else [])

    def compare(self, experiments: Sequence[Experiment]) -> list[str]:
        """The comparison, each architecture against its multi-head attention."""
        baselines: dict[str, str] = {}
        for one in experiments:
            architecture, _, attention = one.config.stem.rpartition("_")
            if attention == "mha":
                baselines.setdefault(architecture, one.folder.name)
        command = ["espnet-mla", "compare", *(str(one.folder) for one in experiments)]
        command += ["--baseline", *baselines.values()] if baselines else []
        return [*command, "--output", str(self.output)]

    @property
    def prepared(self) -> bool:
        """Whether the statistics are there, which are what stages 1 to 10 end with."""
        return (self.stats / "valid" / "text_shape.bpe").exists()


def main(arguments: Sequence[str] | None = None) -> int:
    """Do it, and return the exit status: 1 where something failed."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        plan = _plan(options, rest)
        if options.dry_run:
            _show(plan)
            return 0
        end_on_signals()
        return _perform(plan)
    except UsageError as error:
        parser.error(str(error))
    except (RecipeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 130


def _perform(plan: Plan) -> int:
    began = time.monotonic()
    logs = plan.exp / "baselines"
    if not plan.prepared:
        log(f"Data and statistics, log: {logs / 'data.log'}")
        _side_by_side({"data": plan.prepare}, logs, 1, lambda name, status, _: _refuse(name, status, logs))
    for one in plan.experiments:
        one.done += ["trained"] if _newer(one.folder / "RESULTS.md", one.folder / MODEL) else []
    _step(plan, plan.train, "trained", plan.jobs, [one for one in plan.experiments if "trained" not in one.done])
    trained = [one for one in plan.experiments if "trained" in one.done]
    for one in trained:
        one.done += ["measured"] if _newer(one.folder / "figures.json", one.folder / "RESULTS.md") else []
    # One at a time: beside another program no time means anything.
    _step(plan, plan.profile, "measured", 1, [one for one in trained if "measured" not in one.done])
    measured = [one for one in trained if "measured" in one.done]
    compared = bool(measured)
    if measured:
        log(f"Comparing {len(measured)} models")

        def end(name: str, status: int, _: float) -> None:
            nonlocal compared
            if status:
                compared = False
                print(f"error: {failure('comparing failed', status, logs / 'compare.log')}", file=sys.stderr)

        _side_by_side({"compare": plan.compare(measured)}, logs, 1, end)
    print(_table(plan.experiments))
    log(
        (f"The comparison is in {plan.output}. " if compared else "Nothing was compared. ")
        + f"[elapsed={duration(time.monotonic() - began)}]"
    )
    return int(not compared or any(one.failed for one in plan.experiments))


def _step(
    plan: Plan,
    command: Callable[[Experiment], list[str]],
    what: str,
    jobs: int,
    experiments: Sequence[Experiment],
) -> None:
    """One step of each of the experiments."""
    by_name = {one.name: one for one in experiments}
    logs = plan.exp / "baselines" / what

    def end(name: str, status: int, seconds: float) -> None:
        one = by_name[name]
        one.log, one.seconds = logs / f"{name}.log", one.seconds + seconds
        if status:
            one.failed = what
            log(f"{name}: not {what}, log: {one.log}")
        else:
            one.done.append(what)
            log(f"{name}: {what} [elapsed={duration(seconds)}]")

    commands = {name: command(one) for name, one in by_name.items()}
    _side_by_side(commands, logs, jobs, end, plan.gpus)


def _side_by_side(
    commands: dict[str, list[str]], logs: Path, jobs: int, end: Callable[[str, int, float], None], count: int = 0
) -> None:
    """Run the commands, at most `jobs` at a time, each with a log of its name; `end` is told of each, and its seconds.

    Args:
        count: of GPUs, which are shared out among commands that run side by side.
    """
    waiting, running = list(commands), {}
    try:
        while waiting or running:
            for slot in range(jobs):
                if slot not in running and waiting:
                    name = waiting.pop(0)
                    on = ["env", f"CUDA_VISIBLE_DEVICES={slot % count}"] if count and jobs > 1 else []
                    threads = threads_for(jobs) if jobs > 1 else None
                    log(f"{name}: {shlex.join(commands[name])}")
                    running[slot] = name, Job([*on, *commands[name]], logs / f"{name}.log", threads), time.monotonic()
            for slot, (name, job, began) in list(running.items()):
                if (status := job.finished()) is not None:
                    del running[slot]
                    end(name, status, time.monotonic() - began)
            time.sleep(POLL_SECONDS)
    finally:
        for _, job, _ in running.values():
            job.stop()


def _refuse(name: str, status: int, logs: Path) -> None:
    if status:
        raise failure("preparing the data failed", status, logs / f"{name}.log")


def _newer(made: Path, source: Path) -> bool:
    return made.exists() and source.exists() and made.stat().st_mtime >= source.stat().st_mtime


def _table(experiments: Sequence[Experiment]) -> str:
    rows = [("model", "trained and scored", "measured", "time", "log")]
    for one in experiments:
        cells = [
            "done" if what in one.done else "FAILED" if one.failed == what else "-" for what in ("trained", "measured")
        ]
        rows.append((one.name, *cells, duration(one.seconds), str(one.log) if one.failed else ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _plan(options: argparse.Namespace, rest: Sequence[str]) -> Plan:
    """What the options ask for.

    Raises:
        UsageError: an option has a value that it cannot have.
    """
    corpus = CORPORA[options.corpus]
    nbpe = options.nbpe or corpus.nbpe
    if options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}: at least 1 is needed")
    for word in rest:
        if (name := word.partition("=")[0].removeprefix("--").replace("-", "_")) in OWN and word.startswith("--"):
            raise UsageError(f"--{name}: run_all_baselines.sh sets it itself")
    seeds = options.seeds.split()
    if wrong := [seed for seed in seeds if not seed.isdecimal()]:
        raise UsageError(f"--seeds {options.seeds!r}: {wrong[0]!r} is not a whole number")
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"--seeds {options.seeds!r}: each only once")
    given = options.speed_perturb_factors
    tokens = f"raw_en_bpe{nbpe}"
    suffix = "_sp" if (corpus.speeds if given is None else given).strip() else ""
    experiments = []
    for config in _configs(options.only):
        for seed in seeds or [""]:
            args = " ".join(filter(None, (options.asr_args, f"--seed {seed}" if seed else "")))
            overwritten = re.sub(r"[ |=/]", "", args.replace("--", "_"))
            tag = f"{config_name(str(config))}_{tokens}{overwritten}{suffix}"
            if len(f"asr_{tag}") > LONGEST_NAME:
                raise UsageError(
                    f"--asr_args: the folder asr_{tag:.60}... has a name of {len(tag) + 4} characters, and at most "
                    f"{LONGEST_NAME} are possible; a configuration of your own takes as many options as you like"
                )
            name = config.stem + (f"_seed{seed}" if seed else "")
            experiments.append(Experiment(name, config, args, corpus.place / "exp" / f"asr_{tag}"))
    output = Path(options.output) if options.output else corpus.place / "exp" / "comparison"
    speeds = () if given is None else ("--speed_perturb_factors", given)
    return Plan(
        options.corpus,
        corpus.place / "exp" / f"asr_stats_{tokens}{suffix}",
        experiments,
        options.jobs,
        output,
        ("--nbpe", nbpe, *speeds, *rest),
        tuple(options.seconds),
        len(gpus()),
    )


def _configs(only: str | None) -> list[Path]:
    if only is None:
        return [Path("conf") / f"{pair}.yaml" for pair in PAIRS]
    there = sorted(path for path in Path("conf").glob("*.yaml") if not path.name.startswith("decode_"))
    there.sort(key=lambda path: PAIRS.index(path.stem) if path.stem in PAIRS else len(PAIRS))
    found = [path for path in there if any(fnmatch.fnmatch(path.stem, pattern) for pattern in only.split())]
    if not found:
        raise UsageError(f"--only {only!r} fits none of {', '.join(path.stem for path in there)}")
    return found


# What an experiment takes: hours, and 10^9 bytes. Only for --dry_run, so that nobody starts a month by mistake.
_MINI_HOURS, _MINI_GIGABYTES = 0.05, 0.05
_DATA_GIGABYTES = 28.0  # the archives, the same unpacked, and the training part at three speeds
_GPU_HOURS_AN_EPOCH = 0.25  # ESPnet's own note on its LibriSpeech-100 Conformer, on an A100
_CPU_SECONDS_A_SECOND = 0.078  # core seconds of training for a second of speech: benchmarks/RESULTS.md, 8x15
_TRAINING_HOURS = 302.0  # of speech, at three speeds
_MODEL_GIGABYTES = 0.14


def _estimate(plan: Plan) -> tuple[float, float, str]:
    """Hours and gigabytes of one experiment, and where the estimate comes from."""
    if plan.corpus == "mini":
        return _MINI_HOURS, _MINI_GIGABYTES, "as it took on 2 cores, AMD EPYC"
    config = yaml.safe_load(plan.experiments[0].config.read_text(encoding="utf-8"))
    epochs = config["max_epoch"]
    gigabytes = _MODEL_GIGABYTES * (config["keep_nbest_models"] + 5)
    if plan.gpus:
        return (
            epochs * _GPU_HOURS_AN_EPOCH,
            gigabytes,
            "at 15 minutes an epoch, which ESPnet notes of a Conformer on an A100",
        )
    hours = epochs * _TRAINING_HOURS * _CPU_SECONDS_A_SECOND / CORES
    return hours, gigabytes, f"on {CORES} CPU cores, by the training step in benchmarks/RESULTS.md"


def _show(plan: Plan) -> None:
    """Print every command that would be run, and what it would take."""
    hours, gigabytes, source = _estimate(plan)
    data = 0.0 if plan.prepared else _DATA_GIGABYTES if plan.corpus != "mini" else _MINI_GIGABYTES
    if not plan.prepared:
        print(f"{shlex.join(plan.prepare)}  # {data:.2f} GB")
    todo = 0
    for one in plan.experiments:
        if _newer(one.folder / "RESULTS.md", one.folder / MODEL):
            print(f"# {one.name} is trained and scored")
        else:
            todo += 1
            print(f"{shlex.join(plan.train(one))}  # {hours:.2f} hours, {gigabytes:.2f} GB")
    for one in plan.experiments:
        if _newer(one.folder / "figures.json", one.folder / "RESULTS.md"):
            print(f"# {one.name} is measured")
        else:
            print(f"{shlex.join(plan.profile(one))}  # 2 minutes")
    print(shlex.join(plan.compare(plan.experiments)))
    print(
        f"# about {todo * hours / plan.jobs:.1f} hours for {todo} models in {plan.jobs} jobs ({source}), "
        f"and {todo * gigabytes + data:.1f} GB"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_all_baselines.sh", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--corpus", choices=CORPORA, default="librispeech_100", help="(default: %(default)s)")
    parser.add_argument(
        "--only",
        metavar="PATTERNS",
        help='names of conf/, as "conformer_* branchformer_mla" (default: the twelve pairs)',
    )
    parser.add_argument(
        "--seeds",
        metavar="SEEDS",
        default="",
        help='train each pair with each, as "1 2 3" (default: the configuration\'s)',
    )
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=1,
        help="trainings side by side; they share cores and GPUs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="print each command, with about the hours and the disk"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="for the comparison (default: exp/comparison, mini/exp/comparison)"
    )
    parser.add_argument("--asr_args", metavar="OPTIONS", default="", help="of training, for all, as for run.sh")
    parser.add_argument("--nbpe", metavar="N", help="size of the BPE vocabulary, as for run.sh")
    parser.add_argument(
        "--speed_perturb_factors",
        metavar="FACTORS",
        help='as for run.sh; "" for none (default: run.sh\'s of the corpus)',
    )
    parser.add_argument(
        "--seconds", metavar="S", nargs="+", default=[], help="lengths of speech to measure, as for espnet-mla profile"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

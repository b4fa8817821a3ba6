"""Every experiment of run_all_baselines.sh: its name, its folder, the commands that make it, and what they take."""

import argparse
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_mla.common.errors import UsageError
from espnet_mla.common.machine import CORES, visible_gpus
from espnet_mla.measure.names import check_seconds
from espnet_mla.recipe.configuration import read
from espnet_mla.recipe.corpora import CORPORA
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse
from espnet_mla.recipe.run_sh import as_arguments, asr_sh_options
from espnet_mla.trained.decoding import DECODING, parse_arguments
from espnet_mla.trained.names import FIGURES_FILE, MODEL_FILE

ARCHITECTURES = ("conformer", "branchformer", "e_branchformer")
ATTENTIONS = ("mha", "gqa", "mla", "linear")
PAIRS = tuple(f"{architecture}_{attention}" for architecture in ARCHITECTURES for attention in ATTENTIONS)
RESERVED = (
    "stage", "stop_stage", "asr_config", "asr_tag", "asr_exp", "asr_stats_dir", "expdir", "dumpdir", "lang",
    "token_type", "inference_asr_model", "inference_config", "inference_tag",
)  # fmt: skip
"""Options of run.sh that are set here, or that would put something where it is not looked for."""
SHARED = ("nbpe", "speed_perturb_factors", "test_sets", "inference_args", "ngpu")
"""Options of run.sh that are options here too, since names and measuring depend on them."""


# What an experiment takes: hours, and 10^9 bytes. Only for --dry_run, so that nobody starts a month by mistake.
_MINI_HOURS, _MINI_GIGABYTES = 0.12, 0.05  # two at a time on 2 cores
_MEASURING_HOURS = {"librispeech_100": 2 / 60, "mini": 0.7 / 60}
_DATA_GIGABYTES = {"librispeech_100": 28.0, "mini": 0.35}  # archives, unpacked, and the training part at three speeds
_GPU_HOURS_AN_EPOCH = 57_072 / 3600 / 70  # ESPnet's RESULTS of its Conformer on this corpus: 57,072 s for 70 epochs
_CPU_SECONDS_A_SECOND = 0.078  # core seconds of training for a second of speech: benchmarks/RESULTS.md, 8x15
_TRAINING_HOURS = 302.0  # of speech, at three speeds
_MODEL_GIGABYTES = 0.14


@dataclass
class Experiment:
    """One configuration with one seed, and how far it has come.

    Args:
        name: as it is called in tables.
        config: of the model.
        asr_args: options of training.
        folder: of the experiment.
        kept: the folder that its figures are kept in, if they are: where they are in there, and the experiment is not
            here, it was done elsewhere.
        failed: the step that went wrong, "trained" or "measured".
        seconds: that its commands took.
        log: of its last command.
    """

    name: str
    config: Path
    asr_args: str
    folder: Path
    kept: Path | None = None
    failed: str = ""
    seconds: float = 0.0
    log: Path | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether all that is here of it are its figures."""
        return self.kept is not None and (self.kept / FIGURES_FILE).exists() and not self.folder.exists()

    @property
    def compared(self) -> Path:
        """The folder with its figures."""
        return self.kept if self.kept and self.elsewhere else self.folder

    @property
    def trained(self) -> bool:
        """Whether its model was trained and scored: stage 13 ends with RESULTS.md."""
        return self.elsewhere or _newer(self.folder / "RESULTS.md", self.folder / MODEL_FILE)

    @property
    def measured(self) -> bool:
        """Whether its figures are those of what was trained and scored."""
        return self.elsewhere or (self.trained and _newer(self.folder / FIGURES_FILE, self.folder / "RESULTS.md"))


@dataclass(frozen=True)
class Plan:
    """Which experiments there are, and the command of each step.

    Args:
        corpus: one of CORPORA.
        stats: folder of the statistics.
        jobs: trainings side by side.
        output: folder of the comparison.
        shared: options that go to every run.sh.
        test_set: that times are measured on.
        decoding: options of decoding, beside those of conf/decode_asr.yaml.
        seconds: lengths of speech to measure; none for profile's own.
        gpus: their names for CUDA_VISIBLE_DEVICES.
    """

    corpus: str
    stats: Path
    experiments: list[Experiment]
    jobs: int
    output: Path
    shared: tuple[str, ...]
    test_set: str
    decoding: tuple[str, ...]
    seconds: tuple[float, ...]
    gpus: tuple[str, ...]

    @property
    def exp(self) -> Path:
        """The folder of the experiments."""
        return CORPORA[self.corpus].folder / "exp"

    def run_sh(self, first: int, last: int, *more: str) -> list[str]:
        """The recipe from stage `first` to stage `last`."""
        stages = ("--stage", str(first), "--stop_stage", str(last))
        return ["./run.sh", "--corpus", self.corpus, *stages, *more, *self.shared]

    @property
    def data(self) -> list[str]:
        """The data, which all share."""
        return self.run_sh(1, 5, "--asr_config", str(self.experiments[0].config))

    def statistics(self, one: Experiment) -> list[str]:
        """The statistics, which all share too: any configuration that can be built gives the same."""
        return self.run_sh(10, 10, *self._configured(one))

    def train(self, one: Experiment) -> list[str]:
        """Training, decoding and scoring."""
        return self.run_sh(11, 13, *self._configured(one), "--asr_tag", one.folder.name.removeprefix("asr_"))

    def _configured(self, one: Experiment) -> list[str]:
        return ["--asr_config", str(one.config), *(("--asr_args", one.asr_args) if one.asr_args else ())]

    def profile(self, one: Experiment) -> list[str]:
        """Its figures."""
        speech = CORPORA[self.corpus].folder / "dump" / "raw" / self.test_set / "wav.scp"
        command = ["espnet-mla", "profile", "--asr_model_file", str(one.folder / MODEL_FILE), "--wav_scp", str(speech)]
        command += ["--inference_config", "conf/decode_asr.yaml", *self.decoding]
        command += ["--seconds", *(f"{seconds:g}" for seconds in self.seconds)] if self.seconds else []
        return command + (["--device", "cuda"] if self.gpus else [])

    def compare(self, experiments: Sequence[Experiment]) -> list[str]:
        """The comparison, each architecture against its multi-head attention."""
        baselines: dict[str, str] = {}
        for one in experiments:
            architecture, _, attention = one.config.stem.rpartition("_")
            if attention == "mha":
                baselines.setdefault(architecture, one.folder.name)
        command = ["espnet-mla", "compare", *(str(one.compared) for one in experiments)]
        command += ["--baseline", *baselines.values()] if baselines else []
        return [*command, "--output", str(self.output)]

    @property
    def prepared(self) -> bool:
        """Whether the statistics are there, which are what stages 1 to 10 end with."""
        return (self.stats / "valid" / "text_shape.bpe").exists()

    @property
    def measuring_hours(self) -> float:
        """That the figures of one model take."""
        return _MEASURING_HOURS[self.corpus]

    @property
    def data_gigabytes(self) -> float:
        """That the data takes, where it is still to be prepared."""
        return 0.0 if self.prepared else _DATA_GIGABYTES[self.corpus]


def make_plan(options: argparse.Namespace, rest: Sequence[str]) -> Plan:
    """What the options ask for.

    Raises:
        UsageError: an option has a value that it cannot have.
    """
    if options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}: at least 1 is needed")
    for word in rest:
        if (name := word.partition("=")[0].removeprefix("--").replace("-", "_")) in RESERVED and word.startswith("--"):
            raise UsageError(f"--{name}: run_all_baselines.sh sets it itself")
    seeds = options.seeds.split()
    if wrong := [seed for seed in seeds if not seed.isdecimal()]:
        raise UsageError(f"--seeds {options.seeds!r}: {wrong[0]!r} is not a whole number")
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"--seeds {options.seeds!r}: a seed is given twice")
    shared = [f"--{name}={getattr(options, name)}" for name in SHARED if getattr(options, name) is not None]
    folder = CORPORA[options.corpus].folder
    experiments = []
    for config in _configs(options.only):
        for seed in seeds or [""]:
            args = " ".join(filter(None, (options.asr_args, f"--seed {seed}" if seed else "")))
            layout = _layout(options.corpus, config, args, shared)
            layout.check_names()
            name = config.stem + (f"_seed{seed}" if seed else "")
            place = folder / layout.asr_exp
            kept = Path(options.figures) / place.name if options.figures else None
            experiments.append(Experiment(name, config, args, place, kept))
    check_seconds(options.seconds)
    _check_decoding(options.inference_args or "")
    return Plan(
        corpus=options.corpus,
        stats=folder / layout.asr_stats_dir,
        experiments=experiments,
        jobs=options.jobs,
        output=Path(options.output) if options.output else folder / "exp" / "comparison",
        shared=(*shared, *rest),
        test_set=layout.settings.test_sets.split()[0],
        decoding=tuple(layout.settings.inference_args.split()),
        seconds=tuple(options.seconds),
        gpus=() if options.ngpu == 0 else visible_gpus(),
    )


def _check_decoding(inference_args: str) -> None:
    names = [word.partition("=")[0] for word in inference_args.split() if word.startswith("--")]
    if unknown := [name for name in names if name.removeprefix("--") not in DECODING]:
        raise UsageError(f"--inference_args: {unknown[0]} can't be measured with; valid are --{', --'.join(DECODING)}")
    if names:
        parse_arguments(inference_args.split(), "--inference_args")


def _layout(corpus: str, config: Path, asr_args: str, shared: Sequence[str]) -> Layout:
    """Where run.sh puts an experiment, relative to the corpus's folder."""
    given = ["--corpus", corpus, "--asr_config", str(config), "--asr_args", asr_args, *shared]
    return Layout(parse(as_arguments(asr_sh_options(given)[1])))


def _configs(only: str | None) -> list[Path]:
    if only is None:
        return [Path("conf") / f"{pair}.yaml" for pair in PAIRS]
    configs = sorted(path for path in Path("conf").glob("*.yaml") if not path.name.startswith("decode_"))
    configs.sort(key=lambda path: PAIRS.index(path.stem) if path.stem in PAIRS else len(PAIRS))
    chosen = [path for path in configs if any(fnmatch.fnmatch(path.stem, pattern) for pattern in only.split())]
    if not chosen:
        raise UsageError(f"--only {only!r} fits none of {', '.join(path.stem for path in configs)}")
    return chosen


def _newer(made: Path, source: Path) -> bool:
    return made.exists() and source.exists() and made.stat().st_mtime >= source.stat().st_mtime


def estimate(plan: Plan) -> tuple[float, float, str]:
    """Hours that one experiment has all the machine, its gigabytes, and where the estimate comes from."""
    if plan.corpus == "mini":
        return _MINI_HOURS, _MINI_GIGABYTES, "as it took on 2 cores of an Intel Xeon"
    first = plan.experiments[0]
    training = read(str(first.config), first.asr_args.split()).options
    epochs, models = training["max_epoch"], training["keep_nbest_models"]
    gigabytes = _MODEL_GIGABYTES * (max(models if isinstance(models, list) else [models]) + 5)
    if plan.gpus:
        hours = epochs * _GPU_HOURS_AN_EPOCH / min(plan.jobs, len(plan.gpus))
        minutes = 60 * _GPU_HOURS_AN_EPOCH
        return hours, gigabytes, f"at {minutes:.1f} minutes an epoch, as ESPnet's Conformer took on a V100 of 32 GB"
    hours = epochs * _TRAINING_HOURS * _CPU_SECONDS_A_SECOND / CORES
    return hours, gigabytes, f"on {CORES} CPU cores, by the training step in benchmarks/RESULTS.md"

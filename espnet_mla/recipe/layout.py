"""Where everything of a run lives: the names of tags, folders and sets, by the rules of ESPnet's asr.sh."""

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from espnet_mla.common.errors import UserError
from espnet_mla.common.files import check_names
from espnet_mla.common.tables import read_table
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.trained import tasks
from espnet_mla.trained.tasks import Task

IMPLEMENTED = (1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15)


@dataclass(frozen=True)
class Layout:
    """The options of a run (`settings`) and every name that follows from them.

    `train_set` is the set that is trained on: with speed perturbation it ends in `_sp`. `raw_train_set` is the one that
    stage 1 makes.
    """

    settings: SimpleNamespace
    arguments: tuple[str, ...] = ()

    @property
    def raw_train_set(self) -> str:
        return self.settings.train_set

    @property
    def train_set(self) -> str:
        return self.settings.train_set + ("_sp" if self.settings.speed_perturb_factors.strip() else "")

    @property
    def valid_set(self) -> str:
        return self.settings.valid_set

    @property
    def test_sets(self) -> tuple[str, ...]:
        """Each test set once, in the order given, without the validation set."""
        return tuple(name for name in dict.fromkeys(self.settings.test_sets.split()) if name != self.valid_set)

    @property
    def eval_valid_set(self) -> bool:
        named = bool(self.valid_set) and self.valid_set in self.settings.test_sets.split()
        return self.settings.eval_valid_set or named

    @property
    def decoded_sets(self) -> tuple[str, ...]:
        """What stages 12 and 13 work on, as folders below `data_feats`."""
        return ((f"org/{self.valid_set}",) if self.eval_valid_set else ()) + self.test_sets

    @property
    def formatted_sets(self) -> dict[str, Path]:
        """What stage 3 formats: name of the set -> its folder; training and validation go below org/."""
        trained_on = (self.train_set, self.valid_set)
        decoded = (self.valid_set,) if self.eval_valid_set else ()
        names = (*(decoded if self.settings.skip_train else trained_on), *self.test_sets)
        return {name: self.data_feats / ("org" if name in trained_on else "") / name for name in names}

    @property
    def data_feats(self) -> Path:
        return Path(self.settings.dumpdir) / self.settings.feats_type

    @property
    def train_dir(self) -> Path:
        return self.data_feats / self.train_set

    @property
    def valid_dir(self) -> Path:
        return self.data_feats / self.valid_set

    @property
    def bpe_train_text(self) -> tuple[Path, ...]:
        return self._texts(self.settings.bpe_train_text)

    @property
    def lm_train_text(self) -> tuple[Path, ...]:
        return self._texts(self.settings.lm_train_text)

    def _texts(self, given: str) -> tuple[Path, ...]:
        return tuple(map(Path, given.split())) or (self.data_feats / "org" / self.train_set / "text",)

    @property
    def token_listdir(self) -> Path:
        return Path("data") / f"{_language(vars(self.settings))}token_list"

    @property
    def bpedir(self) -> Path:
        return self.token_listdir / f"bpe_{self.settings.bpemode}{self.settings.nbpe}"

    @property
    def bpemodel(self) -> str:
        """The file of the BPE model as ESPnet's commands take it: "none" where tokens are not BPE."""
        return str(self.bpedir / "bpe.model") if self.settings.token_type == "bpe" else "none"

    @property
    def token_list(self) -> Path:
        folder = self.bpedir if self.settings.token_type == "bpe" else self.token_listdir / self.settings.token_type
        return folder / "tokens.txt"

    @property
    def asr_tag(self) -> str:
        return self.settings.asr_tag or experiment_tag(vars(self.settings))

    @property
    def asr_exp(self) -> Path:
        return Path(self.settings.asr_exp or f"{self.settings.expdir}/asr_{self.asr_tag}")

    @property
    def task(self) -> Task:
        """Of the model in `asr_exp`: speech recognition, unless one of another task was put there."""
        config = self.asr_exp / "config.yaml"
        return tasks.task_of(read_mapping(config), config) if config.is_file() else tasks.ASR

    @property
    def asr_stats_dir(self) -> Path:
        settings = self.settings
        return Path(settings.asr_stats_dir or f"{settings.expdir}/asr_stats_{_data_tag(vars(settings))}")

    @property
    def inference_tag(self) -> str:
        settings = self.settings
        if settings.inference_tag:
            return settings.inference_tag
        name = config_name(settings.inference_config) if settings.inference_config else "inference"
        overwritten = re.sub(r"[ |=]", "", settings.inference_args.replace("--", "_"))
        model = re.sub(r"\.[^.]*$", "", settings.inference_asr_model.replace("/", "_"))
        return f"{name}{overwritten}_asr_model_{model}"

    @property
    def asr_model(self) -> Path:
        return self.asr_exp / self.settings.inference_asr_model

    def decode_dir(self, dset: str) -> Path:
        """The folder of what is decoded of `dset`, one of `decoded_sets`."""
        return self.asr_exp / self.inference_tag / dset

    def check_names(self) -> None:
        """Find names that are longer than a file system takes, as those that are made of options can be.

        Of the experiment only where a stage is performed that makes or reads it.

        Raises:
            UsageError: one is; the message says which option gives it a shorter one.
        """
        settings = self.settings
        advice = "put options of --{0}_args into a file for --{0}_config, or give --{0}_tag"
        given = settings.asr_exp or settings.asr_tag
        if max(self.performed, default=0) > 10:
            check_names(
                self.asr_exp,
                f"give a short --asr_{'exp' if settings.asr_exp else 'tag'}" if given else advice.format("asr"),
            )
            check_names(
                self.asr_exp / self.inference_tag,
                "give a short --inference_tag" if settings.inference_tag else advice.format("inference"),
            )
            check_names(self.asr_model, "give a short --inference_asr_model")
        check_names(self.asr_stats_dir, "give a short --lang, or --asr_stats_dir")
        check_names(self.token_list, "give a short --lang")
        for name in (self.train_set, self.valid_set, *self.test_sets):
            check_names(self.data_feats / "org" / name, "give a short name of the set, or --dumpdir")
        if not settings.skip_packing:
            check_names(self.packed_model, "give a short --asr_tag")
        if not settings.skip_upload_hf:
            check_names(self.hf_folder, "give a short --hf_repo")

    @property
    def packed_model(self) -> Path:
        """The archive that stage 14 makes."""
        model = re.sub(r"\.[^.]*$", "", self.settings.inference_asr_model)
        return self.asr_exp / f"{self.asr_exp.name}_{model}.zip"

    @property
    def hf_folder(self) -> Path:
        """What stage 15 uploads."""
        return Path(self.settings.expdir) / f"hf_{self.settings.hf_repo.replace('/', '_')}"

    @property
    def skipped(self) -> tuple[int, ...]:
        """Stages that are left out, in order."""
        settings = self.settings
        skipped = {int(number) for number in settings.skip_stages.split()} | {6, 7, 8, 9}
        skipped |= {1, 2, 3, 4, 5} if settings.skip_data_prep else set()
        skipped |= {2, 4, 5, 6, 7, 8, 9, 10, 11} if settings.skip_train else set()
        skipped |= {12, 13} if settings.skip_eval else set()
        skipped |= {14} if settings.skip_packing else set()
        skipped |= {15} if settings.skip_upload_hf else set()
        return tuple(sorted(skipped))

    @property
    def performed(self) -> tuple[int, ...]:
        """Stages that this run performs, in order."""
        first, last = self.settings.stage, self.settings.stop_stage
        return tuple(n for n in IMPLEMENTED if first <= n <= last and n not in self.skipped)

    @property
    def python(self) -> list[str]:
        """The command that ESPnet's modules are run with."""
        return self.settings.python.split() or [sys.executable, "-m", "espnet_mla.run"]

    def resume_script(self, stage: int) -> str:
        """The content of the run.sh that ESPnet's asr.sh leaves in a folder: this run again, from `stage` on."""
        program = ["./asr.sh"] if Path("asr.sh").exists() else ["python3", "-m", "espnet_mla.recipe"]
        return f'{shlex.join([*program, *self.arguments])} --stage {stage} "$@"; exit $?\n'


def experiment_tag(options: Mapping[str, object]) -> str:
    """The name of an experiment by the options of asr.sh, where --asr_tag gives none: the one place that makes it."""
    config = str(options["asr_config"])
    overwritten = re.sub(r"[ |=/]", "", str(options["asr_args"]).replace("--", "_"))
    return f"{config_name(config) if config else 'train'}_{_data_tag(options, overwritten)}"


def _data_tag(options: Mapping[str, object], overwritten: str = "") -> str:
    """What a name says of the data: kind of features, language, tokens, and whether speed was perturbed."""
    vocabulary = options["nbpe"] if options["token_type"] == "bpe" else ""
    perturbed = "_sp" if str(options["speed_perturb_factors"]).strip() else ""
    return f"{options['feats_type']}_{_language(options)}{options['token_type']}{vocabulary}{overwritten}{perturbed}"


def _language(options: Mapping[str, object]) -> str:
    return "" if options["lang"] == "noinfo" else f"{options['lang']}_"


def config_name(config: str) -> str:
    """`conf/branchformer_mla.yaml` -> `branchformer_mla`, as `basename FILE .yaml` does."""
    return Path(config).name.removesuffix(".yaml")


def data_type(folder: Path) -> str:
    """How asr_train reads the audio of a data folder: `kaldi_ark` for archives, else `sound`.

    Raises:
        UserError: the folder was not made by stage 3.
    """
    formats = read_table(folder / "audio_format") if (folder / "audio_format").exists() else {}
    kinds = read_table(folder / "feats_type")
    if list(kinds) != ["raw"]:
        raise UserError(f"{folder / 'feats_type'} says {' '.join(kinds) or 'nothing'}, not raw: run stage 3 again")
    return "kaldi_ark" if any("ark" in name for name in formats) else "sound"

"""Stages 10 and 11: the statistics of the data, and training, both by espnet2.bin.asr_train."""

import os
import re
import shlex
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from espnet_mla.common.errors import UserError
from espnet_mla.common.files import write_text
from espnet_mla.common.jobs import Followed, count_lines, run_jobs, split_table, threads_for
from espnet_mla.common.log import log
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.recipe.configuration import Configuration, read
from espnet_mla.recipe.layout import Layout, data_type

CHECKPOINT = "checkpoint.pth"  # asr_train's, which it resumes from
RESUMED = (
    "frontend", "normalize", "preencoder", "encoder", "postencoder", "decoder", "model", "ctc", "optim", "scheduler",
)  # fmt: skip
"""The parts of a configuration that a checkpoint holds parameters or a state of."""
NO_STEP = "The gradients at all steps are invalid in this epoch"  # asr_train's words


def collect_stats(layout: Layout) -> None:
    """Stage 10: lengths of all utterances and the mean and variance of the features, into `layout.asr_stats_dir`."""
    settings, stats_dir, configuration = layout.settings, layout.asr_stats_dir, read_configuration(layout)
    sets = {"train": layout.train_dir, "valid": layout.valid_dir}
    logdir = stats_dir / "logdir"
    jobs = min(settings.nj, *(count_lines(folder / "wav.scp") for folder in sets.values()))
    numbers = range(1, jobs + 1)
    for part, folder in sets.items():
        split_table(folder / "wav.scp", [logdir / f"{part}.{n}.scp" for n in numbers])
    write_resume_script(layout, stats_dir, 10)

    kind = data_type(layout.train_dir)
    common = [*_config(settings), "--frontend_conf", f"fs={settings.fs}"]
    for part, folder in sets.items():
        common += [f"--{part}_data_path_and_name_and_type", f"{folder}/wav.scp,speech,{kind}"]
        common += [f"--{part}_data_path_and_name_and_type", f"{folder}/text,text,text"]
    commands = [
        [
            *layout.python, "-m", "espnet2.bin.asr_train",
            "--collect_stats", "true",
            *_text_options(layout),
            "--train_shape_file", f"{logdir}/train.{n}.scp",
            "--valid_shape_file", f"{logdir}/valid.{n}.scp",
            "--output_dir", f"{logdir}/stats.{n}",
            *common, *settings.asr_args.split(), *configuration.corrections,
        ]
        for n in numbers
    ]  # fmt: skip
    log(f"ASR collect-stats started in {jobs} jobs... log: '{logdir}/stats.*.log'")
    logs = [logdir / f"stats.{n}.log" for n in numbers]
    run_jobs(commands, logs, what="collecting statistics", threads=threads_for(jobs))
    _aggregate(layout, [logdir / f"stats.{n}" for n in numbers])


def train(layout: Layout) -> None:
    """Stage 11: train the model in `layout.asr_exp`, going on where an earlier run ended.

    Raises:
        UserError: it fails, or an earlier run was of another configuration, or the statistics are of other features.
    """
    settings, asr_exp, stats_dir = layout.settings, layout.asr_exp, layout.asr_stats_dir
    configuration = read_configuration(layout)
    check_statistics(layout, configuration)
    check_resumed(layout, configuration, tokens=layout.token_list)
    sets = {"train": layout.train_dir, "valid": layout.valid_dir}
    options = [*_config(settings), "--frontend_conf", f"fs={settings.fs}"]
    if settings.feats_normalize == "global_mvn":
        options += ["--normalize=global_mvn", "--normalize_conf", f"stats_file={stats_dir}/train/feats_stats.npz"]
    for part, folder in sets.items():
        options += [f"--{part}_data_path_and_name_and_type", f"{folder}/wav.scp,speech,{data_type(folder)}"]
        options += [f"--{part}_shape_file", f"{stats_dir}/{part}/speech_shape"]
        options += [f"--{part}_data_path_and_name_and_type", f"{folder}/text,text,text"]
        options += [f"--{part}_shape_file", f"{stats_dir}/{part}/text_shape.{settings.token_type}"]
    write_resume_script(layout, asr_exp, 11)

    train_log = asr_exp / "train.log"
    runner = shlex.join([sys.executable, "-m", "espnet_mla.common.jobs", "--name", str(train_log)])
    # launch, like the joining of statistics, builds no model: it needs no plugin.
    command = [
        sys.executable, "-m", "espnet2.bin.launch",
        "--cmd", runner,
        "--log", str(train_log),
        "--ngpu", str(settings.ngpu),
        "--num_nodes", "1",
        "--init_file_prefix", f"{asr_exp}/.dist_init_",
        "--multiprocessing_distributed", "true",
        "--",
        *layout.python, "-m", "espnet2.bin.asr_train",
        *_text_options(layout),
        "--resume", "true",
        *(["--init_param", *settings.pretrained_model.split()] if settings.pretrained_model else []),
        "--ignore_init_mismatch", str(settings.ignore_init_mismatch).lower(),
        "--fold_length", str(settings.asr_speech_fold_length * 100),
        "--fold_length", str(settings.asr_text_fold_length),
        "--output_dir", str(asr_exp),
        *options, *settings.asr_args.split(), *configuration.corrections, *_precision(settings, configuration),
    ]  # fmt: skip
    log(f"ASR training started... log: '{train_log}'")
    # One process on the CPU takes every core; on GPUs the CPU only feeds them.
    threads = 1 if settings.ngpu else threads_for(1)
    followed = Followed(train_log)
    stopped: list[str] = []

    def log_epochs() -> None:
        for line in followed.new_lines():
            if summary := epoch_line(line):
                log(summary)
            if NO_STEP in line:
                stopped.append(line)

    with tempfile.TemporaryDirectory() as scratch:
        # launch only repeats the command and, after a failure, the end of train.log.
        launch_log = Path(scratch) / "launch.log"
        run_jobs([command], [launch_log], what="training", threads=threads, watch=log_epochs, error_log=train_log)
    if stopped:
        # asr_train ends without an error then, and what it leaves looks like a trained model.
        raise UserError(
            "training stopped: no batch of an epoch led to a step. Either no gradient was finite, or accum_grad is "
            f"more than the batches of an epoch; log: {train_log}"
        )


def check(layout: Layout) -> None:
    """Find before any work what stages 10 and 11 would fail of: the configuration, and what it does not fit.

    Raises:
        UserError: as `configuration.read`, `check_statistics` and `check_resumed`.
    """
    configuration = read_configuration(layout)
    check_statistics(layout, configuration)
    if 11 in layout.performed:
        check_resumed(layout, configuration)


def read_configuration(layout: Layout) -> Configuration:
    """What stages 10 and 11 give asr_train of --asr_config and --asr_args."""
    settings = layout.settings
    options = ["--frontend_conf", f"fs={settings.fs}"]
    options += ["--normalize", "global_mvn"] if settings.feats_normalize == "global_mvn" else []
    return read(settings.asr_config, [*options, *settings.asr_args.split()])


def check_statistics(layout: Layout, configuration: Configuration) -> None:
    """See that the statistics, where there are any, are of features of the size that the model's have.

    They are not to be collected anew for others, as what was trained with them reads them.

    Raises:
        UserError: they are of another size, or can't be read.
    """
    stats, options = layout.asr_stats_dir / "train" / "feats_stats.npz", configuration.options
    if layout.settings.feats_normalize != "global_mvn" or options["frontend"] != "default" or not stats.is_file():
        return
    size = configuration.complete("frontend_conf", options["frontend_conf"])["n_mels"]
    try:
        with np.load(stats) as found:
            collected = found["sum"].shape[-1]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{stats} can't be read: remove it, and go on with --stage 10: {error}") from None
    if collected != size:
        raise UserError(
            f"{stats} is of features of {collected} numbers, and frontend_conf: n_mels: {size} asks for others: "
            "collect these with --stage 10 in another --asr_stats_dir"
        )


def check_resumed(layout: Layout, configuration: Configuration, tokens: Path | None = None) -> None:
    """See that a training that goes on is one of the same network, optimiser and learning rates.

    Args:
        layout: its `asr_exp` is the folder.
        configuration: of the training that is asked for.
        tokens: file of the tokens, where they are made.

    Raises:
        UserError: it is another one; the message names the keys.
    """
    config = layout.asr_exp / "config.yaml"
    if not (layout.asr_exp / CHECKPOINT).is_file() or not config.is_file():
        return
    before = read_mapping(config)
    differences = []
    for name in RESUMED:
        # For CTC there is no choice.
        if (chosen := configuration.options.get(name)) != before.get(name, chosen):
            differences.append(f"{name} ({before[name]}, now {chosen})")
            continue
        if name == "normalize":  # its configuration is the file of the statistics
            continue
        then = _flat(configuration.complete(f"{name}_conf", before.get(f"{name}_conf")))
        now = _flat(configuration.complete(f"{name}_conf", configuration.options[f"{name}_conf"]))
        differences += [
            f"{name}_conf: {key} ({then.get(key)}, now {now.get(key)})"
            for key in dict.fromkeys([*then, *now])
            if then.get(key) != now.get(key)
        ]
    if tokens is not None:
        with tokens.open(encoding="utf-8") as lines:  # as asr_train reads it
            if before.get("token_list") != [line.rstrip() for line in lines]:
                differences.append("token_list")
    if differences:
        raise UserError(
            f"{layout.asr_exp} holds a training of another configuration, and can't go on with this one: give another "
            f"--asr_tag. They differ in {'; '.join(differences)}"
        )


def _flat(conf: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": (1, 2)}}` -> `{"a: b": [1, 2]}`, as YAML has it."""
    flat: dict[str, Any] = {}
    for key, value in conf.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}: {inner}": item for inner, item in _flat(value).items()}
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def epoch_line(line: str) -> str | None:
    """The short form of a line of train.log that ends an epoch; None for any other line.

    ESPnet writes `3epoch results: [train] loss=20.1, ..., time=41.2 seconds, total_count=.., [valid] loss=11.2, ...`.
    """
    found = re.search(r"(\d+)epoch results: \[train\](.*)\[valid\]([^\[]*)", line)
    if not found:
        return None
    epoch, trained, valid = found[1], _figures(found[2]), _figures(found[3])
    entries = [f"train {name} {trained[name]}" for name in ("loss",) if name in trained]
    entries += [f"valid {name} {valid[name]}" for name in ("loss", "acc", "cer_ctc", "wer") if name in valid]
    took = re.search(r", time=(.*?), total_count", found[2])
    return f"epoch {epoch}: {', '.join(entries)}" + (f" ({took[1]})" if took else "")


def write_resume_script(layout: Layout, folder: Path, stage: int) -> None:
    """Leave `folder`/run.sh, which performs this run again from `stage` on."""
    log(f"Generate '{folder}/run.sh'. You can resume the process from stage {stage} using this script")
    write_text(folder / "run.sh", layout.resume_script(stage))
    (folder / "run.sh").chmod(0o755)


def _figures(text: str) -> dict[str, str]:
    return {name: value for name, value in re.findall(r"(\w+)=([^, ]+)", text) if value != "nan"}


def _config(settings: SimpleNamespace) -> list[str]:
    return ["--config", settings.asr_config] if settings.asr_config else []


def _text_options(layout: Layout) -> list[str]:
    settings = layout.settings
    return [
        "--use_preprocessor", "true",
        "--bpemodel", layout.bpemodel,
        "--token_type", settings.token_type,
        "--token_list", str(layout.token_list),
        "--non_linguistic_symbols", settings.nlsyms_txt,
        "--cleaner", settings.cleaner,
        "--g2p", "none",
    ]  # fmt: skip


def _precision(settings: SimpleNamespace, configuration: Configuration) -> list[str]:
    """Mixed precision is for GPUs: on the CPU it is switched off, whatever the configuration says."""
    if settings.ngpu or not configuration.options["use_amp"]:
        return []
    log("No GPU (--ngpu 0): use_amp is set to false")
    return ["--use_amp", "false"]


def _aggregate(layout: Layout, parts: Sequence[Path]) -> None:
    """Join the statistics of the jobs, and append the number of tokens to the text shapes, for counting batch_bins."""
    settings, stats_dir = layout.settings, layout.asr_stats_dir
    partial = stats_dir / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    command = [sys.executable, "-m", "espnet2.bin.aggregate_stats_dirs", "--output_dir", str(partial)]
    for folder in parts:
        command += ["--input_dir", str(folder)]
    command += ["--skip_sum_stats"] if settings.feats_normalize != "global_mvn" else []
    run_jobs([command], [stats_dir / "logdir" / "aggregate.log"], what="joining statistics")
    tokens = count_lines(layout.token_list)
    for part in ("train", "valid"):
        shapes = (partial / part / "text_shape").read_text(encoding="utf-8").splitlines()
        write_text(
            partial / part / f"text_shape.{settings.token_type}", "".join(f"{shape},{tokens}\n" for shape in shapes)
        )
        (stats_dir / part).mkdir(exist_ok=True)
        for file in sorted((partial / part).iterdir()):
            os.replace(file, stats_dir / part / file.name)
    shutil.rmtree(partial)

"""Distillation: a converted model learns from the one that it was converted from, by ESPnet's own trainer."""

import argparse
import contextlib
import inspect
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from espnet2.samplers.num_elements_batch_sampler import NumElementsBatchSampler
from espnet2.tasks.abs_task import AbsTask
from espnet2.torch_utils.device_funcs import to_device
from espnet2.train.abs_espnet_model import AbsESPnetModel
from espnet2.train.dataset import ESPnetDataset
from espnet2.train.trainer import Trainer
from tqdm import tqdm

import espnet_mla
from espnet_mla.common import wavscp
from espnet_mla.common.errors import UserError
from espnet_mla.common.files import replacing, write_text
from espnet_mla.common.lock import lock, unlock
from espnet_mla.common.log import log
from espnet_mla.common.tables import read_table
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.convert.experiment import MODEL
from espnet_mla.models.decoder import DECODERS
from espnet_mla.models.distilled import DISTILLED, Distilled
from espnet_mla.models.encoding import DEFAULT_PROMPT, Prompt
from espnet_mla.recipe.training import CHECKPOINT, NO_STEP, epoch_line
from espnet_mla.trained.locate import with_files
from espnet_mla.trained.model import Source, find
from espnet_mla.trained.names import CONVERSION_FILE
from espnet_mla.trained.speech import Speech, choose
from espnet_mla.trained.tasks import ASR, S2T, S2T_CTC, SLU, ST, TASKS, Task

WORK = "distill"
"""The folder of the training, below that of the model."""
LOG, CONFIG, TEACHER = "train.log", "distill.yaml", "teacher.yaml"
"""Of the training, in that folder; the teacher's configuration is its own, with the paths of files in full."""
CONVERTED = "converted.pth"
"""The model before its distillation, in that folder."""
TEXT, HYPOTHESES = "text", "hypotheses"
"""Transcripts that were given, and what the teacher recognises."""
HELD_OUT = 20  # every so many utterances one is for validation
MOST_HELD_OUT = 200
SHORTEST = 0.3  # seconds
FEWEST = 10  # utterances
BEAM_SIZE = 5  # of the teacher, for a decoder that learns


@dataclass(frozen=True)
class DistillationSpec:
    """The specification of a distillation.

    Args:
        speech: a wav.scp.
        text: a table of transcripts; None for what the teacher recognises.
        epochs: over the speech.
        lr: the highest learning rate; it rises over a twentieth of the steps, and falls along a cosine.
        batch_bins: samples of a batch.
        labels: weight of ESPnet's own loss, for which `text` is needed.
        patience: epochs without improvement after which it ends; None for none.
        device: cpu, cuda, cuda:1, ...
        use_amp: mixed precision.
        seed: of the order of the speech.
        prompt: for OWSM.
    """

    speech: Path
    text: Path | None = None
    epochs: int = 10
    lr: float = 1e-3
    batch_bins: int = 400_000
    labels: float = 0.0
    patience: int | None = None
    device: str = "cpu"
    use_amp: bool = False
    seed: int = 0
    prompt: Prompt = DEFAULT_PROMPT


def check_model(source: Source, text: Path | None, labels: float) -> None:
    """Refuse a model that can't be distilled, or not in this way.

    Args:
        source: the model.
        text, labels: as of `DistillationSpec`.

    Raises:
        UserError: it is of another task, or has no use for such text.
    """
    task, config = source.task, source.config
    if task.name not in DISTILLED:
        able = ", ".join(task.title for task in TASKS if task.name in DISTILLED)
        raise UserError(f"{source.config_file} is a model for {task.title}: only models for {able} are distilled")
    conf = config.get("model_conf") or {}
    weight = "st_mtlalpha" if task is ST else "ctc_weight"
    why = ""
    if task is S2T_CTC or config.get("decoder") not in DECODERS:
        why = f"no decoder of kind {', '.join(DECODERS)}"
    elif conf.get(weight) == 1:
        why = f"no decoder (model_conf: {weight}: 1)"
    if text and why and (task is S2T_CTC or not labels):
        raise UserError(f"--text {text}: {source.config_file} has {why}, which alone would learn from it")
    if labels and task is S2T:
        raise UserError(
            f"--labels {labels:g}: ESPnet's loss of a model for {task.title} needs more than transcripts: train "
            "it in its own recipe, where `model: distilled` takes the teacher"
        )
    if labels and task is ST and (needing := [key for key in ("asr_weight", "mt_weight") if conf.get(key)]):
        raise UserError(
            f"--labels {labels:g}: ESPnet's loss of {source.config_file} needs transcripts besides the translations "
            f"(model_conf: {needing[0]}: {conf[needing[0]]})"
        )


def distill(folder: Path, spec: DistillationSpec) -> None:
    """Train a converted model to be like its original; `model.pth` is the trained one then.

    What the training leaves stands in `folder`/distill; where it was broken off, it goes on from there.

    Args:
        folder: that `espnet-mla convert` has left.
        spec: how.

    Raises:
        UserError: the folder, the original or the speech is no good, or another process distills it; or nothing was
            gained, and the model stays what it was.
    """
    held = lock(folder / WORK)
    try:
        _distill(folder, folder / WORK, spec)
    finally:
        unlock(held)


def _distill(folder: Path, work: Path, spec: DistillationSpec) -> None:
    espnet_mla.register()
    record = json.loads((folder / CONVERSION_FILE).read_text(encoding="utf-8"))
    student = find(str(folder / "config.yaml"), str(folder / MODEL), None)
    check_model(student, spec.text, spec.labels)
    if student.task in (S2T, S2T_CTC):
        spec.prompt.ids(student.token_list)
    origin = {key: os.path.normpath(folder / file) for key, file in record["converted_from"].items()}
    teacher = find(origin["config"], origin["model"], None)
    if student.config["token_list"] != teacher.config["token_list"]:
        raise UserError(f"{student.config_file} and {teacher.config_file} have other token lists: token_list")
    speech = choose(spec.speech, len(read_table(spec.speech)), student.fs)
    seconds = _prepare(work / "data", speech, student, spec)
    table = TEXT if spec.text else None
    decoder_too = any(layer["part"].startswith("decoder") for layer in record["layers"])
    if not table and decoder_too and not _has_ctc_of_its_text(student):
        told = [symbol.strip("<>") for symbol in vars(spec.prompt).values()] if student.task is S2T else []
        table = ".".join([HYPOTHESES, *told])  # of each prompt
        _recognise(work / "data", table, teacher, spec.prompt)
    if not (work / CONVERTED).exists():
        with replacing(work / CONVERTED) as partial:
            shutil.copyfile(folder / MODEL, partial)
    config = _configuration(work, student, teacher, table, spec)
    _check_resumed(work, config)
    write_text(work / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    task = _learning(student.task)
    before = _loss(task, work, work / CONVERTED, spec.device)
    failure = _train(task, work, spec.device)
    best = work / ("valid.loss.best.pth" if failure else "valid.loss.ave.pth")
    after = _loss(task, work, best, spec.device) if best.exists() else before
    log(f"Loss on the speech held out: {before:.4f}, distilled {after:.4f}")
    if after < before:
        with replacing(folder / MODEL) as partial:
            shutil.copyfile(best, partial)
        record["distillation"] = {
            "wav_scp": str(spec.speech), "minutes": round(seconds / 60, 1), "epochs": spec.epochs, "lr": spec.lr,
            "text": str(spec.text) if spec.text else None, "labels": spec.labels,
            "loss_before": before, "loss_after": after,
        }  # fmt: skip
        write_text(folder / CONVERSION_FILE, json.dumps(record, indent=2) + "\n")
    if failure:
        raise UserError(f"{failure}; {folder / MODEL} is {'the best until then' if after < before else 'what it was'}")
    if after >= before:
        raise UserError(
            f"distillation gained nothing, and {folder / MODEL} is what it was: more speech, another --lr "
            f"({spec.lr:g}) or more --epochs ({spec.epochs}) may help; log: {work / LOG}"
        )


def _has_ctc_of_its_text(model: Source) -> bool:
    """Whether CTC says what the decoder may learn over, see `Distilled`."""
    return model.task in (ASR, SLU) and _ctc_weight(model) != 0


def _ctc_weight(model: Source) -> float | None:
    """That it was trained with; None for ESPnet's default."""
    return (model.config.get("model_conf") or {}).get("ctc_weight")


def _prepare(data: Path, speech: Speech, student: Source, spec: DistillationSpec) -> float:
    """Write the lists of what is learnt from and of what is held out, with lengths, and return the seconds of all.

    Raises:
        UserError: audio is missing, broken or of another rate; or too little is long enough.
    """
    lengths: dict[str, int] = {}
    for key, samples in tqdm(speech, desc="speech", total=len(speech.entries), unit="utt", disable=None):
        if len(samples) >= SHORTEST * speech.rate:
            lengths[key] = len(samples)
    if len(lengths) < FEWEST:
        raise UserError(f"{speech.path} has {len(lengths)} utterances of {SHORTEST} s and more: {FEWEST} are needed")
    texts = None
    if spec.text:
        texts = read_table(spec.text)
        if missing := [key for key in lengths if key not in texts]:
            raise UserError(f"{spec.text} lacks {missing[0]} of {speech.path}")
    conf = student.config.get("preprocessor_conf") or {}
    if student.task is S2T and texts is not None:
        symbol = conf.get("notime_symbol", "<notimestamps>")
        texts = {key: spec.prompt.complete(texts[key], symbol) for key in lengths}
    window = round(conf.get("speech_length", 30) * speech.rate) if student.task in (S2T, S2T_CTC) else None
    every = max(HELD_OUT, len(lengths) // MOST_HELD_OUT) if len(lengths) >= HELD_OUT else len(lengths)
    for part in ("train", "valid"):
        keys = [key for place, key in enumerate(lengths) if (place % every == every - 1) == (part == "valid")]
        write_text(data / part / "wav.scp", "".join(f"{key} {speech.entries[key]}\n" for key in keys))
        write_text(data / part / "speech_shape", "".join(f"{key} {window or lengths[key]}\n" for key in keys))
        if texts is not None:
            write_text(data / part / TEXT, "".join(f"{key} {texts[key]}\n" for key in keys))
    return sum(lengths.values()) / speech.rate


def _recognise(data: Path, name: str, teacher: Source, prompt: Prompt) -> None:
    """Write what the teacher recognises to tables of this name; what an earlier run has recognised is kept.

    This is sequence-level distillation (Kim and Rush, arXiv 1606.07947).
    """
    rate = teacher.fs
    told = {"lang_sym": prompt.lang_sym, "task_sym": prompt.task_sym} if teacher.task is S2T else {}
    without = {} if _ctc_weight(teacher) != 0 else {"ctc_weight": 0.0}
    recogniser = teacher.speech2text(beam_size=BEAM_SIZE, **told, **without)
    for part in ("train", "valid"):
        speech, path = (
            Speech(data / part / "wav.scp", read_table(data / part / "wav.scp"), rate),
            data / part / name,
        )
        known = read_table(path) if path.exists() else {}
        todo = Speech(speech.path, {key: entry for key, entry in speech.entries.items() if key not in known}, rate)
        with path.open("a", encoding="utf-8") as table:
            for key, samples in tqdm(
                todo, desc=f"hypotheses, {part}", total=len(todo.entries), unit="utt", disable=None
            ):
                found = teacher.task.decode(recogniser, samples.numpy())
                table.write(f"{key} {found[0][0] if found else ''}".rstrip() + "\n")
                table.flush()


def _check_resumed(work: Path, config: dict[str, Any]) -> None:
    """See that a training that goes on is the one that was begun.

    Raises:
        UserError: it is another one; the message names the keys.
    """
    if not (work / CHECKPOINT).exists() or not (work / CONFIG).exists():
        return
    before = read_mapping(work / CONFIG)
    now = yaml.safe_load(yaml.safe_dump(config))
    if differing := sorted(key for key in {*before, *now} if before.get(key) != now.get(key)):
        raise UserError(
            f"{work} holds a distillation with other options ({', '.join(differing)}): give the same, or remove "
            f"{work / CHECKPOINT} to begin anew"
        )


def _configuration(
    work: Path, student: Source, teacher: Source, table: str | None, spec: DistillationSpec
) -> dict[str, Any]:
    """Of the training, for ESPnet's parser; `table` is what the decoder learns over."""
    # What no file may give is left out.
    parser = student.task.task_class().get_parser()
    known = vars(parser.parse_args([])).keys() - {"config", "required", "distributed"}
    config = {key: value for key, value in with_files(student.config, student.root).items() if key in known}
    data = work / "data"
    entries = {**read_table(data / "train/wav.scp"), **read_table(data / "valid/wav.scp")}
    kind = "sound" if all(wavscp.is_path(entry) for entry in entries.values()) else "kaldi_ark"
    batches = NumElementsBatchSampler(spec.batch_bins, [str(data / "train/speech_shape")])
    steps = spec.epochs * len(batches)
    for part in ("train", "valid"):
        tables = [[str(data / part / "wav.scp"), "speech", kind]]
        tables += [[str(data / part / table), "text", "text"]] if table else []
        config[f"{part}_data_path_and_name_and_type"] = tables
        config[f"{part}_shape_file"] = [str(data / part / "speech_shape")]
    write_text(work / TEACHER, yaml.safe_dump(with_files(teacher.config, teacher.root), allow_unicode=True))
    ours = inspect.signature(Distilled).parameters.keys()
    conf = {key: value for key, value in (config.get("model_conf") or {}).items() if key not in ours}
    of_task: dict[str, Any] = vars(spec.prompt) if student.task in (S2T, S2T_CTC) else {}
    if student.task is ST:  # BLEU of a validation needs nltk, and chooses nothing
        of_task = {"report_bleu": False}
    if student.task is S2T:  # or half of all texts would lose their times, and get a second symbol that says so
        config["preprocessor_conf"] = {**(config.get("preprocessor_conf") or {}), "time_apply_prob": 1.0}
    if "model" in known:  # or `_learning` has it
        config["model"] = "distilled"
    return config | {
        "model_conf": conf
        | {"teacher": str(teacher.model_file), "teacher_config": str(work / TEACHER), "labels": spec.labels, **of_task},
        "output_dir": str(work),
        "init_param": [str(work / CONVERTED)],
        "resume": True,
        "dry_run": False,
        "use_wandb": False,
        "use_matplotlib": False,
        "freeze_param": [],
        "max_epoch": spec.epochs,
        "patience": spec.patience,
        "num_iters_per_epoch": None,
        "batch_type": "numel",
        "batch_bins": spec.batch_bins,
        "accum_grad": 1,
        "optim": "adamw",
        "optim_conf": {"lr": spec.lr, "weight_decay": 0.01},
        "scheduler": "cosineannealingwarmuprestarts",
        "scheduler_conf": {
            "first_cycle_steps": steps + 1, "max_lr": spec.lr, "min_lr": spec.lr / 100, "warmup_steps": steps // 20,
        },
        "best_model_criterion": [["valid", "loss", "min"]],
        "early_stopping_criterion": ["valid", "loss", "min"],
        "keep_nbest_models": 1,
        "num_att_plot": 0,
        "unused_parameters": True,
        "use_amp": spec.use_amp,
        "ngpu": int(spec.device != "cpu"),
        "multiprocessing_distributed": False,
        "seed": spec.seed,
        "train_dtype": "float32",
    }  # fmt: skip


class _Trainer(Trainer):
    """ESPnet's, with a progress bar."""

    @classmethod
    def train_one_epoch(cls, model, iterator, **options):
        with tqdm(iterator, desc="distillation", unit="batch", leave=False, disable=None) as bar:

            def show(_model: torch.nn.Module, _inputs: tuple, output: tuple) -> None:
                stats = output[1]
                bar.set_postfix_str(f"loss {float(stats['loss']):.4f}, output {float(stats['output']) ** 0.5:.3f}")

            handle = model.register_forward_hook(show)
            try:
                return super().train_one_epoch(model=model, iterator=bar, **options)
            finally:
                handle.remove()


def _learning(task: Task) -> type[AbsTask]:
    """ESPnet's task, but it needs no transcripts, and builds a model that learns, also where it offers no choice."""

    class Learning(task.task_class()):  # type: ignore[misc]
        trainer = _Trainer

        @classmethod
        def required_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
            return ("speech",)

        @classmethod
        def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
            return ("text",)

        @classmethod
        def build_model(cls, args: argparse.Namespace) -> AbsESPnetModel:
            if task is not ST:
                return super().build_model(args)
            from espnet2.tasks import st

            # It takes the model's class by its name.
            espnets, st.ESPnetSTModel = st.ESPnetSTModel, DISTILLED[task.name]
            try:
                return super().build_model(args)
            finally:
                st.ESPnetSTModel = espnets

    return Learning


def _train(task: type[AbsTask], work: Path, device: str) -> str:
    """Train, or go on; return why it was given up, in words, or nothing."""
    stopped: list[str] = []

    def follow(record: logging.LogRecord) -> None:
        message = record.getMessage()
        if summary := epoch_line(message):
            log(summary)
        if NO_STEP in message:
            stopped.append("no batch of an epoch led to a step, as no gradient was finite")

    follower = logging.Handler()
    follower.emit = follow  # type: ignore[method-assign]
    with _logging_to(work / LOG, follower), torch.cuda.device(device) if device != "cpu" else contextlib.nullcontext():
        try:
            task.main(cmd=["--config", str(work / CONFIG)])
        except UserError as error:
            stopped.append(str(error))
    return stopped[0] if stopped else ""


@contextlib.contextmanager
def _logging_to(path: Path, *handlers: logging.Handler) -> Iterator[None]:
    """Send what is logged to a file, and to some handlers, instead of the terminal."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s"))
    root.handlers[:] = [to_file, *handlers]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        to_file.close()


@torch.no_grad()
def _loss(task: type[AbsTask], work: Path, model_file: Path, device: str) -> float:
    """The loss of a model on the speech held out."""
    model, args = task.build_model_from_file(work / CONFIG, model_file, device)
    # Not by its streaming iterator, to which an utterance without words is no utterance.
    dataset = ESPnetDataset(
        args.valid_data_path_and_name_and_type, preprocess=task.build_preprocess_fn(args, train=False)
    )
    collate = task.build_collate_fn(args, train=False)
    with _logging_to(work / LOG):
        batches = (collate([dataset[key]])[1] for key in read_table(Path(args.valid_shape_file[0])))
        found = [float(model(**to_device(batch, device))[0]) for batch in batches]
    return sum(found) / len(found)

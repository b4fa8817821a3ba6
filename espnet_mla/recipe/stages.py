"""The stages of the recipe as a table, and the loop that performs those that were asked for."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock

from espnet_mla.common.errors import UserError
from espnet_mla.common.files import check_space, write_text
from espnet_mla.common.lock import lock, unlock
from espnet_mla.common.log import log
from espnet_mla.common.processes import die_with_parent
from espnet_mla.common.tables import read_rows
from espnet_mla.common.units import duration, hertz
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.recipe import audio, decoding, packing, tokens, training
from espnet_mla.recipe.layout import Layout


@dataclass(frozen=True)
class Stage:
    """What a stage says when it begins, what it does, and where.

    Args:
        title: what it says.
        perform: what it does.
        needs: the files it starts from: file -> the stage that makes it.
        writes: the folder that it writes to, which no other run may meanwhile.
    """

    title: Callable[[Layout], str]
    perform: Callable[[Layout], None]
    needs: Callable[[Layout], Mapping[Path, int]]
    writes: Callable[[Layout], Path]


def perform(layout: Layout) -> None:
    """Perform the stages that `layout` asks for.

    Raises:
        UserError: something is missing or wrong; what was done until then stays.
    """
    began = time.monotonic()
    check(layout)
    log(f"Skipped stages: {' '.join(map(str, layout.skipped))}")
    performed = layout.performed
    for number in performed[:1]:
        _check_inputs(layout, number)
    written = {number: STAGES[number].writes(layout) for number in performed}
    locks: dict[Path, FileLock] = {}
    try:
        for folder in dict.fromkeys(written.values()):
            locks[folder] = lock(folder)
        for number in performed:
            _check_inputs(layout, number)
            stage = STAGES[number]
            log(f"Stage {number}: {stage.title(layout)}")
            stage_began = time.monotonic()
            stage.perform(layout)
            log(f"Stage {number} finished. [elapsed={duration(time.monotonic() - stage_began)}]")
            if (folder := written.pop(number)) not in written.values():
                unlock(locks.pop(folder))
    finally:
        for held in locks.values():
            unlock(held)
    log(f"Successfully finished. [elapsed={round(time.monotonic() - began)}s]")


def _check_inputs(layout: Layout, number: int) -> None:
    for path, maker in STAGES[number].needs(layout).items():
        if not path.exists():
            skipped = " and do not skip it" if maker in layout.skipped else ""
            raise UserError(
                f"stage {number} needs {path}, which stage {maker} makes: start with --stage {maker}{skipped}"
            )


def check(layout: Layout) -> None:
    """Find before any work what would fail after hours: a configuration that is not there, a GPU that is not there.

    Raises:
        UserError: as above.
    """
    settings = layout.settings
    layout.check_names()
    for name in ("asr_config", "inference_config"):
        if getattr(settings, name):
            _check_config(name, Path(getattr(settings, name)))
    if settings.nlsyms_txt != "none" and not Path(settings.nlsyms_txt).is_file():
        raise UserError(f"--nlsyms_txt {settings.nlsyms_txt} does not exist")
    if 5 in layout.performed and settings.token_type == "bpe":
        tokens.unsplit_symbols(layout)
    if not {10, 11, 12, 14}.isdisjoint(layout.performed):
        _import_espnet()
    if not {10, 11}.isdisjoint(layout.performed):
        training.check(layout)
    if not {12, 14}.isdisjoint(layout.performed):  # the card of a packed model says how to decode
        decoding.check(layout)
    if 15 in layout.performed:
        packing.check_upload(layout)
    requested = {"ngpu": settings.ngpu if 11 in layout.performed else 0,
              "gpu_inference": int(settings.gpu_inference and 12 in layout.performed)}  # fmt: skip
    if any(requested.values()):
        visible = _gpus()
        for name, count in requested.items():
            if count > visible:
                given, cpu = (count, 0) if name == "ngpu" else ("true", "false")
                raise UserError(f"--{name} {given}: {visible} GPUs are visible; --{name} {cpu} takes the CPU")


def _import_espnet() -> None:
    """Import ESPnet's task without its line on the standard error that Flash Attention isn't there."""
    with contextlib.redirect_stderr(io.StringIO()):
        importlib.import_module("espnet2.tasks.asr")


def _check_config(name: str, path: Path) -> None:
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path("conf")
        others = sorted(str(other) for other in folder.glob("*.yaml"))
        raise UserError(f"--{name} {path} does not exist; there are: {', '.join(others) or f'none in {folder}/'}")
    try:
        read_mapping(path)
    except UserError as error:
        raise UserError(f"--{name} {error}") from None


def _gpus() -> int:
    # In another process: one that has initialised CUDA must not fork.
    asked = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return int(answer[-1]) if answer else 0


def _prepare(layout: Layout) -> None:
    script = Path("local/data.sh")
    if not script.exists():
        raise UserError(f"{script} does not exist: run in the folder of a recipe, as egs2/librispeech_100/asr1 is")
    done = subprocess.run(
        [str(script), *layout.settings.local_data_opts.split()],
        check=False,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )
    if done.returncode:
        raise UserError(f"{script} {layout.settings.local_data_opts}".rstrip() + " failed, see above")


def _perturb_speed(layout: Layout) -> None:
    factors = layout.settings.speed_perturb_factors.split()
    if factors:
        audio.perturb_speed(Path("data"), layout.raw_train_set, factors)
    else:
        log("Skip stage 2: Speed perturbation")


def _format(layout: Layout) -> None:
    settings = layout.settings
    form = settings.audio_format, hertz(settings.fs)
    sets = [(Path("data") / name, target) for name, target in layout.formatted_sets.items()]
    needed = sum(audio.bytes_to_write(source, target, *form) for source, target in sets)
    check_space(layout.data_feats, needed, "the audio of stage 3")
    for source, target in sets:
        audio.format_data(source, target, *form, settings.nj)


def _remove_long_short(layout: Layout) -> None:
    settings = layout.settings
    for name in (layout.train_set, layout.valid_set):
        org, target = layout.data_feats / "org" / name, layout.data_feats / name
        audio.remove_long_short(org, target, hertz(settings.fs), settings.min_wav_duration, settings.max_wav_duration)
    lines = [f"{key} {words}\n" for path in layout.lm_train_text for key, words in read_rows(path) if words]
    write_text(layout.data_feats / "lm_train.txt", "".join(lines))


def _score(layout: Layout) -> None:
    from espnet_mla.recipe import scoring

    settings = layout.settings
    for dset in layout.decoded_sets:
        scoring.score(
            layout.data_feats / dset,
            layout.decode_dir(dset),
            bpemodel=layout.bpemodel,
            cleaner=settings.cleaner,
            hyp_cleaner=settings.hyp_cleaner,
            nlsyms_txt=settings.nlsyms_txt,
        )
    # Stage 1 leaves a note where a corpus is one that nobody reports results on.
    note = Path("data/note").read_text(encoding="utf-8").strip() if Path("data/note").exists() else ""
    print(scoring.write_results(layout.asr_exp, note).read_text(encoding="utf-8"), flush=True)


def _statistics_inputs(layout: Layout) -> dict[Path, int]:
    folders = (layout.train_dir, layout.valid_dir)
    return {**{folder / name: 4 for folder in folders for name in ("wav.scp", "text")}, **_token_inputs(layout)}


def _token_inputs(layout: Layout) -> dict[Path, int]:
    model = {Path(layout.bpemodel): 5} if layout.settings.token_type == "bpe" else {}
    return {**model, layout.token_list: 5}


def _training_inputs(layout: Layout) -> dict[Path, int]:
    stats, settings = layout.asr_stats_dir, layout.settings
    shapes = ("speech_shape", f"text_shape.{settings.token_type}")
    names = [f"{part}/{shape}" for part in ("train", "valid") for shape in shapes]
    names += ["train/feats_stats.npz"] if settings.feats_normalize == "global_mvn" else []
    return {**_statistics_inputs(layout), **{stats / name: 10 for name in names}}


def _decoding_inputs(layout: Layout) -> dict[Path, int]:
    audio_lists = {layout.data_feats / dset / "wav.scp": 3 for dset in layout.decoded_sets}
    return {**audio_lists, layout.asr_exp / "config.yaml": 11, layout.asr_model: 11}


def _scoring_inputs(layout: Layout) -> dict[Path, int]:
    references = {layout.data_feats / dset / "text": 3 for dset in layout.decoded_sets}
    return {**references, **{layout.decode_dir(dset) / "text": 12 for dset in layout.decoded_sets}}


def _packing_inputs(layout: Layout) -> dict[Path, int]:
    asr_exp = layout.asr_exp
    model = {asr_exp / "config.yaml": 11, layout.asr_model: 11}
    return {**model, **packing.needed(layout), asr_exp / "RESULTS.md": 13}


def _token_texts(layout: Layout) -> dict[Path, int]:
    if layout.settings.token_type != "bpe":
        return {layout.data_feats / "lm_train.txt": 4}
    return dict.fromkeys(layout.bpe_train_text, 1 if layout.settings.bpe_train_text else 3)


STAGES = {
    1: Stage(
        lambda at: f"Data preparation for data/{at.raw_train_set}, data/{at.valid_set}, etc.",
        _prepare,
        lambda at: {},
        lambda at: Path("data"),
    ),
    2: Stage(
        lambda at: f"Speed perturbation: data/{at.raw_train_set} -> data/{at.raw_train_set}_sp",
        _perturb_speed,
        lambda at: {Path("data") / at.raw_train_set / "wav.scp": 1},
        lambda at: Path("data"),
    ),
    3: Stage(
        lambda at: f"Format wav.scp: data/ -> {at.data_feats}",
        _format,
        lambda at: {Path("data") / name / "wav.scp": 2 if name.endswith("_sp") else 1 for name in at.formatted_sets},
        lambda at: at.data_feats,
    ),
    4: Stage(
        lambda at: f"Remove long/short data: {at.data_feats}/org -> {at.data_feats}",
        _remove_long_short,
        lambda at: {at.data_feats / "org" / name / "utt2num_samples": 3 for name in (at.train_set, at.valid_set)},
        lambda at: at.data_feats,
    ),
    5: Stage(
        lambda at: f"Generate token_list {at.token_list} ({at.settings.token_type})",
        tokens.make_token_list,
        _token_texts,
        lambda at: at.token_list.parent,
    ),
    10: Stage(
        lambda at: f"ASR collect stats: train_set={at.train_dir}, valid_set={at.valid_dir}",
        training.collect_stats,
        _statistics_inputs,
        lambda at: at.asr_stats_dir,
    ),
    11: Stage(
        lambda at: f"ASR Training: train_set={at.train_dir}, valid_set={at.valid_dir}",
        training.train,
        _training_inputs,
        lambda at: at.asr_exp,
    ),
    12: Stage(
        lambda at: f"Decoding: training_dir={at.asr_exp}",
        decoding.decode,
        _decoding_inputs,
        lambda at: at.asr_exp / at.inference_tag,
    ),
    13: Stage(
        lambda at: f"Scoring: {at.asr_exp / at.inference_tag}",
        _score,
        _scoring_inputs,
        lambda at: at.asr_exp / at.inference_tag,
    ),
    14: Stage(lambda at: f"Pack model: {at.packed_model}", packing.pack, _packing_inputs, lambda at: at.asr_exp),
    15: Stage(
        lambda at: f"Upload model to HuggingFace: {at.settings.hf_repo}",
        packing.upload,
        lambda at: {at.packed_model: 14},
        lambda at: at.hf_folder.parent,
    ),
}
"""Number -> stage, in the order of performance. 6 to 9 (language models) are ESPnet's own asr.sh's alone."""

"""Stage 12: speech to text by ESPnet's program for the model's task, in jobs side by side, and how long it took."""

import json
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from tqdm import tqdm

from espnet_mla.common.errors import UserError
from espnet_mla.common.files import write_text
from espnet_mla.common.jobs import Followed, count_lines, run_jobs, split_table, threads_for
from espnet_mla.common.log import log
from espnet_mla.common.machine import visible_gpus
from espnet_mla.common.units import hertz
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.recipe.layout import Layout, data_type
from espnet_mla.recipe.training import write_resume_script
from espnet_mla.trained.decoding import check as check_numbers
from espnet_mla.trained.decoding import check_for, naming, parse_arguments, read_options
from espnet_mla.trained.inference import own_options

OUTPUTS = ("token", "token_int", "score", "text", "text_nospecial")
"""What a program writes; only that of speech to text with prompts (OWSM) the last one, a text without symbols."""
UNFINISHED = ".unfinished.json"
"""In a folder of decodings that is not finished: the sets that are done, and what they were decoded from."""


def check(layout: Layout) -> None:
    """Check the options of decoding: by themselves, and whether the model can bear them.

    Before there is a model, what is known of it stands in the configuration of its training and the options.

    Raises:
        UserError: --inference_config or --inference_args has one that asr_inference does not know, or that it, or the
            model, can't have.
    """
    settings, task = layout.settings, layout.task
    if not task.audio:
        raise UserError(f"{layout.asr_exp} has a model for {task.title}, which takes text: stage 12 decodes audio")
    path = settings.inference_config
    configured = read_options(Path(path), task) if path else {}
    _, rest = own_options(settings.inference_args.split())
    given = parse_arguments(rest, "--inference_args", task)
    named = naming(configured, path, given, "--inference_args: --{} {}".format)
    options = {"batch_size": settings.batch_size, **configured, **given}
    check_numbers(options, named)
    if (layout.asr_exp / "config.yaml").is_file():
        config = read_mapping(layout.asr_exp / "config.yaml")
    else:
        config = read_mapping(Path(settings.asr_config)) if settings.asr_config else {}
        config |= {"token_list": [""] * settings.nbpe} if settings.token_type == "bpe" else {}
    check_for(task, config, options, named)


def decode(layout: Layout) -> None:
    """Stage 12: decode every test set with `layout.asr_model`.

    Sets that an interrupted run has decoded are not decoded again, unless model, options or data have changed.
    """
    check(layout)  # again, as the model may have been trained since
    folder = layout.asr_exp / layout.inference_tag
    write_resume_script(layout, folder, 12)
    record, source = folder / UNFINISHED, _source(layout)
    done = _done(record, source)
    for dset in layout.decoded_sets:
        if dset in done:
            log(f"{dset}: decoded by an earlier run, which was interrupted later")
            continue
        decode_set(layout, dset)
        done.append(dset)
        write_text(record, json.dumps({"source": source, "sets": done}))
    record.unlink(missing_ok=True)


def decode_set(layout: Layout, dset: str) -> None:
    """Decode one set into `layout.decode_dir(dset)`: text, token, token_int and score, sorted by utterance."""
    settings, task, data, folder = layout.settings, layout.task, layout.data_feats / dset, layout.decode_dir(dset)
    logdir = folder / "logdir"
    utterances = count_lines(data / "wav.scp")
    jobs = min(settings.inference_nj, utterances)
    numbers = range(1, jobs + 1)
    split_table(data / "wav.scp", [logdir / f"keys.{n}.scp" for n in numbers])
    ngpu, gpus = int(settings.gpu_inference), visible_gpus()
    commands = [
        [
            *(["env", f"CUDA_VISIBLE_DEVICES={gpus[n % len(gpus)]}"] if ngpu and len(gpus) > 1 else []),
            *layout.python, "-m", task.program,
            "--batch_size", str(settings.batch_size),
            "--ngpu", str(ngpu),
            "--data_path_and_name_and_type", f"{data}/wav.scp,speech,{data_type(data)}",
            "--key_file", f"{logdir}/keys.{n}.scp",
            f"--{task.config_key}", str(layout.asr_exp / "config.yaml"),
            f"--{task.model_key}", str(layout.asr_model),
            "--output_dir", f"{logdir}/output.{n}",
            *(["--config", settings.inference_config] if settings.inference_config else []),
            *settings.inference_args.split(),
        ]
        for n in numbers
    ]  # fmt: skip
    logs = [logdir / f"{task.key}_inference.{n}.log" for n in numbers]
    for earlier in logdir.glob("*_inference.*.log"):
        earlier.unlink()
    log(f"Decoding of {dset} started in {jobs} jobs... log: '{logdir}/{task.key}_inference.*.log'")
    followed = [Followed(path) for path in logs]
    # disable=None: a bar only where somebody looks at it.
    with tqdm(total=utterances, desc=dset, unit="utt", disable=None) as bar:

        def count() -> None:
            bar.update(sum("best hypo:" in line for job in followed for line in job.new_lines()))

        threads = 1 if ngpu else threads_for(jobs)
        run_jobs(commands, logs, what=f"decoding {dset}", threads=threads, watch=count)
    if speed := real_time_factor(logs, hertz(settings.fs)):
        write_text(logdir / "calculate_rtf.log", speed)
        log(f"{dset}: {', '.join(speed.splitlines())}")

    for name in OUTPUTS:
        parts = [logdir / f"output.{n}" / "1best_recog" / name for n in numbers]
        texts = [part.read_text(encoding="utf-8") for part in parts if part.exists()]
        if not texts:
            continue
        lines = [line for text in texts for line in text.split("\n") if line]
        # Plain order of bytes, as `LC_ALL=C sort`.
        write_text(folder / name, "".join(f"{line}\n" for line in sorted(lines, key=str.encode)))


def real_time_factor(logs: Iterable[Path], rate: int) -> str | None:
    """Seconds of computing for a second of speech, and milliseconds for an utterance, from the logs of decoding.

    The program writes `<time> ... speech length: <samples>` when it has read an utterance and
    `<time> ... best hypo: ...` when it is done with it. None where the two do not pair off, as where an
    utterance was too short to decode.
    """
    samples, seconds, utterances = 0, 0.0, 0
    for path in logs:
        begun: list[datetime] = []
        ended: list[datetime] = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if length := re.search(r"speech length: (\d+)", line):
                samples += int(length[1])
                begun.append(_time(line))
            elif "best hypo:" in line:
                ended.append(_time(line))
        if len(begun) != len(ended):
            return None
        seconds += sum((end - begin).total_seconds() for begin, end in zip(begun, ended, strict=True))
        utterances += len(begun)
    if not samples:
        return None
    audio = samples / rate
    return (
        f"Total audio duration: {audio:.3f} [sec]\nTotal decoding time: {seconds:.3f} [sec]\n"
        f"RTF: {seconds / audio:.3f}\nLatency: {seconds * 1000 / utterances:.3f} [ms/sentence]\n"
    )


def _source(layout: Layout) -> dict[str, object]:
    """What hypotheses come from: options, and size and time of the files."""
    settings = layout.settings
    files = [layout.asr_exp / "config.yaml", layout.asr_model]
    files += [layout.data_feats / dset / "wav.scp" for dset in layout.decoded_sets]
    files += [Path(settings.inference_config)] if settings.inference_config else []
    stats = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    return {"files": stats, "inference_args": settings.inference_args, "batch_size": settings.batch_size}


def _done(record: Path, source: dict[str, object]) -> list[str]:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return found["sets"] if found["source"] == source else []


def _time(line: str) -> datetime:
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")

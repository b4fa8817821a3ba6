"""Experiments with a figures.json, made by espnet-mla profile of a real model and then changed where a test needs it."""

import copy
import json
from pathlib import Path

from espnet_mla.trained.describe import LISTED
from espnet_mla.trained.figures import write
from espnet_mla.trained.names import FIGURES_FILE

SECONDS = ("1", "2")
DECODING = ("--beam_size", "2", "--maxlenratio", "0.2")


def profile(folder: Path, *more: str) -> int:
    """Profile the tiny experiment below `folder`, which is the current one."""
    from espnet_mla.measure.profile import main

    given = ("--asr_model_file", "exp/asr_tiny/valid.acc.ave.pth", "--wav_scp", "wav.scp", "--seconds", *SECONDS)
    (folder / "wav.scp").write_text("".join(f"utt{n} speech.flac\n" for n in range(3)))
    return main([*given, *DECODING, *more])


def decode(folder: Path, decoding: str) -> None:
    """Leave what stages 12 and 13 leave of a test set."""
    from espnet_mla.recipe import scoring

    data, out = folder / "dump/raw/test", folder / "exp/asr_tiny" / decoding / "test"
    for place in (data, out):
        place.mkdir(parents=True, exist_ok=True)
    (data / "text").write_text("s-a THE CAT SAT\ns-b ON THE MAT\n")
    (data / "utt2spk").write_text("s-a s\ns-b s\n")
    (out / "text").write_text("s-a THE CAT\ns-b ON THE BIG MAT\n")
    scoring.score(data, out, ("wer", "cer"))


def experiment(folder: Path, figures: dict | None, name: str, **changes: object) -> Path:
    """An experiment of that name with these figures, some of them changed: `encoder__10__seconds=3.0`."""
    place = folder / "exp" / name
    place.mkdir(parents=True)
    if figures is None:
        (place / "config.yaml").write_text("encoder: conformer\n")
        return place
    figures = copy.deepcopy(figures)
    figures["model"] |= {"name": name, "conf": name}
    for path, value in changes.items():
        *above, last = path.split("__")
        at = figures
        for key in above:
            at = at[key]
        if value is None:
            del at[last]
        else:
            at[last] = value
    write(place, figures)
    return place


def without_list(place: Path, **changes: object) -> None:
    """Make the figures.json of an experiment one of before figures were listed in it, some of its content changed."""
    content = json.loads((place / FIGURES_FILE).read_text())
    del content[LISTED]
    for path, value in changes.items():
        *above, last = path.split("__")
        at = content
        for key in above:
            at = at[key]
        at[last] = value
    (place / FIGURES_FILE).write_text(json.dumps(content))


def scored(errors: list[int], words: list[int]) -> dict:
    """The scores of a set, by words and by characters."""
    rate = round(100 * sum(errors) / sum(words), 2)
    of = {"rate": rate, "errors": errors, "words": words}
    return {"utterances": [f"utt{n}" for n in range(len(words))], "wer": of, "cer": of}


def epoch(number: int, minute: int, train: str, valid: str) -> str:
    """What ESPnet's trainer writes at the end of an epoch."""
    return (
        f"[host] 2026-11-24 11:{minute:02}:42,062 (trainer:392) INFO: {number}epoch results: [train] iter_time=0.006, "
        f"loss=54.267, train_time=0.174, time={train}, total_count=63, [valid] loss_ctc=50.631, loss=42.810, "
        f"time={valid}, total_count=7\n"
    )


TRAIN_LOG = (
    "# python -m espnet2.bin.asr_train --config conf/x.yaml\n# Running on AMD EPYC, 2 cores, 1 threads\n# Started at ...\n"
    + epoch(1, 1, "10.95 seconds", "0.31 seconds")
    + epoch(2, 2, "1 minute and 2.5 seconds", "2 seconds")
    + epoch(3, 4, "1 hour, 2 minutes and 1 second", "1 minute and 1 second")
)

"""What identifies a model: its name, its training set, and a digest shared by models that differ only in the seed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from espnet_mla.common.tables import read_table
from espnet_mla.measure.names import without_seed
from espnet_mla.trained.model import Source
from espnet_mla.trained.names import CONVERSION_FILE

RUN_OPTIONS = (
    "config", "output_dir", "seed", "ngpu", "num_workers", "log_level", "log_interval", "version", "distributed",
    "print_config", "dry_run", "resume", "use_matplotlib", "use_tensorboard", "num_att_plot",
)  # fmt: skip
"""Keys of a configuration that say how the training was run, not what the model is."""


def figures(source: Source, name: str) -> dict:
    """What identifies a model.

    Args:
        source: where it comes from.
        name: of the experiment.

    Returns:
        name, file, encoder, seed, the training set, the note that stage 1 has left of the corpus, if any, and `conf`, a
        digest shared by models that differ only in the seed.
    """
    config = source.config
    sets = config.get("train_data_path_and_name_and_type") or []
    audio = next((Path(entry[0]) for entry in sets if entry[1] == "speech"), None)
    note = source.root / "data" / "note"
    return {
        "name": name,
        "file": source.model_file.name,
        "encoder": config.get("encoder"),
        "seed": config.get("seed"),
        "conf": _digest(source),
        "training_set": audio.parent.name if audio else None,
        "training_utterances": _utterances(source.root / audio) if audio else None,
        "note": (note.read_text(encoding="utf-8").strip() or None) if note.is_file() and not source.packed else None,
    }


def _utterances(wav_scp: Path) -> int | None:
    return len(read_table(wav_scp)) if wav_scp.is_file() else None


def _digest(source: Source) -> str:
    identifying = {
        key: value
        for key, value in source.config.items()
        if key not in RUN_OPTIONS and not key.startswith(("dist_", "wandb"))
    }
    # The configuration of a converted model is that of the result; conversion.json says how it was made.
    conversion = source.config_file.with_name(CONVERSION_FILE)
    if conversion.is_file():
        record = json.loads(conversion.read_text(encoding="utf-8"))
        identifying["conversion"] = {key: record[key] for key in ("method", "modules") if key in record}
    return hashlib.sha256(json.dumps(_seedless(identifying), sort_keys=True).encode()).hexdigest()[:16]


def _seedless(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _seedless(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_seedless(item) for item in value]
    return without_seed(value) if isinstance(value, str) else value

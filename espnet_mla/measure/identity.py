"""Who a model is: its name, what it was trained on, and which models differ from it by the seed alone."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from espnet_mla.common.tables import read_table
from espnet_mla.measure.names import without_seed
from espnet_mla.trained.model import Source
from espnet_mla.trained.names import CONVERSION_FILE

OF_A_RUN = (
    "config", "output_dir", "seed", "ngpu", "num_workers", "log_level", "log_interval", "version", "distributed",
    "print_config", "dry_run", "resume", "use_matplotlib", "use_tensorboard", "num_att_plot",
)  # fmt: skip
"""Keys of a configuration that say how a model was run, not what it is."""


def figures(source: Source, name: str) -> dict:
    """Who a model is.

    Args:
        source: where it comes from.
        name: of the experiment.

    Returns:
        name, file, encoder, seed, training (the training set, and what its corpus is noted to be, where stage 1 has left a
        note), and `conf`, a digest that models share which differ by their seed alone.
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
    kept = {
        key: value
        for key, value in source.config.items()
        if key not in OF_A_RUN and not key.startswith(("dist_", "wandb"))
    }
    # A converted model has the configuration of what it became; how it became that stands beside it.
    conversion = source.config_file.with_name(CONVERSION_FILE)
    if conversion.is_file():
        record = json.loads(conversion.read_text(encoding="utf-8"))
        kept["conversion"] = {key: record[key] for key in ("method", "modules") if key in record}
    return hashlib.sha256(json.dumps(_seedless(kept), sort_keys=True).encode()).hexdigest()[:16]


def _seedless(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _seedless(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_seedless(item) for item in value]
    return without_seed(value) if isinstance(value, str) else value

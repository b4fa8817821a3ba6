"""The figures that models are compared by: where each stands in figures.json, what it depends on, and what would make it."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_mla.common.units import duration
from espnet_mla.measure.scores import KINDS
from espnet_mla.trained.names import CONVERSION_FILE

RATES, SIZE, TIME = "Word and character error rates", "Parameters and caches", "Time"
BYTES = "kv_bytes_per_second"
SETS = ("test_clean", "test_other")  # that a table names where no model was scored


class BrokenError(ValueError):
    """A value of figures.json is none that can stand there."""


@dataclass(frozen=True)
class Column:
    """One figure.

    Args:
        key: its name in CSV and JSON.
        title: its name in a table.
        table: which one, by its heading.
        path: where it stands in figures.json.
        show: a value as it is read.
        condition: what of a model's figures it depends on, in words; models that differ there are not ranked.
        command: what would make it, given the folder of an experiment and its model's file.
        lower: whether less is better; None where neither is.
        runs: whether the least and the most of several runs stand beside it.
        test_set: of an error rate the set, and the kind of the rate.
    """

    key: str
    title: str
    table: str
    path: tuple[str, ...]
    show: Callable[[float], str]
    condition: Callable[[Mapping], str]
    command: Callable[[Path, str], str]
    lower: bool | None = True
    runs: bool = False
    test_set: tuple[str, str] | None = None

    def value(self, figures: Mapping) -> float | None:
        """The figure; None where it is missing."""
        return number(figures, *self.path)

    def spread(self, figures: Mapping) -> tuple[float, float] | None:
        """The least and the most of its runs, in the unit of the value."""
        if not self.runs or self.value(figures) is None:
            return None
        *above, last = self.path
        ends = [number(figures, *above, name) for name in ("least", "most")]
        if None in ends:
            return None
        audio = number(figures, *above, "audio_seconds") if last == "real_time_factor" else 1.0
        return ends[0] / audio, ends[1] / audio


def number(figures: Mapping, *path: str) -> float | None:
    """What stands at a place of figures.json; None where that is missing.

    Raises:
        BrokenError: it is no number, or none that was measured.
    """
    at: object = figures
    for depth, name in enumerate(path):
        if not isinstance(at, Mapping):
            raise BrokenError(f"{'/'.join(path[:depth])} is {at!r}, not an object")
        at = at.get(name)
        if at is None:
            return None
    if isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at) or at < 0:
        raise BrokenError(f"{'/'.join(path)} is {at!r}, not a number of at least 0")
    return at


def columns(models: Sequence[Mapping]) -> list[Column]:
    """Every figure that a model has, and those that every profile makes.

    Args:
        models: their figures, each with what `chosen_rates` gives under `rates`.
    """
    found = [
        *_rates(models),
        *(_count(f"parameters.{part}", f"parameters, {part}", ("parameters", part)) for part in _PARTS),
        *_caches(models),
    ]
    lengths = sorted({length for one in models for length in one.get("encoder") or {}}, key=float)
    for length in lengths:
        found += _of_length(length)
    if any(one.get("streaming") for one in models):
        found += _of_streams()
    return found + _times()


_PARTS = ("all", "encoder", "decoder", "attention")


def chosen_rates(models: Sequence[Mapping]) -> list[dict]:
    """Of several decodings of a set one for each model: the one that most models have, else its own first.

    Returns:
        Of each model set -> what figures.json has of it, and under `decoding` the name.

    Raises:
        BrokenError: scores are not what profile leaves.
    """
    decodings = Counter((name, decoding) for one in models for decoding, sets in _scores(one).items() for name in sets)
    found = []
    for one in models:
        chosen: dict[str, dict] = {}
        for name in sorted({name for sets in _scores(one).values() for name in sets}):
            own = [decoding for decoding, sets in _scores(one).items() if name in sets]
            decoding = max(sorted(own), key=lambda decoding: decodings[name, decoding])  # noqa: B023
            chosen[name] = {"decoding": decoding, **_checked(_scores(one)[decoding][name])}
        found.append(chosen)
    return found


def _scores(figures: Mapping) -> Mapping[str, Mapping]:
    scores = figures.get("scores") or {}
    if not isinstance(scores, Mapping) or not all(isinstance(sets, Mapping) for sets in scores.values()):
        raise BrokenError(f"scores is {scores!r:.60}, not an object of objects")
    return scores


def _checked(of_set: Mapping) -> Mapping:
    utterances = of_set.get("utterances") if isinstance(of_set, Mapping) else None
    for kind in KINDS:
        of_kind = of_set.get(kind, {}) if isinstance(utterances, list) else None
        counts = [of_kind.get(name, []) for name in ("errors", "words")] if isinstance(of_kind, Mapping) else [None]
        if not all(isinstance(one, list) and all(isinstance(count, int) for count in one) for one in counts):
            raise BrokenError("scores lacks the errors and words of its utterances")
        if of_kind and not sum(counts[1]):
            raise BrokenError("scores has a set without words")
        if of_kind and {len(one) for one in counts} != {len(utterances)}:
            raise BrokenError(f"scores has {len(utterances)} utterances, and not as many errors and words")
    return of_set


def _rates(models: Sequence[Mapping]) -> list[Column]:
    """A column for each set."""
    sets = sorted({name for one in models for name in one.get("rates") or {}})
    return [
        Column(
            f"{kind}.{name}", f"{kind.upper()} {name}, %", RATES, ("rates", name, kind, "rate"),
            lambda value: f"{value:.2f}", _scored(name), _scoring, test_set=(name, kind),
        )
        for kind in KINDS for name in sets or SETS
    ]  # fmt: skip


def _count(key: str, title: str, path: tuple[str, ...]) -> Column:
    return Column(key, f"{title}, M", SIZE, path, lambda value: f"{value / 1e6:.2f}", lambda _: "", _profiling)


def _caches(models: Sequence[Mapping]) -> list[Column]:
    kept = (
        ("encoder", "bytes_per_frame", "encoder, bytes a frame"),
        ("encoder", "bytes_per_second", "encoder, bytes a second"),
        ("encoder", "fixed_bytes", "encoder, bytes of fixed state"),
        ("decoder_self", "bytes_per_token", "decoder self, bytes a token"),
        ("decoder_src", "bytes_per_second", "decoder source, bytes a second"),
    )
    found = [
        Column(
            f"kv.{part}.{name}",
            title,
            SIZE,
            ("kv_cache", part, name),
            lambda value: f"{value:,.0f}",
            _type,
            _profiling,
            lower=None if name == "fixed_bytes" else True,  # the others keep frames instead
        )  # fmt: skip
        for part, name, title in kept
        if name != "fixed_bytes" or any(number(one, "kv_cache", part, name) for one in models)
    ]
    together = Column(
        BYTES,
        "encoder and decoder source, bytes a second",
        SIZE,
        (BYTES,),
        lambda value: f"{value:,.0f}",
        _type,
        _profiling,
    )
    return [*found, together]


def _of_length(length: str) -> list[Column]:
    def column(key: str, title: str, *path: str, **more: object) -> Column:
        shown = more.pop("show", lambda value: f"{value / 1e6:.2f}")
        return Column(
            f"{key}.{length}",
            title,
            f"Speech of {length} s",
            path,
            shown,
            more.pop("condition", _machine),
            _profiling,
            **more,
        )

    return [
        column("cache", "caches, MB", "cache", length, "bytes", condition=_type),
        column("per_gigabyte", "streams in a GB", "cache", length, "per_gigabyte", condition=_type, lower=False,
               show=lambda value: f"{value:,.0f}"),
        column("memory", "peak memory of the encoder, MB", "peak_memory", length, "encoder"),
        column("encoder_seconds", "encoder, s", "encoder", length, "seconds", runs=True, show=_seconds),
        column("encoder_rtf", "encoder, RTF", "encoder", length, "real_time_factor", runs=True, show=_factor),
    ]  # fmt: skip


def _of_streams() -> list[Column]:
    def column(key: str, title: str, *path: str, show: Callable[[float], str], **more: object) -> Column:
        condition = more.pop("condition", _cut)
        return Column(f"stream.{key}", title, "Streams", ("streaming", *path), show, condition, _streaming, **more)

    return [
        column("latency", "latency, ms", "latency_ms", show=lambda value: f"{value:g}", condition=lambda _: ""),
        column("bytes", "kept of a stream, MB", "bytes", show=lambda value: f"{value / 1e6:.3f}"),
        column("per_gigabyte", "streams in a GB", "per_gigabyte", show=lambda value: f"{value:,.0f}", lower=False),
        column("chunk_seconds", "a chunk, s", "chunk", "seconds", runs=True, show=_seconds, condition=_cut_on),
        column("chunk_rtf", "a chunk, RTF", "chunk", "real_time_factor", runs=True, show=_factor, condition=_cut_on),
    ]


def _times() -> list[Column]:
    return [
        Column("decoding_seconds", "decoding, s", TIME, ("decoding", "seconds"), _seconds, _decoded, _profiling, runs=True),
        Column("decoding_rtf", "decoding, RTF", TIME, ("decoding", "real_time_factor"), _factor, _decoded, _profiling,
               runs=True),
        Column("training_seconds", "training", TIME, ("training", "seconds"), duration, _trained_on, _training),
        Column("training_epochs", "epochs", TIME, ("training", "epochs"), lambda value: f"{value:g}", _trained_on, _training,
               lower=None),
    ]  # fmt: skip


def _seconds(value: float) -> str:
    return f"{value:.3f}"


def _factor(value: float) -> str:
    return f"{value:.4f}"


def _type(figures: Mapping) -> str:
    return str((figures.get("measured_with") or {}).get("dtype"))


def _machine(figures: Mapping) -> str:
    of = figures.get("measured_with") or {}
    on = of.get("device") if of.get("device") != "cpu" else f"{of.get('machine')}, {of.get('cores')} cores"
    torch = (of.get("versions") or {}).get("torch")
    return f"{on}, {of.get('threads')} threads, {of.get('dtype')}, PyTorch {torch}"


def _cut(figures: Mapping) -> str:
    of = figures.get("streaming") or {}
    return f"chunks of {of.get('chunk_size')}, {of.get('left_chunks')} before them, {_type(figures)}"


def _cut_on(figures: Mapping) -> str:
    return f"{_cut(figures)}; {_machine(figures)}"


def _decoded(figures: Mapping) -> str:
    of = figures.get("decoding") or {}
    options = ", ".join(f"{name} {value}" for name, value in (of.get("options") or {}).items())
    return f"{of.get('utterances')} utterances, {of.get('audio_seconds')} s, {options}; {_machine(figures)}"


def _corpus(figures: Mapping) -> str:
    of = figures.get("model") or {}
    return f"{of.get('training_set')}" + (
        f" ({of['training_utterances']} utterances)" if of.get("training_utterances") else ""
    )


def _trained_on(figures: Mapping) -> str:
    of = figures.get("training") or {}
    return f"trained on {_corpus(figures)}, by {of.get('running_on') or 'a machine that the log does not name'}"


def _scored(name: str) -> Callable[[Mapping], str]:
    def condition(figures: Mapping) -> str:
        of = (figures.get("rates") or {}).get(name) or {}
        utterances = of.get("utterances") or []
        words = (of.get("wer") or {}).get("words") or []
        same = hashlib.sha256(repr((utterances, words)).encode()).hexdigest()[:6]
        return f"{of.get('decoding')}, {len(utterances)} utterances of {sum(words)} words ({same}), trained on {_corpus(figures)}"

    return condition


def _profiling(folder: Path, model: str) -> str:
    speech = folder.parent.parent / "dump" / "raw" / "test_clean" / "wav.scp"
    return f"espnet-mla profile --asr_model_file {folder / model} --wav_scp {speech}"


def _scoring(folder: Path, model: str) -> str:
    scoring = _run_sh(folder, f"--stage 12 --stop_stage 13 --asr_exp {folder} --inference_asr_model {model}")
    return f"{scoring} && {_profiling(folder, model)}"


def _training(folder: Path, model: str) -> str:
    if (folder / CONVERSION_FILE).exists():
        return "converted, not trained"
    recipe = folder.parent.parent
    training = f"(cd {recipe} && {Path(folder.parent.name, folder.name)}/run.sh --stop_stage 11)"
    return f"{training} && {_profiling(folder, model)}"


def _streaming(_folder: Path, _model: str) -> str:
    return "only a model that was trained with encoder_conf: streaming has one"


def _run_sh(folder: Path, options: str) -> str:
    mini = "--corpus mini " if folder.parts[:1] == ("mini",) else ""
    return f"./run.sh {mini}{options}"

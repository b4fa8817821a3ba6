"""The figures of a model as a list in which each says what it is: title, unit, direction, conditions."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from espnet_mla.common.units import duration

RATES, SIZE, TIME, STREAMS = "Word and character error rates", "Parameters and caches", "Time", "Streams"
SPEECH = "Speech of {} s"
KINDS = ("wer", "cer")
BYTES = "kv_bytes_per_second"
LISTED = "figures"
"""The key of figures.json that holds the list."""
SCALES = {"M": 1e6, "MB": 1e6}
"""Units in which a value is displayed divided by something."""
DURATION = "h:mm:ss"


@dataclass(frozen=True)
class Column:
    """What a figure is.

    Args:
        key: its name in CSV and JSON.
        title: its name in a table.
        table: which one, by its heading.
        unit: in which it is displayed.
        format: of the displayed number, as Python's format specification.
        lower_is_better: None where neither is.
        source: what produces it: profile, scoring, training or streaming.
        seconds: the length of speech that it belongs to, if any.
    """

    key: str
    title: str
    table: str
    unit: str = ""
    format: str = ""
    lower_is_better: bool | None = True
    source: str = "profile"
    seconds: float | None = None

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def display(self, value: float) -> str:
        """A value as a table has it."""
        return duration(value) if self.unit == DURATION else format(value / SCALES.get(self.unit, 1), self.format)


@dataclass(frozen=True, kw_only=True)
class Figure(Column):
    """One figure of one model.

    Args:
        value: in base units: bytes, seconds, parameters, per cent.
        condition: what it was measured under; values under different conditions are not ranked together.
        least, most: of several runs.
        decoding: of an error rate.

    Raises:
        ValueError: a number is none that can be measured, or a text is none.
    """

    value: float
    condition: str = ""
    least: float | None = None
    most: float | None = None
    decoding: str | None = None

    def __post_init__(self) -> None:
        for name in ("key", "title", "table", "unit", "format", "source", "condition"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} of {self.key} is {getattr(self, name)!r}, not a text")
        for name in ("value", "least", "most", "seconds"):
            number = getattr(self, name)
            if number is None and name != "value":
                continue
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if not is_number or not math.isfinite(number) or number < 0:
                raise ValueError(f"{name} of {self.key} is {number!r}, not a number of at least 0")
        self.display(self.value)


def listed(figures: Mapping) -> list[Figure]:
    """The list that figures.json holds; of a file that was written without one, what would be in it.

    Raises:
        ValueError: it is not what `describe` makes.
    """
    if LISTED not in figures:
        return describe(figures)
    known = {field.name for field in fields(Figure)}
    try:
        return [Figure(**{name: part for name, part in one.items() if name in known}) for one in figures[LISTED]]
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{LISTED}: {error}") from None


def with_list(figures: Mapping) -> dict[str, Any]:
    """The content of figures.json: the figures, and the list that describes them; what is empty in it is left out."""
    entries = [
        {name: part for name, part in asdict(one).items() if part not in (None, "") or name == "lower_is_better"}
        for one in describe(figures)
    ]
    return {**figures, LISTED: entries}


def describe(figures: Mapping) -> list[Figure]:
    """Every figure that a model has.

    Args:
        figures: what `espnet-mla profile` or `convert` measured, by what was measured.

    Raises:
        ValueError: something is not what they leave.
    """
    lengths, conditions = sorted(section(figures, "encoder"), key=float), _conditions(figures)
    rows = [*GENERAL_ROWS, *STREAM_ROWS]
    for length in lengths:
        for path, condition, column in LENGTH_ROWS:
            texts = {name: getattr(column, name).format(length) for name in ("key", "table")}
            rows.append((path.format(length), condition, replace(column, **texts, seconds=float(length))))
    optional = [_figure(figures, path, conditions[condition], column) for path, condition, column in rows]
    return [*_rates(figures), *(figure for figure in optional if figure is not None)]


def section(figures: Mapping, *path: str) -> Mapping:
    """An object within figures.json; empty where it is missing.

    Raises:
        ValueError: something else stands there.
    """
    for depth, name in enumerate(path, 1):
        part = figures.get(name)
        if part is not None and not isinstance(part, Mapping):
            raise ValueError(f"{'/'.join(path[:depth])} is {part!r:.60}, not an object")
        figures = part or {}
    return figures


def _figure(figures: Mapping, path: str, condition: str, column: Column) -> Figure | None:
    """The figure that stands at a path; None where there is none."""
    *above, last = path.split("/")
    siblings = section(figures, *above)
    if siblings.get(last) is None:
        return None
    runs = {}
    if last in ("seconds", "real_time_factor") and None not in (siblings.get("least"), siblings.get("most")):
        audio = siblings.get("audio_seconds") if last == "real_time_factor" else 1
        runs = {name: siblings[name] / audio for name in ("least", "most")}
    return Figure(**vars(column), value=siblings[last], condition=condition, **runs)


def _rates(figures: Mapping) -> Iterator[Figure]:
    """The error rates: one of each set, and of each decoding of it."""
    decodings = section(figures, "scores")
    scored = {(name, decoding) for decoding in decodings for name in section(decodings, decoding)}
    for kind in KINDS:
        for name, decoding in sorted(scored):
            scores = section(decodings, decoding, name)
            if rate := section(scores, kind):
                utterances, words = scores.get("utterances") or [], rate.get("words") or []
                digest = hashlib.sha256(repr((utterances, words)).encode()).hexdigest()[:6]
                speech = f"{len(utterances)} utterances of {sum(words)} words ({digest})"
                condition = f"{decoding}, {speech}, trained on {_corpus(figures)}"
                described = {**vars(rate_column(kind, name)), "decoding": decoding}
                yield Figure(**described, value=rate.get("rate", math.nan), condition=condition)


def rate_column(kind: str, test_set: str) -> Column:
    """An error rate of a set."""
    return Column(f"{kind}.{test_set}", f"{kind.upper()} {test_set}", RATES, "%", ".2f", source="scoring")


def _conditions(figures: Mapping) -> dict[str, str]:
    """What figures can depend on, by the names in the tables below."""
    measured, training = section(figures, "measured_with"), section(figures, "training")
    streaming, decoding = section(figures, "streaming"), section(figures, "decoding")
    dtype, cpu = measured.get("dtype"), f"{measured.get('machine')}, {measured.get('cores')} cores"
    device = cpu if measured.get("device") == "cpu" else measured.get("device")
    torch = section(measured, "versions").get("torch")
    machine = f"{device}, {measured.get('threads')} threads, {dtype}, PyTorch {torch}"
    kept = f", caches in {measured['cache_dtype']}" if measured.get("cache_dtype") else ""
    left = "all" if streaming.get("left_chunks") == -1 else streaming.get("left_chunks")
    ahead = f", {streaming['look_ahead']} frames ahead" if streaming.get("look_ahead") else ""
    chunks = f"chunks of {streaming.get('chunk_size')} frames, {left} chunks of left context{ahead}, {dtype}{kept}"
    options = ", ".join(f"{name} {value}" for name, value in section(decoding, "options").items())
    trainer = training.get("running_on") or "a machine that the log does not name"
    speech = f"{decoding.get('utterances')} utterances, {decoding.get('audio_seconds')} s"
    return {
        "": "",
        "dtype": f"{dtype}{kept}",
        "machine": machine,
        "chunks": chunks,
        "chunks, machine": f"{chunks}; {machine}",
        "decoding": f"{speech}, {options}{kept}; {machine}",
        "training": f"trained on {_corpus(figures)}, by {trainer}",
    }


def _corpus(figures: Mapping) -> str:
    model = section(figures, "model")
    utterances = f" ({model['training_utterances']} utterances)" if model.get("training_utterances") else ""
    return f"{model.get('training_set')}{utterances}"


Row = tuple[str, str, Column]
"""Where a figure stands in figures.json, what it depends on (of `_conditions`), and what it is."""

GENERAL_ROWS: tuple[Row, ...] = (
    *(
        (f"parameters/{part}", "", Column(f"parameters.{part}", f"parameters, {part}", SIZE, "M", ".2f"))
        for part in ("all", "encoder", "decoder", "attention")
    ),
    *(
        (f"kv_cache/{part}/{name}", "dtype",
         Column(f"kv.{part}.{name}", title, SIZE, unit, ",.0f", None if name == "fixed_bytes" else True))
        for part, name, title, unit in (
            ("encoder", "bytes_per_frame", "encoder", "bytes a frame"),
            ("encoder", "bytes_per_second", "encoder", "bytes a second"),
            ("encoder", "fixed_bytes", "encoder", "bytes of fixed state"),  # others keep frames instead, so not ranked
            ("decoder_self", "bytes_per_token", "decoder self", "bytes a token"),
            ("decoder_src", "bytes_per_second", "decoder source", "bytes a second"),
        )
    ),
    (BYTES, "dtype", Column(BYTES, "encoder and decoder source", SIZE, "bytes a second", ",.0f")),
    ("decoding/seconds", "decoding", Column("decoding_seconds", "decoding", TIME, "s", ".3f")),
    ("decoding/real_time_factor", "decoding", Column("decoding_rtf", "decoding", TIME, "RTF", ".4f")),
    ("training/seconds", "training", Column("training_seconds", "training", TIME, DURATION, source="training")),
    ("training/epochs", "training",
     Column("training_epochs", "epochs", TIME, "", "g", lower_is_better=None, source="training")),
)  # fmt: skip
STREAM_ROWS: tuple[Row, ...] = tuple(
    (f"streaming/{path}", condition,
     Column(f"stream.{key}", title, STREAMS, unit, form, lower_is_better=key != "per_gigabyte", source="streaming"))
    for path, condition, key, title, unit, form in (
        ("latency_ms", "", "latency", "latency", "ms", "g"),
        ("bytes", "chunks", "bytes", "state of a stream", "MB", ".3f"),
        ("per_gigabyte", "chunks", "per_gigabyte", "streams in a GB", "", ",.0f"),
        ("chunk/seconds", "chunks, machine", "chunk_seconds", "a chunk", "s", ".3f"),
        ("chunk/real_time_factor", "chunks, machine", "chunk_rtf", "a chunk", "RTF", ".4f"),
    )
)  # fmt: skip
LENGTH_ROWS: tuple[Row, ...] = (
    ("cache/{}/bytes", "dtype", Column("cache.{}", "caches", SPEECH, "MB", ".2f")),
    ("cache/{}/per_gigabyte", "dtype",
     Column("per_gigabyte.{}", "streams in a GB", SPEECH, "", ",.0f", lower_is_better=False)),
    ("peak_memory/{}/encoder", "machine", Column("memory.{}", "peak memory of the encoder", SPEECH, "MB", ".2f")),
    ("encoder/{}/seconds", "machine", Column("encoder_seconds.{}", "encoder", SPEECH, "s", ".3f")),
    ("encoder/{}/real_time_factor", "machine", Column("encoder_rtf.{}", "encoder", SPEECH, "RTF", ".4f")),
)  # fmt: skip

EXPECTED = (
    *(rate_column(kind, name) for kind in KINDS for name in ("test_clean", "test_other")),
    *(column for _, _, column in GENERAL_ROWS),
)
"""What a comparison names as missing even if no model has it."""

"""The figures of a model as a list in which each says what it is: title, unit, direction, conditions."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
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
    lengths = sorted(section(figures, "encoder"), key=float)
    return [
        *_rates(figures),
        *(figure for row in (*GENERAL, *OF_STREAMS) for figure in _figure(figures, *row)),
        *(figure for length in lengths for row in OF_A_LENGTH for figure in _figure(figures, *row, length=length)),
    ]


def section(figures: Mapping, *path: str) -> Mapping:
    """An object within figures.json; empty where it is missing.

    Raises:
        ValueError: something else stands there.
    """
    for depth, name in enumerate(path, 1):
        found = figures.get(name)
        if found is not None and not isinstance(found, Mapping):
            raise ValueError(f"{'/'.join(path[:depth])} is {found!r:.60}, not an object")
        figures = found or {}
    return figures


def _figure(
    figures: Mapping, path: str, condition: Callable[[Mapping], str], column: Column, length: str = ""
) -> Iterator[Figure]:
    """The figure that stands at a path; nothing where there is none.

    Args:
        length: of speech, in seconds, for a column of that.
    """
    *above, last = path.format(length).split("/")
    of = section(figures, *above)
    if of.get(last) is None:
        return
    described = vars(column)
    if length:
        filled = {name: getattr(column, name).format(length) for name in ("key", "table")}
        described = {**described, **filled, "seconds": float(length)}
    runs = {}
    if last in ("seconds", "real_time_factor") and None not in (of.get("least"), of.get("most")):
        audio = of["audio_seconds"] if last == "real_time_factor" else 1
        runs = {name: of[name] / audio for name in ("least", "most")}
    yield Figure(**described, value=of[last], condition=condition(figures), **runs)


def _rates(figures: Mapping) -> Iterator[Figure]:
    """The error rates: one of each set, and of each decoding of it."""
    decodings = section(figures, "scores")
    scored = {(name, decoding) for decoding in decodings for name in section(decodings, decoding)}
    for kind in KINDS:
        for name, decoding in sorted(scored):
            of_set = section(decodings, decoding, name)
            if rate := section(of_set, kind):
                same = hashlib.sha256(repr((of_set["utterances"], rate["words"])).encode()).hexdigest()[:6]
                condition = (
                    f"{decoding}, {len(of_set['utterances'])} utterances of {sum(rate['words'])} words ({same}), "
                    f"trained on {_corpus(figures)}"
                )
                described = vars(rate_column(kind, name))
                yield Figure(**described, value=rate["rate"], condition=condition, decoding=decoding)


def rate_column(kind: str, test_set: str) -> Column:
    """An error rate of a set."""
    return Column(f"{kind}.{test_set}", f"{kind.upper()} {test_set}", RATES, "%", ".2f", source="scoring")


def _none(_figures: Mapping) -> str:
    return ""


def _dtype(figures: Mapping) -> str:
    return str(section(figures, "measured_with").get("dtype"))


def _machine(figures: Mapping) -> str:
    of = section(figures, "measured_with")
    on = of.get("device") if of.get("device") != "cpu" else f"{of.get('machine')}, {of.get('cores')} cores"
    torch = section(of, "versions").get("torch")
    return f"{on}, {of.get('threads')} threads, {of.get('dtype')}, PyTorch {torch}"


def _chunks(figures: Mapping) -> str:
    of = section(figures, "streaming")
    left = of.get("left_chunks")
    context = "all chunks" if left == -1 else f"{left} chunks"
    return f"chunks of {of.get('chunk_size')} frames, {context} of left context, {_dtype(figures)}"


def _chunks_on_machine(figures: Mapping) -> str:
    return f"{_chunks(figures)}; {_machine(figures)}"


def _decoding(figures: Mapping) -> str:
    of = section(figures, "decoding")
    options = ", ".join(f"{name} {value}" for name, value in section(of, "options").items())
    return f"{of.get('utterances')} utterances, {of.get('audio_seconds')} s, {options}; {_machine(figures)}"


def _corpus(figures: Mapping) -> str:
    of = section(figures, "model")
    utterances = f" ({of['training_utterances']} utterances)" if of.get("training_utterances") else ""
    return f"{of.get('training_set')}{utterances}"


def _training(figures: Mapping) -> str:
    on = section(figures, "training").get("running_on") or "a machine that the log does not name"
    return f"trained on {_corpus(figures)}, by {on}"


Row = tuple[str, Callable[[Mapping], str], Column]
"""Where a figure stands in figures.json, what it depends on, and what it is."""

GENERAL: tuple[Row, ...] = (
    *(
        (f"parameters/{part}", _none, Column(f"parameters.{part}", f"parameters, {part}", SIZE, "M", ".2f"))
        for part in ("all", "encoder", "decoder", "attention")
    ),
    *(
        (f"kv_cache/{part}/{name}", _dtype,
         Column(f"kv.{part}.{name}", title, SIZE, unit, ",.0f", None if name == "fixed_bytes" else True))
        for part, name, title, unit in (
            ("encoder", "bytes_per_frame", "encoder", "bytes a frame"),
            ("encoder", "bytes_per_second", "encoder", "bytes a second"),
            ("encoder", "fixed_bytes", "encoder", "bytes of fixed state"),  # others keep frames instead, so not ranked
            ("decoder_self", "bytes_per_token", "decoder self", "bytes a token"),
            ("decoder_src", "bytes_per_second", "decoder source", "bytes a second"),
        )
    ),
    (BYTES, _dtype, Column(BYTES, "encoder and decoder source", SIZE, "bytes a second", ",.0f")),
    ("decoding/seconds", _decoding, Column("decoding_seconds", "decoding", TIME, "s", ".3f")),
    ("decoding/real_time_factor", _decoding, Column("decoding_rtf", "decoding", TIME, "RTF", ".4f")),
    ("training/seconds", _training, Column("training_seconds", "training", TIME, DURATION, source="training")),
    ("training/epochs", _training,
     Column("training_epochs", "epochs", TIME, "", "g", lower_is_better=None, source="training")),
)  # fmt: skip
OF_STREAMS: tuple[Row, ...] = tuple(
    (f"streaming/{path}", condition,
     Column(f"stream.{key}", title, STREAMS, unit, form, lower_is_better=key != "per_gigabyte", source="streaming"))
    for path, condition, key, title, unit, form in (
        ("latency_ms", _none, "latency", "latency", "ms", "g"),
        ("bytes", _chunks, "bytes", "state of a stream", "MB", ".3f"),
        ("per_gigabyte", _chunks, "per_gigabyte", "streams in a GB", "", ",.0f"),
        ("chunk/seconds", _chunks_on_machine, "chunk_seconds", "a chunk", "s", ".3f"),
        ("chunk/real_time_factor", _chunks_on_machine, "chunk_rtf", "a chunk", "RTF", ".4f"),
    )
)  # fmt: skip
OF_A_LENGTH: tuple[Row, ...] = (
    ("cache/{}/bytes", _dtype, Column("cache.{}", "caches", SPEECH, "MB", ".2f")),
    ("cache/{}/per_gigabyte", _dtype,
     Column("per_gigabyte.{}", "streams in a GB", SPEECH, "", ",.0f", lower_is_better=False)),
    ("peak_memory/{}/encoder", _machine, Column("memory.{}", "peak memory of the encoder", SPEECH, "MB", ".2f")),
    ("encoder/{}/seconds", _machine, Column("encoder_seconds.{}", "encoder", SPEECH, "s", ".3f")),
    ("encoder/{}/real_time_factor", _machine, Column("encoder_rtf.{}", "encoder", SPEECH, "RTF", ".4f")),
)  # fmt: skip

EXPECTED = (
    *(rate_column(kind, name) for kind in KINDS for name in ("test_clean", "test_other")),
    *(column for _, _, column in GENERAL),
)
"""What a comparison names as missing even if no model has it."""

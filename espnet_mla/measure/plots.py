"""The plots of a comparison, by matplotlib; each point bears an id by which the report finds its figures."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from espnet_mla.measure.comparison import Cell, Comparison, Row
from espnet_mla.measure.tables import format_cell
from espnet_mla.trained.describe import BYTES, DURATION, RATES, Column

COLOURS = {"mha": "#4477aa", "gqa": "#228833", "mla": "#ee6677", "mtla": "#aa3377", "linear": "#ccbb44"}
OTHER_COLOUR = "#777777"  # ESPnet's own attentions
MARKERS = {"conformer": "o", "branchformer": "s", "e_branchformer": "^", "transformer": "D"}
_STYLE: dict[Any, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "espnet_mla",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


@dataclass(frozen=True)
class Plot:
    """A drawn plot.

    Args:
        name: of its files, without the ending.
        title: what it shows.
        svg, png: its files' content.
        points: id in the SVG -> the model, and heading -> figure as tables display it.
    """

    name: str
    title: str
    svg: str
    png: bytes
    points: dict[str, dict]


def draw(comparison: Comparison) -> list[Plot]:
    """Every plot that there are figures for."""
    plots = [_draw(comparison, *plot) for plot in PLOTS]
    return [plot for plot in plots if plot is not None]


class _Canvas:
    """A matplotlib figure being drawn, and the figures that its points stand for."""

    def __init__(self, comparison: Comparison, name: str, panels: int) -> None:
        self.comparison, self.name = comparison, name
        self.by_key = {column.key: column for column in comparison.columns}
        self.labels = dict(zip((row.name for row in comparison.rows), _short(comparison.rows), strict=True))
        self.figure = Figure(figsize=(5.2 * panels + 1.6, 4.2), layout="constrained")
        self.axes: list[Axes] = list(self.figure.subplots(1, panels, squeeze=False)[0])
        self.points: dict[str, dict] = {}

    def present(self, key: str) -> list[tuple[Row, float, Cell]]:
        """The rows that have a figure: its value, and its cell."""
        cells = [(row, self.comparison.cells[row.name, key]) for row in self.comparison.rows]
        return [(row, cell.value, cell) for row, cell in cells if cell.value is not None]

    def point(self, row: Row, *keys: str) -> str:
        """An id for a point that stands for these figures."""
        name = f"{self.name}-{len(self.points)}"
        columns = [self.by_key[key] for key in keys]
        figures = {column.heading: format_cell(self.comparison.cell(row, column), column) for column in columns}
        self.points[name] = {"model": row.name, "figures": figures}
        return name

    def style(self, row: Row, cell: Cell) -> dict[str, Any]:
        """A row's colour and marker; hollow where it was measured under another condition than the first."""
        colour = _colour(row)
        return {
            "color": colour,
            "marker": MARKERS.get(row.encoder or "", "X"),
            "markerfacecolor": colour if _first_condition(cell) else "white",
        }

    def legend(self) -> None:
        """The models, each once, whichever panel has them."""
        handles: dict[str, Artist] = {}
        for axes in self.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        if handles:
            self.figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=8)


def _colour(row: Row) -> str:
    return COLOURS.get(row.attention or "", OTHER_COLOUR)


def _first_condition(cell: Cell) -> bool:
    return cell.mark in ("", "a")


def _wer_against_bytes(canvas: _Canvas, columns: Sequence[Column]) -> None:
    """An error rate against the KV bytes of a second of audio, and their Pareto front."""
    cells_of_bytes = {row.name: (nbytes, cell) for row, nbytes, cell in canvas.present(BYTES)}
    for axes, column in zip(canvas.axes, columns, strict=True):
        points, places = [], []
        for row, wer, cell in canvas.present(column.key):
            if row.name not in cells_of_bytes:
                continue
            nbytes, cell_of_bytes = cells_of_bytes[row.name]
            if _first_condition(cell) and _first_condition(cell_of_bytes):  # others can't be compared with these
                points.append((nbytes, wer))
            places.append(nbytes)
            style = canvas.style(row, cell)
            if cell.least is not None and cell.most is not None:
                axes.vlines(nbytes, cell.least, cell.most, color=style["color"], linewidth=0.8, zorder=0)
            axes.plot(
                nbytes, wer, linestyle="", markersize=8, label=canvas.labels[row.name],
                gid=canvas.point(row, column.key, BYTES), **style,
            )  # fmt: skip
        if front := pareto(points):
            axes.step(*zip(*front, strict=True), where="post", color="black", linewidth=0.8, linestyle="--", zorder=0)
        _logarithmic(axes, places)
        axes.set_xlabel("KV bytes for a second of audio")
        axes.set_ylabel(column.heading)
        axes.set_ylim(bottom=0)


def _cache_against_length(canvas: _Canvas, columns: Sequence[Column]) -> None:
    _over_lengths(canvas, canvas.axes[0], columns, "caches", logarithmic=True)


def _speed(canvas: _Canvas, columns: Sequence[Column]) -> None:
    """Real-time factors: of the encoder over lengths, of decoding."""
    of_lengths = [column for column in columns if column.seconds is not None]
    if of_lengths:
        _over_lengths(canvas, canvas.axes[0], of_lengths, "encoder, real-time factor", logarithmic=False)
    for column in columns:
        if column.seconds is None:
            _bars(canvas, canvas.axes[-1], column)


def _training(canvas: _Canvas, columns: Sequence[Column]) -> None:
    _bars(canvas, canvas.axes[0], columns[0])


def _over_lengths(canvas: _Canvas, axes: Axes, columns: Sequence[Column], title: str, logarithmic: bool) -> None:
    lengths = {column.key: column.seconds or 0.0 for column in columns}
    curves: dict[str, list[tuple[str, float, Row, Cell]]] = {}
    for key in lengths:
        for row, value, cell in canvas.present(key):
            curves.setdefault(row.name, []).append((key, value, row, cell))
    for row in canvas.comparison.rows:
        if not (curve := curves.get(row.name)):
            continue
        axes.plot(
            [lengths[key] for key, *_ in curve], [value for _, value, *_ in curve], color=_colour(row), linewidth=0.8
        )
        for place, (key, value, _, cell) in enumerate(curve):
            axes.plot(
                lengths[key], value, linestyle="", markersize=6, label=None if place else canvas.labels[row.name],
                gid=canvas.point(row, key), **canvas.style(row, cell),
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(list(lengths.values()), [f"{length:g}" for length in lengths.values()])
    axes.minorticks_off()
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(EngFormatter("B"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("seconds of speech")
    axes.set_ylabel(title)


def _bars(canvas: _Canvas, axes: Axes, column: Column) -> None:
    present = canvas.present(column.key)
    for place, (row, value, cell) in enumerate(present):
        least, most = (value if end is None else end for end in (cell.least, cell.most))
        deviation = cell.deviation or 0.0
        error = [[max(deviation, value - least)], [max(deviation, most - value)]]
        style = canvas.style(row, cell)
        axes.barh(
            place, value, xerr=error, color=style["markerfacecolor"], edgecolor=style["color"],
            error_kw={"linewidth": 0.8},
        )[0].set_gid(canvas.point(row, column.key))  # fmt: skip
    axes.set_yticks(range(len(present)), [canvas.labels[row.name] for row, *_ in present])
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"{column.title}, seconds" if column.unit == DURATION else column.heading)


PLOTS: tuple[tuple[str, str, Callable[[Column], bool], Callable[[_Canvas, Sequence[Column]], None]], ...] = (
    ("wer_against_kv_bytes", "WER against KV bytes for a second of audio; dashed: the Pareto front",
     lambda column: column.key.startswith("wer."), _wer_against_bytes),
    ("cache_against_length", "Caches against the length of speech",
     lambda column: column.key.startswith("cache."), _cache_against_length),
    ("real_time_factor", "Real-time factors",
     lambda column: column.key.startswith("encoder_rtf.") or column.key == "decoding_rtf", _speed),
    ("training_time", "Training time", lambda column: column.key == "training_seconds", _training),
)  # fmt: skip
"""Name, title, the columns that it shows, and what draws it."""


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other betters in one of both without being worse in the other, from left to right."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def _draw(
    comparison: Comparison,
    name: str,
    title: str,
    selects: Callable[[Column], bool],
    paint: Callable[[_Canvas, Sequence[Column]], None],
) -> Plot | None:
    present = [
        column
        for column in comparison.columns
        if any(comparison.cell(row, column).value is not None for row in comparison.rows)
    ]
    columns = [column for column in present if selects(column)]
    if not columns or (name == "wer_against_kv_bytes" and not any(column.key == BYTES for column in present)):
        return None
    # A panel for each error rate; one for all lengths of speech.
    panels = len({column.key if column.table == RATES else column.key.split(".")[0] for column in columns})
    with matplotlib.rc_context(_STYLE):
        canvas = _Canvas(comparison, name, panels)
        paint(canvas, columns)
        canvas.legend()
        svg, png = io.StringIO(), io.BytesIO()
        canvas.figure.savefig(svg, format="svg", metadata={"Date": None})
        canvas.figure.savefig(png, format="png", dpi=110, metadata={"Software": None})
    drawing = svg.getvalue()
    if any(len(comparison.conditions[column.key]) > 1 for column in columns):
        title += "; hollow: measured under other conditions than (a)"
    return Plot(name, title, drawing[drawing.index("<svg") :], png.getvalue(), canvas.points)


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis of bytes, symmetric where it needs room for zero."""
    positive = [value for value in values if value > 0]
    if len(positive) == len(values):
        axes.set_xscale("log")
    elif positive:
        axes.set_xscale("symlog", linthresh=min(positive) / 2)
    if values:
        axes.set_xticks(sorted(set(values)))
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.tick_params(axis="x", labelrotation=30)
    axes.minorticks_off()


def _short(rows: Sequence[Row]) -> list[str]:
    """The names of rows without the words that all of them begin and end with."""
    names = [row.name.split("_") for row in rows]
    if len(names) > 1:
        shortest = min(map(len, names))
        begin = next((place for place in range(shortest) if len({words[place] for words in names}) > 1), 0)
        end = next((place for place in range(shortest) if len({words[-1 - place] for words in names}) > 1), 0)
        names = [words[begin : len(words) - end] or words for words in names]
    return ["_".join(words) for words in names]

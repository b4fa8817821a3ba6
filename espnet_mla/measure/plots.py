"""The plots of a comparison, by matplotlib; each point bears an id by which the report finds its figures."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from espnet_mla.measure.columns import BYTES, Column
from espnet_mla.measure.comparison import Cell, Comparison, Row
from espnet_mla.measure.tables import format_cell

COLOURS = {"mha": "#4477aa", "gqa": "#228833", "mla": "#ee6677", "linear": "#ccbb44"}
OTHER_COLOUR = "#777777"  # ESPnet's own attentions
MARKERS = {"conformer": "o", "branchformer": "s", "e_branchformer": "^", "transformer": "D"}
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "espnet_mla", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}


@dataclass(frozen=True)
class Plot:
    """A drawn plot.

    Args:
        name: of its files, without the ending.
        title: what it shows.
        svg, png: its files' content.
        points: id in the SVG -> the model, and title -> figure as it is shown.
    """

    name: str
    title: str
    svg: str
    png: bytes
    points: dict[str, dict]


def draw(comparison: Comparison) -> list[Plot]:
    """Every plot that there are figures for."""
    made = [_draw(comparison, *one) for one in PLOTS]
    return [plot for plot in made if plot is not None]


class _Canvas:
    """A figure that is being drawn, and what its points stand for."""

    def __init__(self, comparison: Comparison, name: str, panels: int) -> None:
        self.comparison, self.name = comparison, name
        self.by_key = {column.key: column for column in comparison.columns}
        self.labels = dict(zip((row.name for row in comparison.rows), _short(comparison.rows), strict=True))
        self.figure = Figure(figsize=(5.2 * panels + 1.6, 4.2), layout="constrained")
        self.axes: list[Axes] = list(self.figure.subplots(1, panels, squeeze=False)[0])
        self.points: dict[str, dict] = {}

    def cell(self, row: Row, key: str) -> Cell | None:
        """A figure that is there, else None."""
        cell = self.comparison.cells.get((row.name, key))
        return cell if cell is not None and cell.value is not None else None

    def point(self, row: Row, *keys: str) -> str:
        """An id for a point that shows these figures."""
        name = f"{self.name}-{len(self.points)}"
        figures = {self.by_key[key].title: format_cell(self.cell(row, key), self.by_key[key]) for key in keys}
        self.points[name] = {"model": row.name, "figures": figures}
        return name

    def style(self, row: Row, cell: Cell) -> dict:
        """A row's colour and marker; hollow where it was measured under another condition than the first."""
        colour = COLOURS.get(row.attention, OTHER_COLOUR)
        filled = cell.mark in ("", "a")
        return {
            "color": colour,
            "marker": MARKERS.get(row.encoder, "X"),
            "markerfacecolor": colour if filled else "white",
        }

    def legend(self) -> None:
        """The models, each once, whichever panel has them."""
        found: dict[str, Artist] = {}
        for axes in self.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        if found:
            self.figure.legend(found.values(), found, loc="outside right upper", fontsize=8)


def _wer_against_bytes(canvas: _Canvas, columns: Sequence[Column]) -> None:
    """An error rate against the bytes that a second of audio leaves, and the front that nothing beats in both."""
    for axes, column in zip(canvas.axes, columns, strict=True):
        points, places = [], []
        for row in canvas.comparison.rows:
            wer, kept = canvas.cell(row, column.key), canvas.cell(row, BYTES)
            if wer is None or kept is None:
                continue
            if wer.mark in ("", "a") and kept.mark in ("", "a"):  # only what is alike can be better
                points.append((kept.value, wer.value))
            places.append(kept.value)
            if wer.least is not None and wer.most is not None:
                axes.vlines(
                    kept.value, wer.least, wer.most, color=canvas.style(row, wer)["color"], linewidth=0.8, zorder=0
                )
            axes.plot(
                kept.value, wer.value, linestyle="", markersize=8, label=canvas.labels[row.name],
                gid=canvas.point(row, column.key, BYTES), **canvas.style(row, wer),
            )  # fmt: skip
        if front := pareto(points):
            axes.step(*zip(*front, strict=True), where="post", color="black", linewidth=0.8, linestyle="--", zorder=0)
        _logarithmic(axes, places)
        axes.set_xlabel("KV bytes for a second of audio")
        axes.set_ylabel(column.title)
        axes.set_ylim(bottom=0)


def _cache_against_length(canvas: _Canvas, columns: Sequence[Column]) -> None:
    _over_lengths(canvas, canvas.axes[0], columns, "caches", logarithmic=True)


def _speed(canvas: _Canvas, columns: Sequence[Column]) -> None:
    """Real-time factors: of the encoder over lengths, of decoding."""
    of_encoder = [column for column in columns if column.key.startswith("encoder_rtf.")]
    if of_encoder:
        _over_lengths(canvas, canvas.axes[0], of_encoder, "encoder, real-time factor", logarithmic=False)
    if len(of_encoder) < len(columns):
        _bars(canvas, canvas.axes[-1], columns[-1])


def _training(canvas: _Canvas, columns: Sequence[Column]) -> None:
    _bars(canvas, canvas.axes[0], columns[0])


def _over_lengths(canvas: _Canvas, axes: Axes, columns: Sequence[Column], title: str, logarithmic: bool) -> None:
    for row in canvas.comparison.rows:
        there = [
            (float(column.key.partition(".")[2]), column.key) for column in columns if canvas.cell(row, column.key)
        ]
        values = [canvas.cell(row, key).value for _, key in there]
        colour = COLOURS.get(row.attention, OTHER_COLOUR)
        axes.plot([length for length, _ in there], values, color=colour, linewidth=0.8)
        for place, ((length, key), value) in enumerate(zip(there, values, strict=True)):
            axes.plot(
                length, value, linestyle="", markersize=6, label=canvas.labels[row.name] if not place else None,
                gid=canvas.point(row, key), **canvas.style(row, canvas.cell(row, key)),
            )  # fmt: skip
    axes.set_xscale("log")
    lengths = [float(column.key.partition(".")[2]) for column in columns]
    axes.set_xticks(lengths, [f"{length:g}" for length in lengths])
    axes.minorticks_off()
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(EngFormatter("B"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("seconds of speech")
    axes.set_ylabel(title)


def _bars(canvas: _Canvas, axes: Axes, column: Column) -> None:
    rows = [row for row in canvas.comparison.rows if canvas.cell(row, column.key)]
    for place, row in enumerate(rows):
        cell = canvas.cell(row, column.key)
        least, most = (cell.value if end is None else end for end in (cell.least, cell.most))
        around = cell.deviation or 0.0
        error = [[max(around, cell.value - least)], [max(around, most - cell.value)]]
        style = canvas.style(row, cell)
        axes.barh(
            place, cell.value, xerr=error, color=style["markerfacecolor"], edgecolor=style["color"],
            error_kw={"linewidth": 0.8},
        )[0].set_gid(canvas.point(row, column.key))  # fmt: skip
    axes.set_yticks(range(len(rows)), [canvas.labels[row.name] for row in rows])
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"{column.title}, seconds" if column.key == "training_seconds" else column.title)


PLOTS: tuple[tuple[str, str, Callable[[Column], bool], Callable[[_Canvas, Sequence[Column]], None]], ...] = (
    ("wer_against_kv_bytes", "WER against KV bytes for a second of audio; dashed: the Pareto front",
     lambda column: column.test_set is not None and column.test_set[1] == "wer", _wer_against_bytes),
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


def _draw(comparison: Comparison, name: str, title: str, wanted: Callable, into: Callable) -> Plot | None:
    def there(column: Column) -> bool:
        return any(comparison.cell(row, column).value is not None for row in comparison.rows)

    columns = [column for column in comparison.columns if wanted(column) and there(column)]
    if name == "wer_against_kv_bytes" and not any(
        column.key == BYTES and there(column) for column in comparison.columns
    ):
        columns = []
    if not columns:
        return None
    # A panel for each error rate; one for all lengths of speech.
    panels = len({column.key.split(".")[0] if column.test_set is None else column.key for column in columns})
    with matplotlib.rc_context(_STYLE):
        canvas = _Canvas(comparison, name, panels)
        into(canvas, columns)
        canvas.legend()
        svg, png = io.StringIO(), io.BytesIO()
        canvas.figure.savefig(svg, format="svg", metadata={"Date": None})
        canvas.figure.savefig(png, format="png", dpi=110, metadata={"Software": None})
    drawing = svg.getvalue()
    if any(len(comparison.conditions[column.key]) > 1 for column in columns):
        title += "; hollow: under other conditions than (a)"
    return Plot(name, title, drawing[drawing.index("<svg") :], png.getvalue(), canvas.points)


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis of bytes, which has room for zero where it is needed."""
    above = [value for value in values if value > 0]
    if min(values, default=1) > 0:
        axes.set_xscale("log")
    elif above:
        axes.set_xscale("symlog", linthresh=min(above) / 2)
    if values:
        axes.set_xticks(sorted(set(values)))
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.tick_params(axis="x", labelrotation=30)
    axes.minorticks_off()


def _short(rows: Sequence[Row]) -> list[str]:
    """The names of rows without what all of them begin and end with."""
    parts = [row.name.split("_") for row in rows]
    if len(parts) > 1:
        shortest = min(map(len, parts))
        begin = next((place for place in range(shortest) if len({one[place] for one in parts}) > 1), 0)
        end = next((place for place in range(shortest) if len({one[-1 - place] for one in parts}) > 1), 0)
        parts = [one[begin : len(one) - end] or one for one in parts]
    return ["_".join(one) for one in parts]

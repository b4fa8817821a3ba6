"""A comparison as one HTML file that needs no network: sortable tables, and plots whose points show their figures."""

import json
from collections.abc import Sequence
from importlib import resources

from espnet_mla.measure import tables
from espnet_mla.measure.comparison import Comparison
from espnet_mla.measure.plots import Plot


def html(comparison: Comparison, plots: Sequence[Plot]) -> str:
    """The report.

    Args:
        plots: of the same comparison.
    """
    data = tables.content(comparison) | {
        "legend": tables.legend(comparison),
        "points": {name: point for plot in plots for name, point in plot.points.items()},
    }
    for row, of in zip(comparison.rows, data["rows"], strict=True):
        of["label"] = tables.label(row)
    template = resources.files("espnet_mla.measure").joinpath("report.html").read_text(encoding="utf-8")
    drawings = "".join(f'<div class="plot">\n<h3>{plot.title}</h3>\n{plot.svg}</div>\n' for plot in plots)
    # In JSON, "</" may be written otherwise; in HTML it would end the script.
    return template.replace("@PLOTS@", drawings).replace(
        "@DATA@", json.dumps(data, allow_nan=False).replace("</", "<\\/")
    )

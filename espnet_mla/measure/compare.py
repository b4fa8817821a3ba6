"""espnet-mla compare: the figures of many models side by side."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_mla.common.errors import UserError
from espnet_mla.common.files import replacing, write_text

DESCRIPTION = """\
Compare experiments by the figures.json that espnet-mla profile has written into each: RESULTS.md, comparison.csv,
comparison.json, plots (PNG and SVG), and report.html, one file with sortable tables. Experiments that differ only in
the seed become one row. What is missing is listed with the command that produces it. A figures.json that can't be read
is reported and left out, and the exit status is then 1.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _compare([Path(folder) for folder in options.experiments], options.baseline, Path(options.output))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _compare(folders: Sequence[Path], baselines: Sequence[str], output: Path) -> int:
    # Imported here because --help is answered at once.
    from espnet_mla.common.log import log
    from espnet_mla.measure import plots, report, tables
    from espnet_mla.measure.comparison import compare

    comparison = compare(folders, baselines)
    for why in comparison.left_out.values():
        print(f"error: {why}; it is left out", file=sys.stderr)
    drawn = plots.draw(comparison)
    for name in {name for name, *_ in plots.PLOTS} - {plot.name for plot in drawn}:  # left by an earlier comparison
        for kind in ("svg", "png"):
            (output / f"{name}.{kind}").unlink(missing_ok=True)
    write_text(output / "RESULTS.md", tables.markdown(comparison, {f"{plot.name}.png": plot.title for plot in drawn}))
    write_text(output / "comparison.csv", tables.as_csv(comparison))
    write_text(output / "comparison.json", tables.as_json(comparison))
    for plot in drawn:
        write_text(output / f"{plot.name}.svg", plot.svg)
        with replacing(output / f"{plot.name}.png") as partial:
            partial.write_bytes(plot.png)
    write_text(output / "report.html", report.html(comparison, drawn))
    log(f"{len(comparison.rows)} models compared: {output / 'RESULTS.md'}, {output / 'report.html'}")
    return int(bool(comparison.left_out))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="espnet-mla compare", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", metavar="FOLDER", nargs="+", help="of experiments, such as exp/A exp/B")
    parser.add_argument(
        "--output", metavar="FOLDER", required=True, help="for the comparison; existing files are replaced"
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        nargs="+",
        default=[],
        help="experiments to compare the others with, each with the one of the same encoder (default: the first)",
    )
    return parser

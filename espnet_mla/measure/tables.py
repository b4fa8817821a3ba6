"""A comparison as RESULTS.md, CSV and JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence

from espnet_mla.measure.bootstrap import LEVEL
from espnet_mla.measure.comparison import Cell, Comparison, Row
from espnet_mla.trained.describe import Column, section

MISSING = "missing"


def label(row: Row) -> str:
    """A row's name, with its seeds where it has several."""
    return row.name + (f" ({len(row.members)} seeds)" if len(row.members) > 1 else "")


def format_cell(cell: Cell, column: Column) -> str:
    """A cell as displayed: value, spread or interval, difference, probability, letter of its condition."""
    if cell.value is None:
        return MISSING
    text = column.display(cell.value)
    if cell.deviation:
        text += f" ± {column.display(cell.deviation)}"
    if cell.least is not None and cell.most is not None:
        text += f" [{column.display(cell.least)}, {column.display(cell.most)}]"
    if cell.difference:
        text += f" {cell.difference:+.1f} %"
    if cell.better is not None:
        text += f" P {cell.better:.2f}"
    return text + (f" ({cell.mark})" if cell.mark else "")


def markdown(comparison: Comparison, plots: Mapping[str, str]) -> str:
    """RESULTS.md.

    Args:
        plots: file -> its title.
    """
    parts = [
        "# RESULTS\n",
        *(f"\n**{note}**\n" for note in notes(comparison)),
        _environment(comparison),
        _legend(comparison),
    ]
    for table, columns in by_table(comparison).items():
        heads = ["model", *(column.heading for column in columns)]
        lines = [_line(heads), _line(["---"] * len(heads))]
        for row in comparison.rows:
            cells = [comparison.cell(row, column) for column in columns]
            texts = [format_cell(cell, column) for cell, column in zip(cells, columns, strict=True)]
            bold = [f"**{text}**" if cell.best else text for cell, text in zip(cells, texts, strict=True)]
            lines.append(_line([label(row), *bold]))
        parts.append(f"\n## {table}\n\n" + "".join(lines) + "\n")
        parts += [f"- {line}\n" for line in conditions(comparison, columns)]
    parts.append("\n## Plots\n\n" + "".join(f"![{title}]({file})\n" for file, title in plots.items()))
    parts += _missing(comparison) + _left_out(comparison)
    return "".join(parts)


def by_table(comparison: Comparison) -> dict[str, list[Column]]:
    """Heading -> columns."""
    tables: dict[str, list[Column]] = {}
    for column in comparison.columns:
        tables.setdefault(column.table, []).append(column)
    return tables


def notes(comparison: Comparison) -> list[str]:
    """The notes that stage 1 has left of the corpora."""
    texts = (one.model.get("note") for row in comparison.rows for one in row.members)
    return list(dict.fromkeys(text for text in texts if text))


def environment(comparison: Comparison) -> list[str]:
    """Machines and versions that the figures were measured with: a line for each."""
    lines: dict[str, list[str]] = {}
    for row in comparison.rows:
        for one in row.members:
            measured = section(one.content, "measured_with")
            versions = ", ".join(f"{name} {version}" for name, version in section(measured, "versions").items())
            gpu = f", {measured['device']}" if measured.get("device") not in (None, "cpu") else ""
            line = f"{measured.get('date')}: {measured.get('machine')}, {measured.get('cores')} cores, "
            line += f"{measured.get('threads')} threads{gpu}, {measured.get('dtype')}"
            line += f", caches in {measured['cache_dtype']}" if measured.get("cache_dtype") else ""
            line += f"; {versions}"
            if measured:
                lines.setdefault(line, []).append(one.name)
    total = sum(len(row.members) for row in comparison.rows)
    return [line + ("" if len(names) == total else f" ({', '.join(names)})") for line, names in lines.items()]


def seeds(comparison: Comparison) -> str:
    """The seeds of all models, where they are known."""
    numbers = (one.model.get("seed") for row in comparison.rows for one in row.members)
    return ", ".join(map(str, sorted({number for number in numbers if number is not None})))


def as_csv(comparison: Comparison) -> str:
    """A line for each row, with each figure's value and what belongs to it."""
    parts = ("deviation", "least", "most", "difference", "better", "mark")
    used = {
        column.key: [
            part for part in parts
            if any(getattr(comparison.cell(row, column), part) not in (None, "") for row in comparison.rows)
        ]
        for column in comparison.columns
    }  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [[key, *(f"{key}.{part}" for part in of)] for key, of in used.items()]
    writer.writerow(["model", "seeds", "baseline", *(head for of in heads for head in of)])
    for row in comparison.rows:
        line: list[object] = [row.name, len(row.members), comparison.baselines[row.name]]
        for column in comparison.columns:
            cell = comparison.cell(row, column)
            line += [cell.value, *(getattr(cell, part) for part in used[column.key])]
        writer.writerow("" if value is None else value for value in line)
    return text.getvalue()


def as_json(comparison: Comparison) -> str:
    """Everything, with the numbers as measured and as displayed."""
    return json.dumps(content(comparison), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def content(comparison: Comparison) -> dict:
    """What JSON and report hold."""
    return {
        "notes": notes(comparison),
        "measured_with": environment(comparison),
        "seeds": seeds(comparison),
        "tables": [
            {"title": table, "conditions": conditions(comparison, columns)}
            for table, columns in by_table(comparison).items()
        ],
        "columns": [
            {"key": column.key, "title": column.heading, "table": column.table,
             "lower_is_better": column.lower_is_better, "conditions": comparison.conditions[column.key]}
            for column in comparison.columns
        ],
        "rows": [
            {
                "model": row.name,
                "members": [one.name for one in row.members],
                "encoder": row.encoder,
                "attention": row.attention,
                "baseline": comparison.baselines[row.name],
                "figures": {
                    column.key: {"shown": format_cell(cell, column), **vars(cell)}
                    for column in comparison.columns
                    for cell in [comparison.cell(row, column)]
                },
            }
            for row in comparison.rows
        ],
        "left_out": comparison.left_out,
    }  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _environment(comparison: Comparison) -> str:
    lines = [f"- {line}\n" for line in environment(comparison)]
    if of_seeds := seeds(comparison):
        lines.append(f"- seeds: {of_seeds}\n")
    return "\n" + "".join(lines)


def legend(comparison: Comparison) -> list[str]:
    """What the marks in the tables mean."""
    baselines = list(dict.fromkeys(comparison.baselines.values()))
    encoders = ", the one with the same encoder" if len(baselines) > 1 else ""
    sentences = [
        f"Percentages are relative differences to the baseline ({' or '.join(baselines)}{encoders}).",
        f"Error rates: brackets hold the {LEVEL} % bootstrap confidence interval over utterances; P is the probability "
        "of improvement over the baseline (Bisani and Ney 2004).",
        "Times: brackets hold the least and the most of several runs.",
    ]
    if any(len(row.members) > 1 for row in comparison.rows):
        sentences.append("Several seeds: mean ± standard deviation; the confidence interval is that of the mean.")
    if any(row.attention == "linear" for row in comparison.rows):
        sentences.append("Linear attention keeps a state of fixed size, whatever the length of the speech.")
    sentences.append("KV bytes of an encoder are those that it would have to keep to process the next frame.")
    return sentences


def _legend(comparison: Comparison) -> str:
    return f"\nThe best value of a column is bold. {' '.join(legend(comparison))}\n"


def conditions(comparison: Comparison, columns: Sequence[Column]) -> list[str]:
    """What some figures were measured under: a line for columns that agree on it."""
    lines: dict[str, list[str]] = {}
    for column in columns:
        letters = comparison.conditions[column.key]
        text = "; ".join(f"({letter}) {condition}" if letter else condition for letter, condition in letters.items())
        if text:
            several = "only values with the same letter are compared: " if len(letters) > 1 else ""
            lines.setdefault(several + text, []).append(column.heading)
    return [f"{', '.join(headings)}: {text}" for text, headings in lines.items()]


def _missing(comparison: Comparison) -> list[str]:
    lines = []
    for row in comparison.rows:
        commands: dict[str, dict[str, None]] = {}
        for column in comparison.columns:
            for command in comparison.cell(row, column).missing:
                commands.setdefault(command, {})[column.heading] = None
        lines += [f"- {label(row)}: {', '.join(headings)}: `{command}`\n" for command, headings in commands.items()]
    return ["\n## Missing\n\nWhat would produce each figure:\n\n", *lines] if lines else []


def _left_out(comparison: Comparison) -> list[str]:
    lines = [f"- {why}\n" for why in comparison.left_out.values()]
    return ["\n## Left out\n\n", *lines] if lines else []

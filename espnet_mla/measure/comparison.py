"""Many models side by side: their figures.json read, seeds of one configuration joined, and each figure against a baseline."""

import json
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from espnet_mla.common.errors import UserError
from espnet_mla.measure import bootstrap
from espnet_mla.measure.columns import BrokenError, Column, chosen_rates, columns
from espnet_mla.measure.names import without_seed
from espnet_mla.trained.names import FIGURES_FILE, MODEL_FILE

MODELS = (MODEL_FILE, "model.pth")


@dataclass(frozen=True)
class Experiment:
    """A folder, and what was measured of its model: nothing where it has no figures.json."""

    folder: Path
    figures: dict

    @property
    def name(self) -> str:
        return name_of(self.folder)

    @property
    def model_file(self) -> str:
        """The file that was measured, or what one would measure: a trained model, or a converted one."""
        there = (name for name in MODELS if (self.folder / name).exists())
        return (self.figures.get("model") or {}).get("file") or next(there, MODELS[0])


@dataclass
class Row:
    """A model, or several that differ by their seed alone."""

    name: str
    members: list[Experiment]

    @property
    def encoder(self) -> str | None:
        return (self.members[0].figures.get("model") or {}).get("encoder")

    @property
    def attention(self) -> str | None:
        return ((self.members[0].figures.get("kv_cache") or {}).get("encoder") or {}).get("attention")


@dataclass
class Cell:
    """One figure of one row.

    Args:
        value: the mean over seeds; None where it is missing for one of them.
        condition: what it was measured under.
        missing: the commands that would make it.
        deviation: the standard deviation over seeds (of a sample), where there are several.
        least, most: of several runs, or the interval of an error rate.
        difference: to the baseline, in per cent of it.
        better: of an error rate, the probability that it is lower than the baseline's.
        mark: letter of the condition, where a column has several.
        best: whether no other under the same condition is better.
    """

    value: float | None
    condition: str = ""
    missing: list[str] = field(default_factory=list)
    deviation: float | None = None
    least: float | None = None
    most: float | None = None
    difference: float | None = None
    better: float | None = None
    mark: str = ""
    best: bool = False


@dataclass
class Comparison:
    """Rows and columns, and the cell of each row's name and column's key.

    Args:
        baselines: of each row the one that it is compared with.
        conditions: of each column, letter -> what its figures were measured under; the letter is empty where that is the
            same for all.
        left_out: folder of what could not be read -> why.
    """

    rows: list[Row]
    columns: list[Column]
    cells: dict[tuple[str, str], Cell]
    baselines: dict[str, str]
    conditions: dict[str, dict[str, str]]
    left_out: dict[str, str]

    def cell(self, row: Row, column: Column) -> Cell:
        return self.cells[row.name, column.key]


def compare(folders: Sequence[Path], baselines: Sequence[str]) -> Comparison:
    """Read the figures of each folder and set them side by side.

    Args:
        folders: of experiments.
        baselines: names of experiments, or of their rows; a row is compared with the one of its own encoder, else with the
            first. Where none is named, the first row is it.

    Raises:
        UserError: a folder is missing or named twice, two experiments have one name, or a baseline is not among them.
    """
    experiments, left_out = _read(folders)
    rows = _rows(experiments)
    found = columns([one.figures for one in experiments])
    of_row = _baselines(rows, baselines)
    cells = {(row.name, column.key): _cell(row, column) for column in found for row in rows}
    comparison = Comparison(rows, found, cells, of_row, {}, left_out)
    for column in found:
        _mark(comparison, column)
        _set_against(comparison, column)
    _bootstrap(comparison)
    return comparison


def _read(folders: Sequence[Path]) -> tuple[list[Experiment], dict[str, str]]:
    experiments: list[Experiment] = []
    left_out: dict[str, str] = {}
    names: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder of an experiment")
        if not any((folder / name).exists() for name in (FIGURES_FILE, "config.yaml")):
            raise UserError(f"{folder} is no folder of an experiment: it has neither {FIGURES_FILE} nor config.yaml")
        name = name_of(folder)
        if name in names:
            same = "is named twice" if names[name].resolve() == folder.resolve() else f"has the name of {names[name]}"
            raise UserError(f"{folder} {same}: each needs a name of its own")
        names[name] = folder
        try:
            figures = _figures(folder / FIGURES_FILE)
            for column in columns([figures]):
                column.value(figures), column.spread(figures), column.condition(figures)
            experiments.append(Experiment(folder, figures))
        except (BrokenError, AttributeError, TypeError, ValueError) as error:
            left_out[str(folder)] = f"{folder / FIGURES_FILE} is broken: {error}"
    if not experiments:
        raise UserError("no experiment is left to compare:\n" + "\n".join(left_out.values()))
    for one, rates in zip(experiments, chosen_rates([one.figures for one in experiments]), strict=True):
        one.figures["rates"] = rates
    return experiments, left_out


def _figures(path: Path) -> dict:
    """What a figures.json holds; nothing where there is none.

    Raises:
        BrokenError: it is not what profile writes.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BrokenError(str(error)) from None
    if not isinstance(found, dict):
        raise BrokenError("it holds no object")
    found["rates"] = chosen_rates([found])[0]
    return found


def name_of(folder: Path) -> str:
    """The name of an experiment: that of its folder, or of the link to it."""
    return Path(os.path.abspath(folder)).name


def _rows(experiments: Sequence[Experiment]) -> list[Row]:
    """Join what differs by its seed alone; an order of its own each, where first met."""
    groups: dict[object, list[Experiment]] = {}
    for one in experiments:
        of = one.figures.get("model") or {}
        key = (of.get("conf"), of.get("encoder"), of.get("file")) if of.get("conf") else one.name
        groups.setdefault(key, []).append(one)
    rows = []
    for members in groups.values():
        seeds = [one.figures["model"].get("seed") for one in members] if len(members) > 1 else [None]
        if len(set(seeds)) == len(members):
            names = {without_seed(one.name) for one in members}
            name = names.pop() if len(names) == 1 and len(members) > 1 else members[0].name
            rows.append(Row(name, members))
        else:  # the same model twice is no second seed
            rows += [Row(one.name, [one]) for one in members]
    order = {one.name: place for place, one in enumerate(experiments)}
    rows.sort(key=lambda row: order[row.members[0].name])
    taken = Counter(row.name for row in rows)
    for row in rows:
        if taken[row.name] > 1:  # as a group that is called like a model without a seed
            row.name = row.members[0].name
    return rows


def _baselines(rows: Sequence[Row], names: Sequence[str]) -> dict[str, str]:
    by_name = {name: row for row in rows for name in (row.name, *(one.name for one in row.members))}
    if wrong := [name for name in names if name_of(Path(name)) not in by_name]:
        raise UserError(f"--baseline {wrong[0]}: compared are {', '.join(row.name for row in rows)}")
    named = [by_name[name_of(Path(name))] for name in names] or rows[:1]
    return {row.name: next((one for one in named if one.encoder == row.encoder), named[0]).name for row in rows}


def _cell(row: Row, column: Column) -> Cell:
    values = [column.value(one.figures) for one in row.members]
    missing = [
        column.command(one.folder, one.model_file)
        for one, value in zip(row.members, values, strict=True)
        if value is None
    ]
    if missing:
        return Cell(None, missing=missing)
    conditions = dict.fromkeys(column.condition(one.figures) for one in row.members)
    cell = Cell(statistics.fmean(values), condition="; or ".join(conditions))
    if len(values) > 1:
        cell.deviation = statistics.stdev(values)
    elif spread := column.spread(row.members[0].figures):
        cell.least, cell.most = spread
    return cell


def _mark(comparison: Comparison, column: Column) -> None:
    """Say where conditions differ, and what is best under each."""
    cells = [comparison.cell(row, column) for row in comparison.rows]
    there = [cell for cell in cells if cell.value is not None]
    conditions = list(dict.fromkeys(cell.condition for cell in there))
    letters = [chr(ord("a") + place) for place in range(len(conditions))] if len(conditions) > 1 else [""]
    comparison.conditions[column.key] = dict(zip(letters, conditions, strict=False))
    for cell in there:
        cell.mark = letters[conditions.index(cell.condition)]
    for condition in conditions:
        alike = [cell for cell in there if cell.condition == condition]
        if column.lower is None or len(alike) < 2 or len({cell.value for cell in alike}) == 1:
            continue
        best = (min if column.lower else max)(cell.value for cell in alike)
        for cell in alike:
            cell.best = cell.value == best


def _set_against(comparison: Comparison, column: Column) -> None:
    for row in comparison.rows:
        baseline = comparison.baselines[row.name]
        cell, against = comparison.cell(row, column), comparison.cells[baseline, column.key]
        comparable = cell.value is not None and against.value is not None and cell.condition == against.condition
        if baseline != row.name and comparable and against.value:
            cell.difference = 100 * (cell.value - against.value) / against.value


def _bootstrap(comparison: Comparison) -> None:
    """The interval of every error rate, and the probability that it is lower than the baseline's."""
    for column in comparison.columns:
        if column.test_set is None:
            continue
        alike: dict[str, list[Row]] = {}
        for row in comparison.rows:
            if comparison.cell(row, column).value is not None:
                alike.setdefault(comparison.cell(row, column).condition, []).append(row)
        for rows in alike.values():
            _bootstrap_alike(comparison, column, rows)


def _bootstrap_alike(comparison: Comparison, column: Column, rows: Sequence[Row]) -> None:
    """The same of rows that were scored on the same utterances."""
    name, kind = column.test_set

    def of(one: Experiment, what: str) -> list[int]:
        return one.figures["rates"][name][kind][what]

    words = of(rows[0].members[0], "words")
    if any(of(one, "words") != words for row in rows for one in row.members):
        return  # seeds that were scored on unlike sets
    errors = np.array([np.mean([of(one, "errors") for one in row.members], axis=0) for row in rows])
    rates = dict(zip((row.name for row in rows), bootstrap.replicates(errors, np.array(words)).T, strict=True))
    for row in rows:
        cell, baseline = comparison.cell(row, column), comparison.baselines[row.name]
        cell.least, cell.most = bootstrap.interval(rates[row.name])
        if baseline != row.name and baseline in rates:
            cell.better = bootstrap.better(rates[row.name], rates[baseline])

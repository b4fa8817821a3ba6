"""Many models side by side: figures.json read, seeds of one configuration joined, figures set against a baseline."""

import json
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from espnet_mla.common.errors import UserError
from espnet_mla.measure import bootstrap
from espnet_mla.measure.names import without_seed
from espnet_mla.measure.scores import utterance_counts
from espnet_mla.trained.describe import EXPECTED, RATES, Column, Figure, listed, section
from espnet_mla.trained.names import CONVERSION_FILE, FIGURES_FILE, MODEL_FILE

MODELS = (MODEL_FILE, "model.pth")


@dataclass(frozen=True)
class Experiment:
    """A folder with a model, and what was measured of it.

    Args:
        content: of figures.json; empty where there is none.
        figures: the figures that it lists, by their keys.
    """

    folder: Path
    content: dict
    figures: dict[str, Figure]

    @property
    def name(self) -> str:
        return name_of(self.folder)

    @property
    def model(self) -> Mapping:
        """Who the model is."""
        return section(self.content, "model")

    @property
    def model_file(self) -> str:
        """The file that was measured, or the one that would be: of a trained model, or of a converted one."""
        existing = (name for name in MODELS if (self.folder / name).exists())
        return self.model.get("file") or next(existing, MODELS[0])

    def command(self, source: str) -> str:
        """What would produce a figure of that source (see `Column`)."""
        recipe, model = self.folder.parent.parent, self.folder / self.model_file
        speech = recipe / "dump" / "raw" / "test_clean" / "wav.scp"
        profile = f"espnet-mla profile --asr_model_file {model} --wav_scp {speech}"
        if source == "scoring":
            corpus = "--corpus mini " if self.folder.parts[:1] == ("mini",) else ""
            options = f"--stage 12 --stop_stage 13 --asr_exp {self.folder} --inference_asr_model {self.model_file}"
            return f"./run.sh {corpus}{options} && {profile}"
        if source == "streaming":
            return "only a model that was trained with encoder_conf: streaming has one"
        if source == "training" and (self.folder / CONVERSION_FILE).exists():
            return "converted, not trained"
        if source == "training":
            run = Path(self.folder.parent.name, self.folder.name, "run.sh")
            return f"(cd {recipe} && {run} --stop_stage 11) && {profile}"
        return profile


@dataclass
class Row:
    """A model, or several that differ by their seed alone."""

    name: str
    members: list[Experiment]

    @property
    def encoder(self) -> str | None:
        return self.members[0].model.get("encoder")

    @property
    def attention(self) -> str | None:
        return section(self.members[0].content, "kv_cache", "encoder").get("attention")


@dataclass
class Cell:
    """One figure of one row.

    Args:
        value: the mean over seeds; None where it is missing for one of them.
        condition: what it was measured under.
        missing: the commands that would produce it.
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
        conditions: of each column, letter -> what its figures were measured under; the letter is empty where all agree.
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
    """Read the figures of each folder and compare them.

    Args:
        folders: of experiments.
        baselines: names of experiments or rows; a row is compared with the one that has the same encoder, else with
            the first. Without any, the first row is the baseline.

    Raises:
        UserError: a folder is missing or named twice, two experiments have one name, or a baseline is not among them.
    """
    experiments, left_out = _read(folders)
    rows = _rows(experiments)
    columns = _columns(experiments)
    of_row = _baselines(rows, baselines)
    cells = {(row.name, column.key): _cell(row, column) for column in columns for row in rows}
    comparison = Comparison(rows, columns, cells, of_row, {}, left_out)
    for column in columns:
        _mark(comparison, column)
        _set_against(comparison, column)
    _bootstrap(comparison)
    return comparison


def _read(folders: Sequence[Path]) -> tuple[list[Experiment], dict[str, str]]:
    read: list[tuple[Path, dict, list[Figure]]] = []
    left_out: dict[str, str] = {}
    names: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not the folder of an experiment")
        if not any((folder / name).exists() for name in (FIGURES_FILE, "config.yaml")):
            raise UserError(
                f"{folder} is not the folder of an experiment: it has neither {FIGURES_FILE} nor config.yaml"
            )
        name = name_of(folder)
        if name in names:
            same = "is named twice" if names[name].resolve() == folder.resolve() else f"has the name of {names[name]}"
            raise UserError(f"{folder} {same}: each needs a name of its own")
        names[name] = folder
        try:
            read.append((folder, *_content(folder / FIGURES_FILE)))
        except (OSError, TypeError, ValueError) as error:
            left_out[str(folder)] = f"{folder / FIGURES_FILE} is broken: {error}"
    if not read:
        raise UserError("no experiment is left to compare:\n" + "\n".join(left_out.values()))
    # Of several decodings of a set, each model is compared by the one that most models have, else by its first.
    decodings = Counter((one.key, one.decoding) for _, _, figures in read for one in figures)
    experiments = []
    for folder, content, figures in read:
        chosen: dict[str, Figure] = {}
        for one in figures:
            other = chosen.setdefault(one.key, one)
            if decodings[one.key, one.decoding] > decodings[other.key, other.decoding]:
                chosen[one.key] = one
        experiments.append(Experiment(folder, content, chosen))
    return experiments, left_out


def _content(path: Path) -> tuple[dict, list[Figure]]:
    """What a figures.json holds, and the figures that it lists; nothing where there is none.

    Raises:
        OSError, TypeError, ValueError: it is not what profile writes.
    """
    if not path.exists():
        return {}, []
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise TypeError("it holds no object")
    for names in (("model",), ("kv_cache", "encoder"), ("measured_with", "versions")):
        section(content, *names)
    figures = listed(content)
    for one in figures:
        if one.decoding is not None:
            utterance_counts(content, one)
    return content, figures


def _columns(experiments: Sequence[Experiment]) -> list[Column]:
    """Every figure that a model has, and those that every profile makes, in the order in which they are listed."""
    lists: list[list[Column]] = [list(one.figures.values()) for one in experiments]
    scored = any(column.table == RATES for columns in lists for column in columns)
    lists.append([column for column in EXPECTED if not (scored and column.table == RATES)])
    merged: list[Column] = []
    for columns in lists:
        place = 0
        for column in columns:
            keys = [one.key for one in merged]
            if column.key in keys:
                place = keys.index(column.key) + 1
            else:
                merged.insert(place, column)
                place += 1
    merged.sort(key=lambda column: column.seconds or 0)

    def informative(column: Column) -> bool:
        values = {one.figures[column.key].value for one in experiments if column.key in one.figures}
        return column.lower_is_better is not None or values != {0}  # as the fixed state of attentions without one

    return list(filter(informative, merged))


def name_of(folder: Path) -> str:
    """The name of an experiment: that of its folder, or of the link to it."""
    return Path(os.path.abspath(folder)).name


def _rows(experiments: Sequence[Experiment]) -> list[Row]:
    """Join experiments that differ only in the seed; rows are in the order of their first experiments."""
    groups: dict[object, list[Experiment]] = {}
    for one in experiments:
        conf, encoder, file = (one.model.get(name) for name in ("conf", "encoder", "file"))
        key = (conf, encoder, file) if conf else one.name
        groups.setdefault(key, []).append(one)
    rows = []
    for members in groups.values():
        seeds = [one.model.get("seed") for one in members] if len(members) > 1 else [None]
        if len(set(seeds)) == len(members):
            seedless = {without_seed(one.name) for one in members}
            name = seedless.pop() if len(seedless) == 1 and len(members) > 1 else members[0].name
            rows.append(Row(name, members))
        else:  # copies of one model are not several seeds
            rows += [Row(one.name, [one]) for one in members]
    order = {one.name: place for place, one in enumerate(experiments)}
    rows.sort(key=lambda row: order[row.members[0].name])
    names = Counter(row.name for row in rows)
    for row in rows:
        if names[row.name] > 1:  # a group may have the name of a model without a seed
            row.name = row.members[0].name
    return rows


def _baselines(rows: Sequence[Row], names: Sequence[str]) -> dict[str, str]:
    by_name = {name: row for row in rows for name in (row.name, *(one.name for one in row.members))}
    if wrong := [name for name in names if name_of(Path(name)) not in by_name]:
        raise UserError(f"--baseline {wrong[0]}: no such experiment; there are {', '.join(row.name for row in rows)}")
    named = [by_name[name_of(Path(name))] for name in names] or rows[:1]
    return {row.name: next((one for one in named if one.encoder == row.encoder), named[0]).name for row in rows}


def _cell(row: Row, column: Column) -> Cell:
    figures = [one.figures[column.key] for one in row.members if column.key in one.figures]
    if len(figures) < len(row.members):
        return Cell(None, missing=[one.command(column.source) for one in row.members if column.key not in one.figures])
    conditions = dict.fromkeys(figure.condition for figure in figures)
    cell = Cell(statistics.fmean(figure.value for figure in figures), condition="; or ".join(conditions))
    if len(figures) > 1:
        cell.deviation = statistics.stdev(figure.value for figure in figures)
    else:
        cell.least, cell.most = figures[0].least, figures[0].most
    return cell


def _mark(comparison: Comparison, column: Column) -> None:
    """Mark values measured under different conditions by letters, and the best value under each condition."""
    cells = [comparison.cell(row, column) for row in comparison.rows]
    present = [(cell.value, cell) for cell in cells if cell.value is not None]
    conditions = list(dict.fromkeys(cell.condition for _, cell in present))
    letters = [chr(ord("a") + place) for place in range(len(conditions))] if len(conditions) > 1 else [""]
    comparison.conditions[column.key] = dict(zip(letters, conditions, strict=False))
    for _, cell in present:
        cell.mark = letters[conditions.index(cell.condition)]
    for condition in conditions:
        values = [value for value, cell in present if cell.condition == condition]
        if column.lower_is_better is None or len(set(values)) == 1:
            continue
        best = (min if column.lower_is_better else max)(values)
        for value, cell in present:
            cell.best |= cell.condition == condition and value == best


def _set_against(comparison: Comparison, column: Column) -> None:
    """The difference of each cell to the baseline's, where both were measured under the same conditions."""
    for row in comparison.rows:
        name = comparison.baselines[row.name]
        cell, baseline = comparison.cell(row, column), comparison.cells[name, column.key]
        if name != row.name and cell.value is not None and baseline.value and cell.condition == baseline.condition:
            cell.difference = 100 * (cell.value - baseline.value) / baseline.value


def _bootstrap(comparison: Comparison) -> None:
    """The interval of every error rate, and the probability that it is lower than the baseline's."""
    for column in comparison.columns:
        if column.table != RATES:
            continue
        alike: dict[str, list[Row]] = {}
        for row in comparison.rows:
            if comparison.cell(row, column).value is not None:
                alike.setdefault(comparison.cell(row, column).condition, []).append(row)
        for rows in alike.values():
            _bootstrap_alike(comparison, column, rows)


def _bootstrap_alike(comparison: Comparison, column: Column, rows: Sequence[Row]) -> None:
    """The same of rows that were scored on the same utterances."""
    counts = {row.name: [utterance_counts(one.content, one.figures[column.key]) for one in row.members] for row in rows}
    words = counts[rows[0].name][0][1]
    if any(not np.array_equal(of_member, words) for of_row in counts.values() for _, of_member in of_row):
        return  # seeds that were scored on different sets
    errors = np.array([np.mean([of_member for of_member, _ in of_row], axis=0) for of_row in counts.values()])
    rates = dict(zip(counts, bootstrap.replicates(errors, words).T, strict=True))
    for row in rows:
        cell, baseline = comparison.cell(row, column), comparison.baselines[row.name]
        cell.least, cell.most = bootstrap.interval(rates[row.name])
        if baseline != row.name and baseline in rates:
            cell.better = bootstrap.better(rates[row.name], rates[baseline])

"""One model's figures as a text to read."""

from collections.abc import Iterable, Mapping
from itertools import groupby

from espnet_mla.trained.describe import EXPECTED, RATES, Column, Figure, describe

WIDTH = 48  # of the names
MISSING = {
    "profile": "--wav_scp names no speech to decode",
    "scoring": "nothing was scored (stages 12 and 13)",
    "training": "no train.log reports an epoch",
}


def table(content: Mapping) -> str:
    """A line for each figure, lengths of speech side by side, and what they were measured under.

    Args:
        content: of figures.json.
    """
    model, figures = content["model"], describe(content)
    attentions = ", ".join(
        f"{part.replace('_', ' ')} {cache['attention']}" for part, cache in content["kv_cache"].items()
    )
    if cache_dtype := content["measured_with"].get("cache_dtype"):
        attentions += f"; caches in {cache_dtype}"
    lines = [f"{model['name']}: {model['encoder']}, {model['file']}; attention: {attentions or 'without a cache'}"]
    for heading, group in groupby((one for one in figures if one.seconds is None), key=lambda one: one.table):
        lines.append(heading)
        lines += _rows([one] for one in group)
    lengths = sorted({one.seconds for one in figures if one.seconds is not None})
    by_heading: dict[str, dict[float | None, Figure]] = {}
    for one in figures:
        if one.seconds is not None:
            by_heading.setdefault(one.heading, {})[one.seconds] = one
    lines.append(f"{'Speech of':<{WIDTH}}{''.join(f'{length:g} s'.rjust(24) for length in lengths)}")
    lines += _rows([row[length] for length in lengths if length in row] for row in by_heading.values())
    conditions = dict.fromkeys(one.condition for one in figures if one.condition)
    lines += ["Conditions", *(f"  {condition}" for condition in conditions)]
    lines.append(f"Times are medians [least, most]; speech: {content['measured_with']['speech']}")
    return "\n".join([*lines, *_missing(figures)])


def _rows(rows: Iterable[list[Figure]]) -> list[str]:
    return [f"  {row[0].heading:<{WIDTH - 2}}{''.join(_cell(one).rjust(24) for one in row)}" for row in rows]


def _cell(figure: Figure) -> str:
    text = figure.display(figure.value)
    if figure.least is None or figure.most is None:
        return text
    return f"{text} [{figure.display(figure.least)}, {figure.display(figure.most)}]"


def _missing(figures: list[Figure]) -> list[str]:
    keys, scored = {one.key for one in figures}, any(one.table == RATES for one in figures)
    missing: dict[str, list[Column]] = {}
    for column in EXPECTED:
        if column.key not in keys and not (scored and column.table == RATES):
            missing.setdefault(column.source, []).append(column)
    return [
        f"Missing: {', '.join(column.heading for column in columns)}: {MISSING[source]}"
        for source, columns in missing.items()
    ]

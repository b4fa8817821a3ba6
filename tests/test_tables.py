"""RESULTS.md, CSV and JSON of a comparison."""

import csv
import io
import json
import re

import pytest
from profiled import experiment, scored, without_list

from espnet_mla.measure import tables
from espnet_mla.measure.comparison import compare


@pytest.fixture
def comparison(tmp_path, figures):
    """Two seeds, a better model, one without figures, and a broken one."""
    places = [
        experiment(
            tmp_path, figures, f"mha_seed{seed}", model__conf="mha", model__seed=seed, model__note="A small corpus."
        )
        for seed in (1, 2)
    ]
    better = {"scores__decode_asr__test_clean": scored([0, 0, 0, 0], [5, 6, 7, 8]), "training__seconds": 10.0}
    places += [experiment(tmp_path, figures, "mla", **better), experiment(tmp_path, None, "untouched")]
    places += [experiment(tmp_path, figures, "broken")]
    without_list(places[-1], training="long")
    return compare(places, [])


def rows(text: str, heading: str) -> dict[str, dict[str, str]]:
    """A table of RESULTS.md: model -> title -> cell."""
    part = text.split(f"## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")
    ]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_results_md_holds_every_figure_with_spread_difference_and_the_best_in_bold(comparison):
    text = tables.markdown(comparison, {"a.png": "A plot"})
    rates = rows(text, "Word and character error rates")
    assert list(rates) == ["mha (2 seeds)", "mla", "untouched"]
    assert re.fullmatch(r"11\.54 \[0\.00, \d+\.\d\d\]", rates["mha (2 seeds)"]["WER test_clean, %"])
    best = rates["mla"]["WER test_clean, %"]
    assert re.fullmatch(r"\*\*0\.00 \[0\.00, 0\.00\] -100\.0 % P 0\.\d\d\*\*", best)
    assert rates["untouched"]["WER test_clean, %"] == "missing"
    assert rows(text, "Time")["mla"]["training, h:mm:ss"].startswith("**0:00:10 -")
    assert rows(text, "Speech of 2 s")["untouched"]["encoder, RTF"] == "missing"
    assert not re.search(r"\| 0(\.0+)? \|", text.split("## Word")[1].split("## Plots")[0].replace("epochs", ""))


def test_results_md_says_from_what_and_what_is_missing_and_left_out(comparison):
    text = tables.markdown(comparison, {"a.png": "A plot"})
    assert (
        "**A small corpus.**" in text and re.search(r"- seeds: .*1, 2", text) and re.search(r"\d threads.*torch", text)
    )
    assert "- WER test_clean, %, CER test_clean, %: decode_asr, 4 utterances of 26 words" in text
    assert "training, h:mm:ss, epochs: trained on None, by AMD EPYC, 2 cores, 1 threads" in text
    assert re.search(r"- untouched: .*encoder, RTF.*: `espnet-mla profile --asr_model_file .*untouched", text)
    assert re.search(r"## Left out\n\n- .*broken/figures\.json is broken: training is 'long'", text)
    assert "![A plot](a.png)" in text


def test_csv_holds_the_numbers(comparison):
    found = {line["model"]: line for line in csv.DictReader(io.StringIO(tables.as_csv(comparison)))}
    assert found["mha"]["seeds"] == "2" and found["mla"]["baseline"] == "mha"
    assert float(found["mla"]["wer.test_clean"]) == 0 and float(
        found["mla"]["wer.test_clean.difference"]
    ) == pytest.approx(-100)
    assert 0.5 < float(found["mla"]["wer.test_clean.better"]) <= 1
    assert found["untouched"]["wer.test_clean"] == found["untouched"]["training_seconds"] == ""
    seconds = comparison.cells["mla", "encoder_seconds.2"]
    assert float(found["mla"]["encoder_seconds.2.least"]) == seconds.least


def test_json_holds_what_is_shown_and_what_it_is_made_of(comparison):
    found = json.loads(tables.as_json(comparison))
    assert [row["model"] for row in found["rows"]] == ["mha", "mla", "untouched"]
    assert found["rows"][0]["members"] == ["mha_seed1", "mha_seed2"]
    for row, of in zip(comparison.rows, found["rows"], strict=True):
        for column in comparison.columns:
            cell, figure = comparison.cell(row, column), of["figures"][column.key]
            assert figure["value"] == cell.value and figure["shown"] == tables.format_cell(cell, column)
            assert (figure["value"] is None) == bool(figure["missing"])
    assert list(found["left_out"].values()) == list(comparison.left_out.values())


def test_a_difference_of_nothing_is_not_shown(comparison):
    column = next(column for column in comparison.columns if column.key == "parameters.all")
    cell = comparison.cell(comparison.rows[1], column)
    assert cell.difference == 0 and "%" not in tables.format_cell(cell, column)

"""Models side by side: what is joined, what is compared with what, and what is not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest
from profiled import experiment, scored, without_list

from espnet_mla.common.errors import UserError
from espnet_mla.measure.comparison import compare

RATE = "scores__decode_asr__test_clean"


def cell(comparison, row: str, key: str):
    return comparison.cells[row, key]


def test_each_figure_is_that_of_figures_json(tmp_path, figures):
    place = experiment(tmp_path, figures, "A")
    found = compare([place], [])
    assert cell(found, "A", "parameters.all").value == figures["parameters"]["all"]
    assert cell(found, "A", "kv.encoder.bytes_per_frame").value == figures["kv_cache"]["encoder"]["bytes_per_frame"]
    assert cell(found, "A", "cache.2").value == figures["cache"]["2"]["bytes"]
    assert cell(found, "A", "per_gigabyte.2").value == figures["cache"]["2"]["per_gigabyte"]
    assert cell(found, "A", "memory.1").value == figures["peak_memory"]["1"]["encoder"]
    seconds, factor = (cell(found, "A", f"encoder_{name}.2") for name in ("seconds", "rtf"))
    measured = figures["encoder"]["2"]
    assert (seconds.value, seconds.least, seconds.most) == (measured["seconds"], measured["least"], measured["most"])
    assert (factor.value, factor.most) == (measured["seconds"] / 2, measured["most"] / 2)
    assert cell(found, "A", "decoding_seconds").value == figures["decoding"]["seconds"]
    assert cell(found, "A", "training_seconds").value == figures["training"]["seconds"]
    assert cell(found, "A", "wer.test_clean").value == round(100 * 3 / 26, 2)
    assert all(one.difference is None and not one.best for one in found.cells.values())


def test_differences_are_to_the_named_baseline_and_the_best_is_marked(tmp_path, figures):
    change = {"encoder__2__seconds": 4.0, RATE: scored([0, 0, 1, 0], [5, 6, 7, 8])}
    places = [experiment(tmp_path, figures, "A", encoder__2__seconds=5.0), experiment(tmp_path, figures, "B", **change)]
    found = compare(places, ["A"])
    assert cell(found, "B", "encoder_seconds.2").difference == pytest.approx(-20)
    assert cell(found, "B", "encoder_seconds.2").best and not cell(found, "A", "encoder_seconds.2").best
    assert cell(found, "A", "encoder_seconds.2").difference is None
    assert not cell(found, "A", "parameters.all").best  # where all are alike none is best
    assert cell(found, "B", "wer.test_clean").better > 0.5 and cell(found, "A", "wer.test_clean").better is None
    assert compare(places, []).baselines == {"A": "A", "B": "A"}  # the first
    turned = compare(places, [str(places[1])])
    assert cell(turned, "A", "encoder_seconds.2").difference == pytest.approx(25)


def test_of_several_baselines_each_row_takes_that_of_its_encoder(tmp_path, figures):
    encoders = {"A": "conformer", "B": "branchformer", "C": "branchformer", "D": "transformer"}
    places = [experiment(tmp_path, figures, name, model__encoder=encoder) for name, encoder in encoders.items()]
    assert compare(places, ["A", "B"]).baselines == {"A": "A", "B": "B", "C": "B", "D": "A"}
    with pytest.raises(UserError, match="--baseline E: no such experiment; there are A, B, C, D"):
        compare(places, ["E"])


def test_seeds_of_one_configuration_are_one_row_with_mean_and_spread(tmp_path, figures):
    places = [
        experiment(
            tmp_path, figures, f"conformer_seed{seed}", model__conf="same", model__seed=seed,
            training__seconds=float(seconds), **{RATE: scored([errors, 0, 0, 0], [5, 6, 7, 8])},
        )
        for seed, seconds, errors in ((1, 10, 0), (2, 20, 1), (3, 60, 5))
    ]  # fmt: skip
    places.append(experiment(tmp_path, figures, "other"))
    found = compare(places, ["conformer_seed2"])
    assert [row.name for row in found.rows] == ["conformer", "other"]
    joined = cell(found, "conformer", "training_seconds")
    assert (joined.value, joined.deviation) == (30.0, pytest.approx(26.4575, abs=1e-3))
    rate = cell(found, "conformer", "wer.test_clean")
    assert rate.value == pytest.approx((0 + 3.85 + 19.23) / 3) and rate.least == 0 < rate.most
    assert found.baselines["other"] == "conformer"


def test_one_seed_twice_is_no_second_seed(tmp_path, figures):
    places = [experiment(tmp_path, figures, name, model__conf="same", model__seed=1) for name in ("A", "copy_of_A")]
    assert [row.name for row in compare(places, []).rows] == ["A", "copy_of_A"]


def test_what_was_measured_under_unlike_conditions_is_neither_ranked_nor_set_against_a_baseline(tmp_path, figures):
    places = [
        experiment(tmp_path, figures, "A"),
        experiment(tmp_path, figures, "B", measured_with__threads=99, encoder__2__seconds=1e-9),
        experiment(tmp_path, figures, "C", encoder__2__seconds=1e-8),
        experiment(tmp_path, figures, "D", **{f"{RATE}__utterances": ["other1", "other2", "other3", "other4"]}),
        experiment(tmp_path, figures, "E", model__training_set="train_960"),
        experiment(tmp_path, figures, "F", decoding__options={"beam_size": 1}),
    ]
    found = compare(places, ["A"])
    times = {row: cell(found, row, "encoder_seconds.2") for row in "ABC"}
    assert [times[row].mark for row in "ABC"] == ["a", "b", "a"]
    assert (times["B"].difference, times["B"].best, times["C"].best) == (None, False, True)
    assert "99 threads" in found.conditions["encoder_seconds.2"]["b"]
    assert [cell(found, row, "wer.test_clean").mark for row in "ABCDEF"] == ["a", "a", "a", "b", "c", "a"]
    assert cell(found, "D", "wer.test_clean").better is None
    assert (
        "train_960" in found.conditions["wer.test_clean"]["c"]
        and "train_960" in found.conditions["training_seconds"]["b"]
    )
    assert cell(found, "F", "decoding_rtf").mark == "c"
    assert list(found.conditions["parameters.all"]) == [""]  # no conditions there, so no letters


def test_caches_of_another_type_are_another_condition(tmp_path, figures):
    places = [experiment(tmp_path, figures, "A"), experiment(tmp_path, figures, "B", measured_with__cache_dtype="int8")]
    found = compare(places, ["A"])
    assert [cell(found, row, "kv_bytes_per_second").mark for row in "AB"] == ["a", "b"]
    assert found.conditions["kv_bytes_per_second"]["b"] == "float32, caches in int8"
    assert cell(found, "B", "encoder_seconds.2").mark == cell(found, "A", "encoder_seconds.2").mark


def test_another_decoding_is_shown_as_such(tmp_path, figures):
    sets = figures["scores"]["decode_asr"]
    places = [experiment(tmp_path, figures, name) for name in "AB"]
    places.append(experiment(tmp_path, figures, "C", scores={"greedy": sets}))
    places.append(experiment(tmp_path, figures, "D", scores={"greedy": sets, "decode_asr": sets}))
    found = compare(places, [])
    assert [cell(found, row, "wer.test_clean").mark for row in "ABCD"] == ["a", "a", "b", "a"]
    assert found.conditions["wer.test_clean"]["b"].startswith("greedy, ")


def test_missing_figures_are_missing_with_the_command_that_would_make_them(tmp_path, figures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment(tmp_path, figures, "A")
    experiment(tmp_path, None, "B")
    experiment(tmp_path, figures, "C", training=None, scores={}, decoding=None, model__file="model.pth")
    found = compare([Path("exp/A"), Path("exp/B"), Path("exp/C")], [])
    assert all(one.value is None and one.missing for (row, _), one in found.cells.items() if row == "B")
    profile = "espnet-mla profile --asr_model_file exp/B/valid.acc.ave.pth --wav_scp dump/raw/test_clean/wav.scp"
    assert cell(found, "B", "encoder_seconds.2").missing == [profile]
    assert cell(found, "C", "encoder_seconds.2").value is not None
    decoding = cell(found, "C", "decoding_rtf").missing
    assert decoding == [profile.replace("B/valid.acc.ave.pth", "C/model.pth")]
    scoring = "./run.sh --stage 12 --stop_stage 13 --asr_exp exp/C --inference_asr_model model.pth && "
    assert cell(found, "C", "wer.test_clean").missing == [scoring + decoding[0]]
    assert cell(found, "C", "training_seconds").missing[0].startswith("(cd . && exp/C/run.sh --stop_stage 11) && ")


@pytest.mark.parametrize(
    "change",
    [
        {"encoder__2__seconds": "fast"}, {"encoder__2__seconds": -1.0}, {"encoder__2__seconds": float("nan")},
        {"parameters": [1, 2]}, {"kv_cache": 3}, {"measured_with": "a machine"}, {"scores": [1]},
        {"scores": {"decode_asr": 5}}, {"scores": {"decode_asr": {"test_clean": 5}}}, {"training": "long"},
        {f"{RATE}__wer__errors": [1]}, {f"{RATE}__wer__errors": None}, {"encoder__2": None, "encoder__two": {}},
        {"encoder__2__seconds": True},
    ],
)  # fmt: skip
def test_broken_figures_are_named_and_left_out(tmp_path, figures, change):
    whole, broken = experiment(tmp_path, figures, "A"), experiment(tmp_path, figures, "B")
    without_list(broken, **change)
    comparison = compare([whole, broken], [])
    assert [row.name for row in comparison.rows] == ["A"]
    assert list(comparison.left_out) == [str(broken)] and "figures.json is broken: " in comparison.left_out[str(broken)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "fast"}, "value of parameters.all is 'fast', not a number of at least 0"),
        ({"value": None}, "value of parameters.all is None"), ({"least": -1.0}, "least of parameters.all is -1.0"),
        ({"format": "%d"}, "Invalid format specifier"), ({"key": ["a"]}, "key of ['a'] is ['a'], not a text"), (None, "figures: "),
    ],
)  # fmt: skip
def test_an_entry_that_is_no_figure_is_named_and_its_model_left_out(tmp_path, figures, change, message):
    whole, broken = experiment(tmp_path, figures, "A"), experiment(tmp_path, figures, "B")
    content = json.loads((broken / "figures.json").read_text())
    entry = next(one for one in content["figures"] if one["key"] == "parameters.all")
    content["figures"] = [entry | change if change else 5]
    (broken / "figures.json").write_text(json.dumps(content))
    comparison = compare([whole, broken], [])
    assert [row.name for row in comparison.rows] == ["A"] and message in comparison.left_out[str(broken)]


def test_figures_of_before_they_were_listed_are_compared_the_same_way(tmp_path, figures):
    places = [experiment(tmp_path, figures, name) for name in ("A", "B")]
    listed = compare(places, [])
    for place in places:
        without_list(place)
    assert compare(places, []) == replace(listed, rows=ANY) and len(listed.cells) > 40


def test_a_figure_that_only_the_file_knows_is_a_column_where_the_file_has_it(tmp_path, figures):
    places = [experiment(tmp_path, figures, name) for name in ("A", "B")]
    for place, watts in zip(places, (30.0, 20.0), strict=True):
        content = json.loads((place / "figures.json").read_text())
        power = {"key": "power", "title": "power", "table": "Energy", "unit": "W", "format": ".1f", "value": watts}
        content["figures"].insert(1, {**power, "lower_is_better": True, "condition": "at 20 degrees"})
        (place / "figures.json").write_text(json.dumps(content))
    found = compare(places, [])
    assert found.columns[1].heading == "power, W" and found.conditions["power"] == {"": "at 20 degrees"}
    assert cell(found, "B", "power").best and cell(found, "B", "power").difference == pytest.approx(-100 / 3)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\xff"])
def test_files_that_are_no_json_object_are_left_out(tmp_path, figures, text):
    whole, broken = experiment(tmp_path, figures, "A"), experiment(tmp_path, figures, "B")
    (broken / "figures.json").write_bytes(text.encode("latin-1"))
    assert list(compare([whole, broken], []).left_out) == [str(broken)]
    with pytest.raises(UserError, match="no experiment is left to compare"):
        compare([broken], [])


def test_two_experiments_of_one_name_are_refused(tmp_path, figures):
    first, second = experiment(tmp_path / "one", figures, "A"), experiment(tmp_path / "two", figures, "A")
    with pytest.raises(UserError, match="two/exp/A has the name of .*one/exp/A"):
        compare([first, second], [])
    with pytest.raises(UserError, match="exp/A is named twice"):
        compare([first, first], [])
    shutil.rmtree(second)
    with pytest.raises(UserError, match="is not the folder of an experiment"):
        compare([first, second], [])


def test_streams_are_compared_where_a_model_can_be_streamed(tmp_path, figures):
    stream = {
        "chunk_size": 16, "left_chunks": 8, "latency_ms": 676.0, "bytes": 600000, "per_gigabyte": 1666,
        "chunk": {"audio_seconds": 0.64, "seconds": 0.02, "least": 0.019, "most": 0.03, "runs": 10, "real_time_factor": 0.03125},
    }  # fmt: skip
    smaller = stream | {"bytes": 300000, "per_gigabyte": 3333}
    other = smaller | {"chunk_size": 8, "latency_ms": 356.0}
    places = [
        experiment(tmp_path, figures, name, **({"streaming": of} if of else {}))
        for name, of in (("A", stream), ("B", smaller), ("C", other), ("D", None))
    ]
    found = compare(places, ["A"])
    assert [cell(found, row, "stream.latency").value for row in "ABCD"] == [676, 676, 356, None]
    assert cell(found, "B", "stream.bytes").difference == pytest.approx(-50)
    assert cell(found, "C", "stream.bytes").difference is None, "other chunks keep other bytes"
    chunk = cell(found, "A", "stream.chunk_rtf")
    assert (chunk.value, chunk.least, chunk.most) == (0.03125, 0.019 / 0.64, 0.03 / 0.64)
    assert cell(found, "D", "stream.bytes").missing == [
        "only a model that was trained with encoder_conf: streaming has one"
    ]
    assert not any(key.startswith("stream.") for _, key in compare([places[3]], []).cells)

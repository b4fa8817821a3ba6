"""The plots of a comparison."""

import random
from xml.etree import ElementTree

from profiled import experiment, scored

from espnet_mla.measure import plots, tables
from espnet_mla.measure.comparison import compare


def drawn(tmp_path, figures, names="AB", **changes):
    places = [experiment(tmp_path, figures, name, **changes) for name in names]
    comparison = compare(places, [])
    return comparison, {plot.name: plot for plot in plots.draw(comparison)}


def test_the_pareto_front_is_what_no_other_point_betters():
    def definition(points):
        def beaten(one):
            return any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in points)

        return sorted({one for one in points if not beaten(one)})

    rng = random.Random(0)
    for _ in range(200):
        points = [(rng.randrange(6), rng.randrange(6)) for _ in range(rng.randrange(1, 9))]
        assert plots.pareto(points) == definition(points)


def test_every_model_is_a_point_of_every_plot_that_shows_its_figures(tmp_path, figures):
    comparison, found = drawn(tmp_path, figures, "ABC")
    assert list(found) == ["wer_against_kv_bytes", "cache_against_length", "real_time_factor", "training_time"]
    number = {"wer_against_kv_bytes": 2, "cache_against_length": 2, "real_time_factor": 3, "training_time": 1}
    titles = {column.heading: column for column in comparison.columns}
    for name, plot in found.items():
        assert plot.png.startswith(b"\x89PNG")
        ids = {element.get("id") for element in ElementTree.fromstring(plot.svg).iter()}
        assert set(plot.points) <= ids and len(plot.points) == 3 * number[name]
        for point in plot.points.values():
            row = next(row for row in comparison.rows if row.name == point["model"])
            for title, shown in point["figures"].items():
                cells = [comparison.cell(row, column) for column in comparison.columns if column.heading == title]
                assert shown in [tables.format_cell(cell, titles[title]) for cell in cells]


def test_drawing_again_gives_the_same_files(tmp_path, figures):
    comparison, found = drawn(tmp_path, figures)
    again = {plot.name: plot for plot in plots.draw(comparison)}
    assert all(again[name].svg == plot.svg and again[name].png == plot.png for name, plot in found.items())


def test_a_model_that_keeps_nothing_has_its_place_on_the_axis(tmp_path, figures):
    places = [experiment(tmp_path, figures, "A"), experiment(tmp_path, figures, "none", kv_bytes_per_second=0)]
    found = {plot.name: plot for plot in plots.draw(compare(places, []))}["wer_against_kv_bytes"]
    assert [point["model"] for point in found.points.values()] == ["A", "none"] * 2


def test_what_there_are_no_figures_for_is_not_drawn(tmp_path, figures):
    _, found = drawn(tmp_path, figures, scores={}, training=None, decoding=None)
    assert list(found) == ["cache_against_length", "real_time_factor"]
    assert plots.draw(compare([experiment(tmp_path, None, "untouched")], [])) == []


def test_letters_of_a_name_are_no_markup(tmp_path, figures):
    places = [experiment(tmp_path, figures, name, scores={"decode_asr": {"a<b&c": scored([1, 0], [4, 4])}})
              for name in ("x_<1>_$y$", "x_&2_$y$")]  # fmt: skip
    found = {plot.name: plot for plot in plots.draw(compare(places, []))}["wer_against_kv_bytes"]
    ElementTree.fromstring(found.svg)


def test_an_error_rate_is_drawn_with_its_interval(tmp_path, figures):
    _, found = drawn(tmp_path, figures, "AB")
    lines = [element for element in ElementTree.fromstring(found["wer_against_kv_bytes"].svg).iter()
             if (element.get("id") or "").startswith("LineCollection")]  # fmt: skip
    assert len(lines) == 4  # two models, two sets


def test_what_was_scored_under_other_conditions_is_hollow_and_not_in_the_front(tmp_path, figures):
    places = [experiment(tmp_path, figures, "A"), experiment(tmp_path, figures, "B")]
    better = {"model__training_set": "more", "kv_bytes_per_second": 1, "scores": {
        "decode_asr": {name: scored([0, 0], [4, 4]) for name in ("test_clean", "test_other")}}}  # fmt: skip
    places.append(experiment(tmp_path, figures, "C", **better))
    plot = {plot.name: plot for plot in plots.draw(compare(places, []))}["wer_against_kv_bytes"]
    assert plot.title.endswith("hollow: measured under other conditions than (a)")
    point = next(name for name, point in plot.points.items() if point["model"] == "C")
    assert "fill: #ffffff" in plot.svg.split(f'id="{point}"')[1].split("</g>")[0]
    plain = {plot.name: plot for plot in plots.draw(compare(places[:2], []))}["wer_against_kv_bytes"]
    assert "hollow" not in plain.title


def test_there_is_a_panel_for_each_kind_of_figure_and_none_is_empty(tmp_path, figures):
    for change, panels in (({}, 2), ({"decoding": None}, 1), ({"encoder": {}}, 1)):
        found = drawn(tmp_path / str(len(change)) / str(panels) / "".join(change), figures, "A", **change)[1]
        ids = [element.get("id") or "" for element in ElementTree.fromstring(found["real_time_factor"].svg).iter()]
        assert sum(name.startswith("axes_") for name in ids) == panels

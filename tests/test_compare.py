"""espnet-mla compare as a command."""

from profiled import experiment

from espnet_mla.measure import compare


def test_it_leaves_tables_plots_and_report(tmp_path, figures, capsys):
    places = [str(experiment(tmp_path, figures, name)) for name in "AB"]
    assert compare.main([*places, "--output", str(tmp_path / "out"), "--baseline", "B"]) == 0
    plots = ("wer_against_kv_bytes", "cache_against_length", "real_time_factor", "training_time")
    files = {"RESULTS.md", "comparison.csv", "comparison.json", "report.html"}
    files |= {f"{plot}.{kind}" for plot in plots for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert all((tmp_path / "out" / name).stat().st_size for name in files)
    assert "2 models compared: " in capsys.readouterr().out


def test_broken_figures_are_named_the_others_compared_and_the_status_is_1(tmp_path, figures, capsys):
    places = [experiment(tmp_path, figures, name) for name in "AB"]
    (places[1] / "figures.json").write_text("{")
    assert compare.main([*map(str, places), "--output", str(tmp_path / "out")]) == 1
    assert f"error: {places[1]}/figures.json is broken: " in capsys.readouterr().err
    assert "| A |" in (tmp_path / "out" / "RESULTS.md").read_text()


def test_bad_input_leaves_what_is_there(tmp_path, figures, capsys):
    place = experiment(tmp_path, figures, "A")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "RESULTS.md").write_text("earlier")
    assert compare.main([str(place), str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]) == 1
    assert "nowhere is not the folder of an experiment" in capsys.readouterr().err
    assert compare.main([str(place), "--output", str(tmp_path / "out"), "--baseline", "C"]) == 1
    assert "--baseline C: no such experiment; there are A" in capsys.readouterr().err
    assert (tmp_path / "out" / "RESULTS.md").read_text() == "earlier"


def test_a_plot_that_there_are_no_figures_for_any_more_goes(tmp_path, figures):
    place = experiment(tmp_path, figures, "A")
    assert compare.main([str(place), "--output", str(tmp_path / "out")]) == 0
    place = experiment(tmp_path / "again", figures, "A", training=None)
    assert compare.main([str(place), "--output", str(tmp_path / "out")]) == 0
    assert (
        not (tmp_path / "out" / "training_time.svg").exists()
        and (tmp_path / "out" / "cache_against_length.svg").exists()
    )

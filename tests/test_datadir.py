"""espnet_mla.recipe.datadir: Kaldi data folders stay whole and consistent."""

import pytest

from espnet_mla.common.errors import UserError
from espnet_mla.common.tables import read_table
from espnet_mla.recipe import datadir

TABLES = {
    "wav.scp": {"b-2": "/b2.flac", "a-1": "/a1.flac", "a-2": "/a2.flac"},
    "text": {"b-2": "TWO", "a-1": "ONE", "a-2": ""},
    "utt2spk": {"b-2": "b", "a-1": "a", "a-2": "a"},
    "spk2gender": {"a": "f", "b": "m"},
}


def files(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_what_is_saved_is_loaded(tmp_path):
    datadir.save(tmp_path / "x", TABLES)
    assert datadir.load(tmp_path / "x") == TABLES


def test_blanks_of_any_kind_become_single_spaces_and_are_counted(tmp_path, caplog):
    datadir.save(tmp_path, TABLES | {"text": {"b-2": "TWO\u3000 MORE", "a-1": "ONE  MORE\u00a0WORD", "a-2": "A B"}})
    assert datadir.load(tmp_path)["text"] == {"b-2": "TWO MORE", "a-1": "ONE MORE WORD", "a-2": "A B"}
    assert f"{tmp_path}/text: 2 of 3 transcripts had runs of blanks" in caplog.text
    caplog.clear()
    datadir.save(tmp_path, datadir.load(tmp_path))
    caplog.clear()
    datadir.load(tmp_path)
    assert not caplog.text


def test_tables_whose_columns_are_tabulated_are_the_same(tmp_path):
    datadir.save(tmp_path, TABLES)
    for name in TABLES:
        path = tmp_path / name
        path.write_text(path.read_text().replace(" ", "\t"))
    assert datadir.load(tmp_path) == TABLES


def test_tables_are_sorted_and_speakers_list_their_utterances(tmp_path):
    datadir.save(tmp_path, TABLES)
    assert (tmp_path / "text").read_text() == "a-1 ONE\na-2\nb-2 TWO\n"
    assert (tmp_path / "spk2utt").read_text() == "a a-1 a-2\nb b-2\n"


def test_keep_filters_every_table_and_the_speakers():
    kept = datadir.keep(TABLES, ["a-2"])
    assert all(set(kept[name]) == {"a-2"} for name in ("wav.scp", "text", "utt2spk"))
    assert kept["spk2gender"] == {"a": "f"}


def test_a_table_of_an_earlier_run_does_not_stay(tmp_path):
    datadir.save(tmp_path, TABLES)
    datadir.save(tmp_path, {name: table for name, table in TABLES.items() if name != "spk2gender"})
    assert not (tmp_path / "spk2gender").exists()


@pytest.mark.parametrize("name", datadir.REQUIRED)
def test_a_missing_table_or_line_is_named(tmp_path, name):
    datadir.save(tmp_path, TABLES)
    path = tmp_path / name
    path.write_text(path.read_text().split("\n", 1)[1])
    with pytest.raises(UserError, match=f"{name} lacks a-1"):
        datadir.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=f"{name} does not exist"):
        datadir.load(tmp_path)


def test_combine_is_the_union(tmp_path):
    datadir.save(tmp_path / "a", datadir.keep(TABLES, ["a-1", "a-2"]))
    datadir.save(tmp_path / "b", datadir.keep(TABLES, ["b-2"]))
    datadir.save(tmp_path / "all", TABLES)
    datadir.combine(tmp_path / "ab", [tmp_path / "a", tmp_path / "b"])
    assert files(tmp_path / "ab") == files(tmp_path / "all")


def test_combine_leaves_out_what_one_folder_lacks_but_completes_utt2uniq(tmp_path):
    a, b = datadir.keep(TABLES, ["a-1"]), datadir.keep(TABLES, ["b-2"])
    del a["spk2gender"]
    datadir.save(tmp_path / "a", {**a, "utt2uniq": {"a-1": "1"}})
    datadir.save(tmp_path / "b", b)
    datadir.combine(tmp_path / "ab", [tmp_path / "a", tmp_path / "b"])
    assert not (tmp_path / "ab" / "spk2gender").exists()
    assert read_table(tmp_path / "ab" / "utt2uniq") == {"a-1": "1", "b-2": "b-2"}


def test_combine_refuses_an_utterance_twice(tmp_path):
    datadir.save(tmp_path / "a", TABLES)
    datadir.save(tmp_path / "b", datadir.keep(TABLES, ["b-2"]))
    with pytest.raises(UserError, match="b-2"):
        datadir.combine(tmp_path / "ab", [tmp_path / "a", tmp_path / "b"])


def test_up_to_one_in_a_hundred_may_be_broken(caplog):
    datadir.leave_out_broken("set", {"u7": "cut off"}, 100)
    assert "u7 is left out: cut off" in caplog.text and "1 of 100" in caplog.text
    with pytest.raises(UserError, match=r"1 of 99 .*u7 \(cut off\)"):
        datadir.leave_out_broken("set", {"u7": "cut off"}, 99)

"""espnet_mla.common.tables: Kaldi's tables are read as ESPnet reads them, and only what is read the same is written."""

import pytest
from espnet2.fileio.read_text import read_2columns_text
from hypothesis import given
from hypothesis import strategies as st

from espnet_mla.common.errors import UserError
from espnet_mla.common.tables import read_rows, read_table, write_table

BLANKS = st.text(st.sampled_from(" \t\u00a0\u3000\x1f"), min_size=1, max_size=3)
WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Z"]), min_size=1, max_size=4)


@given(rows=st.lists(st.tuples(WORDS, BLANKS, st.one_of(st.just(""), WORDS)), unique_by=lambda row: row[0]))
def test_a_table_is_read_as_espnets_own_reader_does(rows, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "table"
    path.write_text("".join(f"{key}{blanks}{value}\n" for key, blanks, value in rows), encoding="utf-8")
    assert read_table(path) == read_2columns_text(path) == {key: value for key, _, value in rows}


def test_empty_lines_and_a_byte_order_mark_are_no_part_of_a_table(tmp_path):
    (tmp_path / "table").write_bytes(b"\xef\xbb\xbfa 1\r\n\r\nb  2\r\n \n")
    assert read_table(tmp_path / "table") == {"a": "1", "b": "2"}


def test_a_key_twice_is_refused_where_keys_are_looked_up(tmp_path):
    (tmp_path / "table").write_text("a 1\na\t2\n")
    assert list(read_rows(tmp_path / "table")) == [("a", "1"), ("a", "2")]
    with pytest.raises(UserError, match="table: a occurs twice"):
        read_table(tmp_path / "table")


@pytest.mark.parametrize(
    "row", [("a b", "1"), ("a\u00a0b", "1"), ("", "1"), ("a", "1\n2"), ("a", "1\r2"), ("a", "\udcff")]
)
def test_what_would_be_read_otherwise_is_not_written(tmp_path, row):
    with pytest.raises(UserError, match="table cannot have the line"):
        write_table(tmp_path / "table", dict([row]))
    assert not (tmp_path / "table").exists()

"""YAML files are read by a YAML reader, and what is ambiguous is refused."""

import pytest

from espnet_mla.common.errors import UserError
from espnet_mla.common.yaml_files import read_mapping


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("beam_size: 3\n# a comment\nbeam_size: 60\n", "beam_size occurs twice, in lines 1 and 3"),
        ('encoder_conf:\n    num_blocks: 1\n    "num_blocks": 2\n', "num_blocks occurs twice, in lines 2 and 3"),
        ("a:\n-   {b: 1}\n-   b: 1\n    c: 2\n    b: 3\n", "b occurs twice, in lines 3 and 5"),
    ],
)
def test_a_key_that_occurs_twice_is_refused_with_both_lines(tmp_path, text, said):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=f"a.yaml: {said}"):
        read_mapping(tmp_path / "a.yaml")


def test_the_same_key_in_two_mappings_or_merged_and_overwritten_is_read_as_yaml_reads_it(tmp_path):
    (tmp_path / "a.yaml").write_text("\ufeffa: &a {lr: 1, eps: 2}\nb:\n    <<: *a\n    lr: 3\nc:\n    lr: 1\n")
    assert read_mapping(tmp_path / "a.yaml")["b"] == {"lr": 3, "eps": 2}


@pytest.mark.parametrize("text", ["a: [1\n", "just words\n", "", "a: 1\n---\nb: 2\n", "a:\t1\n  b: 2\n"])
def test_what_is_no_mapping_is_named(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=r"a\.yaml "):
        read_mapping(tmp_path / "a.yaml")

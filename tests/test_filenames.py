"""Any file name fits on a line, and can be had back."""

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_mla.common.filenames import escaped

BYTES = st.binary(max_size=20).map(lambda content: content.replace(b"\0", b"\t"))


@given(names=st.lists(BYTES, min_size=1, max_size=20))
def test_a_name_stays_on_its_line_and_bash_makes_it_again(names):
    shown = [escaped(os.fsdecode(name)) for name in names]
    assert all(name.encode().decode() == name and len(name.splitlines()) <= 1 and "\t" not in name for name in shown)
    made = subprocess.run(["bash", "-c", 'printf "%b\\0" "$@"', "bash", *shown], capture_output=True, check=True).stdout
    assert made == b"".join(name + b"\0" for name in names)


@pytest.mark.parametrize("name", ["plain.flac", "a b/c'd.wav", "naïve ö 日本.flac", "touch run |"])
def test_a_usual_name_stays_as_it_is(name):
    assert escaped(name) == name

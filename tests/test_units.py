"""Sampling rates are taken as users write them, and what can only be a mistake is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_mla.common.errors import UsageError
from espnet_mla.common.units import duration, hertz


@pytest.mark.parametrize(("rate", "expected"), [("16k", 16000), ("22.05K", 22050), ("8000", 8000), (44100, 44100)])
def test_a_sampling_rate_is_in_hertz_or_kilohertz(rate, expected):
    assert hertz(rate) == expected


@given(st.integers(1000, 1_000_000))
def test_a_whole_number_of_hertz_is_itself(rate):
    assert hertz(rate) == hertz(str(rate)) == hertz(float(rate)) == rate


@pytest.mark.parametrize(("rate", "meant"), [("16", "16k"), ("8", "8k"), ("44.1", "44.1k"), (1, "1k")])
def test_a_rate_that_can_only_be_meant_as_kilohertz_is_refused_with_what_was_meant(rate, meant):
    with pytest.raises(UsageError, match=rf"--fs {rate}: .*did you mean {meant}\?"):
        hertz(rate)


@pytest.mark.parametrize(
    "rate", ["0", "-16k", "nan", "inf", "1e4", "16 k", "", "16000.5", "16000k", "0k", "\u0661\u0666k"]
)
def test_what_is_no_sampling_rate_is_refused(rate):
    with pytest.raises(UsageError, match="is not a sampling rate in Hz, such as 16k"):
        hertz(rate, "fs:")


def test_a_duration_is_in_hours_minutes_and_seconds():
    assert duration(3725.4) == "1:02:05"

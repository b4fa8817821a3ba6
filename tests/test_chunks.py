"""The mask of chunks: what a frame attends to, and that there is always something."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from espnet_mla.attention import ALL, Chunks

SIZES = st.integers(1, 12)
LEFT = st.integers(0, 4) | st.just(ALL)


@given(size=SIZES, left=LEFT, lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_no_row_of_a_mask_is_ever_fully_masked_and_real_frames_see_what_the_definition_says(size, left, lengths):
    time = max(lengths)
    padding = (torch.arange(time) < torch.tensor(lengths)[:, None])[:, None]
    mask = Chunks(size, left).mask(torch.zeros(len(lengths), time, 1), padding)
    assert mask.any(-1).all()
    for row, length in zip(mask, lengths, strict=True):
        for i in range(length):
            first = 0 if left == ALL else (i // size - left) * size
            assert [j for j in range(time) if row[i, j]] == list(
                range(max(first, 0), min((i // size + 1) * size, length))
            )


@given(size=SIZES, left=LEFT, time=st.integers(1, 40))
def test_without_padding_all_rows_share_one_mask(size, left, time):
    x = torch.zeros(2, time, 1)
    full = torch.ones(2, 1, time, dtype=torch.bool)
    mask = Chunks(size, left).mask(x)
    assert mask.shape == (1, time, time)
    assert torch.equal(Chunks(size, left).mask(x, full), mask.expand(2, -1, -1))

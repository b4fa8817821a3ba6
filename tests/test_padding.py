"""The padding mask of ESPnet's encoders, without its table of all pairs of frames."""

import resource
import subprocess
import sys

import torch
from espnet2.asr.encoder import branchformer_encoder, conformer_encoder, e_branchformer_encoder, transformer_encoder
from espnet2.legacy.nets.pytorch_backend import nets_utils
from hypothesis import given
from hypothesis import strategies as st

import espnet_mla
from espnet_mla.models.padding import make_pad_mask


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_it_is_espnets_to_the_bit(lengths):
    lengths = torch.tensor(lengths)
    found, wanted = make_pad_mask(lengths), nets_utils.make_pad_mask(lengths)
    assert torch.equal(found, wanted) and found.dtype == wanted.dtype


def test_what_no_encoder_asks_for_is_left_to_espnet():
    lengths, xs = torch.tensor([5, 3]), torch.zeros(2, 4, 6)
    for more in ({"xs": xs}, {"xs": xs.transpose(1, 2), "length_dim": 1}, {"maxlen": 7}):
        assert torch.equal(make_pad_mask(lengths, **more), nets_utils.make_pad_mask(lengths, **more))
    assert torch.equal(make_pad_mask([5, 3]), nets_utils.make_pad_mask([5, 3]))


def test_every_encoder_takes_it_once_the_choices_are_registered():
    espnet_mla.register()
    for module in (branchformer_encoder, conformer_encoder, e_branchformer_encoder, transformer_encoder):
        assert module.make_pad_mask is make_pad_mask


def test_an_hour_of_frames_takes_no_table_of_their_pairs():
    code = "import torch; from espnet_mla.models.padding import make_pad_mask; make_pad_mask(torch.tensor([360_000]))"

    def limited() -> None:  # 360,000 squared bytes are 130 GB
        resource.setrlimit(resource.RLIMIT_AS, (16 * 10**9, resource.RLIM_INFINITY))

    subprocess.run([sys.executable, "-c", code], check=True, preexec_fn=limited)

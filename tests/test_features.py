"""Features of audio in pieces: those of ESPnet's frontend for the whole."""

import numpy as np
import pytest
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.asr.frontend.windowing import SlidingWindow
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_mla.models.features import StreamingFeatures


@pytest.fixture(scope="module")
def mvn(tmp_path_factory):
    path = tmp_path_factory.mktemp("mvn") / "stats.npz"
    rng = np.random.default_rng(0)
    np.savez(path, count=np.array(100), sum=rng.normal(-300, 30, 80), sum_square=np.full(80, 1500.0))
    return GlobalMVN(path)


FRONTENDS = st.fixed_dictionaries(
    {
        "n_fft": st.sampled_from([400, 512]),
        "win_length": st.sampled_from([None, 400]),
        "hop_length": st.sampled_from([100, 128, 160, 700]),
        "center": st.booleans(),
    }
)


@settings(max_examples=40, deadline=None)
@given(conf=FRONTENDS, samples=st.integers(1, 6000), normalised=st.booleans(), data=st.data())
def test_however_the_samples_are_cut_the_features_are_those_of_the_whole(mvn, conf, samples, normalised, data):
    frontend = DefaultFrontend(**conf).eval()
    speech = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))
    normalize = mvn if normalised else None
    if samples > conf["n_fft"] // 2 and samples >= (0 if conf["center"] else conf["n_fft"]):
        expected, lengths = frontend(speech.unsqueeze(0), torch.tensor([samples]))
        if normalised:
            expected, _ = mvn(expected, lengths)
        expected = expected[0]
    else:
        expected = torch.zeros(0, 80)  # ESPnet's frontend can't make any
    stream, found, at = StreamingFeatures(frontend, normalize), [], 0
    while at < samples:
        size = data.draw(st.sampled_from([1, 7, 160, 161, 600, 3000]), "piece")
        stream.accept(speech[at : at + size])
        at += size
        limit = data.draw(st.sampled_from([None, 0, 1, 5]), "limit")
        available = stream.available()
        found.append(stream.extract(limit))
        assert len(found[-1]) == (available if limit is None else min(limit, available))
    while stream.available(last=True):
        found.append(stream.extract(3, last=True))
    assert stream.frames == len(torch.cat(found))
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-5, atol=1e-5)


def test_no_more_samples_wait_than_those_of_a_window():
    stream = StreamingFeatures(DefaultFrontend(hop_length=160).eval(), None)
    sizes = []
    for _ in range(50):
        stream.accept(torch.randn(1600))
        stream.extract()
        sizes.append(stream.nbytes)
    assert max(sizes) <= 2 * 4 * (512 + 2 * 160) and sizes[10:20] == sizes[30:40]


def test_the_memory_of_extracted_samples_is_freed_though_others_still_wait():
    stream = StreamingFeatures(DefaultFrontend(hop_length=160).eval(), None)
    stream.accept(torch.randn(160_000))
    sizes = []
    while stream.available():
        stream.extract(10)
        sizes.append(stream.nbytes)
        waiting = 4 * (stream.samples - 160 * stream.frames + 512)
        assert sizes[-1] <= 2 * waiting
    assert len(sizes) == 100 and len(set(sizes)) < 20  # copied each time that half of it is used up, not each time


@pytest.mark.parametrize(
    ("frontend", "normalize", "message"),
    [
        (SlidingWindow(), None, "frontend: SlidingWindow can't be streamed; it must be default"),
        (None, None, "frontend: null"),
        (DefaultFrontend(apply_stft=False), None, "frontend: DefaultFrontend can't"),
        (DefaultFrontend(), UtteranceMVN(), "normalize: UtteranceMVN needs the whole utterance; it must be global_mvn"),
        (DefaultFrontend(frontend_conf={"use_wpe": True}), None, "use_wpe and use_beamformer need the whole"),
    ],
)
def test_what_needs_the_whole_utterance_is_refused(frontend, normalize, message):
    with pytest.raises(ValueError, match=message):
        StreamingFeatures(frontend, normalize)

"""Features of speech in pieces: those of ESPnet's frontend for the whole."""

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
        found.append(stream.accept(speech[at : at + size]))
        at += size
    found.append(stream.accept(torch.zeros(0), last=True))
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-5, atol=1e-5)


def test_no_more_samples_are_kept_than_those_of_a_window():
    stream = StreamingFeatures(DefaultFrontend(hop_length=160).eval(), None)
    kept = []
    for _ in range(50):
        stream.accept(torch.randn(1600))
        kept.append(stream.nbytes)
    assert max(kept) <= 4 * (512 + 2 * 160) and kept[10:20] == kept[30:40]


@pytest.mark.parametrize(
    ("frontend", "normalize", "message"),
    [
        (SlidingWindow(), None, "frontend: SlidingWindow can't be heard piece by piece; default can"),
        (None, None, "frontend: null"),
        (DefaultFrontend(apply_stft=False), None, "frontend: DefaultFrontend can't"),
        (DefaultFrontend(), UtteranceMVN(), "normalize: UtteranceMVN needs the whole utterance; it must be global_mvn"),
        (DefaultFrontend(frontend_conf={"use_wpe": True}), None, "use_wpe and use_beamformer need the whole"),
    ],
)
def test_what_needs_the_whole_utterance_is_refused(frontend, normalize, message):
    with pytest.raises(ValueError, match=message):
        StreamingFeatures(frontend, normalize)

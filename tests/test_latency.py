"""The algorithmic latency: the samples that a chunk's last frame needs, found by trying."""

import pytest
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.utterance_mvn import UtteranceMVN

from espnet_mla.attention import Chunks
from espnet_mla.models.encoders import ConformerEncoder
from espnet_mla.models.features import StreamingFeatures
from espnet_mla.models.latency import latency


class Model:
    def __init__(self, hop, input_layer):
        self.normalize = None
        self.frontend = DefaultFrontend(hop_length=hop).eval()
        self.encoder = ConformerEncoder(
            80, output_size=8, attention_heads=2, num_blocks=1, linear_units=8, selfattention_layer_type="mha",
            input_layer=input_layer, streaming={"chunk_size": 4, "left_chunks": 1},
        ).eval()  # fmt: skip


@pytest.mark.parametrize("input_layer", ["conv2d", "conv2d2", "conv2d6", "conv2d8"])
@pytest.mark.parametrize(("hop", "look_ahead"), [(128, 0), (160, 0), (160, 3)])
def test_a_chunk_comes_out_with_the_last_sample_that_the_latency_counts_and_not_before(hop, look_ahead, input_layer):
    model = Model(hop, input_layer)
    takes = latency(model, 16000, model.encoder.set_chunks(look_ahead=look_ahead))
    rate = model.encoder.subsampling[0]
    assert takes.chunk == 1000 * 4 * rate * hop / 16000
    samples = round(takes.milliseconds * 16)
    features, state = StreamingFeatures(model.frontend, None), model.encoder.stream()
    with torch.no_grad():
        for piece, frames in ((torch.randn(samples - 1), 0), (torch.randn(1), 4)):
            features.accept(piece)
            assert model.encoder.forward_chunk(features.extract().unsqueeze(0), state)[1].tolist() == [frames]


def test_features_that_need_the_whole_utterance_have_no_latency():
    model = Model(160, "conv2d")
    model.normalize = UtteranceMVN()
    with pytest.raises(ValueError, match="normalize: UtteranceMVN needs the whole utterance"):
        latency(model, 16000, Chunks(4, 1))

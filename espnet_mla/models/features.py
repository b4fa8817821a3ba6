"""Features of speech that comes in pieces, equal to those that ESPnet's frontend makes of the whole."""

import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.global_mvn import GlobalMVN
from torch import Tensor, nn


class StreamingFeatures:
    """The features of one stream.

    The frontend itself is run, over what is new and as much before it as its windows reach back. The frames that the
    borders of such a piece have spoilt are left out, so that the borders of the whole alone count.

    Args:
        frontend: ESPnet's default one.
        normalize: GlobalMVN, or None.

    Raises:
        ValueError: frontend or normalisation need the whole utterance.
    """

    def __init__(self, frontend: nn.Module | None, normalize: nn.Module | None):
        check(frontend, normalize)
        self.frontend, self.normalize = frontend, normalize
        stft = frontend.stft
        self.hop = stft.hop_length
        # Samples that a frame needs before and after the one that it stands at.
        self.before = stft.n_fft // 2 if stft.center else 0
        self.after = stft.n_fft - self.before
        self.samples = 0  # that have come
        self.frames = 0  # that were made
        self._from = 0  # the frame at which the waiting samples begin
        self._waiting: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the samples that are kept: those of a window, and those that wait for the rest of theirs."""
        return 0 if self._waiting is None else self._waiting.nbytes

    def accept(self, samples: Tensor, last: bool = False) -> Tensor:
        """Take in samples (time,), and return the features (frames, features) that are whole now."""
        self._waiting = samples if self._waiting is None else torch.cat((self._waiting, samples))
        self.samples += len(samples)
        whole = self.whole(self.samples, last)
        if whole <= self.frames:
            return samples.new_zeros(0, self.frontend.output_size())
        piece = self._waiting.unsqueeze(0)
        features, lengths = self.frontend(piece, torch.tensor([piece.shape[1]], device=piece.device))
        features = features[:, self.frames - self._from : whole - self._from]
        if self.normalize is not None:
            features, _ = self.normalize(features, torch.tensor([features.shape[1]], device=piece.device))
        self.frames = whole
        # Of a piece that begins in mid-stream the first frames are spoilt: those whose window would reach before it.
        # Nor does a piece begin beyond what has come, where windows lie apart from each other.
        begin = max(self._from, min(whole - -(-self.before // self.hop), self.samples // self.hop))
        self._waiting = self._waiting[(begin - self._from) * self.hop :].clone()
        self._from = begin
        return features[0]

    def whole(self, samples: int, last: bool = False) -> int:
        """How many frames have all that they see, once so many samples have come."""
        if samples <= self.before:  # less than what is mirrored at the borders
            return 0
        ahead = self.after - (self.before if last else 0)
        return max(0, (samples - ahead) // self.hop + 1)


def check(frontend: nn.Module | None, normalize: nn.Module | None) -> None:
    """See that features can be made piece by piece.

    Raises:
        ValueError: they can't.
    """
    if type(frontend) is not DefaultFrontend or frontend.stft is None:
        name = type(frontend).__name__ if frontend is not None else "null"
        raise ValueError(f"frontend: {name} can't be heard piece by piece; default can")
    inner = frontend.frontend
    if inner is not None and (getattr(inner, "use_wpe", False) or getattr(inner, "use_beamformer", False)):
        raise ValueError("frontend_conf: use_wpe and use_beamformer need the whole utterance: they must be false")
    if normalize is not None and type(normalize) is not GlobalMVN:
        raise ValueError(
            f"normalize: {type(normalize).__name__} needs the whole utterance; it must be global_mvn, or null"
        )

"""Features of audio that arrives in pieces, equal to those that ESPnet's frontend makes of the whole utterance."""

from typing import Any

import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.global_mvn import GlobalMVN
from torch import Tensor

from espnet_mla.models.frontend import Frontend


class StreamingFeatures:
    """The features of one stream, and the only place where its audio waits.

    The frontend itself is run over the new samples and the left context of their windows. Frames whose window crosses
    the border of such a piece are left out, so that only the borders of the whole utterance are padded.

    ::

        features = StreamingFeatures(model.frontend, model.normalize)
        features.accept(samples)  # any number of them; nothing is computed yet
        frames = features.extract()  # (time, features)

    Args:
        frontend: ESPnet's default one.
        normalize: GlobalMVN, or None.

    Raises:
        ValueError: frontend or normalisation need the whole utterance.
    """

    def __init__(self, frontend: Any, normalize: Any):
        check(frontend, normalize)
        self.frontend, self.normalize = frontend, normalize
        stft = frontend.stft
        self.hop = stft.hop_length
        # Samples of a frame's window before and after the sample that the frame is centred at.
        self.before = stft.n_fft // 2 if stft.center else 0
        self.after = stft.n_fft - self.before
        self.samples = 0  # accepted
        self.frames = 0  # extracted
        self._first = 0  # frame at which the waiting samples begin
        self._waiting = next(frontend.buffers()).new_zeros(0)
        self._new: list[Tensor] = []  # samples after those

    @property
    def nbytes(self) -> int:
        """Bytes of the waiting samples: those not extracted yet, and the left context of the next window."""
        return self._waiting.untyped_storage().nbytes() + sum(samples.nbytes for samples in self._new)

    def accept(self, samples: Tensor) -> None:
        """Buffer samples (time,)."""
        if len(samples):
            self.samples += len(samples)
            self._new.append(samples.to(self._waiting))

    def available(self, last: bool = False) -> int:
        """How many features can be extracted: those whose windows are complete.

        Args:
            last: whether no more samples come, so that the end of the audio is padded.
        """
        if self.samples <= self.before:  # fewer than the reflection padding needs
            return 0
        ahead = self.after - (self.before if last else 0)
        return max(0, (self.samples - ahead) // self.hop + 1 - self.frames)

    def extract(self, limit: int | None = None, last: bool = False) -> Tensor:
        """The next available features (frames, features), at most `limit` of them."""
        count = self.available(last)
        count = count if limit is None else min(count, limit)
        if not count:
            return self._waiting.new_zeros(0, self.frontend.output_size())
        if self._new:
            self._waiting, self._new = torch.cat((self._waiting, *self._new)), []
        begin, end = self.frames - self._first, self.frames - self._first + count
        piece = self._waiting[: max((end - 1) * self.hop + self.after, self.before + 1)].unsqueeze(0)
        features, _ = self.frontend(piece, torch.tensor([piece.shape[1]], device=piece.device))
        features = features[:, begin:end]
        if self.normalize is not None:
            features, _ = self.normalize(features, torch.tensor([count], device=piece.device))
        self.frames += count
        self._discard()
        return features[0]

    def _discard(self) -> None:
        """Drop the samples that no later window reaches; none that are yet to come, where windows lie apart."""
        first = max(self._first, min(self.frames - -(-self.before // self.hop), self.samples // self.hop))
        self._waiting = self._waiting[(first - self._first) * self.hop :]
        self._first = first
        if self._waiting.untyped_storage().nbytes() > 2 * self._waiting.nbytes:  # each sample is copied once or twice
            self._waiting = self._waiting.clone()


def check(frontend: Any, normalize: Any) -> None:
    """Check that features can be extracted while the audio arrives.

    Raises:
        ValueError: they can't.
    """
    if type(frontend) not in (DefaultFrontend, Frontend) or frontend.stft is None:
        name = type(frontend).__name__ if frontend is not None else "null"
        raise ValueError(f"frontend: {name} can't be streamed; it must be default, with apply_stft")
    inner = frontend.frontend
    if inner is not None and (getattr(inner, "use_wpe", False) or getattr(inner, "use_beamformer", False)):
        raise ValueError("frontend_conf: use_wpe and use_beamformer need the whole utterance: they must be false")
    if normalize is not None and type(normalize) is not GlobalMVN:
        raise ValueError(
            f"normalize: {type(normalize).__name__} needs the whole utterance; it must be global_mvn, or null"
        )

"""One stream: samples in, text out."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from espnet_mla.streaming.pool import StreamPool
from espnet_mla.streaming.result import Result
from espnet_mla.streaming.stream import PooledStream

if TYPE_CHECKING:
    from espnet2.bin.asr_inference import Speech2Text


class StreamingSpeech2Text:
    """Text of speech while it is spoken.

    ::

        recogniser = StreamingSpeech2Text("exp/asr_conformer_mla_streaming_raw_en_bpe5000")
        for samples in microphone:
            if result := recogniser.accept(samples):
                print(result.text)
        print(recogniser.finish().text)

    Args:
        model, options: as `StreamPool` takes them.
        fs: Hz of the audio, which is resampled where the model has another; default the model's.

    Raises:
        ValueError, UserError: as `StreamPool`.
    """

    def __init__(self, model: "Speech2Text | str | Path", *, fs: int | None = None, **options: object):
        self.pool = StreamPool(model, **options)
        self._fs = fs
        self.stream: PooledStream = self.pool.open(fs)

    def accept(self, samples: "np.ndarray | Tensor") -> Result | None:
        """Take in samples, and compute all chunks that are whole now.

        Args:
            samples: (time,), any number of them: floating-point from -1 to 1, or 16-bit integers.

        Returns:
            What has been heard since the stream began, where there is something new; else None.

        Raises:
            ValueError: as `PooledStream.accept`.
        """
        self.stream.accept(samples)
        return self.stream.result if self._advance() else None

    def finish(self) -> Result:
        """The final result. What is accepted after it is another stream."""
        ended = self.stream
        ended.finish()
        try:
            self._advance()
        finally:
            ended.close()
            self.stream = self.pool.open(self._fs)
        return ended.result

    def _advance(self) -> bool:
        new = False
        while self.pool.advance():
            new = True
        return new

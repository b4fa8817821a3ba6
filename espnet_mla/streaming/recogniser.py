"""One stream after the other: samples in, text out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from espnet_mla.streaming.bias import Bias, Phrases
from espnet_mla.streaming.pool import StreamPool
from espnet_mla.streaming.result import Result
from espnet_mla.streaming.stream import Stream

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

    With `endpointing`, sentence by sentence, in bounded memory::

        for samples in microphone:
            recogniser.accept(samples)
            for sentence in recogniser.take_sentences():
                print(sentence.start, sentence.end, sentence.text)
        recogniser.finish()  # and what take_sentences() has then

    Args:
        model, options: as of `StreamPool`.
        fs: Hz of the audio, which is resampled where the model's differs; default the model's.
        bias: phrases that the searches favour, or the weight of each, see `StreamPool.open`.

    Raises:
        ValueError, UserError: as `StreamPool`.
    """

    def __init__(
        self,
        model: "Speech2Text | str | Path",
        *,
        fs: int | None = None,
        bias: Phrases | Bias | None = None,
        **options: Any,
    ):
        self.pool = StreamPool(model, **options)
        self._fs, self._bias = fs, self.pool.model.bias_of(bias)
        self.stream: Stream = self.pool.open(fs, self._bias)
        self._sentences: list[Result] = []

    def accept(self, samples: "np.ndarray | Tensor") -> Result | None:
        """Take samples, and encode all chunks that are complete now.

        Args:
            samples: (time,), any number of them: floating-point from -1 to 1, or 16-bit integers.

        Returns:
            The text since the stream, or the sentence, began, where a chunk was encoded; else None.

        Raises:
            ValueError: as `Stream.accept`.
            UserError: as `StreamPool.advance`. The samples of the stream are lost; those that follow are a new one's.
        """
        before = self.stream.result
        self.stream.accept(samples)
        try:
            self._advance()
        finally:
            if self.stream.closed:  # with an error
                self._sentences += self.stream.take_sentences()
                self.stream = self.pool.open(self._fs, self._bias)
        return self.stream.result if self.stream.result is not before else None

    def finish(self) -> Result:
        """The final result, with endpointing that of what has come after the last sentence, which may be nothing.

        Samples that are accepted after it belong to a new stream.
        """
        stream = self.stream
        stream.finish()
        try:
            self._advance()
        finally:
            stream.close()
            self._sentences += stream.take_sentences()
            self.stream = self.pool.open(self._fs, self._bias)
        return stream.result

    def take_sentences(self) -> list[Result]:
        """As `Stream.take_sentences`; also those of a stream that has been finished."""
        taken, self._sentences = [*self._sentences, *self.stream.take_sentences()], []
        return taken

    def _advance(self) -> None:
        while self.pool.advance():
            pass

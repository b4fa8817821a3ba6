"""Many streams at once: those that have a chunk ready are encoded in one batch."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from espnet_mla.common.errors import UserError
from espnet_mla.common.units import hertz
from espnet_mla.models.chunked import StreamState
from espnet_mla.streaming.bias import Bias, Phrases
from espnet_mla.streaming.model import StreamingModel
from espnet_mla.streaming.stream import Stream

if TYPE_CHECKING:
    from espnet2.bin.asr_inference import Speech2Text


class StreamPool:
    """Streams of one model, each of which may begin and end at any time.

    ::

        pool = StreamPool("exp/asr_conformer_mla_streaming_raw_en_bpe5000")
        stream = pool.open()
        stream.accept(samples)  # as they arrive; nothing is computed yet
        for updated in pool.advance():
            print(updated.result.text)

    The final text of streams of up to `final.MAX_SEARCH_SECONDS` is what `final_search` finds; of longer ones, up to
    `stream.MAX_SECONDS`, that of CTC's hypotheses which CTC and decoder score best together; then CTC's. As long as
    it may be needed, the encoder's output is kept. With `endpointing` a stream is one sentence after the other, see
    `Stream.take_sentences`.

    Args:
        model: ESPnet's Speech2Text, or what `espnet_mla.from_pretrained` takes.
        options: as of `StreamingModel.load`: chunk_size, left_chunks, look_ahead, beam_size, ctc_weight, final_search,
            cache_dtype, endpointing, reset, device, ...

    Raises:
        ValueError, UserError: as `StreamingModel.load`.
    """

    def __init__(self, model: "Speech2Text | str | Path", **options: Any):
        self.model = StreamingModel.load(model, **options)
        self._streams: list[Stream] = []

    @property
    def streams(self) -> list[Stream]:
        """The open streams."""
        return [stream for stream in self._streams if not stream.closed]

    @property
    def nbytes(self) -> int:
        """Bytes of all open streams."""
        return sum(stream.nbytes for stream in self.streams)

    def open(self, fs: int | str | None = None, bias: Phrases | Bias | None = None) -> Stream:
        """Begin a stream.

        Args:
            fs: Hz of its audio, or as "16k"; it is resampled where the model's rate differs. None for the model's.
            bias: phrases that its searches favour, or the weight of each; many of them are shared by streams as what
                `pool.model.bias_of` makes of them.

        Raises:
            UsageError, which is a ValueError: fs is not a sampling rate, or the model can't spell a phrase.
        """
        fs = self.model.fs if fs is None else hertz(fs, "fs:")
        stream = Stream(self.model, fs, self.model.bias_of(bias))
        self._streams = [*self.streams, stream]
        return stream

    @torch.inference_mode()
    def advance(self) -> list[Stream]:
        """Encode one chunk of each stream that has one, in one batch.

        Returns:
            The streams that have a new result; none where no stream has a chunk. Those that have ended are no longer in
            the pool. Should the encoder fail, every stream is where it was.

        Raises:
            UserError: what a stream has come to is not a number; it is closed.
        """
        self._streams = self.streams
        ready = [stream for stream in self._streams if stream.ready()]
        if not ready:
            return []
        for stream in ready:
            stream.buffer_features()
        state = StreamState.join([stream.state for stream in ready])
        encoder_out, lengths = self.model.encoder.encode_chunk(state)
        log_probs = self.model.ctc_log_probs(encoder_out)
        broken = log_probs.isnan().flatten(1).any(1).tolist()
        for stream in itertools.compress(ready, broken):
            stream.close()
        if any(broken):
            raise UserError("CTC's posteriors of a stream are not numbers (NaN); it is closed, the others can go on")
        for row, (stream, length) in enumerate(zip(ready, lengths, strict=True)):
            alone = state if len(ready) == 1 else state.select([row])
            stream.update(alone, encoder_out[row, :length], log_probs[row, :length])
        self._streams = self.streams
        return ready

"""Many streams at once: those that have a chunk ready go through the encoder in one batch."""

from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.espnet_model import ESPnetASRModel
from torch import Tensor, nn

import espnet_mla
from espnet_mla.models import features
from espnet_mla.models.chunked import StreamState
from espnet_mla.models.streaming import StreamingEncoder
from espnet_mla.streaming.search import Prefix, PrefixBeam
from espnet_mla.streaming.stream import PooledStream
from espnet_mla.trained.model import sampling_rate

if TYPE_CHECKING:
    from espnet2.bin.asr_inference import Speech2Text

AT_ONCE = 4  # hypotheses that the decoder scores


class StreamPool:
    """Streams of one model, each of which may begin and end at any time.

    ::

        pool = StreamPool("exp/asr_conformer_mla_streaming_raw_en_bpe5000")
        stream = pool.open()
        stream.accept(samples)      # as they come; nothing is computed yet
        for changed in pool.advance():
            print(changed.result.text)

    Args:
        model: ESPnet's Speech2Text, or what `espnet_mla.from_pretrained` takes.
        chunk_size, left_chunks: as `StreamingEncoder.set_chunks` takes them.
        beam_size: prefixes that the CTC search follows.
        rescoring: whether a stream's final text is chosen among these by the attention decoder too, where there is one
            that can, and the stream is no longer than `stream.RESCORED` seconds. Its encoder's output is kept until then.
        ctc_weight: share of CTC in the score of the final text, from 0 to 1.
        options: of `espnet_mla.from_pretrained`, where `model` is a name: device, dtype, ...

    Raises:
        ValueError: the model can't be heard piece by piece, or an option is wrong; the message says which key is missing.
        UserError: as `espnet_mla.from_pretrained`.
    """

    def __init__(
        self,
        model: "Speech2Text | str | Path",
        *,
        chunk_size: int | None = None,
        left_chunks: int | None = None,
        beam_size: int = 20,
        rescoring: bool = True,
        ctc_weight: float = 0.3,
        **options: object,
    ):
        if beam_size < 1:
            raise ValueError(f"beam_size: {beam_size}: at least 1 is needed")
        if not 0 <= ctc_weight <= 1:
            raise ValueError(f"ctc_weight: {ctc_weight}: it must be from 0 to 1")
        if isinstance(model, str | Path):
            model = espnet_mla.from_pretrained(model, **options)
        elif options:
            raise ValueError(f"{', '.join(options)}: of a model that is loaded already these can't be chosen")
        self.speech2text = model
        self.model = model.asr_model.eval()
        self.encoder = _streaming_encoder(self.model)
        features.check(self.model.frontend, self.model.normalize)
        self.chunks = self.encoder.stream(chunk_size, left_chunks).chunks
        self.fs = sampling_rate(vars(model.asr_train_args))
        self.beam_size, self.ctc_weight = beam_size, ctc_weight
        self.rescoring = rescoring and ctc_weight < 1 and _scores(self.model)
        self.frame_seconds = self.encoder.subsampling[0] * self.model.frontend.hop_length / self.fs
        self.streams: list[PooledStream] = []

    @property
    def nbytes(self) -> int:
        """Bytes that all open streams keep."""
        return sum(stream.nbytes for stream in self.streams)

    def open(self, fs: int | None = None) -> PooledStream:
        """Begin a stream.

        Args:
            fs: Hz of its audio, which is resampled where the model has another; None for the model's.

        Raises:
            ValueError: fs is no rate.
        """
        if fs is not None and (not isinstance(fs, int) or fs < 1):
            raise ValueError(f"fs: {fs!r} must be a whole number of Hz")
        stream = PooledStream(self, self.encoder.stream(self.chunks.size, self.chunks.left), fs or self.fs)
        self.streams.append(stream)
        return stream

    @torch.inference_mode()
    def advance(self) -> list[PooledStream]:
        """Encode one chunk of each stream that has one, in one batch.

        Returns:
            The streams that have a new result; none where no stream has a chunk. Those that have ended are no longer in the
            pool. Should the encoder fail, every stream is where it was.
        """
        ready = [stream for stream in self.streams if stream.ready()]
        if not ready:
            return []
        pieces, last = zip(*(stream._next() for stream in ready), strict=True)
        state = StreamState.join([stream.state for stream in ready])
        frames, counts = self.encoder.forward_chunk(
            nn.utils.rnn.pad_sequence(pieces, batch_first=True), state, list(map(len, pieces)), last
        )
        log_probs = self.model.ctc.log_softmax(frames).float().cpu() if frames.shape[1] else frames
        for row, (stream, piece, count) in enumerate(zip(ready, pieces, counts.tolist(), strict=True)):
            moved = state if len(ready) == 1 else state.select([row])
            stream._moved(moved, len(piece), frames[row, :count], log_probs[row, :count])
        self.streams = [stream for stream in self.streams if not stream.state.ended[0]]
        for stream in ready:
            stream._tell()
        return ready

    def rescored(self, beam: PrefixBeam, encoded: Tensor) -> tuple[Prefix, float]:
        """The prefix that CTC and decoder together score best, and its score."""
        scored = []
        for some in batched(beam.best, AT_ONCE):
            tokens = [torch.tensor(beam.hypothesis(prefix).tokens, dtype=torch.long) for prefix, _ in some]
            labels = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=self.model.ignore_id)
            lengths = torch.tensor(list(map(len, tokens)))
            frames = torch.full((len(some),), len(encoded))
            nll = self.model.nll(
                encoded.expand(len(some), -1, -1), *(x.to(encoded.device) for x in (frames, labels, lengths))
            )
            for (prefix, ctc), decoder in zip(some, nll.tolist(), strict=True):
                scored.append((prefix, self.ctc_weight * ctc - (1 - self.ctc_weight) * decoder))
        return max(scored, key=lambda one: one[1])


def _scores(model: nn.Module) -> bool:
    """Whether the model has a decoder that scores a text from the encoder's output, and not a transducer's, say."""
    attention = type(model).nll is ESPnetASRModel.nll and not getattr(model, "use_transducer_decoder", False)
    return attention and model.decoder is not None


def _streaming_encoder(model: nn.Module) -> StreamingEncoder:
    """The model's encoder, if all of the model can be run piece by piece.

    Raises:
        ValueError: it can't.
    """
    if not isinstance(model.ctc, CTC):
        raise ValueError("model_conf: ctc_weight: 0: this model has no CTC, which speech is heard by as it comes")
    for part in ("preencoder", "postencoder"):
        if getattr(model, part, None) is not None:
            raise ValueError(
                f"{part}: {type(getattr(model, part)).__name__} can't be run piece by piece; it must be null"
            )
    if not isinstance(model.encoder, StreamingEncoder):
        raise ValueError(
            f"encoder: {type(model.encoder).__name__} can't be run piece by piece; with espnet_mla conformer, branchformer, "
            "e_branchformer and transformer can, with encoder_conf: streaming"
        )
    return model.encoder

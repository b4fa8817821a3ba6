"""A trained model that can be streamed: encoder, CTC log probabilities, tokens to text, final searches."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.legacy.nets.beam_search import BeamSearch
from torch import Tensor, nn

from espnet_mla.attention import Chunks
from espnet_mla.attention.cache_types import check_cache_type
from espnet_mla.common.errors import UsageError, UserError
from espnet_mla.models import features
from espnet_mla.models.chunked import StreamState
from espnet_mla.models.features import StreamingFeatures
from espnet_mla.models.streaming import StreamingEncoder
from espnet_mla.streaming.bias import Bias, BiasScorer, Phrases, spelled
from espnet_mla.streaming.endpoint import Endpointing
from espnet_mla.streaming.search import MAX_BEAM_SIZE
from espnet_mla.trained.decoding import check, check_for
from espnet_mla.trained.model import sampling_rate
from espnet_mla.trained.pretrained import load
from espnet_mla.trained.tasks import ASR

if TYPE_CHECKING:
    from espnet2.bin.asr_inference import Speech2Text

FINAL_SEARCHES = ("search", "rescore", "ctc")
"""Ways to the final text: ESPnet's beam search over the whole encoder output; of CTC's hypotheses that which CTC and
decoder together score best; the best one of CTC."""

BIAS = "bias"
"""Name of its scorer in ESPnet's search."""
RESCORING_BATCH = 4
"""Hypotheses that the attention decoder scores at once."""


@dataclass(frozen=True, eq=False)
class StreamingModel:
    """A trained model, and the options of its streams; made by `load`.

    Args:
        speech2text: ESPnet's recogniser, of a model that `load` has checked.
        chunks: of all streams.
        beam_size: hypotheses of the CTC prefix beam search.
        ctc_weight: weight of CTC in the score of a rescored hypothesis, from 0 to 1; the search has its own.
        final_search: one of `FINAL_SEARCHES`.
        cache_dtype: in what the caches of streams are kept; None for as the encoder says.
        endpointing: when a sentence ends; None where a stream is one sentence.
        reset: whether with endpointing the encoder forgets a sentence at the end of the chunk in which it ends.
    """

    speech2text: "Speech2Text"
    chunks: Chunks
    beam_size: int
    ctc_weight: float
    final_search: str
    cache_dtype: str | None = None
    endpointing: Endpointing | None = None
    reset: bool = True

    @classmethod
    def load(
        cls,
        model: "Speech2Text | str | Path",
        *,
        chunk_size: int | None = None,
        left_chunks: int | None = None,
        look_ahead: int | None = None,
        beam_size: int = 20,
        ctc_weight: float = 0.3,
        final_search: str = "search",
        cache_dtype: str | None = None,
        endpointing: "Endpointing | dict[str, Any] | bool | None" = None,
        reset: bool = True,
        **options: Any,
    ) -> "StreamingModel":
        """Load a model, and check that all of it can be streamed.

        Args:
            model: ESPnet's Speech2Text, or what `espnet_mla.from_pretrained` takes.
            chunk_size, left_chunks, look_ahead: as of `StreamingEncoder.set_chunks`.
            beam_size, ctc_weight: as of the class; where `model` is a name, of ESPnet's search too.
            final_search: one of `FINAL_SEARCHES`; of models whose decoder can't score a text it is "ctc".
            cache_dtype: one of `espnet_mla.attention.CACHE_TYPES`, for the caches of attentions and convolutions, and
                the encoder's output that is kept for the final search; None for as `from_pretrained` was told.
            endpointing: as of the class; or its rules by name, or true for the defaults.
            reset: as of the class.
            options: of `espnet_mla.from_pretrained`, where `model` is a name: device, dtype, ...

        Raises:
            ValueError: the model can't be streamed, or an option is not valid; the message names the key.
            UserError: as `espnet_mla.from_pretrained`.
        """
        check({"beam_size": beam_size, "ctc_weight": ctc_weight})
        if cache_dtype is not None:
            check_cache_type(cache_dtype)
        if beam_size > MAX_BEAM_SIZE:
            raise UsageError(f"beam_size: {beam_size}: at most {MAX_BEAM_SIZE} hypotheses can be followed")
        endpointing = Endpointing.of(endpointing)
        if final_search not in FINAL_SEARCHES:
            raise UsageError(f"final_search: {final_search!r}: valid are {', '.join(FINAL_SEARCHES)}")
        searched: dict[str, Any] = {}
        if isinstance(model, str | Path):
            searched = {"beam_size": beam_size, "ctc_weight": ctc_weight}
            name, (task, model) = model, load(model, **searched, **options)
            if task is not ASR:
                raise UserError(f"{name} is a model for {task.title}: only models for {ASR.title} can be streamed")
        elif options:
            raise ValueError(f"{', '.join(options)}: not an option of a model that is loaded already")
        asr_model = model.asr_model.eval()
        _check(asr_model)
        state = asr_model.encoder.stream(chunk_size, left_chunks, look_ahead=look_ahead, cache_dtype=cache_dtype)
        if ctc_weight == 1 or not _can_score(asr_model):
            final_search = "ctc"
        if final_search == "search" and searched:
            check_for(ASR, ASR.config_of(model), searched)
        return cls(model, state.chunks, beam_size, ctc_weight, final_search, state.cache_dtype, endpointing, reset)

    @property
    def asr_model(self) -> ESPnetASRModel:
        """ESPnet's model."""
        return self.speech2text.asr_model

    @property
    def encoder(self) -> StreamingEncoder:
        """Its encoder."""
        return self.asr_model.encoder

    @cached_property
    def fs(self) -> int:
        """Hz of its audio."""
        return sampling_rate(vars(self.speech2text.asr_train_args))

    @cached_property
    def frame_seconds(self) -> float:
        """Seconds of audio per frame of the encoder's output."""
        return self.encoder.subsampling[0] * self.asr_model.frontend.hop_length / self.fs

    def new_features(self) -> StreamingFeatures:
        """The feature extraction of a new stream."""
        return StreamingFeatures(self.asr_model.frontend, self.asr_model.normalize)

    def new_state(self) -> StreamState:
        """The encoder's state of a new stream."""
        chunks = self.chunks
        return self.encoder.stream(chunks.size, chunks.left, look_ahead=chunks.look_ahead, cache_dtype=self.cache_dtype)

    def ctc_log_probs(self, encoder_out: Tensor) -> Tensor:
        """CTC's log probabilities (batch, time, tokens) of (batch, time, d_model), on the CPU."""
        return self.asr_model.ctc.log_softmax(encoder_out).float().cpu()

    def bias_of(self, phrases: Phrases | Bias | None) -> Bias | None:
        """The bias of phrases, which the CTC search and the final search favour. Streams may share it.

        Raises:
            UsageError: as `bias.spelled`; or it is of a model with other tokens, or the search takes no more scorers.
        """
        if phrases is None:
            return None
        converter, search = self.speech2text.converter, self.speech2text.beam_search
        if self.final_search == "search" and not isinstance(search, BeamSearch):
            raise UsageError(
                f"bias: ESPnet's {type(search).__name__} favours no phrases: final_search: rescore or ctc does"
            )
        if not isinstance(phrases, Bias):
            return spelled(phrases, converter, self.speech2text.tokenizer)
        if phrases.token_list != list(converter.token_list):
            raise UsageError("bias: it was made for a model with other tokens: give the phrases")
        return phrases

    def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """The tokens of these ids."""
        return self.speech2text.converter.ids2tokens(token_ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of these ids."""
        tokens, tokenizer = self.tokens(token_ids), self.speech2text.tokenizer
        text = tokenizer.tokens2text(tokens) if tokenizer is not None else " ".join(tokens)
        return " ".join(text.split())  # CTC may emit a word boundary twice

    def search(self, encoder_out: Tensor, bias: Bias | None = None) -> tuple[list[int], float] | None:
        """The ids of the best hypothesis of ESPnet's beam search, and its score; None where it has none.

        Args:
            encoder_out: of the whole stream, (time, d_model).
            bias: phrases whose bonus counts in the search, but not in the score.
        """
        # It warns of each hypothesis that is as long as it may be, and leaves a second <eos> there.
        with torch.inference_mode(), _quiet("espnet2.legacy.nets.batch_beam_search"), self._scoring(bias):
            found = self.speech2text._decode_single_sample(encoder_out)
        if not found:
            return None
        ends, best = (self.asr_model.sos, self.asr_model.eos), found[0][3]
        score = float(best.score) - float(best.scores.get(BIAS, 0.0))
        return [token for token in found[0][2] if token not in ends], score

    @contextlib.contextmanager
    def _scoring(self, bias: Bias | None) -> Iterator[None]:
        """ESPnet's search with one more scorer."""
        if bias is None:
            yield
            return
        search = self.speech2text.beam_search
        try:
            search.scorers[BIAS] = search.full_scorers[BIAS] = BiasScorer(bias, self.asr_model.eos)
            search.weights[BIAS] = 1.0
            yield
        finally:
            for registered in (search.scorers, search.full_scorers, search.weights):
                registered.pop(BIAS, None)

    @torch.inference_mode()
    def rescore(self, hypotheses: Sequence[tuple[Sequence[int], float]], encoder_out: Tensor) -> list[float]:
        """Scores of hypotheses by CTC and the attention decoder together.

        Args:
            hypotheses: the token ids of each, and its log probability by CTC.
            encoder_out: of the whole stream, (time, d_model).
        """
        scores = []
        for batch in batched(hypotheses, RESCORING_BATCH):
            texts = [torch.tensor(token_ids, dtype=torch.long) for token_ids, _ in batch]
            padded = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=self.asr_model.ignore_id)
            lengths = torch.tensor(list(map(len, texts)))
            frames = torch.full((len(batch),), len(encoder_out))
            nll = self.asr_model.nll(
                encoder_out.expand(len(batch), -1, -1), *(x.to(encoder_out.device) for x in (frames, padded, lengths))
            )
            for (_, ctc), decoder in zip(batch, nll.tolist(), strict=True):
                scores.append(self.ctc_weight * ctc - (1 - self.ctc_weight) * decoder)
        return scores


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Without the warnings of a logger."""
    level = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(level)


def _can_score(asr_model: ESPnetASRModel) -> bool:
    """Whether the model has an attention decoder, rather than none or a transducer's."""
    attention = type(asr_model).nll is ESPnetASRModel.nll and not getattr(asr_model, "use_transducer_decoder", False)
    return attention and asr_model.decoder is not None


def _check(asr_model: ESPnetASRModel) -> None:
    """Check that all of the model but the encoder's own configuration can be streamed.

    Raises:
        ValueError: a part can't.
    """
    if not isinstance(asr_model.ctc, CTC):
        raise ValueError("model_conf: ctc_weight: 0: this model has no CTC branch, which streaming needs")
    for part in ("preencoder", "postencoder"):
        if getattr(asr_model, part, None) is not None:
            raise ValueError(f"{part}: {type(getattr(asr_model, part)).__name__} can't be streamed; it must be null")
    if not isinstance(asr_model.encoder, StreamingEncoder):
        raise ValueError(
            f"encoder: {type(asr_model.encoder).__name__} can't be streamed; with espnet_mla conformer, branchformer, "
            "e_branchformer and transformer can, with encoder_conf: streaming"
        )
    features.check(asr_model.frontend, asr_model.normalize)

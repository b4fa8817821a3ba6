"""When the words of a hypothesis were spoken, and how sure they are, by aligning it to the posteriors of CTC."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from espnet_mla.common.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class Word:
    """A word that was recognised.

    Args:
        text: of it.
        start, end: in seconds.
        confidence: from 0 to 1, the mean over its tokens of the highest posterior that CTC gives each where it stands.
    """

    text: str
    start: float
    end: float
    confidence: float


LATE = 1
"""Frames by which CTC's first spike of a word comes after the word's onset: see benchmarks/words.py."""


class Span(NamedTuple):
    """Where a token stands.

    Args:
        start, end: its frames, `end` not among them.
        posterior: CTC's highest one there.
    """

    start: int
    end: int
    posterior: float

    def later(self, frames: int) -> "Span":
        """The same with so many frames before."""
        return Span(self.start + frames, self.end + frames, self.posterior)


def align(log_probs: "Tensor", tokens: Sequence[int], blank: int) -> list[Span] | None:
    """The most probable places of tokens (forced alignment, by torchaudio).

    Args:
        log_probs: of CTC, (time, vocabulary), on the CPU.
        tokens: their ids.
        blank: CTC's.

    Returns:
        Of each token; None where CTC can't spell them in so few frames.
    """
    import torch
    from torchaudio.functional import forced_align, merge_tokens

    repeated = sum(one == other for one, other in pairwise(tokens))  # between which there is a blank
    if len(tokens) + repeated > len(log_probs):
        return None
    if not tokens:
        return []
    labels, scores = forced_align(
        log_probs.float().unsqueeze(0), torch.tensor([tokens], dtype=torch.int32), blank=blank
    )
    spans = [(span.start, span.end) for span in merge_tokens(labels[0], scores[0], blank)]
    if len(spans) != len(tokens):  # of posteriors that are no numbers
        return None
    posteriors = [
        float(log_probs[start:end, token].max().exp()) for (start, end), token in zip(spans, tokens, strict=True)
    ]
    return [Span(*span, posterior) for span, posterior in zip(spans, posteriors, strict=True)]


def words(
    tokens: Sequence[int], spans: Sequence[Span], text_of: Callable[[Sequence[int]], str], frame_seconds: float
) -> list[Word]:
    """The words that tokens make.

    Args:
        tokens: their ids.
        spans: of each token.
        text_of: makes a text of ids.
        frame_seconds: of a frame.

    Returns:
        Those between spaces; none of a tokeniser of which more tokens may make fewer words.
    """
    parts: list[list[Span]] = []
    text = ""
    for number, span in enumerate(spans):
        longer = text_of(tokens[: number + 1])
        if longer.split() == text.split():  # a word's boundary, say
            continue
        if len(longer.split()) > len(parts):
            parts += [[span] for _ in range(len(longer.split()) - len(parts))]
        else:
            parts[-1].append(span)
        text = longer
    if len(parts) != len(text.split()):
        return []
    found, before = [], spans[0].start - LATE if spans else 0
    for word, of in zip(text.split(), parts, strict=True):
        start = max(before, of[0].start - LATE, 0)
        before = of[-1].end
        confidence = sum(span.posterior for span in of) / len(of)
        found.append(Word(word, start * frame_seconds, before * frame_seconds, confidence))
    return found


def words_of(recogniser: Any, samples: "np.ndarray", hypothesis: tuple) -> list[Word]:
    """See `espnet_mla.words`."""
    import torch

    model: Any = getattr(recogniser, "asr_model", None)
    check(model)
    speech = torch.as_tensor(samples).to(recogniser.device, getattr(torch, recogniser.dtype)).unsqueeze(0)
    with torch.inference_mode():
        encoded, _ = model.encode(speech, torch.tensor([speech.shape[1]], device=speech.device))
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded  # with those of the layers between
        log_probs = model.ctc.log_softmax(encoded)[0].float().cpu()
    ids = hypothesis[2]
    spans = align(log_probs, ids, model.blank_id)
    if spans is None:
        return []
    fs = _rate(recogniser)

    def text_of(ids: Sequence[int]) -> str:
        tokens = recogniser.converter.ids2tokens(ids)
        return recogniser.tokenizer.tokens2text(tokens) if recogniser.tokenizer is not None else " ".join(tokens)

    rate, hop = getattr(model.encoder, "subsampling", (0, 0))[0], getattr(model.frontend, "hop_length", 0)
    # Of another encoder or frontend nothing is known but how many frames it makes.
    frame_seconds = rate * hop / fs if rate * hop else len(samples) / fs / len(log_probs)
    return words(ids, spans, text_of, frame_seconds)


def check(model: Any) -> None:
    """See that its CTC can align.

    Raises:
        UsageError: it has none, or one of another kind.
    """
    from espnet2.asr.ctc import CTC

    if not isinstance(getattr(model, "ctc", None), CTC):
        raise UsageError("the times of words need a CTC branch, which this model has none of")


def _rate(recogniser: Any) -> int:
    from espnet_mla.trained.model import sampling_rate

    return sampling_rate(vars(recogniser.asr_train_args))

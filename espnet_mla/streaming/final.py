"""The final text of a sentence, found over all of it, and the times of its words."""

import torch
from torch import Tensor

from espnet_mla.streaming.model import StreamingModel
from espnet_mla.streaming.result import Result
from espnet_mla.streaming.search import Hypothesis, PrefixBeam
from espnet_mla.trained.words import align, words

MAX_SEARCH_SECONDS = 30.0
"""Longer sentences are rescored instead: what the attention decoder was not trained on, it finds no end in."""


def final_result(model: StreamingModel, beam: PrefixBeam, encoder_out: Tensor, first_frame: int) -> Result | None:
    """The result of `model.final_search`, "search" or "rescore".

    Args:
        beam: of CTC, after the whole sentence.
        encoder_out: of the whole sentence, (time, d_model).
        first_frame: of the stream, at which it begins.

    Returns:
        Its tokens begin where the alignment to CTC's posteriors has them. None where CTC can't spell what was found in
        so few frames, or nothing was found.
    """
    short = len(encoder_out) * model.frame_seconds <= MAX_SEARCH_SECONDS
    searched = model.final_search == "search" and short
    found = model.search(encoder_out, beam.bias) if searched else _rescored(model, beam, encoder_out)
    if found is None:
        return None
    tokens, score = found
    with torch.inference_mode():
        spans = align(model.ctc_log_probs(encoder_out.unsqueeze(0))[0], tokens, model.asr_model.blank_id)
    if spans is None:
        return None
    hypothesis = Hypothesis.of(tokens, [span.start for span in spans])
    found_words = words(tokens, [span.later(first_frame) for span in spans], model.text, model.frame_seconds)
    return Result(model, hypothesis, score, True, found_words, first_frame, len(encoder_out))


def _rescored(model: StreamingModel, beam: PrefixBeam, encoder_out: Tensor) -> tuple[list[int], float]:
    hypotheses = [(beam.hypothesis(prefix).tokens, score) for prefix, score in beam.best]
    scores = model.rescore(hypotheses, encoder_out)
    ranks = [score + beam.bonus(prefix) for score, (prefix, _) in zip(scores, beam.best, strict=True)]
    best = max(range(len(ranks)), key=ranks.__getitem__)
    return hypotheses[best][0], scores[best]

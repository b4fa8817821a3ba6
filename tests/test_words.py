"""Words have the times and the posteriors of their tokens in the most probable alignment."""

import itertools

import numpy as np
import pytest
import torch
from experiment import DECODING, samples
from hypothesis import given, settings
from hypothesis import strategies as st

import espnet_mla
from espnet_mla.common.errors import UsageError
from espnet_mla.trained.words import Span, align, words

PIECES = ["<blank>", "▁A", "B", "▁", "C", "▁DE"]


def text_of(tokens):
    return " ".join("".join(PIECES[token] for token in tokens).replace("▁", " ").split())


def alignments(tokens, frames, blank=0):
    """Every path of CTC that spells the tokens, each frame's label: (spans of the tokens, labels)."""
    for labels in itertools.product(range(4), repeat=frames):
        runs = [(label, len(list(run))) for label, run in itertools.groupby(labels)]
        if [label for label, _ in runs if label != blank] == list(tokens):
            yield labels


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_alignment_is_the_most_probable_path(data):
    frames = data.draw(st.integers(1, 6))
    tokens = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    log_probs = torch.randn(frames, 4, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    log_probs = (2 * log_probs).log_softmax(-1)
    paths = list(alignments(tokens, frames))
    found = align(log_probs, tokens, 0)
    if not paths:
        assert found is None
        return
    best = max(paths, key=lambda labels: float(log_probs[range(frames), labels].sum()))
    at, expected = 0, []
    for label, run in itertools.groupby(best):
        length = len(list(run))
        if label:
            expected.append((at, at + length, pytest.approx(float(log_probs[at : at + length, label].max().exp()))))
        at += length
    assert [tuple(span) for span in found] == expected


def test_no_tokens_have_no_places():
    assert align(torch.randn(3, 4).log_softmax(-1), [], 0) == []


def test_a_word_begins_with_its_first_letters_and_ends_with_its_last():
    tokens = [3, 1, 2, 3, 4, 2, 5, 3]
    spans = [Span(10 * number, 10 * number + 4, 0.1 * (number + 1)) for number in range(len(tokens))]
    found = words(tokens, spans, text_of, 0.04)
    assert text_of(tokens) == "AB CB DE"
    assert [(word.text, word.start, word.end) for word in found] == [
        ("AB", pytest.approx(0.36), pytest.approx(0.96)),
        ("CB", pytest.approx(1.56), pytest.approx(2.16)),
        ("DE", pytest.approx(2.36), pytest.approx(2.56)),
    ]
    assert [word.confidence for word in found] == pytest.approx([0.25, 0.55, 0.7])


def test_words_do_not_overlap_and_none_begins_before_the_recording():
    found = words([1, 5, 1], [Span(0, 2, 0.5), Span(2, 5, 0.5), Span(5, 6, 0.5)], text_of, 1.0)
    assert [(word.start, word.end) for word in found] == [(0, 2), (2, 5), (5, 6)]


def test_the_words_of_a_decoded_recording_are_those_of_its_text(archive, recipe):
    model, speech = espnet_mla.from_pretrained(archive, device="cpu", **DECODING), samples(recipe)
    for hypothesis in model(speech):
        found = espnet_mla.words(model, speech, hypothesis)
        assert [word.text for word in found] == hypothesis[0].split() != []
        assert all(0 <= word.start < word.end <= len(speech) / 16000 + 0.04 for word in found)
        assert all(0 < word.confidence <= 1 for word in found)
    assert espnet_mla.words(model, np.zeros(16000, np.float32), ("", [], [], None)) == []


def test_a_model_without_ctc_tells_no_times(archive, recipe):
    model = espnet_mla.from_pretrained(archive, device="cpu", **DECODING)
    model.asr_model.ctc = None
    with pytest.raises(UsageError, match="the times of words need a CTC branch, which this model has none of"):
        espnet_mla.words(model, samples(recipe), ("A", ["A"], [3], None))

"""CTC prefix beam search, against all paths counted out, against ESPnet's, and in its cost."""

import gc
import itertools
import random

import pytest
import torch
from espnet2.legacy.nets.beam_search_timesync import BeamSearchTimeSync
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_mla.streaming import search
from espnet_mla.streaming.search import Prefix, PrefixBeam


def random_log_probs(frames, tokens, seed=0, sharp=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(frames, tokens, generator=generator, dtype=torch.float64)).log_softmax(-1)


def collapsed(path):
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


def read(beam):
    """Each text of the beam, and its score."""
    return [(tuple(beam.hypothesis(prefix).tokens), score) for prefix, score in beam.best]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(2, 4), st.integers(0, 10**6))
def test_with_a_beam_that_holds_all_prefixes_each_has_the_sum_of_its_paths(frames, tokens, seed):
    log_probs = random_log_probs(frames, tokens, seed)
    expected = {}
    for path in itertools.product(range(tokens), repeat=frames):
        score = sum(log_probs[frame, token] for frame, token in enumerate(path))
        expected.setdefault(collapsed(path), []).append(score)
    beam = PrefixBeam(10**6, pre_beam_size=tokens)
    for piece in log_probs.split(random.Random(seed).choice([1, 2, 6])):
        beam.extend(piece)
    found = dict(read(beam))
    assert found.keys() == expected.keys()
    for prefix, scores in expected.items():
        assert found[prefix] == pytest.approx(float(torch.stack(scores).logsumexp(0)))
    assert [score for _, score in beam.best] == sorted(found.values(), reverse=True)


@pytest.mark.parametrize(("beam_size", "frames"), [(8, 30), (2000, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_text_is_that_of_espnets_own_time_synchronous_search(seed, beam_size, frames):
    log_probs = random_log_probs(frames, 6, seed, sharp=6.0).float()

    class Probabilities:
        def log_softmax(self, x):
            return log_probs.unsqueeze(0)

    names = [str(token) for token in range(7)]
    theirs = BeamSearchTimeSync(
        sos=6, beam_size=beam_size, scorers={"ctc": Probabilities(), "decoder": None}, token_list=names,
        weights={"ctc": 1.0, "lm": 0.0, "decoder": 0.0, "length_bonus": 0.0},
        pre_beam_ratio=6.5 / beam_size,  # all 6 tokens
    )(torch.zeros(frames, 4))  # fmt: skip
    ours = PrefixBeam(beam_size, pre_beam_size=6)
    ours.extend(log_probs)
    assert read(ours)[0][0] == tuple(theirs[0].yseq.tolist()[1:-1])
    if frames == 5:  # nothing is dropped; ESPnet's remembers some paths to what was
        assert ours.best[0][1] == pytest.approx(float(theirs[0].score), rel=1e-5)


@pytest.mark.parametrize("pieces", [[30], [1] * 30, [7, 0, 23]])
def test_how_the_frames_are_cut_changes_nothing(pieces):
    log_probs = random_log_probs(30, 9, sharp=2.0)
    whole, cut = PrefixBeam(5), PrefixBeam(5)
    whole.extend(log_probs)
    for piece in log_probs.split(pieces):
        cut.extend(piece)
    assert read(whole) == read(cut)


def test_a_token_begins_where_it_is_most_probable():
    """Blank everywhere but token 1 at frame 2, held to frame 4, and tokens 2 and 2 again at 6 and 8."""
    path = [0, 0, 1, 1, 1, 0, 2, 0, 2, 0]
    log_probs = torch.full((len(path), 3), 0.05)
    log_probs[range(len(path)), path] = 0.9
    beam = PrefixBeam(4)
    beam.extend(log_probs.log())
    best = beam.hypothesis(beam.best[0][0])
    assert (best.tokens, best.frames) == ([1, 2, 2], [2, 6, 8])


def test_a_token_that_cannot_be_is_never_found():
    log_probs = torch.tensor([[0.5, 0.5, 0.0]]).log().repeat(4, 1)
    beam = PrefixBeam(10)
    beam.extend(log_probs)
    assert all(2 not in text for text, _ in read(beam))


def test_the_same_text_is_one_prefix_even_where_it_was_dropped_in_between():
    root = Prefix()
    child = root.extend(3)
    grandchild = child.extend(4)
    del child
    assert root.extend(3) is grandchild.parent and root.child(3).child(4) is grandchild
    del grandchild
    assert root.child(3) is None or root.child(3).child(4) is None


def likely(frames, tokens, seed=0, doubt=0.4):
    """Log probabilities of a CTC that is rather sure: a token or a blank has nine tenths, less a share of another."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.full((frames, tokens), 0.1 / tokens)
    best = torch.randint(tokens, (frames, 2), generator=generator)
    best[torch.rand(frames, generator=generator) < 0.6] = 0
    share = torch.rand(frames, generator=generator) * doubt
    probabilities[range(frames), best[:, 0]] += 0.9 - share
    probabilities[range(frames), best[:, 1]] += share
    return probabilities.log()


def test_a_settled_token_takes_16_bytes_and_nothing_else_grows(monkeypatch):
    """However long two texts are as good as each other."""
    monkeypatch.setattr(search, "MAX_UNSETTLED_FRAMES", 100)

    def alive():
        gc.collect()
        return sum(isinstance(one, Prefix) for one in gc.get_objects())

    before = alive()
    beam = PrefixBeam(8)
    most = 0
    for piece in likely(6000, 20).split(1000):
        beam.extend(piece)
        most = max(most, alive() - before)
    best = beam.hypothesis(beam.best[0][0])
    assert len(best) == len(best.tokens) > 1500 and best.frames == sorted(best.frames)
    assert most < 500 and len(best) - best.settled < 100
    assert beam.nbytes == 2 * 8 * best.settled


@pytest.mark.parametrize("seed", range(3))
def test_settling_tokens_changes_no_text_and_no_time(seed, monkeypatch):
    log_probs = likely(700, 6, seed, doubt=0.2)
    whole = PrefixBeam(8)
    whole.extend(log_probs)
    monkeypatch.setattr(search, "MAX_UNSETTLED_FRAMES", 100)
    beam = PrefixBeam(8)
    beam.extend(log_probs)
    (best, score), (expected, its_score) = beam.best[0], whole.best[0]
    ours, theirs = beam.hypothesis(best), whole.hypothesis(expected)
    assert theirs.settled < 100 < ours.settled
    assert (ours.tokens, ours.frames) == (theirs.tokens, theirs.frames)
    assert score >= its_score  # the places that are free are taken by paths to what is left


def test_so_many_tokens_extend_a_prefix_whether_blank_is_among_the_likely_or_not():
    beam = PrefixBeam(100, pre_beam_size=2)
    beam.extend(torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log())
    assert {text for text, _ in read(beam)} == {(), (1,), (2,)}

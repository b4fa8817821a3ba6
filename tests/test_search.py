"""CTC prefix beam search, against all paths counted out, against ESPnet's, and in its cost."""

import itertools
import random

import pytest
import torch
from espnet2.legacy.nets.beam_search_timesync import BeamSearchTimeSync
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_mla.streaming.search import Prefix, PrefixBeam


def random_log_probs(frames, tokens, seed=0, sharp=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(frames, tokens, generator=generator, dtype=torch.float64)).log_softmax(-1)


def collapsed(path):
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


def read(prefix):
    return tuple(one.token for one in prefix)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(2, 4), st.integers(0, 10**6))
def test_with_a_beam_that_holds_all_prefixes_each_has_the_sum_of_its_paths(frames, tokens, seed):
    log_probs = random_log_probs(frames, tokens, seed)
    expected = {}
    for path in itertools.product(range(tokens), repeat=frames):
        score = sum(log_probs[frame, token] for frame, token in enumerate(path))
        expected.setdefault(collapsed(path), []).append(score)
    beam = PrefixBeam(10**6, tokens=tokens)
    for piece in log_probs.split(random.Random(seed).choice([1, 2, 6])):
        beam.extend(piece)
    found = {read(prefix): score for prefix, score in beam.best}
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
    ours = PrefixBeam(beam_size, tokens=6)
    ours.extend(log_probs)
    assert read(ours.best[0][0]) == tuple(theirs[0].yseq.tolist()[1:-1])
    if frames == 5:  # nothing is dropped; ESPnet's remembers some paths to what was
        assert ours.best[0][1] == pytest.approx(float(theirs[0].score), rel=1e-5)


@pytest.mark.parametrize("pieces", [[30], [1] * 30, [7, 0, 23]])
def test_how_the_frames_are_cut_changes_nothing(pieces):
    log_probs = random_log_probs(30, 9, sharp=2.0)
    whole, cut = PrefixBeam(5), PrefixBeam(5)
    whole.extend(log_probs)
    for piece in log_probs.split(pieces):
        cut.extend(piece)
    assert [(read(prefix), score) for prefix, score in whole.best] == [
        (read(prefix), score) for prefix, score in cut.best
    ]


def test_a_token_begins_where_it_is_most_probable():
    """Blank everywhere but token 1 at frame 2, held to frame 4, and tokens 2 and 2 again at 6 and 8."""
    path = [0, 0, 1, 1, 1, 0, 2, 0, 2, 0]
    log_probs = torch.full((len(path), 3), 0.05)
    log_probs[range(len(path)), path] = 0.9
    beam = PrefixBeam(4)
    beam.extend(log_probs.log())
    assert read(beam.best[0][0]) == (1, 2, 2)
    assert [prefix.frame for prefix in beam.best[0][0]] == [2, 6, 8]


def test_a_token_that_cannot_be_is_never_found():
    log_probs = torch.tensor([[0.5, 0.5, 0.0]]).log().repeat(4, 1)
    beam = PrefixBeam(10)
    beam.extend(log_probs)
    assert all(2 not in read(prefix) for prefix, _ in beam.best)


def test_the_same_text_is_one_prefix_even_where_it_was_dropped_in_between():
    root = Prefix()
    child = root.grow(3)
    grandchild = child.grow(4)
    del child
    assert root.grow(3) is grandchild.parent and root.child(3).child(4) is grandchild
    del grandchild
    assert root.child(3) is None or root.child(3).child(4) is None


def test_what_nobody_goes_on_from_is_forgotten():
    """An hour of speech holds the text so far, and not all that was ever considered."""
    import gc

    def alive():
        gc.collect()
        return sum(isinstance(one, Prefix) for one in gc.get_objects())

    before = alive()
    beam = PrefixBeam(8)
    beam.extend(random_log_probs(3000, 20, sharp=4.0).float())
    held = {id(one) for prefix, _ in beam.best for one in prefix}
    assert len(held) > 1000
    assert alive() - before == len(held) + 1  # and the empty one

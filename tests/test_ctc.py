"""CTC prefix scores without a loop over frames are ESPnet's."""

import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
from espnet2.legacy.nets.scorers.ctc import CTCPrefixScorer as _CTCPrefixScorer
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_mla.models.ctc import PrefixScorer

# The class of ESPnet, whatever a test before has registered under its name.
ESPNET = _CTCPrefixScorer if _CTCPrefixScorer is not PrefixScorer else PrefixScorer.__mro__[1]
LABELS, EOS = 11, 10


class Posteriors(torch.nn.Module):
    """In place of a CTC layer: the encoder output is the log posteriors already."""

    def log_softmax(self, x):
        return x.clone()


def scorers(margin):
    return [kind(Posteriors(), EOS, window_margin=margin) for kind in (ESPNET, PrefixScorer)]


def log_posteriors(utterances, frames, seed, silence=0.0):
    torch.manual_seed(seed)
    x = 3 * torch.randn(utterances, frames, LABELS)
    x[..., 0] += silence  # blank
    return x.log_softmax(-1)


def walk(scorer, x, lengths, beam, steps, candidates, seed):
    """Scores of a search of `steps` steps whose choices are random but for the seed, and of its batched selections."""
    torch.manual_seed(seed)
    utterances = len(x)
    state = [scorer.batch_init_state(x, xs_lengths=lengths)] * (utterances * beam)
    y = torch.full((utterances * beam, 1), EOS)
    found = []
    for _ in range(steps):
        noise = torch.randn(len(y), LABELS)
        ids = None if candidates is None else noise.topk(candidates, dim=-1)[1]
        scores, state = scorer.batch_score_partial(y, ids, state, x)
        found.append(scores)
        allowed = torch.full_like(noise, -1e9) if ids is not None else torch.zeros_like(noise)
        if ids is not None:
            allowed.scatter_(1, ids, 0.0)
        allowed[:, [0, EOS]] = -1e9
        best = (noise + allowed).view(utterances, -1).topk(beam, dim=-1)[1]
        rows = (best // LABELS + torch.arange(utterances)[:, None] * beam).flatten()
        labels = (best % LABELS).flatten()
        y = torch.cat((y[rows], labels[:, None]), dim=1)
        if utterances == 1:  # as BatchBeamSearch does once a hypothesis has ended
            state = [scorer.select_state(state, i, v) for i, v in zip(rows.tolist(), labels.tolist(), strict=True)]
        else:
            state = scorer.batch_select_state(state, best)
    return torch.stack(found)


# The same cases each time: with a margin, a window is centred on the most probable frame, and where two frames are as
# good as each other, float32 (ESPnet) and float64 (ours) may take another one of them.
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    utterances=st.integers(1, 3), frames=st.integers(13, 50), beam=st.integers(1, 4), steps=st.integers(1, 6),
    margin=st.sampled_from([0, 3, 100]), candidates=st.sampled_from([None, 4, 8]), silence=st.sampled_from([0.0, 8.0]),
    seed=st.integers(0, 999), data=st.data(),
)  # fmt: skip
def test_scores_are_espnets(utterances, frames, beam, steps, margin, candidates, silence, seed, data):
    # Frames for every prefix, a blank between its labels included: what follows an impossible one is ESPnet's rounding.
    lengths = [frames, *(data.draw(st.integers(2 * steps + 1, frames)) for _ in range(utterances - 1))]
    x = log_posteriors(utterances, frames, seed, silence)
    espnet, ours = (walk(scorer, x, torch.tensor(lengths), beam, steps, candidates, seed) for scorer in scorers(margin))
    possible = espnet > -1e8
    torch.testing.assert_close(ours[possible], espnet[possible], rtol=1e-4, atol=1e-3)
    assert (ours[~possible] < -1e8).all()


def brute_force(x, prefix):
    """Log probability that the labels of frames x (frames, labels) begin with `prefix`: all paths, one by one."""
    frames = len(x)
    total = torch.zeros((), dtype=torch.double)
    for path in torch.cartesian_prod(*[torch.arange(LABELS_SMALL)] * frames).view(-1, frames).tolist():
        collapsed = [label for i, label in enumerate(path) if label and (i == 0 or path[i - 1] != label)]
        if collapsed[: len(prefix)] == prefix:
            total += x[range(frames), path].double().sum().exp()
    return total.log()


LABELS_SMALL = 4


@pytest.mark.parametrize("prefix", [[1], [1, 2], [2, 2], [1, 2, 1]])
def test_scores_are_those_of_all_paths(prefix):
    torch.manual_seed(0)
    x = torch.randn(1, 5, LABELS_SMALL).log_softmax(-1)
    scorer = PrefixScorer(Posteriors(), LABELS_SMALL - 1)
    state = [scorer.batch_init_state(x)]
    y, total = torch.tensor([[LABELS_SMALL - 1]]), 0.0
    for label in prefix:
        scores, state = scorer.batch_score_partial(y, None, state, x)
        total = total + scores[0, label]
        state = [scorer.select_state(state, 0, label)]
        y = torch.cat((y, torch.tensor([[label]])), dim=1)
    torch.testing.assert_close(total.double(), brute_force(x[0], prefix), rtol=1e-5, atol=1e-5)


def test_half_precision_gives_numbers_for_a_padded_batch():
    x = log_posteriors(2, 30, seed=1).half()
    scores = walk(PrefixScorer(Posteriors(), EOS), x, torch.tensor([30, 17]), 2, 3, None, seed=2)
    assert not scores.isnan().any() and (scores[..., 1:EOS] > -1e4).any()


def test_padding_of_a_batch_changes_no_score():
    x = log_posteriors(2, 30, seed=1)
    lengths = torch.tensor([30, 17])
    assert make_pad_mask(lengths)[1].sum() == 13
    together = walk(PrefixScorer(Posteriors(), EOS), x, lengths, 2, 1, None, seed=2)
    alone = walk(PrefixScorer(Posteriors(), EOS), x[1:, :17], torch.tensor([17]), 2, 1, None, seed=2)
    torch.testing.assert_close(together[0, 2:], alone[0], rtol=1e-5, atol=1e-5)


def test_speech_that_is_still_coming_in_gives_espnets_scores():
    x = log_posteriors(1, 40, seed=3)
    found = []
    for scorer in scorers(margin=0):
        state = [scorer.batch_init_state(x[:, :25])]
        y = torch.tensor([[EOS]])
        for step, label in enumerate([3, 3, 5, 2]):
            if step == 2:
                scorer.extend_prob(x[0])
                state = scorer.extend_state(state)
            scores, new = scorer.batch_score_partial(y, None, state, x)
            found.append(scores)
            state = [scorer.select_state(new, 0, label)]
            y = torch.cat((y, torch.tensor([[label]])), dim=1)
    espnet, ours = torch.stack(found[:4]), torch.stack(found[4:])
    possible = espnet > -1e8
    torch.testing.assert_close(ours[possible], espnet[possible], rtol=1e-4, atol=1e-3)

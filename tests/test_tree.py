"""A tree of tokens shows each hypothesis its own path, holds what they share once, and leaves earlier states alone."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_mla.attention import FrameCache, TokenTree
from espnet_mla.attention.tree import ROOM

LAYERS = 2


class Search:
    """A beam search that knows the numbers of its hypotheses' tokens; a token's key is its number."""

    def __init__(self, utterances: int, stride: int = 1):
        self.tree, self.paths = TokenTree(stride=stride), [[[]] for _ in range(utterances)]
        self.held, self.number = torch.zeros(utterances, 1, 0).bool(), 0

    def step(self, beam: int) -> None:
        """Go on from random hypotheses, `beam` of each utterance."""
        rows = torch.stack([torch.randint(0, len(paths), (beam,)) for paths in self.paths])
        new = torch.arange(self.number, self.number + rows.numel()).view(rows.shape)
        self.number += rows.numel()
        held = self.held.take_along_dim(rows[..., None], 1)
        self.tree, held = self.tree.prepared(held, beam, len(self.paths[0][0]))
        self.held, parents = self.tree.seen(held)
        for layer in range(LAYERS):
            tensors = [new[..., None].repeat(1, 1, 3) * (1 + layer)]
            if self.tree.stride == 1:  # only latents are merged
                tensors.insert(0, new[:, None, :, None] * (1 + layer))
            self.tree.append(layer, FrameCache(tuple(tensors)), parents)
        self.tree.advance(beam)
        self.paths = [
            [[*paths[row], token] for row, token in zip(*pair)]
            for paths, *pair in zip(self.paths, rows.tolist(), new.tolist())
        ]

    def check(self) -> None:
        """Each hypothesis sees the tokens of its path in each layer's tensors, merged where they are, and no others."""
        width, stride = self.held.shape[-1], self.tree.stride
        for layer, cache in enumerate(self.tree.trimmed()):
            for tensor in cache.tensors:
                entries = tensor[:, :width, 0] if tensor.dim() == 3 else tensor[:, 0, :width, 0]
                for utterance, paths in enumerate(self.paths):
                    for hypothesis, path in enumerate(paths):
                        seen = entries[utterance][self.held[utterance, hypothesis]] // (1 + layer)
                        merged = [sum(path[at : at + stride]) for at in range(0, len(path), stride)]
                        assert sorted(seen.tolist()) == sorted(merged)


@settings(max_examples=30, deadline=None)
@given(
    utterances=st.integers(1, 3),
    beams=st.lists(st.integers(1, 6), min_size=1, max_size=40),
    stride=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_each_hypothesis_sees_its_own_tokens_whatever_was_pruned(utterances, beams, stride, seed):
    torch.manual_seed(seed)
    search = Search(utterances, stride)
    for beam in beams:
        search.step(beam)
        search.check()


def test_an_earlier_state_sees_nothing_of_what_later_ones_append():
    torch.manual_seed(0)
    search = Search(1)
    for _ in range(5):
        search.step(4)
    before = search.tree, search.held, search.paths
    for _ in range(30):
        search.step(4)
        now = search.tree, search.held, search.paths
        search.tree, search.held, search.paths = before
        search.check()
        search.tree, search.held, search.paths = now
    search.tree, search.held, search.paths = before
    search.step(4)  # on another way, on a tree of its own
    search.check()
    assert search.tree is not before[0] and search.tree.caches[0].entries < 60


def test_it_is_made_anew_now_and_then_and_holds_little_more_than_is_seen():
    torch.manual_seed(0)
    search, made = Search(1), []
    for _ in range(200):
        search.step(10)
        if not made or made[-1] is not search.tree:
            made.append(search.tree)
        assert search.tree.caches[0].entries <= 2 * search.held.any(1).sum() + ROOM * 10
    assert len(made) < 200 / ROOM + 2
    assert search.tree.caches[0].entries < 200 * 10 / 4

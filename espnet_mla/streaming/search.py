"""CTC prefix beam search over frames that come one after the other, with the time of each token.

ESPnet's own time-synchronous search keeps a prefix as a tuple, which takes longer to extend the longer it is, and no
times. Here a prefix is its last token and the prefix before it, so that a frame costs the same after an hour.
"""

import math
from collections.abc import Iterator
from weakref import WeakValueDictionary

from torch import Tensor

NOTHING = -math.inf


class Prefix:
    """A token and what stands before it; the empty prefix has no token.

    Attributes:
        frame: at which the token begins: where that was most probable, given the frames so far.
    """

    __slots__ = ("__weakref__", "_best", "_children", "frame", "parent", "token")

    def __init__(self, parent: "Prefix | None" = None, token: int | None = None):
        self.parent, self.token = parent, token
        self.frame, self._best = -1, NOTHING
        self._children: WeakValueDictionary[int, Prefix] | None = None

    def child(self, token: int) -> "Prefix | None":
        """This prefix with `token` behind it, if anybody still goes on from there."""
        return None if self._children is None else self._children.get(token)

    def grow(self, token: int) -> "Prefix":
        """This prefix with `token` behind it. There is one of each, so that the same text is the same object."""
        if self._children is None:
            self._children = WeakValueDictionary()
        child = self._children.get(token)
        if child is None:
            child = self._children[token] = Prefix(self, token)
        return child

    def begun(self, frame: int, score: float) -> None:
        """Its token may have begun at `frame`, with this log probability."""
        if score > self._best:
            self.frame, self._best = frame, score

    def __iter__(self) -> Iterator["Prefix"]:
        """The prefixes of its tokens, the first one first."""
        path, at = [], self
        while at.parent is not None:
            path.append(at)
            at = at.parent
        return reversed(path)


class PrefixBeam:
    """The most probable prefixes (Graves and Jaitly 2014; Hannun et al. 2014, arXiv 1408.2873, algorithm 1).

    Args:
        beam_size: how many are followed.
        blank: CTC's.
        tokens: how many tokens, the most probable ones, may extend a prefix at a frame; default `beam_size`.
    """

    def __init__(self, beam_size: int, blank: int = 0, tokens: int | None = None):
        self.beam_size, self.blank, self.tokens = beam_size, blank, tokens or beam_size
        self.frames = 0
        # prefix -> log probabilities of all paths to it that end in a blank, and in its token; the most probable first
        self._hypotheses: dict[Prefix, tuple[float, float]] = {Prefix(): (0.0, NOTHING)}

    @property
    def best(self) -> list[tuple[Prefix, float]]:
        """The prefixes and their log probabilities, the most probable first."""
        return [(prefix, _add(*both)) for prefix, both in self._hypotheses.items()]

    def extend(self, log_probs: Tensor) -> None:
        """Take in the frames log_probs (time, tokens)."""
        tops = log_probs.topk(min(self.tokens, log_probs.shape[-1])).indices.tolist()
        for frame, top in zip(log_probs.tolist(), tops, strict=True):
            self._step(frame, [token for token in top if token != self.blank])
            self.frames += 1

    def _step(self, log_prob: list[float], top: list[int]) -> None:
        silence = log_prob[self.blank]
        # A prefix that nobody has gone on to yet is (prefix before it, token): most of them will not live.
        ending: dict[Prefix | tuple[Prefix, int], list[float]] = {}
        begun: dict[Prefix | tuple[Prefix, int], float] = {}

        def at(key: Prefix | tuple[Prefix, int]) -> list[float]:
            return ending.setdefault(key, [NOTHING, NOTHING])

        for prefix, (blank, label) in self._hypotheses.items():
            total = _add(blank, label)
            stays = at(prefix)
            stays[0] = total + silence
            if prefix.token is not None:
                stays[1] = _add(stays[1], label + log_prob[prefix.token])
            for token in top:
                score = (blank if token == prefix.token else total) + log_prob[token]
                if score > NOTHING:
                    key = prefix.child(token) or (prefix, token)
                    goes_on = at(key)
                    goes_on[1] = _add(goes_on[1], score)
                    begun[key] = score
        likely = sorted(ending.items(), key=lambda item: _add(*item[1]), reverse=True)[: self.beam_size]
        self._hypotheses = {}
        for key, (blank, label) in likely:
            prefix = key[0].grow(key[1]) if isinstance(key, tuple) else key
            if key in begun:
                prefix.begun(self.frames, begun[key])
            self._hypotheses[prefix] = blank, label


def _add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == NOTHING else a + math.log1p(math.exp(b - a))

"""CTC prefix beam search over frames that come one after the other, with the time of each token.

ESPnet's own time-synchronous search keeps a prefix as a tuple, which takes longer to extend the longer it is, and no
times. Here a prefix is its last token and the prefix before it, and what all prefixes of the beam have in common is laid
aside, so that a frame costs the same after an hour.
"""

import math
from array import array
from collections.abc import Iterator
from weakref import WeakValueDictionary

from torch import Tensor

NOTHING = -math.inf
TOKENS = 8
"""How many tokens may extend a prefix at a frame. CTC is rarely undecided among more."""
SETTLED_EVERY = 64
"""After how many frames it is looked for what all prefixes have in common."""
OPEN = 1500
"""For how many frames a doubt may stay open. Two texts that are as good as each other would stay side by side for ever."""


class Prefix:
    """A token and what stands before it; the empty prefix has no token.

    Attributes:
        frame: at which the token was most probably begun, as far as the frames up to then tell.
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
        """The prefixes of its tokens, the first one first, from where the beam has laid the others aside."""
        path, at = [], self
        while at.parent is not None:
            path.append(at)
            at = at.parent
        return reversed(path)


class Hypothesis:
    """The tokens of a prefix as they are now, and the frames that they begin at.

    Args:
        settled: the tokens that the beam has laid aside, and their frames; more may be appended to both later.
        prefix: what comes after them.
    """

    def __init__(self, settled: tuple[array, array], prefix: Prefix):
        self.settled = len(settled[0])
        self._before = settled
        self._own = [(one.token, one.frame) for one in prefix]

    def __len__(self) -> int:
        """How many tokens."""
        return self.settled + len(self._own)

    @property
    def tokens(self) -> list[int]:
        """The tokens."""
        return self._before[0][: self.settled].tolist() + [token for token, _ in self._own]

    @property
    def frames(self) -> list[int]:
        """Where they begin."""
        return self._before[1][: self.settled].tolist() + [frame for _, frame in self._own]


class PrefixBeam:
    """The most probable prefixes (Graves and Jaitly 2014; Hannun et al. 2014, arXiv 1408.2873, algorithm 1).

    Args:
        beam_size: how many are followed.
        blank: CTC's.
        tokens: how many tokens, the most probable ones, may extend a prefix at a frame.
    """

    def __init__(self, beam_size: int, blank: int = 0, tokens: int = TOKENS):
        self.beam_size, self.blank, self.tokens = beam_size, blank, tokens
        self.frames = 0
        # Tokens that all prefixes begin with, and their frames.
        self._settled = array("q"), array("q")
        # prefix -> log probabilities of all paths to it that end in a blank, and in its token; the most probable first
        self._hypotheses: dict[Prefix, tuple[float, float]] = {Prefix(): (0.0, NOTHING)}

    @property
    def nbytes(self) -> int:
        """Bytes of what is settled; the rest does not grow."""
        return sum(part.itemsize * len(part) for part in self._settled)

    @property
    def best(self) -> list[tuple[Prefix, float]]:
        """The prefixes and their log probabilities, the most probable first."""
        return [(prefix, _add(*both)) for prefix, both in self._hypotheses.items()]

    def hypothesis(self, prefix: Prefix) -> Hypothesis:
        """The tokens of a prefix of `best`."""
        return Hypothesis(self._settled, prefix)

    def extend(self, log_probs: Tensor) -> None:
        """Take in the frames log_probs (time, tokens)."""
        tops = log_probs.topk(min(self.tokens + 1, log_probs.shape[-1])).indices.tolist()
        for frame, top in zip(log_probs.tolist(), tops, strict=True):
            self._step(frame, [token for token in top if token != self.blank][: self.tokens])
            self.frames += 1
            if self.frames % SETTLED_EVERY == 0:
                self._settle()

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

    def _settle(self) -> None:
        """Lay aside what all prefixes begin with: it becomes their empty prefix, which still knows its last token.

        Prefixes that differ from the best one by tokens of more than `OPEN` frames ago are given up.
        """
        best, *_ = self._hypotheses
        old = [one for one in best if one.frame < self.frames - OPEN]
        if old:
            self._hypotheses = {one: both for one, both in self._hypotheses.items() if old[-1] in one}
        paths = [list(prefix) for prefix in self._hypotheses]
        common = 0
        for ones in zip(*paths, strict=False):
            if any(one is not ones[0] for one in ones):
                break
            common += 1
        if not common:
            return
        for one in paths[0][:common]:
            self._settled[0].append(one.token)
            self._settled[1].append(one.frame)
        paths[0][common - 1].parent = None


def _add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == NOTHING else a + math.log1p(math.exp(b - a))

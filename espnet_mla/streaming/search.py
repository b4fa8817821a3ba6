"""CTC prefix beam search over frames as they arrive, with the time of each token.

ESPnet's own time-synchronous search represents a hypothesis as a tuple, which takes longer to extend the longer it is,
and gives no times. Here a hypothesis is a linked list of prefixes, whose common beginning is settled and removed, so
that a frame costs the same after an hour.
"""

import math
from array import array
from collections.abc import Iterator, Sequence
from weakref import WeakValueDictionary

from torch import Tensor

from espnet_mla.streaming.bias import Bias

LOG_ZERO = -math.inf
PRE_BEAM_SIZE = 8
"""Most probable tokens that may extend a prefix at a frame. CTC's posteriors are rarely spread over more."""
MAX_BEAM_SIZE = 1000
"""Hypotheses of a stream; their time grows with their number."""
SETTLING_INTERVAL = 64
"""Frames between two searches for the common beginning of all prefixes."""
MAX_UNSETTLED_FRAMES = 1500
"""Age in frames at which a token is settled even if prefixes differ in it: equally probable texts never would be."""


class Prefix:
    """A token and the prefix before it; the empty prefix has no token.

    Attributes:
        frame: most probable onset of the token, by the frames up to then.
        state, bonus: of the beam's `Bias` after the token.
    """

    __slots__ = ("__weakref__", "_children", "_onset_score", "bonus", "frame", "parent", "state", "token")

    def __init__(self, parent: "Prefix | None" = None, token: int | None = None):
        self.parent, self.token = parent, token
        self.frame, self._onset_score = -1, LOG_ZERO
        self.state, self.bonus = 0, 0.0
        self._children: WeakValueDictionary[int, Prefix] | None = None

    def child(self, token: int) -> "Prefix | None":
        """This prefix extended by `token`, if a hypothesis still has it."""
        return None if self._children is None else self._children.get(token)

    def extend(self, token: int) -> "Prefix":
        """This prefix extended by `token`. There is one object for each, so that equal texts are the same object."""
        if self._children is None:
            self._children = WeakValueDictionary()
        child = self._children.get(token)
        if child is None:
            child = self._children[token] = Prefix(self, token)
        return child

    def update_onset(self, frame: int, score: float) -> None:
        """Take `frame` for the token's onset if its log probability is higher than that of the frames before."""
        if score > self._onset_score:
            self.frame, self._onset_score = frame, score

    def __iter__(self) -> Iterator["Prefix"]:
        """The prefixes of its unsettled tokens, the first one first."""
        path, prefix = [], self
        while prefix.parent is not None:
            path.append(prefix)
            prefix = prefix.parent
        return reversed(path)


class Hypothesis:
    """The tokens of a prefix at some moment, and their onsets.

    Args:
        settled: the settled tokens of the beam, and their frames; the beam may append more to both later.
        prefix: the tokens after those.
    """

    def __init__(self, settled: tuple[array, array], prefix: Prefix):
        self.settled = len(settled[0])
        self._settled = settled
        self._unsettled = [(part.token, part.frame) for part in prefix]

    @classmethod
    def of(cls, tokens: Sequence[int], frames: Sequence[int]) -> "Hypothesis":
        """Of tokens that can't change, and their onsets."""
        return cls((array("q", tokens), array("q", frames)), Prefix())

    def __len__(self) -> int:
        """How many tokens."""
        return self.settled + len(self._unsettled)

    @property
    def tokens(self) -> list[int]:
        """The ids of the tokens."""
        return self._settled[0][: self.settled].tolist() + [token for token, _ in self._unsettled]

    @property
    def frames(self) -> list[int]:
        """The onset of each token."""
        return self._settled[1][: self.settled].tolist() + [frame for _, frame in self._unsettled]


class PrefixBeam:
    """The most probable prefixes (Graves and Jaitly 2014; Hannun et al. 2014, arXiv 1408.2873, algorithm 1).

    ::

        beam = PrefixBeam(20)
        beam.extend(ctc.log_softmax(encoder_out)[0])  # (time, tokens), as often as there is more
        prefix, score = beam.best[0]
        print(beam.hypothesis(prefix).tokens)

    Args:
        beam_size: number of prefixes.
        blank: id of CTC's blank.
        pre_beam_size: number of tokens, the most probable ones, that may extend a prefix at a frame.
        bias: phrases whose bonus counts where prefixes are compared, but not in their log probabilities.
    """

    def __init__(self, beam_size: int, blank: int = 0, pre_beam_size: int = PRE_BEAM_SIZE, bias: Bias | None = None):
        self.beam_size, self.blank, self.pre_beam_size, self.bias = beam_size, blank, pre_beam_size, bias
        self.frames = 0
        self._settled = array("q"), array("q")  # tokens, frames
        # prefix -> log probabilities of all paths to it that end in a blank, and in its token; the most probable first
        self._scores: dict[Prefix, tuple[float, float]] = {Prefix(): (0.0, LOG_ZERO)}
        if bias is not None:
            next(iter(self._scores)).state = bias.start

    @property
    def nbytes(self) -> int:
        """Bytes of the settled tokens; the rest does not grow."""
        return sum(part.itemsize * len(part) for part in self._settled)

    @property
    def best(self) -> list[tuple[Prefix, float]]:
        """The prefixes and their log probabilities, the most probable first, with their bonuses if there is a bias."""
        return [(prefix, _log_add(*scores)) for prefix, scores in self._scores.items()]

    @property
    def final(self) -> list[tuple[Prefix, float]]:
        """As `best`, of texts that end here: what has begun of a phrase counts no more."""
        if self.bias is None:
            return self.best
        return sorted(self.best, key=lambda one: one[1] + self.bonus(one[0]), reverse=True)

    def bonus(self, prefix: Prefix) -> float:
        """By the bias, of a text that ends with a prefix of `best`."""
        return 0.0 if self.bias is None else prefix.bonus + self.bias.end(prefix.state)

    def hypothesis(self, prefix: Prefix) -> Hypothesis:
        """The tokens of a prefix of `best`."""
        return Hypothesis(self._settled, prefix)

    def extend(self, log_probs: Tensor) -> None:
        """Extend the prefixes by the frames log_probs (time, tokens)."""
        candidates = log_probs.topk(min(self.pre_beam_size + 1, log_probs.shape[-1])).indices.tolist()
        for frame, tokens in zip(log_probs.tolist(), candidates, strict=True):
            self._step(frame, [token for token in tokens if token != self.blank][: self.pre_beam_size])
            self.frames += 1
            if self.frames % SETTLING_INTERVAL == 0:
                self._settle()

    def _step(self, log_probs: list[float], tokens: list[int]) -> None:
        # The key of an extension that is no object yet is (prefix before it, token): most of them are pruned at once.
        scores: dict[Prefix | tuple[Prefix, int], list[float]] = {}
        onset_scores: dict[Prefix | tuple[Prefix, int], float] = {}
        for prefix, (blank, label) in self._scores.items():
            total = _log_add(blank, label)
            unchanged = scores.setdefault(prefix, [LOG_ZERO, LOG_ZERO])
            unchanged[0] = total + log_probs[self.blank]
            if prefix.token is not None:
                unchanged[1] = _log_add(unchanged[1], label + log_probs[prefix.token])
            for token in tokens:
                score = (blank if token == prefix.token else total) + log_probs[token]
                if score > LOG_ZERO:
                    key = prefix.child(token) or (prefix, token)
                    extended = scores.setdefault(key, [LOG_ZERO, LOG_ZERO])
                    extended[1] = _log_add(extended[1], score)
                    onset_scores[key] = score
        ranks = {key: _log_add(*both) for key, both in scores.items()}
        followed: dict[Prefix | tuple[Prefix, int], tuple[int, float]] = {}
        if self.bias is not None:
            for key in ranks:
                followed[key] = _followed(self.bias, key)
                ranks[key] += followed[key][1]
        self._scores = {}
        for key in sorted(ranks, key=ranks.__getitem__, reverse=True)[: self.beam_size]:
            blank, label = scores[key]
            prefix = key[0].extend(key[1]) if isinstance(key, tuple) else key
            if followed:
                prefix.state, prefix.bonus = followed[key]
            if key in onset_scores:
                prefix.update_onset(self.frames, onset_scores[key])
            self._scores[prefix] = blank, label

    def _settle(self) -> None:
        """Settle the common beginning of all prefixes: its end becomes the empty prefix, which still knows its token.

        Prefixes that differ from the best one in tokens of more than `MAX_UNSETTLED_FRAMES` ago are pruned.
        """
        best, *_ = self._scores
        old = [prefix for prefix in best if prefix.frame < self.frames - MAX_UNSETTLED_FRAMES]
        if old:
            self._scores = {prefix: scores for prefix, scores in self._scores.items() if old[-1] in prefix}
        paths = [list(prefix) for prefix in self._scores]
        common = 0
        for parts in zip(*paths, strict=False):
            if any(part is not parts[0] for part in parts):
                break
            common += 1
        if not common:
            return
        for part in paths[0][:common]:
            assert part.token is not None  # as only the empty prefix has none
            self._settled[0].append(part.token)
            self._settled[1].append(part.frame)
        paths[0][common - 1].parent = None


def _followed(bias: Bias, key: Prefix | tuple[Prefix, int]) -> tuple[int, float]:
    """State and bonus of a prefix, or of an extension that is no object yet."""
    if not isinstance(key, tuple):
        return key.state, key.bonus
    prefix, token = key
    state, difference = bias.step(prefix.state, token)
    return state, prefix.bonus + difference


def _log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == LOG_ZERO else a + math.log1p(math.exp(b - a))

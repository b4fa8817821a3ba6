"""Context biasing: words and phrases that the searches favour, such as the names in a user's address book.

An automaton over tokens (Aho and Corasick 1975) gives a bonus to each token of a phrase as it comes, so that it is
not pruned before its end, and takes it back where the phrase does not go on (shallow fusion as in Zhao et al. 2019,
Interspeech, section 3; Pundak et al. 2018, arXiv 1808.02480).
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from espnet2.legacy.nets.scorer_interface import BatchScorerInterface
from torch import Tensor

from espnet_mla.common.errors import UsageError, UserError, one_line

DEFAULT_WEIGHT = 0.5
"""Bonus of each token of a phrase, in natural logarithms of probability."""

Phrases = Iterable[str] | Mapping[str, float]
"""Phrases, or the weight of each."""


class Bias:
    """An automaton of phrases. A text is followed by its states, which are integers.

    The bonus of a text is the sum over all places where a phrase stands in it, from the beginning of a word to the end
    of one, of the phrase's tokens times its weight. While a text goes on, what may still become a phrase counts too.

    Args:
        phrases: weight of each, by its tokens.
        starts: ids of the tokens that begin a word; None where every token may.
        before: token that is taken to stand before every text, if any.
    """

    def __init__(
        self, phrases: Mapping[tuple[int, ...], float], starts: frozenset[int] | None = None, before: int | None = None
    ):
        self._starts = starts
        self._children: list[dict[int, int]] = [{}]
        self._begun, self._ended, self._back = [0.0], [0.0], [0]
        for tokens, weight in phrases.items():
            self._add(tokens, weight)
        self._link()
        self._rows: dict[int, Tensor] = {}
        self.start = 0 if before is None else self._next(0, before)
        """State of an empty text."""

    def _add(self, tokens: Sequence[int], weight: float) -> None:
        state = 0
        for place, token in enumerate(tokens):
            self._begun[state] = max(self._begun[state], place * weight)
            following = self._children[state].get(token)
            if following is None:
                following = self._children[state][token] = len(self._children)
                self._children.append({})
                self._begun.append(0.0)
                self._ended.append(0.0)
                self._back.append(0)
            state = following
        self._ended[state] = len(tokens) * weight

    def _link(self) -> None:
        """To each state that of its longest suffix; what counts there counts here."""
        queue = deque([0])
        while queue:
            state = queue.popleft()
            for token, following in self._children[state].items():
                back = self._next(self._back[state], token) if state else 0
                self._back[following] = back
                self._begun[following] = max(self._begun[following], self._begun[back])
                self._ended[following] += self._ended[back]
                queue.append(following)

    def _next(self, state: int, token: int) -> int:
        while state and token not in self._children[state]:
            state = self._back[state]
        return self._children[state].get(token, 0)

    def _pending(self, state: int) -> float:
        """Bonus of what may still become a phrase, or is one if a word ends here."""
        return max(self._begun[state], self._ended[state])

    def step(self, state: int, token: int) -> tuple[int, float]:
        """The state after one more token, and the difference in bonus."""
        following = self._next(state, token)
        settled = self._ended[state] if self._starts is None or token in self._starts else 0.0
        return following, settled + self._pending(following) - self._pending(state)

    def end(self, state: int) -> float:
        """The difference in bonus where the text ends."""
        return self._ended[state] - self._pending(state)

    def bonus(self, tokens: Iterable[int]) -> float:
        """Of a whole text."""
        state, total = self.start, self._pending(self.start)
        for token in tokens:
            state, difference = self.step(state, token)
            total += difference
        return total + self.end(state)

    def row(self, state: int, vocabulary: int, eos: int) -> Tensor:
        """Differences in bonus for every token that may follow, (vocabulary,), `eos` being the end of the text."""
        if state not in self._rows:
            if state:
                back = self._back[state]
                row = self.row(back, vocabulary, eos) + self._pending(back) - self._pending(state)
                more = self._ended[state] - self._ended[back]
                row[list(self._starts) if self._starts is not None else slice(None)] += more
            else:
                row = torch.zeros(vocabulary)
            for token in self._children[state]:
                row[token] = self.step(state, token)[1]
            row[eos] = self.end(state)
            self._rows[state] = row
        return self._rows[state]


class BiasScorer(BatchScorerInterface):
    """A bias as a scorer of ESPnet's beam search."""

    def __init__(self, bias: Bias, vocabulary: int, eos: int):
        self.bias, self.vocabulary, self.eos = bias, vocabulary, eos

    def score(self, y: Tensor, state: int | None, x: Tensor) -> tuple[Tensor, int]:
        """Scores of the next token, (vocabulary,), and the state after the tokens y.

        Args:
            y: tokens so far, the first of which is <sos>.
            state: before the last of them; None where <sos> is the only one.
            x: encoder output.
        """
        state = self.bias.start if state is None else self.bias.step(state, int(y[-1]))[0]
        return self.bias.row(state, self.vocabulary, self.eos).to(x), state

    def batch_score(self, ys: Tensor, states: list[int | None], xs: Tensor) -> tuple[Tensor, list[int]]:
        """As `score`, of many hypotheses: (hypotheses, vocabulary), and a list of states."""
        found = [self.score(y, state, xs) for y, state in zip(ys, states, strict=True)]
        return torch.stack([row for row, _ in found]), [state for _, state in found]


def spelled(phrases: Phrases, converter: Any, tokenizer: Any, token_type: str | None) -> Bias | None:
    """The bias of phrases, spelled as a model spells texts.

    Args:
        phrases: as they stand in the model's transcripts (LibriSpeech's are in capitals), each maybe with its weight.
        converter, tokenizer: those of ESPnet's Speech2Text.
        token_type: of ESPnet's configuration: bpe, char, word, ...

    Returns:
        None where there are no phrases.

    Raises:
        UsageError: a phrase has no words, the tokens can't spell it, or a weight is not a positive number.
    """
    if isinstance(phrases, str | bytes) or not isinstance(phrases, Iterable):
        raise UsageError(f"bias: {phrases!r}: a list of phrases is needed, or their weights by phrase")
    weights = phrases if isinstance(phrases, Mapping) else dict.fromkeys(phrases, DEFAULT_WEIGHT)
    space = converter.token2id.get("<space>") if token_type == "char" else None
    found = {}
    for phrase, weight in weights.items():
        if not isinstance(phrase, str) or not phrase.split():
            raise UsageError(f"bias: {phrase!r}: a phrase of at least one word is needed")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise UsageError(f"bias: {phrase!r}: its weight {weight!r} must be a positive number")
        if tokenizer is None:
            raise UsageError(f"bias: {phrase!r}: a model without a tokenizer (token_type) can't spell it")
        tokens = tokenizer.text2tokens(" ".join(phrase.split()))
        ids = converter.tokens2ids(tokens)
        if unknown := [token for token, number in zip(tokens, ids, strict=True) if number == converter.unk_id]:
            raise UsageError(
                f"bias: {phrase!r}: the model's tokens can't spell {unknown[0].removeprefix('▁')!r}; its texts may be "
                "written in other letters, in capitals say"
            )
        found[tuple(ids) if space is None else (space, *ids)] = float(weight)
    return Bias(found, _starts(converter.token_list, token_type), space) if found else None


def _starts(token_list: Sequence[str], token_type: str | None) -> frozenset[int] | None:
    """Ids of the tokens that begin a word; None where it isn't known which do, or all do."""
    begin = {"bpe": "▁", "char": "<space>"}.get(token_type or "")
    if begin is None:
        return None
    return frozenset(number for number, token in enumerate(token_list) if token.startswith(begin)) or None


def read_phrases(path: Path, weight: float = DEFAULT_WEIGHT) -> dict[str, float]:
    """Phrases of a file and their weights: one on each line, maybe with a tab and a weight behind it.

    Args:
        path: the file; empty lines are left out.
        weight: where a line has none.

    Raises:
        UserError: the file can't be read.
        UsageError: a weight is not a positive number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {one_line(error)}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        phrase, *more = line.split("\t")
        if not line.strip():
            continue
        try:
            found[phrase] = float(more[0]) if more else weight
        except ValueError:
            raise UsageError(f"{path}: line {number}: {more[0]!r} is no weight, which is a positive number") from None
    return found

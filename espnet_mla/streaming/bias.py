"""Context biasing: words and phrases that the searches favour, such as the names in a user's address book.

An automaton over tokens (Aho and Corasick 1975) gives a bonus to each token of a phrase as it comes, so that it is
not pruned before its end, and takes it back where the phrase does not go on (shallow fusion as in Zhao et al. 2019,
Interspeech, section 3; Pundak et al. 2018, arXiv 1808.02480).
"""

import unicodedata
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.legacy.nets.scorer_interface import BatchScorerInterface
from espnet2.text.char_tokenizer import CharTokenizer
from espnet2.text.sentencepiece_tokenizer import SentencepiecesTokenizer
from espnet2.text.token_id_converter import TokenIDConverter
from torch import Tensor

from espnet_mla.common.errors import UsageError, UserError, one_line

DEFAULT_WEIGHT = 0.5
"""Bonus of each token of a phrase, in natural logarithms of probability."""
MAX_WEIGHT = 1000.0

Phrases = Iterable[str] | Mapping[str, float]
"""Phrases, or the weight of each."""

_WORD_BOUNDARY = "▁"
"""Of sentencepiece, before the first piece of a word."""
_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "IDEOGRAPHIC")
"""How Unicode's names of the letters of scripts begin that put no spaces between words."""


class Bias:
    """An automaton of phrases. A text is followed by its states, which are integers.

    The bonus of a text is the sum over all places where a phrase stands in it, up to the end of a word, of the phrase's
    tokens times its weight. While a text goes on, what may still become a phrase counts too.

    Args:
        phrases: weight of each, by its tokens.
        token_list: of the model.
        within: ids of the tokens that go on with a word.
        before: token that is taken to stand before every text, if any.
    """

    def __init__(
        self,
        phrases: Mapping[tuple[int, ...], float],
        token_list: Sequence[str],
        within: Iterable[int] = (),
        before: int | None = None,
    ):
        self.token_list, self._within = list(token_list), frozenset(within)
        self._children: list[dict[int, int]] = [{}]
        self._back = [0]  # the state of the longest suffix that is one
        self._begun = [0.0]  # the most that is earned so far by a phrase which goes on from here
        self._ended = [0.0]  # what is earned by the phrases that end here, if a word does
        for tokens, weight in phrases.items():
            self._add(tokens, weight)
        self._link()
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
                for values in (self._begun, self._ended):
                    values.append(0.0)
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
        settled = 0.0 if token in self._within else self._ended[state]
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

    def row(self, state: int, eos: int) -> Tensor:
        """Differences in bonus for every token that may follow, (vocabulary,), `eos` being the end of the text."""
        row = torch.full((len(self.token_list),), self.end(state))  # as of a token that no phrase has
        row[list(self._within)] -= self._ended[state]
        for token in self._leading_on(state):
            row[token] = self.step(state, token)[1]
        row[eos] = self.end(state)
        return row

    def _leading_on(self, state: int) -> set[int]:
        """The tokens with which a phrase goes on or begins."""
        found = set(self._children[0])
        while state:
            found |= self._children[state].keys()
            state = self._back[state]
        return found


class BiasScorer(BatchScorerInterface):
    """A bias as a scorer of ESPnet's beam search, for one utterance.

    Args:
        bias: as it is.
        eos: id of the token at which a text ends.
    """

    def __init__(self, bias: Bias, eos: int):
        self.bias, self.eos = bias, eos
        self._rows: dict[int, Tensor] = {}

    def score(self, y: Tensor, state: int | None, x: Tensor) -> tuple[Tensor, int]:
        """Scores of the next token, (vocabulary,), and the state after the tokens y.

        Args:
            y: tokens so far, the first of which is <sos>.
            state: before the last of them; None where <sos> is the only one.
            x: encoder output.
        """
        scores, (after,) = self.batch_score(y.unsqueeze(0), [state], x)
        return scores[0], after

    def batch_score(self, ys: Tensor, states: Sequence[int | None], xs: Tensor) -> tuple[Tensor, list[int]]:
        """As `score`, of many hypotheses: (hypotheses, vocabulary), and a list of states."""
        last = ys[:, -1].tolist()
        after = [
            self.bias.start if state is None else self.bias.step(state, token)[0]
            for state, token in zip(states, last, strict=True)
        ]
        for state in {*after} - self._rows.keys():
            self._rows[state] = self.bias.row(state, self.eos)
        return torch.stack([self._rows[state] for state in after]).to(xs), after


def spelled(phrases: Phrases, converter: Any, tokenizer: Any) -> Bias | None:
    """The bias of phrases, spelled as a model spells texts.

    Args:
        phrases: as they stand in the model's transcripts (LibriSpeech's are in capitals), each maybe with its weight.
        converter, tokenizer: those of ESPnet's Speech2Text.

    Returns:
        None where there are no phrases.

    Raises:
        UsageError: a phrase is no text, the tokens can't spell it, or a weight is not a positive number.
    """
    if isinstance(phrases, str | bytes) or not isinstance(phrases, Iterable):
        raise UsageError(f"bias: {phrases!r}: a list of phrases is needed, or their weights by phrase")
    weights = list(phrases.items() if isinstance(phrases, Mapping) else ((one, DEFAULT_WEIGHT) for one in phrases))
    for phrase, weight in weights:
        if not isinstance(phrase, str) or not phrase.split():
            raise UsageError(f"bias: {phrase!r} is no phrase; weights are given as a mapping, phrase: weight")
        check_weight(weight, f"bias: {phrase!r}: its weight")
    if not weights:
        return None
    if tokenizer is None or not isinstance(converter, TokenIDConverter):
        kind = type(converter).__name__ if tokenizer is not None else "no tokenizer"
        raise UsageError(f"bias: a model with {kind} spells no phrases; with token_type bpe, char or word it does")
    space = getattr(tokenizer, "space_symbol", None) if isinstance(tokenizer, CharTokenizer) else None
    before = converter.token2id.get(space)
    found: dict[tuple[int, ...], float] = {}
    unknown = []
    for phrase, weight in weights:
        tokens = tokenizer.text2tokens(" ".join(phrase.split()))
        ids = converter.tokens2ids(tokens)
        if converter.unk_id in ids or not tokens:
            wrong = tokens[ids.index(converter.unk_id)].removeprefix(_WORD_BOUNDARY) if tokens else ""
            unknown.append(f"{phrase!r} ({wrong!r})")
        elif _stands_alone(phrase.lstrip()):
            found |= {tuple(converter.tokens2ids(one)): float(weight) for one in _anywhere(tokens, converter.token2id)}
        else:
            found[(*(() if before is None else (before,)), *ids)] = float(weight)
    if unknown:
        raise UsageError(
            f"bias: the model's tokens can't spell {', '.join(unknown[:10])}{', ...' if unknown[10:] else ''}; its "
            "texts may be written in other letters, in capitals say"
        )
    boundary = {SentencepiecesTokenizer: _WORD_BOUNDARY, CharTokenizer: space}.get(type(tokenizer))
    within = (
        number
        for number, token in enumerate(converter.token_list)
        if boundary and token and unicodedata.category(token[0])[0] in "LNM" and not _stands_alone(token)
    )
    return Bias(found, converter.token_list, within, before)


def _anywhere(tokens: list[str], token2id: Mapping[str, int]) -> list[list[str]]:
    """A phrase of a script without spaces, at the beginning of a text and, where it can be spelled so, within one.

    Args:
        tokens: at the beginning, where sentencepiece puts the boundary of a word before it.
        token2id: of the model.
    """
    first, *rest = tokens
    bare = first.removeprefix(_WORD_BOUNDARY)
    if bare == first or not bare:
        return [rest if rest and not bare else tokens]
    begun = [bare] if bare in token2id else list(bare)
    return [tokens, [*begun, *rest]] if all(token in token2id for token in begun) else [tokens]


def _stands_alone(token: str) -> bool:
    """Whether a token begins with a letter that needs no space before it for a word to begin."""
    return unicodedata.name(token[0], "").startswith(_WITHOUT_SPACES)


def check_weight(weight: Any, named: str) -> None:
    """See that a weight is one.

    Raises:
        UsageError: it is none; the message begins with `named`.
    """
    number = isinstance(weight, int | float | np.number) and not isinstance(weight, bool)
    if not number or not 0 < weight <= MAX_WEIGHT:
        raise UsageError(f"{named} {weight!r} must be a positive number of at most {MAX_WEIGHT:g}")


def read_phrases(path: Path, weight: float = DEFAULT_WEIGHT) -> dict[str, float]:
    """Phrases of a file and their weights: one on each line, maybe with a tab and a weight behind it.

    Args:
        path: the file; empty lines are left out.
        weight: where a line has none.

    Raises:
        UserError: the file can't be read, has no phrase, or a line is not as it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {one_line(error)}") from None
    found: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        text, *more = line.split("\t")
        phrase, named = " ".join(text.split()), f"{path}: line {number}:"
        if not phrase or len(more) > 1:
            raise UserError(f"{named} {line!r} is not a phrase, or a phrase, a tab and its weight")
        try:
            own = float(more[0]) if more else weight
        except ValueError:
            raise UserError(f"{named} {more[0]!r} is no weight, which is a positive number") from None
        check_weight(own, f"{named} the weight")
        if found.get(phrase, own) != own:
            raise UserError(f"{named} {phrase!r} had another weight before, {found[phrase]:g}")
        found[phrase] = own
    if not found:
        raise UserError(f"{path}: there is no phrase in it")
    return found

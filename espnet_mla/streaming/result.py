"""What has been heard of a stream."""

from functools import cached_property
from typing import TYPE_CHECKING

from espnet_mla.streaming.search import Prefix, PrefixBeam

if TYPE_CHECKING:
    from espnet_mla.streaming.pool import StreamPool


class Result:
    """What has been heard of a stream.

    Attributes:
        final: whether the stream has ended; until then the last words may still change.
        settled: how many of the tokens can't change any more.
        score: log probability of the tokens: by CTC, and in a rescored final result by CTC and decoder.
    """

    def __init__(self, pool: "StreamPool", beam: PrefixBeam, prefix: Prefix, score: float, final: bool):
        self._pool, self.score, self.final = pool, score, final
        self._hypothesis = beam.hypothesis(prefix)
        self.settled = len(self._hypothesis) if final else self._hypothesis.settled

    @property
    def tokens(self) -> list[str]:
        """The tokens."""
        return self._pool.speech2text.converter.ids2tokens(self._hypothesis.tokens)

    @property
    def times(self) -> list[float]:
        """Where each token was most probably begun, in seconds from the beginning of the stream."""
        return [frame * self._pool.frame_seconds for frame in self._hypothesis.frames]

    @cached_property
    def text(self) -> str:
        """The text of all tokens."""
        return self.text_from(0)

    def text_from(self, token: int) -> str:
        """The text of the tokens from that number on: of a long stream what is new, if that was the number settled."""
        tokens, tokenizer = (
            self._pool.speech2text.converter.ids2tokens(self._hypothesis.tokens[token:]),
            self._pool.speech2text.tokenizer,
        )
        text = tokenizer.tokens2text(tokens) if tokenizer is not None else " ".join(tokens)
        return " ".join(text.split())  # CTC may have found a space of its own

    def __repr__(self) -> str:
        return f"Result(text={self.text!r}, final={self.final})"

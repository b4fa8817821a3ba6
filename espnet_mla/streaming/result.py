"""The text of a stream at some moment."""

from dataclasses import dataclass
from functools import cached_property

from espnet_mla.streaming.model import StreamingModel
from espnet_mla.streaming.search import Hypothesis
from espnet_mla.trained.words import Word


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The best hypothesis of a stream, or with endpointing of a sentence of it.

    Args:
        model: that the stream is of.
        hypothesis: its tokens and their frames.
        score: its log probability: by CTC, and in a final result of a search by CTC and attention decoder.
        final: whether it has ended; until then the last words may still change.
        words: in a final result of a search, with their times and how sure they are; else None, and where CTC can't
            spell the text, or the search has failed.
        first_frame: of the stream, at which the sentence begins.
        frames: of the sentence so far.
    """

    model: StreamingModel
    hypothesis: Hypothesis
    score: float
    final: bool
    words: list[Word] | None = None
    first_frame: int = 0
    frames: int = 0

    @property
    def settled(self) -> int:
        """How many of the tokens can't change any more."""
        return len(self.hypothesis) if self.final else self.hypothesis.settled

    @property
    def tokens(self) -> list[str]:
        """The tokens."""
        return self.model.tokens(self.hypothesis.tokens)

    @property
    def times(self) -> list[float]:
        """The most probable onset of each token, in seconds from the beginning of the stream."""
        return [(self.first_frame + frame) * self.model.frame_seconds for frame in self.hypothesis.frames]

    @property
    def start(self) -> float:
        """When the first word begins, in seconds from the beginning of the stream; without words, when it begins."""
        moments = [word.start for word in self.words or ()] or self.times
        return moments[0] if moments else self.first_frame * self.model.frame_seconds

    @property
    def end(self) -> float:
        """When the last word ends, in seconds from the beginning of the stream; without words, when it ends."""
        return self.words[-1].end if self.words else (self.first_frame + self.frames) * self.model.frame_seconds

    @cached_property
    def text(self) -> str:
        """The text of all tokens."""
        return self.text_from(0)

    def text_from(self, token: int) -> str:
        """The text from a token on: of a long stream what is new, given the `settled` of an earlier result."""
        return self.model.text(self.hypothesis.tokens[token:])

    def __repr__(self) -> str:
        return f"Result(text={self.text!r}, final={self.final})"

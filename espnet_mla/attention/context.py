"""The attention context: which frames the self-attentions of an encoder attend to, where that is not the utterance."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from espnet_mla.attention.base import Attention


class AttentionContext(Protocol):
    """How self-attentions attend and convolutions convolve, where frames do not have full context."""

    def attend(self, attention: "Attention", x: Tensor, position: Tensor | None, mask: Tensor | None) -> Tensor:
        """Attend from the frames x (batch, time, d); the other arguments are those of the attention's call."""

    def convolve(self, conv: Any, x: Tensor) -> Tensor:
        """Apply a convolution along time to x (batch, channels, time)."""


# A context variable and not an attribute of the modules: an encoder may be run by several threads at once, and the
# attention context is no part of a model that is copied or saved.
_context: ContextVar[AttentionContext | None] = ContextVar("attention_context", default=None)


def attention_context() -> AttentionContext | None:
    """The attention context in force; None for full context."""
    return _context.get()


@contextmanager
def using_context(context: AttentionContext | None) -> Iterator[None]:
    """Put an attention context in force within the block."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)

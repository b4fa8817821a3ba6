"""When a sentence of a stream ends: rules on the silence that CTC hears, in the form of Kaldi's online endpointing."""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from espnet_mla.common.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

SILENT = 0.9
"""A frame is silent where CTC's blank has more than this posterior."""


@dataclass(frozen=True)
class Endpointing:
    """Rules, each in seconds, or None for without; a sentence ends with the first that holds.

    Args:
        trailing_silence: of silence after what is none.
        initial_silence: of silence from the beginning; nothing comes of it.
        longest: of a sentence, silent or not.

    Raises:
        UsageError: a number is not positive, or so large that another rule always comes first; or there is no rule.
    """

    trailing_silence: float | None = 0.8
    initial_silence: float | None = 2.4
    longest: float | None = 20.0

    def __post_init__(self) -> None:
        for rule in fields(self):
            value = getattr(self, rule.name)
            if value is not None and not (_is_number(value) and 0 < value < math.inf):
                raise UsageError(f"endpointing: {rule.name}: {value!r} must be a number of seconds, or none")
        if all(getattr(self, rule.name) is None for rule in fields(self)):
            raise UsageError("endpointing: no rule is left by which a sentence could end")
        for rule in fields(self)[:2]:
            value = getattr(self, rule.name)
            if value and self.longest and value >= self.longest:
                raise UsageError(f"endpointing: {rule.name}: {value:g} s never come: longest is {self.longest:g} s")

    @classmethod
    def of(cls, value: object) -> "Endpointing | None":
        """Of rules by name, or true for the defaults; None for none of them.

        Defaults that could never hold beside the rules that are given are left out.

        Raises:
            UsageError: as the class, or there is no such rule.
        """
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, bool):
            return cls() if value else None
        names = [rule.name for rule in fields(cls)]
        if not isinstance(value, dict) or (unknown := [name for name in value if name not in names]):
            wrong = unknown[0] if isinstance(value, dict) else value
            raise UsageError(f"endpointing: {wrong!r}: its rules are {', '.join(names)}")
        given = value.get("longest", cls.longest)
        longest = given if isinstance(given, int | float) else math.inf
        defaults = {"trailing_silence": cls.trailing_silence, "initial_silence": cls.initial_silence}
        never = [name for name, default in defaults.items() if name not in value and default and default >= longest > 0]
        return cls(**dict.fromkeys(never), **value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Endpointer:
    """The rules applied to the frames of one stream as they come.

    Args:
        rules: as they are.
        blank: id of CTC's blank.
        frame_seconds: of a frame.
    """

    def __init__(self, rules: Endpointing, blank: int, frame_seconds: float):
        self.blank = blank

        def frames(seconds: float | None) -> float:
            return math.inf if seconds is None else max(1, round(seconds / frame_seconds))

        self._trailing, self._initial = frames(rules.trailing_silence), frames(rules.initial_silence)
        self._longest = frames(rules.longest)
        self._begin()

    def _begin(self) -> None:
        self._frames = self._silent = 0

    @property
    def spoken(self) -> bool:
        """Whether a frame of the sentence so far was not silent."""
        return self._silent < self._frames

    def first_end(self, log_probs: "Tensor") -> tuple[int, bool] | None:
        """After how many of these frames the sentence ends, (time, tokens), and whether it was spoken; None where it
        goes on.

        Those frames are taken for heard, or all of them; the next ones are those after.
        """
        for number, silent in enumerate((log_probs[:, self.blank].exp() > SILENT).tolist(), 1):
            self._frames += 1
            self._silent = self._silent + 1 if silent else 0
            spoken = self.spoken
            if self._silent >= (self._trailing if spoken else self._initial) or self._frames >= self._longest:
                self._begin()
                return number, spoken
        return None

"""The utterances of a wav.scp, one by one, as a model takes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from espnet_mla.common import wavscp
from espnet_mla.common.errors import UserError
from espnet_mla.common.tables import read_table


@dataclass(frozen=True)
class Speech:
    """Some utterances.

    Args:
        path: of wav.scp.
        entries: utterance -> its value there.
        rate: Hz that the model takes.
    """

    path: Path
    entries: dict[str, str]
    rate: int

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Each utterance with its samples, (time,).

        Raises:
            UserError: audio is missing, broken or of another rate.
        """
        for key, entry in self.entries.items():
            try:
                samples, rate = wavscp.read(entry)
            except UserError as error:
                raise UserError(f"{self.path}: {key}: {error}") from None
            if rate != self.rate:
                raise UserError(f"{self.path}: {key}: {entry} has {rate} Hz, but the model takes {self.rate} Hz")
            yield key, torch.from_numpy(samples)


def choose(path: Path, utterances: int, rate: int) -> Speech:
    """Choose utterances at even distances over the file, so that all its speakers are among them.

    Args:
        path: of wav.scp.
        utterances: at most.
        rate: Hz that the model takes.

    Raises:
        UserError: the file is missing or holds nothing.
    """
    table = read_table(path)
    if path.with_name("segments").exists():
        raise UserError(f"{path} is of whole recordings, by segments beside it: give the one that stage 3 makes of it")
    if not table:
        raise UserError(f"{path} holds no utterance")
    keys = list(table)
    number = min(utterances, len(keys))
    return Speech(
        path, {key: table[key] for key in (keys[index * len(keys) // number] for index in range(number))}, rate
    )

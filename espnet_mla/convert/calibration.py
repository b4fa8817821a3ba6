"""Calibration speech: the utterances of a wav.scp, one by one, as a model takes them."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from espnet2.tasks.asr import ASRTask
from torch import Tensor, nn
from tqdm import tqdm

from espnet_mla.recipe import wavscp
from espnet_mla.recipe.files import RecipeError, read_table
from espnet_mla.trained import sampling_rate

SHORTEST = 0.1  # seconds; of less the frontend may not make a window, about which it is not as clear as subsampling


class Heard(NamedTuple):
    """What a model was run over.

    Args:
        utterances: how many.
        seconds: of them.
        too_short: how many more were left out.
    """

    utterances: int
    seconds: float
    too_short: int


@dataclass(frozen=True)
class Calibration:
    """Speech for a model.

    Args:
        path: of wav.scp.
        entries: utterance -> its value there.
        texts: utterance -> its text, where the decoder is to be run as well; else None.
        rate: Hz.
    """

    path: Path
    entries: dict[str, str]
    texts: dict[str, str] | None
    rate: int

    def run(self, model: nn.Module, args: Namespace, what: str) -> Heard:
        """Run the model over every utterance; hooks see what happens.

        Args:
            model: ESPnetASRModel.
            args: its configuration.
            what: it is done for, beside the progress bar.

        Raises:
            RecipeError: audio is missing, broken or of another rate, or nothing is long enough.
        """
        tokens_of = self._tokeniser(args)
        seconds, too_short = 0.0, 0
        with torch.inference_mode():
            for key, samples in tqdm(self._speech(), desc=what, total=len(self.entries), unit="utt", disable=None):
                if len(samples) < SHORTEST * self.rate:
                    too_short += 1
                    continue
                try:
                    encoded, lengths = model.encode(samples.unsqueeze(0), torch.tensor([len(samples)]))
                except TooShortUttError:
                    too_short += 1
                    continue
                seconds += len(samples) / self.rate
                if tokens_of:
                    encoded = encoded[0] if isinstance(encoded, tuple) else encoded  # with those of the layers between
                    tokens = torch.tensor([[model.sos, *tokens_of(key)]])
                    model.decoder(encoded, lengths, tokens, torch.tensor([tokens.shape[1]]))
        if too_short == len(self.entries):
            raise RecipeError(f"{self.path}: all {too_short} utterances are too short for the model")
        return Heard(len(self.entries) - too_short, seconds, too_short)

    def _tokeniser(self, args: Namespace) -> Callable[[str], list[int]] | None:
        """What gives the token ids of an utterance's text; None where the decoder is not to be run."""
        if self.texts is None:
            return None
        preprocess = ASRTask.build_preprocess_fn(args, False)
        if preprocess is None:
            raise RecipeError("use_preprocessor: false: the text of the calibration speech can't be made tokens")
        return lambda key: preprocess(key, {"text": self.texts[key]})["text"].tolist()

    def _speech(self) -> Iterator[tuple[str, Tensor]]:
        for key, entry in self.entries.items():
            try:
                samples, rate = wavscp.read(entry)
            except RecipeError as error:
                raise RecipeError(f"{self.path}: {key}: {error}") from None
            if rate != self.rate:
                raise RecipeError(f"{self.path}: {key}: {entry} has {rate} Hz, but the model takes {self.rate} Hz")
            yield key, torch.from_numpy(samples)


def prepare(path: Path, utterances: int, args: Namespace, with_text: bool) -> Calibration:
    """Choose the utterances: as many as wanted, at even distances over the file, so that all its speakers are heard.

    Args:
        path: of wav.scp; where a decoder is to be run, its text lies beside it.
        utterances: at most.
        args: the model's configuration.
        with_text: whether a decoder is to be run as well.

    Raises:
        RecipeError: a file is missing, holds nothing, or lacks an utterance.
    """
    table = read_table(path)
    if path.with_name("segments").exists():
        raise RecipeError(
            f"{path} is of whole recordings, by segments beside it: give the one that stage 3 makes of it"
        )
    if not table:
        raise RecipeError(f"{path} holds no utterance")
    keys = list(table)
    number = min(utterances, len(keys))
    chosen = [keys[index * len(keys) // number] for index in range(number)]
    texts = None
    if with_text:
        beside = path.with_name("text")
        texts = read_table(beside)
        if missing := [key for key in chosen if key not in texts]:
            raise RecipeError(f"{beside} lacks {missing[0]} of {path}: to convert a decoder, the text must be known")
    return Calibration(path, {key: table[key] for key in chosen}, texts, sampling_rate(vars(args)))

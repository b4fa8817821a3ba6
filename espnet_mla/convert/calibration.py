"""Calibration speech: the utterances of a wav.scp, one by one, as a model takes them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from espnet2.tasks.asr import ASRTask
from torch import Tensor, nn
from tqdm import tqdm

from espnet_mla.recipe import wavscp
from espnet_mla.recipe.files import RecipeError, read_table
from espnet_mla.trained import sampling_rate


@dataclass
class Calibration:
    """What a model is run over.

    Args:
        path: of wav.scp.
        entries: utterance -> its value there.
        texts: utterance -> its text, where a decoder is to be run as well; else None.
        rate: Hz.
        seconds: of speech that the model was run over in the last pass.
        left_out: utterances too short for the model in the last pass.
    """

    path: Path
    entries: dict[str, str]
    texts: dict[str, str] | None
    rate: int
    seconds: float = 0.0
    left_out: int = 0

    def run(self, model: nn.Module, args: SimpleNamespace, what: str, each: Callable[[], None] = lambda: None) -> None:
        """Run the model over every utterance; hooks see what happens.

        Raises:
            RecipeError: audio is missing, broken or of another rate, or nothing is long enough.
        """
        prepared = ASRTask.build_preprocess_fn(args, False) if self.texts is not None else None
        self.seconds, self.left_out = 0.0, 0
        with torch.inference_mode():
            for key, samples in tqdm(self._speech(), desc=what, total=len(self.entries), unit="utt", disable=None):
                batch = {"speech": samples.unsqueeze(0), "speech_lengths": torch.tensor([len(samples)])}
                try:
                    if prepared is None:
                        model.encode(**batch)
                    else:
                        text = torch.as_tensor(prepared(key, {"text": self.texts[key]})["text"]).unsqueeze(0)
                        model(**batch, text=text, text_lengths=torch.tensor([text.shape[1]]))
                except TooShortUttError:
                    self.left_out += 1
                    continue
                self.seconds += len(samples) / self.rate
                each()
        if self.left_out == len(self.entries):
            raise RecipeError(f"{self.path}: all {self.left_out} utterances are too short for the model")

    def _speech(self) -> Iterator[tuple[str, Tensor]]:
        for key, entry in self.entries.items():
            try:
                samples, rate = wavscp.read(entry)
            except RecipeError as error:
                raise RecipeError(f"{self.path}: {key}: {error}") from None
            if rate != self.rate:
                raise RecipeError(f"{self.path}: {key}: {entry} has {rate} Hz, but the model takes {self.rate} Hz")
            yield key, torch.from_numpy(samples)


def prepare(path: Path, utterances: int, args: SimpleNamespace, with_text: bool) -> Calibration:
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

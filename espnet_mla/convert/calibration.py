"""Calibration speech: a model is run over utterances, its decoder over their text, while hooks collect statistics."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from espnet2.train.abs_espnet_model import AbsESPnetModel
from tqdm import tqdm

from espnet_mla.common.errors import UserError
from espnet_mla.common.tables import read_table
from espnet_mla.models.encoding import DEFAULT_PROMPT, Prompt, attended, encode, inputs_of, prefix_of, source_of
from espnet_mla.trained import tasks
from espnet_mla.trained.model import padded, sampling_rate
from espnet_mla.trained.speech import Speech, choose

SHORTEST = 0.1  # seconds; of less the frontend may not make a window, about which it is not as clear as subsampling


class CalibrationSummary(NamedTuple):
    """The calibration speech that a model was run over.

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
        speech: the utterances.
        texts: utterance -> its text, where the decoder is to be run as well; else None.
        prompt: for OWSM.
    """

    speech: Speech
    texts: dict[str, str] | None
    prompt: Prompt = DEFAULT_PROMPT

    @property
    def path(self) -> Path:
        """Of wav.scp."""
        return self.speech.path

    def run(self, model: AbsESPnetModel, args: Namespace, what: str) -> CalibrationSummary:
        """Run the model, with the hooks that are registered on it, over every utterance, on the model's device.

        Args:
            args: its configuration.
            what: it is done for, beside the progress bar.

        Raises:
            UserError: audio is missing, broken or of another rate, or nothing is long enough.
        """
        tokens_of, device = self._tokeniser(model, args), next(model.parameters()).device
        window = tasks.window_of(vars(args), "the model's configuration")
        seconds, too_short = 0.0, 0
        with torch.inference_mode():
            for key, samples in tqdm(self.speech, desc=what, total=len(self.speech.entries), unit="utt", disable=None):
                if len(samples) < SHORTEST * self.speech.rate:
                    too_short += 1
                    continue
                try:
                    heard = padded(samples, window, self.speech.rate).to(device)
                    encoded = encode(model, inputs_of(model, heard, self.prompt))
                except TooShortUttError:
                    too_short += 1
                    continue
                seconds += len(samples) / self.speech.rate
                if tokens_of:
                    tokens = torch.tensor([tokens_of(key)], device=device)
                    given = attended(model, encoded, source_of(model, encoded))
                    model.decoder(*given, tokens, torch.tensor([tokens.shape[1]], device=device))
        if too_short == len(self.speech.entries):
            raise UserError(f"{self.path}: all {too_short} utterances are too short for the model")
        return CalibrationSummary(len(self.speech.entries) - too_short, seconds, too_short)

    def _tokeniser(self, model: AbsESPnetModel, args: Namespace) -> Callable[[str], list[int]] | None:
        """What gives the tokens that an utterance's text begins with, and its own; None without a decoder to run."""
        texts = self.texts
        if texts is None:
            return None
        name = "the model's configuration"
        tasks.check_g2p(vars(args), name)
        task = tasks.task_of(vars(args), name)
        preprocess = task.task_class().build_preprocess_fn(args, False)
        if preprocess is None:
            raise UserError("use_preprocessor: false: the text of the calibration speech can't be made tokens")
        if task is tasks.S2T:
            self.prompt.ids(model.token_list)

        def tokens_of(key: str) -> list[int]:
            text = texts[key]
            if task is tasks.S2T:
                text = self.prompt.complete(text, args.preprocessor_conf["notime_symbol"])
            return [*prefix_of(model), *preprocess(key, {"text": text})["text"].tolist()]

        return tokens_of


def prepare(
    path: Path, utterances: int, args: Namespace, with_text: bool, prompt: Prompt = DEFAULT_PROMPT
) -> Calibration:
    """Choose the utterances, as `espnet_mla.trained.speech.choose` does, and read their text.

    Args:
        path: of wav.scp; where a decoder is to be run, its text lies beside it.
        utterances: at most.
        args: the model's configuration.
        with_text: whether a decoder is to be run as well.
        prompt: for OWSM.

    Raises:
        UserError: a file is missing, holds nothing, or lacks an utterance.
    """
    speech = choose(path, utterances, sampling_rate(vars(args)))
    texts = None
    if with_text:
        beside = path.with_name("text")
        texts = read_table(beside)
        if missing := [key for key in speech.entries if key not in texts]:
            raise UserError(f"{beside} lacks {missing[0]} of {path}: to convert a decoder, the text must be known")
    return Calibration(speech, texts, prompt)

"""A model's encoders: what they are given in the manner of its task, and what its decoder then attends to."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.add_sos_eos import add_sos_eos
from espnet2.mt.espnet_model import ESPnetMTModel
from espnet2.s2t.espnet_ctc_model import ESPnetS2TCTCModel
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espnet_mla.common.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """What a model of ESPnet's speech-to-text task (OWSM) is told of the speech, by symbols of its token list.

    Args:
        lang_sym: the language.
        task_sym: what is to be done.
    """

    lang_sym: str = "<eng>"
    task_sym: str = "<asr>"

    def ids(self, token_list: list[str]) -> list[int]:
        """The tokens of both.

        Raises:
            UserError: one is no token.
        """
        for option, symbol in vars(self).items():
            if symbol not in token_list:
                symbols = [token for token in token_list if token[:1] == "<" and token[-1:] == ">"]
                raise UserError(
                    f"{option}: {symbol} is no token of the model; it has {', '.join(symbols[:20]) or 'no symbols'}"
                )
        return [token_list.index(symbol) for symbol in vars(self).values()]

    def complete(self, text: str, notime_symbol: str) -> str:
        """A transcript as OWSM's data has it; one that begins with a symbol stays as it is."""
        return text if text.startswith("<") else f"{self.lang_sym}{self.task_sym}{notime_symbol} {text}"


DEFAULT_PROMPT = Prompt()
"""ESPnet's: English, to be transcribed."""


def inputs_of(model: AbsESPnetModel, samples: Tensor, prompt: Prompt = DEFAULT_PROMPT) -> dict[str, Tensor]:
    """What the model's `encode` takes for an utterance, in the manner of its task.

    Args:
        model: of any of ESPnet's tasks that `espnet_mla.trained.tasks` has.
        samples: (time,); of a model for machine translation the tokens of the text.
        prompt: for OWSM-CTC, whose encoder hears it.
    """
    return batch_inputs_of(model, samples[None], torch.tensor([len(samples)], device=samples.device), prompt)


def batch_inputs_of(
    model: AbsESPnetModel, samples: Tensor, lengths: Tensor, prompt: Prompt = DEFAULT_PROMPT
) -> dict[str, Tensor]:
    """The same for several utterances: samples (batch, time), their lengths (batch,)."""
    if isinstance(model, ESPnetMTModel):
        return {"src_text": samples, "src_text_lengths": lengths}
    inputs = {"speech": samples, "speech_lengths": lengths}
    if isinstance(model, ESPnetS2TCTCModel):
        for name, ids in (("text_prev", [model.na]), ("prefix", prompt.ids(model.token_list))):
            inputs[name] = torch.tensor([ids] * len(samples), device=samples.device)
            inputs[f"{name}_lengths"] = torch.full((len(samples),), len(ids), device=samples.device)
    return inputs


class Encoded(NamedTuple):
    """What a model's encoders make of a batch.

    Args:
        first: output of the first one, (batch, time, d).
        first_lengths: its frames of each utterance, (batch,).
        output: of the last one (hier_encoder, postencoder), (batch, time, d); most models have one encoder.
        lengths: its frames of each utterance, (batch,).
    """

    first: Tensor
    first_lengths: Tensor
    output: Tensor
    lengths: Tensor


def encode(model: AbsESPnetModel, inputs: dict[str, Tensor]) -> Encoded:
    """Run the encoders.

    Args:
        model: of any of ESPnet's tasks that `espnet_mla.trained.tasks` has.
        inputs: as of `batch_inputs_of`.
    """
    outputs: list[tuple] = []
    handle = model.encoder.register_forward_hook(lambda _encoder, _inputs, output: outputs.append(output))
    try:
        output, lengths = model.encode(**inputs)
    finally:
        handle.remove()
    ((first, first_lengths, *_),) = outputs
    # Both may stand beside those of the layers between.
    first, output = (one[0] if isinstance(one, tuple) else one for one in (first, output))
    return Encoded(first, first_lengths, output, lengths)


def source_of(model: AbsESPnetModel, encoded: Encoded) -> list[Tensor] | None:
    """What CTC hears in the language that is spoken, for a model for translation with two decoders; else None.

    The first decoder of such a model is given it, as in ESPnet's training with `ctc_sample_rate`.

    Returns:
        Of each utterance the tokens, (tokens,).

    Raises:
        UserError: there is no CTC.
    """
    if getattr(model, "md_encoder", None) is None:
        return None
    if getattr(model, "ctc", None) is None:
        raise UserError(
            "md_encoder: this model has no CTC of what is spoken (model_conf: asr_weight or mtlalpha: 0), which its "
            "first decoder would be given"
        )
    best = model.ctc.argmax(encoded.first)
    best = [ids[:length].tolist() for ids, length in zip(best, encoded.first_lengths.tolist(), strict=True)]
    kept = ([token for token, _ in groupby(ids) if token] for ids in best)
    return [torch.tensor(ids, dtype=torch.long, device=encoded.first.device) for ids in kept]


def attended(model: AbsESPnetModel, encoded: Encoded, source: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """What the decoder attends to, (batch, time, d), and the lengths, (batch,).

    That is the encoders' output, but where there are two decoders the states of the first one, encoded again.

    Args:
        model: of any task.
        encoded: as of `encode`.
        source: as of `source_of`.
    """
    if source is None:
        return encoded.output, encoded.lengths
    tokens, _ = add_sos_eos(pad_sequence(source, batch_first=True, padding_value=-1), model.src_sos, model.src_eos, -1)
    sizes = torch.tensor([len(ids) + 1 for ids in source], device=tokens.device)
    (_, states), _ = model.extra_asr_decoder(encoded.first, encoded.first_lengths, tokens, sizes, return_hs=True)
    output, lengths, _ = model.md_encoder(states, sizes)
    return output, lengths


def prefix_of(model: AbsESPnetModel) -> list[int]:
    """The tokens that a model's decoder is given before those of a text: <sos>, and of some translations a language."""
    language = getattr(model, "lang_token_id", None)
    return [model.sos] if language is None else [model.sos, int(language)]


class _EncoderCalled(Exception):
    """Carries the arguments that the encoder was called with."""


def encoder_of(
    model: AbsESPnetModel, samples: Tensor, prompt: Prompt = DEFAULT_PROMPT
) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that runs the encoder alone, on features extracted once, and returns what the decoder attends to and
    the lengths.

    ESPnet's feature extraction takes longer and more memory than a small encoder and would hide the attention's cost.
    The encoders that come after the first one (hier_encoder, postencoder) are run as well.

    Args:
        model, samples, prompt: as of `inputs_of`.
    """

    def stop(_: nn.Module, inputs: tuple, named: dict) -> None:
        raise _EncoderCalled(inputs, named)

    handle = model.encoder.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.inference_mode():
            model.encode(**inputs_of(model, samples, prompt))
    except _EncoderCalled as call:
        inputs, named = call.args
    finally:
        handle.remove()
    later = [getattr(model, name, None) for name in ("hier_encoder", "postencoder")]

    def run() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            encoded, lengths, *_ = model.encoder(*inputs, **named)
            encoded = encoded[0] if isinstance(encoded, tuple) else encoded  # beside those of the layers between
            for encoder in filter(None, later):
                encoded, lengths, *_ = encoder(encoded, lengths)
            return encoded, lengths

    return run

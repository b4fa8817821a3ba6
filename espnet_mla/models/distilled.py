"""A model that learns from another one, frozen, what that one makes of the same speech; no transcript is needed."""

import importlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
from espnet2.legacy.nets.pytorch_backend.transformer.add_sos_eos import add_sos_eos
from espnet2.s2t.espnet_ctc_model import ESPnetS2TCTCModel
from espnet2.s2t.espnet_model import ESPnetS2TModel
from espnet2.slu.espnet_model import ESPnetSLUModel
from espnet2.st.espnet_model import ESPnetSTModel
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_mla.attention import attention_context
from espnet_mla.common.errors import UserError
from espnet_mla.models.decoder import TransformerDecoder
from espnet_mla.models.encoding import (
    DEFAULT_PROMPT,
    Encoded,
    Prompt,
    attended,
    batch_inputs_of,
    encode,
    prefix_of,
    source_of,
)
from espnet_mla.models.look_ahead import LookAheadChunks

DIVERGENCE = 5.0
"""Weight of a divergence against a relative squared error."""


class Heard(NamedTuple):
    """What a model makes of a batch.

    Args:
        encoded: by its encoders.
        blocks: of each block of the first encoder its output, (batch, time, d).
        ctc: log posteriors of each CTC, (batch, time, vocabulary), and frames of each utterance, (batch,).
        source: what a first decoder is given, see `espnet_mla.models.encoding.source_of`.
        decoder_blocks: of each block of the decoder its output, (batch, tokens, d); none without `text`.
        decoder: log posteriors of the tokens, (batch, tokens, vocabulary); None without `text`.
        tokens: of each utterance, <sos> among them, (batch,); None without `text`.
        text: what the decoder was given, (batch, tokens), and lengths, (batch,); None where it was given nothing.
    """

    encoded: Encoded
    blocks: list[Tensor]
    ctc: dict[str, tuple[Tensor, Tensor]]
    source: list[Tensor] | None
    decoder_blocks: list[Tensor]
    decoder: Tensor | None
    tokens: Tensor | None
    text: tuple[Tensor, Tensor] | None


class Distilled(AbsESPnetModel):
    """What makes one of ESPnet's models learn to be like a teacher: `model: distilled` in a configuration.

    The loss is the mean over the encoder's blocks of the relative squared error of their outputs, the same of the
    encoder's output, and `divergence` times the Kullback-Leibler divergence of the CTC posteriors from the teacher's
    (Hinton et al., arXiv 1503.02531, at temperature 1; the outputs' errors as in X-EcoMLA, arXiv 2503.11132).
    The same of the decoder's blocks and of its posteriors is added over a text: the one that is given, a transcript or
    what the teacher has recognised (sequence-level distillation, Kim and Rush, arXiv 1606.07947); else, of speech
    recognition and spoken language understanding, the teacher's most probable CTC labels. With a transcript `labels`
    times the loss that ESPnet trains with is added, too.

    Both hear the same: no dropout, no SpecAugment, the chunks of inference, and normalisation by batch with the
    statistics that are there.

    Args:
        teacher: its model file; read when the training begins, decoding does without it.
        teacher_config: its configuration; None for config.yaml beside the model file.
        divergence: weight of the divergences.
        labels: weight of ESPnet's own loss.
        lang_sym: language of the speech, for OWSM-CTC, whose encoder is told, where the batch does not say it.
        task_sym: what is to be done with it.
        **conf: of ESPnet's model.
    """

    task: ClassVar[tuple[str, str]]
    """Of the model: a module in espnet2.tasks, and the class there."""
    token_list: list[str]

    def __init__(
        self,
        *,
        teacher: str,
        teacher_config: str | None = None,
        divergence: float = DIVERGENCE,
        labels: float = 0.0,
        lang_sym: str = DEFAULT_PROMPT.lang_sym,
        task_sym: str = DEFAULT_PROMPT.task_sym,
        **conf: Any,
    ) -> None:
        super().__init__(**conf)
        self.prompt = Prompt(lang_sym, task_sym)
        self.teacher_file, self.divergence, self.labels = Path(teacher), divergence, labels
        self.teacher_config = Path(teacher_config) if teacher_config else self.teacher_file.with_name("config.yaml")
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in inference mode, whatever is asked for."""
        self.learning = mode
        return super().train(False)

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor | None = None,
        text_lengths: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss, as ESPnet's trainer takes it.

        Args:
            speech: (batch, samples).
            speech_lengths: (batch,).
            text: (batch, tokens), or None.
            text_lengths: (batch,), or None.
            kwargs: what else ESPnet gives, for its own loss; the prompts of OWSM-CTC among them.

        Returns:
            The loss; the figures that are logged; the number of utterances.
        """
        speech = speech[:, : speech_lengths.max()]
        with torch.no_grad():
            wanted = heard(self.teacher(), speech, speech_lengths, text, text_lengths, self.prompt, kwargs)
        got = heard(self, speech, speech_lengths, text, text_lengths, self.prompt, kwargs, wanted)
        stats = losses(got, wanted)
        loss = total(stats, self.divergence)
        if self.labels and text is not None:
            stats["labels"], espnets = self._with_labels(speech, speech_lengths, text, text_lengths, **kwargs)
            stats = espnets | stats
            loss = loss + self.labels * stats["labels"]
        if torch.isnan(loss):
            raise UserError("the loss of distillation is not a number (NaN): a lower learning rate may help")
        stats |= {"loss": loss}
        detached = {name: one.detach() if isinstance(one, Tensor) else one for name, one in stats.items()}
        return force_gatherable((loss, detached, len(speech)), loss.device)

    def _with_labels(self, *batch: Tensor | None, **others: Any) -> tuple[Tensor, dict[str, Any]]:
        """ESPnet's loss, and its figures, the accuracy among them by which it chooses the best model."""
        calculators = {name: value for name, value in self.__dict__.items() if name.endswith("error_calculator")}
        if self.learning:  # it decodes for its error rates what is no training
            self.__dict__.update(dict.fromkeys(calculators))
        try:
            loss, stats, _ = super().forward(*batch, **others)
        finally:
            self.__dict__.update(calculators)
        return loss, stats

    def teacher(self) -> AbsESPnetModel:
        """The teacher, which is no part of this model's state.

        Raises:
            UserError: it is not there, or has other tokens.
        """
        if "_teacher" not in self.__dict__:
            module, name = self.task
            task = getattr(importlib.import_module(f"espnet2.tasks.{module}"), name)
            for file in (self.teacher_file, self.teacher_config):
                if not file.is_file():
                    raise UserError(f"model_conf: teacher: {self.teacher_file}: {file} does not exist")
            logging.info(f"Teacher: {self.teacher_file}")
            device = next(self.parameters()).device
            model, _ = task.build_model_from_file(self.teacher_config, self.teacher_file, str(device))
            if model.token_list != self.token_list:
                raise UserError(f"model_conf: teacher: {self.teacher_file} has another token_list than this model")
            # Not by nn.Module's way, which would make it a part of what is saved and optimised.
            self.__dict__["_teacher"] = model.to(next(self.parameters()).dtype).eval().requires_grad_(False)
        return self.__dict__["_teacher"]


class DistilledASRModel(Distilled, ESPnetASRModel):
    """ESPnet's model for speech recognition that learns from a teacher."""

    task = ("asr", "ASRTask")


class DistilledSLUModel(Distilled, ESPnetSLUModel):
    """ESPnet's model for spoken language understanding that learns from a teacher."""

    task = ("slu", "SLUTask")


class DistilledS2TModel(Distilled, ESPnetS2TModel):
    """ESPnet's model for speech to text with prompts (OWSM) that learns from a teacher."""

    task = ("s2t", "S2TTask")


class DistilledS2TCTCModel(Distilled, ESPnetS2TCTCModel):
    """ESPnet's model for speech to text by CTC with prompts (OWSM-CTC) that learns from a teacher."""

    task = ("s2t_ctc", "S2TTask")


class DistilledSTModel(Distilled, ESPnetSTModel):
    """ESPnet's model for speech translation that learns from a teacher."""

    task = ("st", "STTask")


DISTILLED = {model.task[0]: model for model in (
    DistilledASRModel, DistilledSLUModel, DistilledS2TModel, DistilledS2TCTCModel, DistilledSTModel,
)}  # fmt: skip
"""By the names of ESPnet's tasks."""


def heard(
    model: AbsESPnetModel,
    speech: Tensor,
    speech_lengths: Tensor,
    text: Tensor | None,
    text_lengths: Tensor | None,
    prompt: Prompt = DEFAULT_PROMPT,
    told: Mapping[str, Any] = MappingProxyType({}),
    teachers: Heard | None = None,
) -> Heard:
    """What a model makes of a batch; the shapes are those of `Distilled.forward`.

    Args:
        told: what else ESPnet gives.
        teachers: of the teacher, whose `source` is taken, and without a text its `text`.
    """
    inputs = batch_inputs_of(model, speech, speech_lengths, prompt)
    inputs |= {name: told[name] for name in inputs.keys() & told.keys()}
    with _outputs(model.encoder.encoders) as blocks:
        encoded = encode(model, inputs)
    ctc = {}
    for name, of in ctc_inputs(model, encoded).items():
        ctc[name] = getattr(model, name).log_softmax(of[0]), of[1]
    decoder = getattr(model, "decoder", None)
    given = teachers.text if teachers else None
    if text is not None and text_lengths is not None:
        given = text, text_lengths
    elif not teachers and ctc and isinstance(model, ESPnetASRModel):
        given = recognised(*ctc["ctc"], model.blank_id)
    if given is None or not isinstance(decoder, TransformerDecoder):
        return Heard(encoded, blocks, ctc, None, [], None, None, None)
    text, text_lengths = given
    ignored = model.tgt_ignore_id if isinstance(model, ESPnetSTModel) else model.ignore_id
    text = text[:, : text_lengths.max()]
    if language := prefix_of(model)[1:]:
        text, text_lengths = nn.functional.pad(text, (1, 0), value=language[0]), text_lengths + 1
    tokens, _ = add_sos_eos(text.masked_fill(text == -1, ignored), model.sos, model.eos, ignored)
    source = teachers.source if teachers else source_of(model, encoded)
    with _outputs(decoder.decoders) as decoder_blocks:
        scores, _ = decoder(*attended(model, encoded, source), tokens, text_lengths + 1)
    return Heard(encoded, blocks, ctc, source, decoder_blocks, scores.log_softmax(-1), text_lengths + 1, given)


def recognised(posteriors: Tensor, lengths: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """The most probable labels of frames, as ESPnet gives a batch of texts: (batch, tokens), -1 behind, and (batch,).

    Args:
        posteriors: log posteriors of CTC, (batch, time, vocabulary).
        lengths: frames of each utterance, (batch,).
        blank: id of CTC's blank.
    """
    best = posteriors.argmax(-1)
    new = best != nn.functional.pad(best, (1, 0), value=blank)[:, :-1]
    kept = (best != blank) & new & _mask(lengths, best)
    texts = [ids[keep] for ids, keep in zip(best, kept, strict=True)]
    return nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-1), kept.sum(-1)


def ctc_inputs(model: AbsESPnetModel, encoded: Encoded) -> dict[str, tuple[Tensor, Tensor]]:
    """What each CTC of a model is given, by its name: the output of an encoder, and lengths.

    A model for translation may have two: `ctc`, of the language that is spoken, over the first encoder's output, and
    `st_ctc`, of the translation, over the last one's, or the first one's where its postencoder shortens that
    (`return_int_enc`).
    """
    first, last = encoded[:2], encoded[2:]
    found = {"ctc": last}
    if isinstance(model, ESPnetSTModel):
        found = {"ctc": first, "st_ctc": first if getattr(model.postencoder, "return_int_enc", False) else last}
    return {name: given for name, given in found.items() if getattr(model, name, None) is not None}


@contextmanager
def _outputs(blocks: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """The list that outputs of the blocks are put into while they run."""
    found: list[Tensor] = []

    def hook(_block: nn.Module, _inputs: tuple, output: Any) -> None:
        while isinstance(output, tuple):  # with masks, and with positions
            output = output[0]
        context = attention_context()
        found.append(context.frames(output) if isinstance(context, LookAheadChunks) else output)

    handles = [block.register_forward_hook(hook) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def losses(got: Heard, wanted: Heard) -> dict[str, Tensor]:
    """The parts of the loss: relative squared errors and, where there are such posteriors, divergences (`kl_...`)."""
    of, to = got.encoded, wanted.encoded
    parts = {"blocks": _mean_error(got.blocks, wanted.blocks, _mask(to.first_lengths, to.first))}
    parts["output"] = relative_error(of.output, to.output, _mask(to.lengths, to.output))
    for name, (posteriors, lengths) in wanted.ctc.items():
        parts[f"kl_{name}"] = divergence(got.ctc[name][0], posteriors, _mask(lengths, posteriors))
    if got.decoder is not None and wanted.decoder is not None and wanted.tokens is not None:
        tokens = _mask(wanted.tokens, wanted.decoder)
        parts["decoder_blocks"] = _mean_error(got.decoder_blocks, wanted.decoder_blocks, tokens)
        parts["kl_decoder"] = divergence(got.decoder, wanted.decoder, tokens)
    return parts


def _mask(lengths: Tensor, of: Tensor) -> Tensor:
    """The places (batch, time) that are no padding."""
    return ~make_pad_mask(lengths, maxlen=of.shape[1]).to(of.device)


def total(parts: dict[str, Tensor], divergence: float) -> Tensor:
    """The loss of its parts, the divergences weighted."""
    return torch.stack([one * divergence if name.startswith("kl_") else one for name, one in parts.items()]).sum()


def _mean_error(got: list[Tensor], wanted: list[Tensor], mask: Tensor) -> Tensor:
    return torch.stack([relative_error(*pair, mask) for pair in zip(got, wanted, strict=True)]).mean()


def relative_error(got: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """||got - wanted||^2 / ||wanted||^2 over the places (batch, time) where the mask is true."""
    got, wanted = got[mask].float(), wanted[mask].float()
    return (got - wanted).square().sum() / wanted.square().sum().clamp_min(torch.finfo(torch.float).tiny)


def divergence(got: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """The mean over the places of the mask of KL(wanted || got); both are log posteriors, (batch, time, vocabulary)."""
    got, wanted = got[mask].float(), wanted[mask].float()
    return (wanted.exp() * (wanted - got)).sum(-1).mean()

"""MHA, GQA, MLA, MTLA and linear attention as choices in ESPnet's configuration.

Importing this package is light; `register()` and `from_pretrained()` bring in ESPnet.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from espnet2.bin.asr_inference import Speech2Text

    from espnet_mla.streaming.pool import StreamPool as StreamPool
    from espnet_mla.streaming.recogniser import StreamingSpeech2Text as StreamingSpeech2Text
    from espnet_mla.trained.words import Word

__version__ = "0.1.0"


def register() -> None:
    """Put the encoders with the choice of an attention behind ESPnet's own names; see `espnet_mla.plugin`."""
    from espnet_mla.plugin import register as register_in_espnet

    register_in_espnet()


def from_pretrained(source: str | os.PathLike[str], **options: Any) -> "Speech2Text":
    """Load a trained model: `text, *_ = from_pretrained("exp/asr_tiny")(samples)[0]`.

    Args:
        source: an archive of stage 14 (.zip), which is unpacked below ~/.cache/espnet_mla; a folder, either such an
            archive unpacked or an experiment; or owner/name on the Hugging Face hub.
        inference_asr_model: of an experiment, the file of the model; default valid.acc.ave.pth. Of another task also by
            the name that its recipe has: inference_s2t_model, ...
        cache_dtype: in what caches are kept, those of decoding and of streams: float32, bfloat16, int8 or int4; default
            as they are computed.
        options: of ESPnet's recogniser for the model's task: device, beam_size, ctc_weight, ...

    Returns:
        That recogniser: of speech recognition ESPnet's Speech2Text. It takes the samples of one utterance, (time,) at
        the model's sampling rate, and returns [(text, tokens, token ids, hypothesis), ...], the best one first.

    Raises:
        UserError: the source is not there, is none of these, or was packed by a newer espnet_mla.
    """
    from espnet_mla.trained.pretrained import from_pretrained as load

    return load(source, **options)


def words(speech2text: "Speech2Text", samples: "np.ndarray", hypothesis: tuple) -> "list[Word]":
    """The words of a hypothesis, when they were spoken, and how sure they are.

    ::

        best = speech2text(samples)[0]
        for word in espnet_mla.words(speech2text, samples, best):
            print(word.start, word.end, word.text, word.confidence)

    Args:
        speech2text: of `from_pretrained`, of a model for speech recognition with a CTC branch.
        samples: that it has heard, (time,).
        hypothesis: one of those that it has returned.

    Returns:
        Those of the text, by its alignment to CTC's posteriors; none where CTC can't spell it in so few frames.

    Raises:
        UsageError, which is a ValueError: the model has no CTC branch.
    """
    from espnet_mla.trained.words import words_of

    return words_of(speech2text, samples, hypothesis)


def __getattr__(name: str) -> object:
    """`StreamingSpeech2Text` and `StreamPool`, which bring in ESPnet, only when they are asked for."""
    if name == "StreamingSpeech2Text":
        from espnet_mla.streaming.recogniser import StreamingSpeech2Text

        return StreamingSpeech2Text
    if name == "StreamPool":
        from espnet_mla.streaming.pool import StreamPool

        return StreamPool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

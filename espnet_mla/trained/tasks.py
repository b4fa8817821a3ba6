"""Which of ESPnet's tasks a configuration is of, and what a model of speech recognition takes."""

from collections.abc import Mapping
from typing import Any

from espnet_mla.common.errors import UserError

OTHERS: tuple[tuple[str, str], ...] = (
    # Those that have the keys of others besides stand before these.
    ("s2st_type", "speech-to-speech translation (S2ST)"),
    ("model_name", "speech-to-speech translation (PS2ST)"),
    ("discrete_feats_extract", "text to speech from discrete tokens (TTS2)"),
    ("svs", "singing voice synthesis (SVS)"),
    ("tts", "text to speech (TTS)"),
    ("extra_asr_decoder", "speech translation (ST)"),
    ("postdecoder", "spoken language understanding (SLU)"),
    ("src_token_list", "machine translation (MT)"),
    ("extractor", "target speaker extraction (TSE)"),
    ("separator", "speech enhancement or separation (ENH)"),
    ("label_aggregator", "speaker diarisation (DIAR)"),
    ("lang2utt", "language identification (LID)"),
    ("spk2utt", "speaker recognition (SPK)"),
    ("lm", "language modelling (LM)"),
    ("codec", "speech coding (CODEC)"),
    ("quantizer", "speech tokenisation"),
    ("segmenter", "unsupervised speech recognition (UASR)"),
    ("pred_masked_weight", "self-supervised learning (HuBERT)"),
    ("window_shift", "self-supervised learning (SSL)"),
    ("beats_teacher_ckpt_path", "audio tokenisation (BEATs)"),
    ("waveform_input", "self-supervised learning (BEATs)"),
    ("universa", "speech quality assessment (AQA)"),
    ("vocoder_type", "the vocoder of speech restoration (RST)"),
    ("ssl_encoder", "speech restoration (RST)"),
    ("joint_network_conf", "the transducers of espnet2.bin.asr_transducer_train"),
    ("promptencoder", "speech to text by CTC with prompts (S2T-CTC)"),
)
"""A key that only a configuration of another task has, and that task."""

_S2T = ("s2t", "s2t_ctc")
"""Values of `preprocessor` of ESPnet's speech-to-text models (OWSM), whose keys are otherwise those of ASR."""

_NEEDED = ("encoder", "ctc_conf", "token_list")
"""Keys of every configuration of speech recognition."""

_OF_AUDIO = ("whisper", "wav2vec2", "hubert", "hubert_pretrain", "torchaudiohubert", "beats")
"""Encoders that extract their features themselves."""


def task_of(config: Mapping[str, Any]) -> str | None:
    """The task of a configuration, in words; None where it is speech recognition."""
    if "subtask_series" in config:  # speech enhancement before recognition, translation or diarisation
        return None if "asr" in (config["subtask_series"] or []) else "speech enhancement before another task"
    if config.get("preprocessor") in _S2T:
        return "speech to text with prompts (S2T)"
    found = next((task for key, task in OTHERS if key in config), None)
    missing = [key for key in _NEEDED if key not in config]
    return found or (f"another task: its configuration has no {missing[0]}" if missing else None)


def check(config: Mapping[str, Any], name: object) -> None:
    """Refuse a model of another task.

    Raises:
        UserError: it is one.
    """
    if task := task_of(config):
        raise UserError(f"{name} is a model for {task}: only models for speech recognition (ASR) are taken")


def check_speakers(config: Mapping[str, Any], name: object, options: Mapping[str, Any]) -> None:
    """Refuse a model of several speakers' speech that is not loaded as one.

    Raises:
        UserError: options of ESPnet's Speech2Text do not say so, or say so of another model.
    """
    enhancing = "subtask_series" in config
    several = not enhancing and (
        config.get("model") == "pit_espnet" or config.get("encoder") == "transformer_multispkr"
    )
    for option, needed, what in (
        ("enh_s2t_task", enhancing, "separates or enhances speech before it recognises it (subtask_series)"),
        ("multi_asr", several, "recognises several speakers at once (model: pit_espnet)"),
    ):
        if needed and not options.get(option):
            raise UserError(f"{name} {what}: espnet_mla.from_pretrained takes it with {option}=True")
        if options.get(option) and not needed:
            raise UserError(f"{name}: {option}=True: this model is none that {what}")


def takes_audio(config: Mapping[str, Any]) -> bool:
    """Whether a model takes audio, rather than features that were extracted before.

    It has a frontend where ESPnet is not told the size of the features. Without one, an input of size 1 is audio, and
    some encoders, such as Whisper's, take audio whatever that size says.
    """
    return config.get("input_size") in (None, 1) or config.get("encoder") in _OF_AUDIO


def check_audio(config: Mapping[str, Any], name: object) -> None:
    """Refuse a model of features.

    Raises:
        UserError: it takes features.
    """
    if not takes_audio(config):
        raise UserError(
            f"{name}: input_size: {config['input_size']}, frontend: null: this model takes features, here only audio "
            "is read"
        )


def check_g2p(config: Mapping[str, Any], name: object) -> None:
    """Refuse a configuration whose text can't be made phonemes here.

    Raises:
        UserError: token_type: phn has a g2p that ESPnet does not know, or whose package is not installed.
    """
    g2p = config.get("g2p")
    if config.get("token_type") != "phn" or g2p is None:
        return
    from espnet2.text.phoneme_tokenizer import PhonemeTokenizer

    try:
        PhonemeTokenizer(g2p)
    except Exception as error:  # whatever the packages raise that it needs
        raise UserError(f"{name}: token_type: phn, g2p: {g2p}: {' '.join(str(error).split())}") from None

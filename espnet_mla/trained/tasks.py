"""ESPnet's tasks: which one a configuration is of, and the names that its models, programs and archives have there."""

import argparse
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from espnet_mla.common.errors import UserError

if TYPE_CHECKING:
    from espnet2.tasks.abs_task import AbsTask


@dataclass(frozen=True)
class Task:
    """One of ESPnet's tasks whose models are taken here.

    Args:
        name: of the module in espnet2.tasks.
        title: in words.
        task: its class there.
        key: of its options, its archives' members (`<key>_train_config`), and its program, espnet2.bin.<key>_inference.
        recogniser: the class there that decodes.
        attribute: of `<attribute>_model` and `<attribute>_train_args` of that class.
        audio: whether it takes audio.
    """

    name: str
    title: str
    task: str
    key: str
    recogniser: str = "Speech2Text"
    attribute: str = ""
    audio: bool = True

    def task_class(self) -> "type[AbsTask]":
        """ESPnet's class that builds its models."""
        return getattr(importlib.import_module(f"espnet2.tasks.{self.name}"), self.task)

    @property
    def program(self) -> str:
        """ESPnet's program that decodes with its models."""
        return f"espnet2.bin.{self.key}_inference"

    def parser(self) -> argparse.ArgumentParser:
        """Of that program's options."""
        return importlib.import_module(self.program).get_parser()

    def recogniser_class(self) -> type:
        """ESPnet's class that decodes with a model of it: `Speech2Text` and its like."""
        return getattr(importlib.import_module(self.program), self.recogniser)

    @property
    def config_key(self) -> str:
        """Of its model's configuration, among options and in archives."""
        return f"{self.key}_train_config"

    @property
    def model_key(self) -> str:
        """Of its model's parameters, among options and in archives."""
        return f"{self.key}_model_file"

    def model_of(self, recogniser: Any) -> Any:
        """The model that decodes."""
        return getattr(recogniser, f"{self.attribute or self.key}_model")

    def decode(self, recogniser: Any, samples: Any) -> list[tuple]:
        """What a recogniser hears: a hypothesis each, (text, tokens, ids, ..., hypothesis), the best one first."""
        results = recogniser(samples)
        # With those of the encoder's layers between, or of the decoder of the source language.
        return results[0] if isinstance(results, tuple) else results

    def text_of(self, hypothesis: tuple) -> str:
        """The text of what `decode` returns, without the symbols of language, task and times."""
        return hypothesis[3 if self.key == "s2t" else 0]

    def config_of(self, recogniser: Any) -> dict[str, Any]:
        """The configuration of the model that decodes."""
        return vars(getattr(recogniser, f"{self.attribute or self.key}_train_args"))


ASR = Task("asr", "speech recognition (ASR)", "ASRTask", "asr")
ST = Task("st", "speech translation (ST)", "STTask", "st")
SLU = Task("slu", "spoken language understanding (SLU)", "SLUTask", "slu", "Speech2Understand", "asr")
MT = Task("mt", "machine translation (MT)", "MTTask", "mt", "Text2Text", audio=False)
S2T = Task("s2t", "speech to text with prompts (S2T)", "S2TTask", "s2t")
S2T_CTC = Task("s2t_ctc", "speech to text by CTC with prompts (S2T-CTC)", "S2TTask", "s2t")
TASKS = (ASR, ST, SLU, MT, S2T, S2T_CTC)

KEYS = tuple(dict.fromkeys(task.key for task in TASKS))
"""Of options and archives: asr of --asr_train_config, ..."""

# A key that only a configuration of one task has, and that task: a `Task`, or one whose models are not taken, in words.
# Those that have the keys of others besides stand before these.
MARKS: tuple[tuple[str, Task | str], ...] = (
    ("s2st_type", "speech-to-speech translation (S2ST)"),
    ("model_name", "speech-to-speech translation (PS2ST)"),
    ("discrete_feats_extract", "text to speech from discrete tokens (TTS2)"),
    ("svs", "singing voice synthesis (SVS)"),
    ("tts", "text to speech (TTS)"),
    ("extra_asr_decoder", ST),
    ("postdecoder", SLU),
    ("src_token_list", MT),
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
    ("promptencoder", S2T_CTC),
)

_S2T = {"s2t": S2T, "s2t_ctc": S2T_CTC}
"""Values of `preprocessor` of ESPnet's speech-to-text models (OWSM), whose keys are otherwise those of ASR."""

_NEEDED = ("encoder", "ctc_conf", "token_list")
"""Keys of every configuration of a task of speech that is taken."""

_OF_AUDIO = ("whisper", "wav2vec2", "hubert", "hubert_pretrain", "torchaudiohubert", "beats")
"""Encoders that extract their features themselves."""


def task_of(config: Mapping[str, Any], name: object) -> Task:
    """The task that a configuration is of.

    Args:
        config: of a training.
        name: of it, for the message.

    Raises:
        UserError: it is of a task whose models are not taken.
    """
    found: Task | str | None
    if "subtask_series" in config:  # speech enhancement before recognition, translation or diarisation
        found = ASR if "asr" in (config["subtask_series"] or []) else "speech enhancement before another task"
    elif config.get("preprocessor") in _S2T:
        found = _S2T[config["preprocessor"]]
    else:
        found = next((task for key, task in MARKS if key in config), None)
        missing = [key for key in _NEEDED if key not in config]
        found = found or (f"another task: its configuration has no {missing[0]}" if missing else ASR)
    if isinstance(found, str):
        taken = ", ".join(task.title for task in TASKS)
        raise UserError(f"{name} is a model for {found}: only models for {taken} are taken")
    return found


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


def check_features(config: Mapping[str, Any], name: object) -> None:
    """Refuse a model of features.

    Raises:
        UserError: it takes features.
    """
    if task_of(config, name).audio and not takes_audio(config):
        raise UserError(
            f"{name}: input_size: {config['input_size']}, frontend: null: this model takes features, here only audio "
            "is read"
        )


def check_audio(config: Mapping[str, Any], name: object) -> None:
    """Refuse a model that does not take audio alone.

    Raises:
        UserError: it takes features, text, or a transcript besides the audio.
    """
    task, elsewhere = task_of(config, name), "here only audio is read (espnet_mla.from_pretrained takes it)"
    if not task.audio:
        raise UserError(f"{name} is a model for {task.title}, which takes text; {elsewhere}")
    check_features(config, name)
    if (postdecoder := config.get("postdecoder")) is not None:
        raise UserError(
            f"{name}: postdecoder: {postdecoder}: this model takes a transcript besides the audio; {elsewhere}"
        )


def window_of(config: Mapping[str, Any], name: object) -> float | None:
    """Seconds to which a model has its speech padded or cut, as OWSM; None where it takes speech of any length."""
    if task_of(config, name) is not S2T:
        return None
    return float((config.get("preprocessor_conf") or {}).get("speech_length", 30))


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

"""A model of another task, of features or of several speakers is named as what it is, not by a traceback."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import espnet2.tasks
import pytest
import yaml
from espnet2.tasks.abs_task import AbsTask
from experiment import add_model, samples

import espnet_mla
from espnet_mla.common.errors import UserError
from espnet_mla.convert import calibration
from espnet_mla.trained import tasks, transcribe
from espnet_mla.trained.model import find

NAMES = {
    "tts": "(TTS)", "gan_tts": "(TTS)", "tts2": "(TTS2)", "svs": "(SVS)",
    "gan_svs": "(SVS)", "enh": "(ENH)", "enh_tse": "(TSE)", "diar": "(DIAR)", "lm": "(LM)",
    "lid": "(LID)", "spk": "(SPK)", "s2st": "(S2ST)", "ssl": "(SSL)",
    "uasr": "(UASR)", "asr_transducer": "espnet2.bin.asr_transducer_train",
}  # fmt: skip
"""What the message calls a model of a task that is not taken; of others it need only be refused."""


def espnets_tasks() -> dict[str, type[AbsTask]]:
    found = {}
    for module in pkgutil.iter_modules(espnet2.tasks.__path__):
        for task in vars(importlib.import_module(f"espnet2.tasks.{module.name}")).values():
            if (
                isinstance(task, type)
                and issubclass(task, AbsTask)
                and task.__module__ == f"espnet2.tasks.{module.name}"
            ):
                found[module.name] = task
    return found


TASKS = {name: task for name, task in espnets_tasks().items() if name != "abs_task"}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_of_espnets_is_told_from_the_others(name):
    config = TASKS[name].get_default_config()
    if name == "enh_s2t":
        config["subtask_series"] = ["enh", "st"]
    taken = {task.name: task for task in tasks.TASKS}
    if name in taken:
        assert tasks.task_of(config, "it") is taken[name]
        assert taken[name].task_class() is TASKS[name]
        assert {"beam_size", "ctc_weight"} <= tasks_options(taken[name])
        return
    with pytest.raises(UserError) as refused:
        tasks.task_of(config, "it")
    assert str(refused.value).startswith("it is a model for ") and (NAMES.get(name) or "") in str(refused.value)


def tasks_options(task: tasks.Task) -> set[str]:
    """What its recogniser and its program both take."""
    of_class = inspect.signature(task.recogniser_class()).parameters.keys()
    assert {task.config_key, task.model_key} <= of_class
    return of_class & {action.dest for action in task.parser()._actions}


def test_an_old_configuration_of_speech_recognition_is_one():
    """Of a time when it had fewer keys."""
    old = TASKS["asr"].get_default_config()
    for key in ("preprocessor", "preprocessor_conf", "model", "preencoder", "postencoder", "joint_net_conf"):
        del old[key]
    assert tasks.task_of(old, "it") is tasks.ASR


@pytest.fixture
def folder(recipe_copy):
    return recipe_copy


def change(**changed):
    path = Path("exp/asr_tiny/config.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changed))


def rebuild(**changed):
    change(**changed)
    for model in Path("exp/asr_tiny").glob("*.pth"):
        model.unlink()
    add_model(Path("exp/asr_tiny"))


WAYS = {
    "from_pretrained": lambda: espnet_mla.from_pretrained("exp/asr_tiny"),
    "profile and convert": lambda: find(None, "exp/asr_tiny/valid.acc.ave.pth", None).load(),
    "the same by --model_tag": lambda: find(None, None, "exp/asr_tiny").load(),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_refuses_another_tasks_model(way, folder):
    change(tts="fastspeech2")
    with pytest.raises(UserError, match=r"is a model for text to speech \(TTS\): only models for speech recognition"):
        WAYS[way]()


def test_transcribe_says_so_in_one_line(folder, capsys):
    change(separator="rnn")
    assert transcribe.main(["exp/asr_tiny", "speech.flac", "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert said == (
        "error: exp/asr_tiny is a model for speech enhancement or separation (ENH): only models for speech recognition "
        "(ASR), speech translation (ST), spoken language understanding (SLU), machine translation (MT), speech to text "
        "with prompts (S2T), speech to text by CTC with prompts (S2T-CTC) are taken\n"
    )


@pytest.mark.parametrize("way", WAYS)
def test_every_way_refuses_a_model_of_features(way, folder):
    rebuild(input_size=80, frontend=None, frontend_conf={}, normalize=None, normalize_conf={})
    with pytest.raises(UserError, match="input_size: 80, frontend: null: this model takes features, here only audio"):
        WAYS[way]()


@pytest.mark.parametrize("config, audio", [
    ({"frontend": "default", "input_size": None}, True),
    ({"frontend": "default"}, True),
    ({"frontend": None, "input_size": 1, "encoder": "torchaudiohubert"}, True),
    ({"frontend": None, "input_size": 80, "encoder": "whisper"}, True),
    ({"frontend": None, "input_size": 80, "encoder": "conformer"}, False),
    ({"frontend": "default", "input_size": 80, "encoder": "conformer"}, False),  # ESPnet builds no frontend then
])  # fmt: skip
def test_a_model_without_a_frontend_may_take_audio(config, audio):
    assert tasks.takes_audio(config) is audio


def test_the_model_of_several_speakers_is_loaded_as_one(folder):
    rebuild(
        encoder="transformer_multispkr", model="pit_espnet", model_conf={"num_inf": 2, "num_ref": 2, "ctc_weight": 0.3},
        encoder_conf={"output_size": 16, "num_blocks": 1, "num_blocks_sd": 1, "num_inf": 2, "attention_heads": 2},
    )  # fmt: skip
    for way in WAYS.values():
        with pytest.raises(UserError, match=r"several speakers at once .*from_pretrained takes it with multi_asr=True"):
            way()
    both = espnet_mla.from_pretrained("exp/asr_tiny", multi_asr=True, beam_size=2, maxlenratio=0.1)
    assert len(both(samples(folder))) == 2


def test_an_option_for_another_model_is_refused(folder):
    for option in ("multi_asr", "enh_s2t_task"):
        with pytest.raises(UserError, match=f"exp/asr_tiny: {option}=True: this model is none that "):
            espnet_mla.from_pretrained("exp/asr_tiny", **{option: True})
    with pytest.raises(UserError, match=r"\(subtask_series\): .* takes it with enh_s2t_task=True"):
        tasks.check_speakers({"subtask_series": ["enh", "asr"]}, "model", {})


def test_a_model_that_espnet_cannot_build_is_one_line(folder, capsys):
    change(encoder="whisper", encoder_conf={})
    assert transcribe.main(["exp/asr_tiny", "speech.flac", "--device", "cpu"]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "exp/asr_tiny: ESPnet cannot load the model: " in said[0] and "whisper" in said[0]


@pytest.mark.parametrize("g2p", ["no_such_g2p", "ice"])
def test_phonemes_that_cannot_be_made_here_are_named(g2p, folder):
    config = {"token_type": "phn", "g2p": g2p}
    with pytest.raises(UserError, match=f"config.yaml: token_type: phn, g2p: {g2p}: "):
        tasks.check_g2p(config, "config.yaml")
    model, args = find(None, None, "exp/asr_tiny").load()
    vars(args).update(config)
    with pytest.raises(UserError, match=f"g2p: {g2p}"):
        calibration.Calibration(None, {"a": "b"})._tokeniser(model, args)  # type: ignore[arg-type]
    for fine in ({"token_type": "phn", "g2p": None}, {"token_type": "bpe", "g2p": g2p}):
        tasks.check_g2p(fine, "config.yaml")

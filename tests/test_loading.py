"""One strict loader: whichever way a model is loaded, parameters that do not fit its configuration are refused."""

import contextlib
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

import espnet_mla
from espnet_mla.common.errors import UserError
from espnet_mla.streaming.recogniser import StreamingSpeech2Text
from espnet_mla.trained.model import find

MODEL = "exp/asr_tiny/valid.acc.ave.pth"


def as_decoding_program(folder):
    """Load as stage 12 does, by ESPnet's own program run through the plugin."""
    command = [
        sys.executable, "-m", "espnet_mla.run", "-m", "espnet2.bin.asr_inference", "--output_dir", "decoded",
        "--data_path_and_name_and_type", "wav.scp,speech,sound", "--asr_train_config", "exp/asr_tiny/config.yaml",
        "--asr_model_file", MODEL,
    ]  # fmt: skip
    (folder / "wav.scp").write_text("")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(done.stderr.splitlines()[-1].partition("UserError: ")[2])


WAYS = {
    "from_pretrained": lambda folder: espnet_mla.from_pretrained("exp/asr_tiny"),
    "streaming": lambda folder: StreamingSpeech2Text("exp/asr_tiny"),
    "convert and profile": lambda folder: find(None, MODEL, None).load(),
    "profile's decoding": lambda folder: find(None, MODEL, None).speech2text(),
    "stage 12": as_decoding_program,
}


@pytest.fixture
def folder(recipe, tmp_path):
    folder = tmp_path / "recipe"
    shutil.copytree(recipe, folder, symlinks=True)
    espnet_mla.register()
    with contextlib.chdir(folder):
        yield folder


def change(**encoder_conf):
    def of_folder(folder):
        path = folder / "exp/asr_tiny/config.yaml"
        config = yaml.safe_load(path.read_text())
        config["encoder_conf"] |= encoder_conf
        path.write_text(yaml.safe_dump(config))

    return of_folder


def save(parameters):
    def of_folder(folder):
        path = folder / MODEL
        state = torch.load(path)
        path.unlink()
        torch.save(parameters(state), path)

    return of_folder


WRONG = {
    "another attention": (
        change(attention_layer_type="mha", attention_conf={}),
        f"{MODEL} does not fit its configuration: it lacks encoder.encoders.0.attn.linear_k.weight and ",
    ),
    "a block more": (change(num_blocks=3), "it lacks encoder.encoders.2"),
    "a block less": (change(num_blocks=1), "it has encoder.encoders.1"),
    "another rank": (change(attention_conf={"kv_lora_rank": 4}), "size mismatch for encoder.encoders.0.attn"),
    "a training checkpoint": (
        save(lambda state: {"model": state, "optimizers": [], "reporter": {}, "schedulers": [], "scaler": None}),
        f"{MODEL} is a training checkpoint, which training resumes from: a file with parameters alone is needed",
    ),
    "no parameters": (save(lambda state: {"a": 1}), f"{MODEL} holds no model: a file with parameters alone is needed"),
    "not a number": (
        save(lambda state: state | {"ctc.ctc_lo.bias": torch.full_like(state["ctc.ctc_lo.bias"], torch.nan)}),
        f"{MODEL}: ctc.ctc_lo.bias has values that are not finite numbers",
    ),
}


@pytest.mark.parametrize("way", [way for way in WAYS if way != "stage 12"])
@pytest.mark.parametrize("wrong", WRONG)
def test_parameters_that_do_not_fit_are_refused_by_name(way, wrong, folder):
    spoil, message = WRONG[wrong]
    spoil(folder)
    with pytest.raises(UserError) as refused:
        WAYS[way](folder)
    assert message in str(refused.value)


@pytest.mark.parametrize("wrong", ["another attention", pytest.param("a training checkpoint", marks=pytest.mark.slow)])
def test_stage_12_refuses_them_too(wrong, folder):
    spoil, message = WRONG[wrong]
    spoil(folder)
    with pytest.raises(UserError) as refused:
        WAYS["stage 12"](folder)
    assert message in str(refused.value)


def test_espnet_is_left_as_it_was(folder):
    """Outside of the ways above ESPnet's own loading is not touched."""
    from espnet2.tasks.abs_task import AbsTask
    from espnet2.train.abs_espnet_model import AbsESPnetModel

    before = AbsTask.__dict__["build_model_from_file"]
    change(num_blocks=3)(folder)
    with pytest.raises(UserError):
        espnet_mla.from_pretrained("exp/asr_tiny")
    assert AbsTask.__dict__["build_model_from_file"] is before
    assert "load_state_dict" not in vars(AbsESPnetModel)

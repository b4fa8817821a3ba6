"""One strict loader: whichever way a model is loaded, parameters that do not fit its configuration are refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from espnet2.tasks import abs_task
from espnet2.tasks.asr import ASRTask

import espnet_mla
from espnet_mla.common.errors import UserError
from espnet_mla.streaming.recogniser import StreamingSpeech2Text
from espnet_mla.trained.loading import read, strict_loading
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
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        raise UserError(last.removeprefix("error: "))


WAYS = {
    "from_pretrained": lambda folder: espnet_mla.from_pretrained("exp/asr_tiny"),
    "streaming": lambda folder: StreamingSpeech2Text("exp/asr_tiny"),
    "convert and profile": lambda folder: find(None, MODEL, None).load(),
    "profile's decoding": lambda folder: find(None, MODEL, None).speech2text(),
    "stage 12": as_decoding_program,
}


@pytest.fixture
def folder(recipe_copy):
    return recipe_copy


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


@pytest.mark.parametrize("share", [0, 1e-4, 0.1, 0.5, 0.9, 0.9999])
def test_a_file_that_ends_early_is_named_as_one(share, folder):
    size = os.path.getsize(MODEL)
    os.truncate(MODEL, int(size * share))
    with pytest.raises(
        UserError, match=f"{MODEL} is no whole file of parameters that PyTorch has saved: it is "
    ) as refused:
        read(MODEL)
    assert "\n" not in str(refused.value) and "ESPNET_ALLOW" not in str(refused.value)


def test_a_file_that_holds_more_than_parameters_is_loaded_by_leave_alone(folder, monkeypatch):
    torch.save({"a": Path("a")}, "objects.pth")
    with pytest.raises(UserError, match="objects.pth holds more than parameters, .* ESPNET_ALLOW_UNSAFE_TORCH_LOAD=1"):
        read("objects.pth")
    monkeypatch.setenv("ESPNET_ALLOW_UNSAFE_TORCH_LOAD", "1")
    assert read("objects.pth") == {"a": Path("a")}


@pytest.mark.parametrize("content", [torch.zeros(1), None, 3, [1], {}])
def test_what_is_no_model_is_named(content, folder):
    os.unlink(MODEL)
    torch.save(content, MODEL)
    with pytest.raises(UserError, match=f"{MODEL} holds no model: a file with parameters alone is needed"):
        espnet_mla.from_pretrained("exp/asr_tiny")


def test_a_model_within_a_model_is_loaded_strictly_and_so_is_the_model(folder, monkeypatch):
    """As by ESPnet's frontend of self-supervised features."""
    build = ASRTask.build_model.__func__

    def with_inner(cls, args):
        if args.output_dir != "inner":
            monkeypatch.setattr(ASRTask, "build_model", classmethod(build))
            ASRTask.build_model_from_file("inner.yaml", MODEL)
        return build(cls, args)

    shutil.copy("exp/asr_tiny/config.yaml", "inner.yaml")
    change(num_blocks=3)(folder)
    monkeypatch.setattr(ASRTask, "build_model", classmethod(with_inner))
    with strict_loading(), pytest.raises(UserError, match="it lacks encoder.encoders.2"):
        ASRTask.build_model_from_file("exp/asr_tiny/config.yaml", MODEL)


ADAPTER = {"use_adapter": True, "adapter": "lora", "adapter_conf": {}}


@pytest.mark.parametrize("saved, config, message", [
    ("all", {"save_strategy": "all"}, None),
    ("trained", {"save_strategy": "all"}, "it lacks "),
    ("trained", {"save_strategy": "adapter_only"}, None),
    ("trained", {"save_strategy": "required_grad_only"}, None),
    ("frozen", {"save_strategy": "adapter_only"}, "it lacks ctc.ctc_lo.weight"),
    ("trained", {"save_strategy": "adapter_only", "init_param": ["a.pth"]}, "which save_strategy: adapter_only left out"),
])  # fmt: skip
def test_a_model_with_adapters_may_lack_what_was_not_trained_and_is_not_saved(
    saved, config, message, folder, monkeypatch
):
    """ESPnet's adapters need packages of their own: here its last layer stands for what an adapter trains."""

    def adapt(model, *_):
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("ctc.")

    monkeypatch.setattr(abs_task, "create_adapter", adapt)
    path = folder / "exp/asr_tiny/config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | ADAPTER | config))
    parts = {"all": ("",), "trained": ("ctc.",), "frozen": ("encoder.", "decoder.")}
    save(lambda state: {k: v for k, v in state.items() if k.startswith(parts[saved])})(folder)
    if message is None:
        espnet_mla.from_pretrained("exp/asr_tiny")
        return
    with pytest.raises(UserError, match=message):
        espnet_mla.from_pretrained("exp/asr_tiny")


def test_a_program_of_espnets_that_has_nothing_else_here_loads_strictly_too(folder):
    change(num_blocks=3)(folder)
    Path("wav.scp").write_text("a speech.flac\n")
    command = [
        sys.executable, "-m", "espnet_mla.run", "-m", "espnet2.bin.asr_inference_streaming", "--output_dir", "decoded",
        "--data_path_and_name_and_type", "wav.scp,speech,sound", "--asr_train_config", "exp/asr_tiny/config.yaml",
        "--asr_model_file", MODEL,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {MODEL} does not fit its configuration: it lacks encoder.encoders.2")


def test_espnet_is_left_as_it_was(folder):
    """Outside of the ways above ESPnet's own loading is not touched."""
    from espnet2.tasks.abs_task import AbsTask
    from espnet2.torch_utils.safe_torch_load import safe_torch_load
    from espnet2.train.abs_espnet_model import AbsESPnetModel

    before = AbsTask.__dict__["build_model_from_file"]
    change(num_blocks=3)(folder)
    with pytest.raises(UserError):
        espnet_mla.from_pretrained("exp/asr_tiny")
    assert AbsTask.__dict__["build_model_from_file"] is before
    assert "load_state_dict" not in vars(AbsESPnetModel)
    assert abs_task.safe_torch_load is safe_torch_load

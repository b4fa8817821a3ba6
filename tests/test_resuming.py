"""What a training can't start from is named, and what an earlier training has left stays as it was."""

import argparse
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from espnet2.tasks import abs_task
from espnet2.tasks.asr import ASRTask
from espnet2.train.reporter import Reporter
from experiment import add_variant
from recipes import environment

from espnet_mla.common.errors import UserError
from espnet_mla.trained import resuming

FOLDER = "exp/asr_tiny"
CONFIG, MODEL, CHECKPOINT = (
    f"{FOLDER}/{name}" for name in ("config.yaml", "valid.acc.ave_1best.pth", "checkpoint.pth")
)


def write_checkpoint(path=CHECKPOINT, optimiser=torch.optim.Adam, **changed):
    """What ESPnet's trainer writes after each epoch."""
    state = torch.load(MODEL)
    optimizer = optimiser([torch.nn.Parameter(torch.zeros(2)) for _ in range(3)], lr=0.1)
    parts = {"model": state, "reporter": Reporter().state_dict(), "optimizers": [optimizer.state_dict()],
             "schedulers": [None], "scaler": None}  # fmt: skip
    torch.save(parts | changed, path)


@pytest.fixture
def folder(recipe_copy):
    """A recipe in whose experiment a training was interrupted after its first epoch."""
    write_checkpoint()
    return recipe_copy


@pytest.fixture
def model(folder):
    return ASRTask.build_model_from_file(CONFIG)[0]


def resume(model, parameters=3):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2)) for _ in range(parameters)], lr=0.1)
    resuming.resume(
        checkpoint=CHECKPOINT, model=model, reporter=Reporter(), optimizers=[optimizer], schedulers=[None], scaler=None
    )


def test_a_checkpoint_that_fits_is_resumed_from(model):
    resume(model)
    saved = torch.load(MODEL)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def cut(path):
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)


SPOILT = {
    "cut": (lambda: cut(CHECKPOINT), "checkpoint.pth is no whole file of parameters"),
    "empty": (lambda: os.truncate(CHECKPOINT, 0), "checkpoint.pth is no whole file .*: it is empty"),
    "a model alone": (
        lambda: shutil.copy(MODEL, CHECKPOINT),
        "checkpoint.pth is no training checkpoint: it lacks model",
    ),
    "no mapping": (lambda: torch.save([1], CHECKPOINT), "checkpoint.pth is no training checkpoint"),
    "not finite": (
        lambda: write_checkpoint(model={"ctc.ctc_lo.bias": torch.tensor([torch.nan])}),
        "checkpoint.pth: ctc.ctc_lo.bias has values that are not finite numbers",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_checkpoint_that_cannot_be_resumed_from_is_to_be_deleted(how, model):
    spoil, message = SPOILT[how]
    spoil()
    with pytest.raises(UserError, match=f"{message}.*: delete it to train from the first epoch on$") as refused:
        resume(model)
    assert "ESPNET_ALLOW_UNSAFE" not in str(refused.value) and "\n" not in str(refused.value)


def test_the_weights_of_the_last_whole_epoch_are_offered(model):
    cut(CHECKPOINT)
    for epoch in (2, 10):
        shutil.copy(MODEL, f"{FOLDER}/{epoch}epoch.pth")
    with pytest.raises(UserError, match=r"\(--init_param exp/asr_tiny/10epoch.pth starts from its weights\)$"):
        resume(model)


@pytest.mark.parametrize("changed, message", [
    ({"num_blocks": 3}, "it lacks encoder.encoders.2"),
    ({"num_blocks": 1}, "it has encoder.encoders.1"),
    ({"output_size": 16}, "size mismatch for encoder"),
])  # fmt: skip
def test_the_checkpoint_of_another_model_is_named_as_one(changed, message, folder):
    add_variant("other", **changed)
    other = ASRTask.build_model_from_file("exp/asr_other/config.yaml")[0]
    with pytest.raises(
        UserError, match=f"checkpoint.pth is of another model than .*{message}.*another folder than exp"
    ):
        resume(other)


def test_the_checkpoint_of_another_optimiser_is_named_as_one(model):
    with pytest.raises(UserError, match="checkpoint.pth is of another optimiser than the configuration: "):
        resume(model, parameters=4)


def asr_train(**options):
    """Train on no data at all, to which no training comes that is refused."""
    config = yaml.safe_load(open(CONFIG)) | {"dry_run": False, "resume": True} | options
    known = vars(ASRTask.get_parser().parse_args([])).keys() - {"config", "required"}
    open("train.yaml", "w").write(yaml.safe_dump({name: value for name, value in config.items() if name in known}))
    command = [sys.executable, "-m", "espnet_mla.run", "-m", "espnet2.bin.asr_train", "--config", "train.yaml"]
    return subprocess.run(command, capture_output=True, text=True, env=environment())


@pytest.mark.slow
def test_a_training_with_another_optimiser_is_refused_in_one_line_and_changes_nothing(folder):
    before = open(CONFIG).read()
    optim = yaml.safe_load(before)["optim"]
    done = asr_train(optim="sgd", optim_conf={})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"error: optim: sgd: {CHECKPOINT} is of a training with optim: {optim}: a training is resumed with"
    )
    assert "Traceback" not in done.stderr and open(CONFIG).read() == before


def main_worker(monkeypatch, **options):
    """Begin a training with another option than the earlier one; what ESPnet does after it is left out."""
    config = yaml.safe_load(open(CONFIG)) | {"dry_run": False, "resume": True, "dist_rank": None} | options
    monkeypatch.setattr(resuming, "_espnet_main_worker", lambda cls, args: None)
    resuming.main_worker(ASRTask, argparse.Namespace(**config))


def test_a_training_with_other_tokens_is_refused_although_they_are_as_many(folder, monkeypatch):
    tokens = yaml.safe_load(open(CONFIG))["token_list"]
    open("tokens.txt", "w").writelines(f"{token}\n" for token in tokens)
    main_worker(monkeypatch, token_list="tokens.txt")
    open("tokens.txt", "w").writelines(f"{token}\n" for token in reversed(tokens))
    with pytest.raises(UserError, match="token_list: .*checkpoint.pth is of a model of other tokens: "):
        main_worker(monkeypatch, token_list="tokens.txt")


def test_a_model_of_the_same_shapes_but_another_configuration_is_warned_of(folder, monkeypatch, capsys):
    main_worker(monkeypatch)
    assert not capsys.readouterr().err
    main_worker(monkeypatch, decoder_conf={"attention_heads": 4})
    assert capsys.readouterr().err == f"warning: decoder_conf: not as in the training that {CHECKPOINT} is of\n"


def test_a_configuration_that_was_cut_is_written_anew(folder, monkeypatch):
    before = open(CONFIG).read()
    monkeypatch.setattr(resuming, "_espnet_main_worker", lambda cls, args: open(CONFIG, "w").write(before))
    args = argparse.Namespace(**yaml.safe_load(before) | {"dry_run": False, "resume": True, "dist_rank": None})
    open(CONFIG, "w").write("encoder: [")
    resuming.main_worker(ASRTask, args)
    assert open(CONFIG).read() == before


def test_a_refused_training_leaves_the_configuration_of_the_earlier_one(folder, monkeypatch):
    """ESPnet has written the new one by then, of which there are no models."""
    before = open(CONFIG).read()

    def refuse(cls, args):
        open(CONFIG, "w").write("encoder: other\n")
        raise UserError("refused")

    monkeypatch.setattr(resuming, "_espnet_main_worker", refuse)
    args = ASRTask.get_parser().parse_args(["--output_dir", FOLDER])
    with pytest.raises(UserError, match="refused"):
        resuming.main_worker(ASRTask, args)
    assert open(CONFIG).read() == before


def load(init_param, model, ignore_init_mismatch=False):
    resuming.load_pretrained_model(init_param, model, ignore_init_mismatch)


@pytest.mark.parametrize("init_param", [MODEL, f"{MODEL}:encoder:encoder", f"{MODEL}:::decoder.embed,ctc"])
def test_parameters_are_initialised_as_by_espnet(init_param, model, folder):
    ours, espnets = model, ASRTask.build_model_from_file(CONFIG)[0]
    espnets.load_state_dict(ours.state_dict())
    load(init_param, ours)
    abs_task.load_pretrained_model(init_param, espnets, False)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in espnets.state_dict().items())


WRONG_PARAMETERS = {
    "cut": (lambda: cut("init.pth"), "init.pth", "init.pth is no whole file of parameters"),
    "absent": (lambda: None, "absent.pth", "absent.pth cannot be read: No such file"),
    "a checkpoint": (lambda: write_checkpoint("init.pth"), "init.pth", "init.pth is a training checkpoint"),
    "not finite": (
        lambda: torch.save({"ctc.ctc_lo.bias": torch.tensor([torch.inf])}, "init.pth"),
        "init.pth", "ctc.ctc_lo.bias has values that are not finite",
    ),
    "no such source": (lambda: None, "init.pth:absent:encoder", "none of its parameters fits the model: it has "),
    "no such target": (lambda: None, "init.pth:encoder:absent", "FILE.* is needed: .*absent"),
    "other parameters": (lambda: torch.save({"a": torch.zeros(1)}, "init.pth"), "init.pth", "does not fit .*it has a, "),
}  # fmt: skip


@pytest.mark.parametrize("how", WRONG_PARAMETERS)
def test_parameters_that_cannot_be_taken_are_named_with_the_option(how, model, folder):
    shutil.copy(MODEL, "init.pth")
    spoil, init_param, message = WRONG_PARAMETERS[how]
    spoil()
    with pytest.raises(UserError, match=f"^--init_param {init_param}.*{message}"):
        load(init_param, model)


def test_parameters_of_which_none_fits_are_refused_although_a_mismatch_is_allowed(model, folder):
    torch.save({"a": torch.zeros(1), "ctc.ctc_lo.bias": torch.zeros(1)}, "init.pth")
    with pytest.raises(UserError, match="none of its parameters fits the model: it has a, the model "):
        load("init.pth", model, ignore_init_mismatch=True)
    torch.save({"a": torch.zeros(1), "ctc.ctc_lo.bias": model.ctc.ctc_lo.bias.detach() + 1}, "init.pth")
    load("init.pth", model, ignore_init_mismatch=True)

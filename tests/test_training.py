"""What the user sees of training, and what is passed to asr_train because of the machine."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from espnet_mla.common.errors import UserError
from espnet_mla.recipe import training
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse

SETS = ("--train_set", "train", "--valid_set", "dev", "--test_sets", "test")


def test_the_line_that_ends_an_epoch_is_told_in_short():
    line = (
        "[host] 2026-01-01 10:00:00,000 (trainer:397) INFO: 3epoch results: [train] iter_time=0.1, loss_ctc=20.1, "
        "loss=15.947, acc=0.1, time=1 minute and 2.5 seconds, total_count=2, [valid] loss=9.8, cer_ctc=0.3, "
        "acc=0.8, cer=nan, wer=0.9, time=1 second, total_count=1, [att_plot] time=1 second, total_count=0"
    )
    assert training.epoch_line(line) == (
        "epoch 3: train loss 15.947, valid loss 9.8, valid acc 0.8, valid cer_ctc 0.3, valid wer 0.9 "
        "(1 minute and 2.5 seconds)"
    )


def test_other_lines_of_the_log_are_not_told():
    assert training.epoch_line("INFO: 1/3epoch started") is None
    assert training.epoch_line("INFO: 1epoch:train:1-50batch: loss=3") is None


def layout(*arguments: str) -> Layout:
    return Layout(parse([*SETS, "--ngpu", "0", *arguments]))


def test_mixed_precision_is_switched_off_without_a_gpu_wherever_it_is_asked_for(tmp_path, capsys):
    conf = tmp_path / "conf.yaml"
    for text, args, asked in (("use_amp: true\n", "", True), ('use_amp: "false"\n', "", False),
                              ("max_epoch: 3\n", "--use_amp true", True), ("max_epoch: 3\n", "", False)):  # fmt: skip
        conf.write_text(text)
        at = layout("--asr_config", str(conf), "--asr_args", args)
        configuration = training.read_configuration(at)
        assert training._precision(at.settings, configuration) == (["--use_amp", "false"] if asked else [])
        assert ("use_amp" in capsys.readouterr().out) == asked
        at.settings.ngpu = 1
        assert training._precision(at.settings, configuration) == []


@pytest.fixture
def resumed(tmp_path, monkeypatch):
    """A function that checks what is asked for against a folder where `before` was trained, for some epochs."""
    monkeypatch.chdir(tmp_path)
    Path("exp/asr_a").mkdir(parents=True)

    def check(before: dict, now: dict, *arguments: str, tokens: Path | None = None) -> None:
        Path("exp/asr_a/config.yaml").write_text(yaml.safe_dump(before))
        Path("exp/asr_a/checkpoint.pth").touch()
        # How features are normalised is an option of the recipe.
        Path("a.yaml").write_text(yaml.safe_dump({key: now[key] for key in now if not key.startswith("normalize")}))
        at = layout("--asr_config", "a.yaml", "--asr_tag", "a", *arguments)
        training.check_resumed(at, training.read_configuration(at), tokens)

    return check


BEFORE = {
    "encoder": "branchformer",
    "encoder_conf": {"attention_layer_type": "mla", "attention_conf": {"kv_lora_rank": 64}, "num_blocks": 4},
    "decoder": "transformer",
    "normalize": "global_mvn",
    "normalize_conf": {"stats_file": "exp/stats/train/feats_stats.npz"},
    "frontend_conf": {"fs": "16k"},
    "optim": "adam",
    "optim_conf": {"lr": 0.002},
}


def test_a_training_goes_on_with_the_same_configuration_and_with_more_epochs(resumed):
    # A default that is written out, and what concerns the run alone, make no difference.
    resumed(BEFORE, BEFORE | {"max_epoch": 70, "accum_grad": 2, "optim_conf": {"lr": 2e-3, "betas": [0.9, 0.999]}})


@pytest.mark.parametrize(
    ("changed", "arguments", "said"),
    [
        (
            {"encoder_conf": BEFORE["encoder_conf"] | {"attention_conf": {"kv_lora_rank": 32}}},
            (),
            r"encoder_conf: attention_conf: kv_lora_rank \(64, now 32\)",
        ),
        ({"encoder": "conformer", "encoder_conf": {}}, (), r"encoder \(branchformer, now conformer\)"),
        ({"encoder_conf": BEFORE["encoder_conf"] | {"num_blocks": 6}}, (), r"encoder_conf: num_blocks \(4, now 6\)"),
        ({"optim_conf": {"lr": 0.001}}, (), r"optim_conf: lr \(0.002, now 0.001\)"),
        ({}, ("--asr_args", "--decoder_conf num_blocks=2"), r"decoder_conf: num_blocks \(6, now 2\)"),
        ({}, ("--feats_normalize", "utterance_mvn"), r"normalize \(global_mvn, now utterance_mvn\)"),
        ({}, ("--fs", "8k"), r"frontend_conf: fs \(16k, now 8k\)"),
    ],
)
def test_a_folder_with_a_training_of_another_configuration_is_refused_with_the_keys(resumed, changed, arguments, said):
    with pytest.raises(UserError, match=f"exp/asr_a holds a training of another .*--asr_tag. They differ in {said}$"):
        resumed(BEFORE, BEFORE | changed, *arguments)


def test_a_folder_with_a_training_of_other_tokens_is_refused(resumed, tmp_path):
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("<blank>\nA\n<sos/eos>\n")
    resumed(BEFORE | {"token_list": ["<blank>", "A", "<sos/eos>"]}, BEFORE, tokens=tokens)
    with pytest.raises(UserError, match="differ in token_list"):
        resumed(BEFORE | {"token_list": ["<blank>", "B", "<sos/eos>"]}, BEFORE, tokens=tokens)


def test_statistics_of_features_of_another_size_are_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("exp/stats/train").mkdir(parents=True)
    stats = Path("exp/stats/train/feats_stats.npz")
    np.savez(stats, count=np.array(1), sum=np.zeros(80), sum_square=np.zeros(80))
    given = ("--asr_stats_dir", "exp/stats", "--stage", "11", "--stop_stage", "11")
    training.check(layout(*given))
    smaller = (*given, "--asr_args", "--frontend_conf n_mels=40")
    with pytest.raises(UserError, match=r"features of 80 numbers, .* n_mels: 40 .* another --asr_stats_dir"):
        training.check(layout(*smaller))
    with pytest.raises(UserError, match="another --asr_stats_dir"):  # what was trained with them reads them
        training.check(layout(*smaller, "--stage", "10"))
    training.check(layout(*smaller, "--feats_normalize", "utterance_mvn"))
    training.check(layout(*smaller, "--asr_stats_dir", "exp/others"))
    stats.write_bytes(b"PK")
    with pytest.raises(UserError, match="feats_stats.npz can't be read: remove it, and go on with --stage 10"):
        training.check(layout(*given))

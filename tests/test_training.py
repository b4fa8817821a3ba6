"""What the user sees of training, and what is passed to asr_train because of the machine."""

from espnet_mla.recipe import training
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


def test_mixed_precision_is_switched_off_without_a_gpu(tmp_path, capsys):
    conf = tmp_path / "conf.yaml"
    conf.write_text("use_amp: true\n")
    on_cpu = parse([*SETS, "--asr_config", str(conf), "--ngpu", "0"])
    assert training._precision(on_cpu) == ["--use_amp", "false"]
    assert "use_amp" in capsys.readouterr().out
    assert training._precision(parse([*SETS, "--asr_config", str(conf), "--ngpu", "1"])) == []
    conf.write_text("max_epoch: 3\n")
    assert training._precision(on_cpu) == []

"""espnet-mla distill: a converted model learns from its original on speech alone, or stays as it was with one message."""

import contextlib
import json
import shutil
from pathlib import Path

import experiment
import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet_mla.convert import distillation
from espnet_mla.convert.command import main as convert
from espnet_mla.convert.distill_command import main as distill

SPEECH = "data/few/wav.scp"
WAYS = ("--epochs", "6", "--lr", "0.0005", "--batch_bins", "20000")


@pytest.fixture(scope="module")
def there(recipe, tmp_path_factory):
    """A recipe's folder with a model of multi-head attention, a converted one, and speech."""
    folder = tmp_path_factory.mktemp("distill") / "recipe"
    shutil.copytree(recipe, folder, symlinks=True)
    with contextlib.chdir(folder):
        experiment.add_variant("mha", attention_layer_type="mha", attention_conf={})
        rng, entries = np.random.default_rng(0), []
        for number in range(12):
            soundfile.write(f"data/{number}.flac", rng.uniform(-0.3, 0.3, 6000 + 900 * number), 16000)
            entries.append(f"u{number:02} data/{number}.flac\n")
        Path(SPEECH).parent.mkdir()
        Path(SPEECH).write_text("".join(entries))
        assert status(convert, *CONVERTED, "--output_dir", "exp/converted") == 0
    return folder


CONVERTED = ("--asr_model_file", "exp/asr_mha/valid.acc.ave.pth", "--kv_lora_rank", "2")


@pytest.fixture
def here(there, tmp_path, monkeypatch):
    shutil.copytree(there, tmp_path / "recipe", symlinks=True)
    monkeypatch.chdir(tmp_path / "recipe")
    return tmp_path / "recipe"


def status(command, *arguments):
    try:
        return command(list(arguments))
    except SystemExit as ended:  # argparse's way
        return ended.code


def record(folder):
    return json.loads((Path(folder) / "conversion.json").read_text())


def model(folder):
    return torch.load(Path(folder) / "model.pth")


def test_it_comes_nearer_to_the_original_on_speech_that_it_has_not_heard(here, capsys):
    assert status(distill, "exp/converted", "--speech", SPEECH, *WAYS) == 0
    distilled = record("exp/converted")["distillation"]
    assert distilled["loss_after"] < 0.9 * distilled["loss_before"]
    assert "epoch 6: train loss" in capsys.readouterr().out
    held_out = Path("exp/converted/distill/data/valid/wav.scp").read_text()
    assert (
        len(held_out.splitlines()) == 1 and held_out not in Path("exp/converted/distill/data/train/wav.scp").read_text()
    )
    # It is the folder of an experiment still, whose configuration names no teacher.
    assert yaml.safe_load(Path("exp/converted/config.yaml").read_text())["model"] == "espnet"
    shutil.rmtree("exp/asr_mha")
    from test_convert import heard

    assert heard("exp/converted")


def test_it_may_be_done_from_elsewhere(here, monkeypatch):
    wav_scp = "".join(f"{key} {here}/{path}\n" for key, path in map(str.split, Path(SPEECH).read_text().splitlines()))
    Path("speech.scp").write_text(wav_scp)
    monkeypatch.chdir(here.parent)
    model_file, more = "recipe/exp/asr_mha/valid.acc.ave.pth", ("--kv_lora_rank", "2", "--output_dir", "converted")
    assert status(convert, "--asr_model_file", model_file, *more) == 0
    monkeypatch.chdir(here)
    assert status(distill, "../converted", "--speech", "speech.scp", *WAYS) == 0


def test_convert_distils_in_the_same_command(here):
    assert status(convert, *CONVERTED, "--output_dir", "exp/both", "--distill", SPEECH, *WAYS) == 0
    assert record("exp/both")["distillation"]["epochs"] == 6
    assert not all(torch.equal(one, model("exp/converted")[name]) for name, one in model("exp/both").items())


@pytest.mark.slow
def test_a_run_that_was_broken_off_goes_on_to_the_same_model(here, monkeypatch):
    shutil.copytree("exp/converted", "exp/broken", symlinks=True)
    assert status(distill, "exp/converted", "--speech", SPEECH, *WAYS) == 0
    trained, epochs = distillation._Trainer.train_one_epoch.__func__, []

    def broken(cls, *arguments, **options):
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return trained(cls, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(distillation._Trainer, "train_one_epoch", classmethod(broken))
        assert status(distill, "exp/broken", "--speech", SPEECH, *WAYS) == 130
    assert "distillation" not in record("exp/broken")
    assert status(distill, "exp/broken", "--speech", SPEECH, *WAYS) == 0
    for name, weight in model("exp/broken").items():
        torch.testing.assert_close(weight, model("exp/converted")[name])


@pytest.mark.slow
def test_without_ctc_a_decoder_learns_from_what_its_originals_search_finds(here):
    config = Path("exp/asr_mha/config.yaml")
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"model_conf": {"ctc_weight": 0.0}}))
    (config.parent / "valid.acc.ave.pth").unlink()
    experiment.add_model(config.parent)
    whole = (*CONVERTED, "--modules", "encoder,decoder_self,decoder_src")
    assert status(convert, *whole, "--output_dir", "exp/alone") == 0
    assert status(distill, "exp/alone", "--speech", SPEECH, *WAYS) == 0
    assert len(Path("exp/alone/distill/data/train/hypotheses").read_text().splitlines()) == 11
    assert "kl_decoder" in Path("exp/alone/distill/train.log").read_text()


def test_a_decoder_learns_from_what_its_originals_ctc_recognises(here):
    whole = (*CONVERTED, "--modules", "encoder,decoder_self,decoder_src")
    assert status(convert, *whole, "--output_dir", "exp/whole") == 0
    assert status(distill, "exp/whole", "--speech", SPEECH, *WAYS) == 0
    assert not Path("exp/whole/distill/data/train/hypotheses").exists()
    assert "kl_decoder" in Path("exp/whole/distill/train.log").read_text()


def test_an_utterance_without_words_is_learnt_from_too(here):
    """Among those learnt from, and held out: it may be what the original recognises of noise."""
    Path("text").write_text("".join(f"u{n:02} {'' if n in (0, 11) else 'A B'}\n" for n in range(12)))
    assert status(distill, "exp/converted", "--speech", SPEECH, *WAYS, "--text", "text") == 0
    assert "kl_decoder" in Path("exp/converted/distill/train.log").read_text()


def test_transcripts_are_for_a_decoder_that_learns_or_for_labels(here, capsys):
    config = yaml.safe_load(Path("exp/converted/config.yaml").read_text())
    Path("text").write_text("".join(f"u{n:02} A B\n" for n in range(12)))
    given = ("exp/converted", "--speech", SPEECH, *WAYS, "--text", "text")
    for change, why in (
        ({"decoder": "rnn"}, "no decoder of kind transformer"),
        ({"model_conf": {"ctc_weight": 1.0}}, "no decoder (model_conf: ctc_weight: 1)"),
    ):
        Path("exp/converted/config.yaml").write_text(yaml.safe_dump(config | change))
        assert f"exp/converted/config.yaml has {why}, which alone would learn" in message(capsys, *given)


def message(capsys, *arguments, expected=1):
    capsys.readouterr()
    assert status(distill, *arguments) == expected
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_nothing_gained_leaves_the_model_as_it_was(here, capsys):
    before = model("exp/converted")
    error = message(capsys, "exp/converted", "--speech", SPEECH, "--epochs", "1", "--lr", "0.9")
    assert "gained nothing" in error and "--lr (0.9)" in error
    assert all(torch.equal(before[name], weight) for name, weight in model("exp/converted").items())
    assert "distillation" not in record("exp/converted")


def test_a_loss_that_is_not_a_number_stops_it_with_one_line(here, capsys):
    weights = model("exp/converted")
    weights["ctc.ctc_lo.bias"][0] = float("nan")
    torch.save(weights, "exp/converted/model.pth")
    error = message(capsys, "exp/converted", "--speech", SPEECH, *WAYS)
    assert error.startswith("error: ") and "NaN" in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--epochs", "0"), "--epochs 0: at least 1 is needed"),
        (("--lr", "0"), "--lr 0: more than 0"),
        (("--labels", "1"), "needs --text"),
        (("--use_amp",), "--device cuda"),
        (("--device", "tpu"), "--device tpu: valid are"),
    ],
)
def test_a_wrong_option_is_a_usage_error(here, capsys, arguments, expected):
    assert expected in message(capsys, "exp/converted", "--speech", SPEECH, *arguments, expected=2)


def test_a_conversion_without_distillation_takes_none_of_its_options(here, capsys):
    assert status(convert, *CONVERTED, "--output_dir", "exp/plain", "--epochs", "3") == 2
    assert "--epochs 3: only a distillation has it, give --distill" in capsys.readouterr().err
    assert not Path("exp/plain").exists()


def test_wrong_folders_and_wrong_speech_are_named(here, capsys):
    assert "asr_mha has no conversion.json" in message(capsys, "exp/asr_mha", "--speech", SPEECH)
    few = Path("data/two.scp")
    few.write_text("".join(Path(SPEECH).read_text().splitlines(keepends=True)[:2]))
    assert "data/two.scp has 2 utterances" in message(capsys, "exp/converted", "--speech", str(few))
    soundfile.write("data/1.flac", np.zeros(8000), 8000)
    assert "data/1.flac has 8000 Hz" in message(capsys, "exp/converted", "--speech", SPEECH)
    Path("exp/asr_mha/valid.acc.ave.pth").unlink()
    assert "exp/asr_mha/valid.acc.ave.pth does not exist" in message(capsys, "exp/converted", "--speech", SPEECH)


def test_a_second_distillation_beside_the_first_is_refused(here, capsys):
    from espnet_mla.common.lock import lock, unlock

    held = lock(Path("exp/converted/distill"))
    try:
        assert "is held by process" in message(capsys, "exp/converted", "--speech", SPEECH)
    finally:
        unlock(held)


def test_other_options_than_those_it_was_begun_with_are_named(here, capsys):
    assert status(distill, "exp/converted", "--speech", SPEECH, *WAYS) == 0
    error = message(capsys, "exp/converted", "--speech", SPEECH, *WAYS, "--lr", "0.0004")
    assert "optim_conf" in error and "distill/checkpoint.pth to begin anew" in error


def test_another_token_list_is_refused(here, capsys):
    config = yaml.safe_load(Path("exp/asr_mha/config.yaml").read_text())
    config["token_list"][4:6] = reversed(config["token_list"][4:6])
    Path("exp/asr_mha/config.yaml").write_text(yaml.safe_dump(config))
    assert "other token lists" in message(capsys, "exp/converted", "--speech", SPEECH)


def test_linear_attention_learns_from_softmax(here):
    learnt = ("--attention", "linear", "--distill", SPEECH, *WAYS, "--output_dir", "exp/linear")
    assert status(convert, *CONVERTED[:2], *learnt) == 0
    distilled = record("exp/linear")["distillation"]
    assert distilled["loss_after"] < 0.9 * distilled["loss_before"]

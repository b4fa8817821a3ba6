"""Options mean what they mean to ESPnet's asr.sh, and what cannot be done is refused by name."""

import subprocess
import sys
import time

import pytest

from espnet_mla.common import machine
from espnet_mla.common.errors import UsageError
from espnet_mla.recipe import options
from espnet_mla.recipe.options import parse

SETS = ["--train_set", "train", "--valid_set", "dev", "--test_sets", "test"]


def test_help_lists_every_option_at_once():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "espnet_mla.recipe", "--help"], capture_output=True, text=True, check=True
    )
    assert time.monotonic() - began < 1.5
    for name in [*options.BY_NAME, *options.ABSENT, *options.WITHOUT_EFFECT]:
        assert f"--{name}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 150


def test_no_option_is_in_two_tables():
    names = [*options.BY_NAME, *options.ABSENT, *options.WITHOUT_EFFECT]
    assert len(names) == len(set(names))


def test_value_follows_after_a_space_or_an_equals_sign():
    for given in (["--nbpe", "500"], ["--nbpe=500"]):
        assert parse([*SETS, *given]).nbpe == 500


def test_dash_and_underscore_are_the_same():
    assert parse(["--train-set", "a", "--valid_set", "b", "--test-sets=c d"]).test_sets == "c d"


def test_a_value_may_look_like_options():
    given = "--max_epoch 3 --optim_conf lr=0.1"
    assert parse([*SETS, "--asr_args", given]).asr_args == given


def test_the_last_of_two_values_wins():
    assert parse([*SETS, "--stage", "3", "--stage", "11"]).stage == 11


def test_unknown_option_is_named_with_the_closest():
    with pytest.raises(UsageError, match=r"--asr_confg.*--asr_config"):
        parse([*SETS, "--asr_confg", "x"])


@pytest.mark.parametrize("name, value", [("use_lm", "true"), ("num_nodes", "2"), ("use_k2", "true"),
                                         ("token_type", "whisper_en"), ("feats_type", "fbank_pitch"),
                                         ("download_model", "x/y")])  # fmt: skip
def test_what_only_upstream_has_is_refused_and_says_how_to_get_it(name, value):
    with pytest.raises(UsageError, match=rf"--{name} {value}.*ESPNET_ROOT"):
        parse([*SETS, f"--{name}", value])


def test_what_asks_for_nothing_is_accepted():
    for name, value in options.ABSENT.items():
        parse([*SETS, f"--{name}", value])
    parse([*SETS, "--lm_config", "conf/lm.yaml", "--use_lm", "false"])


@pytest.mark.parametrize("name, value, valid", [
    ("nj", "0", "at least 1"), ("nbpe", "abc", "whole number"), ("token_type", "phones", "bpe, char or word"),
    ("audio_format", "mp3", "flac, wav"), ("feats_type", "mel", "raw"),
    ("skip_train", "yes", "true and false"), ("fs", "sixteen", "16k"), ("max_wav_duration", "0.05", "min_wav_duration"),
    ("speed_perturb_factors", "0.9 x", "numbers"), ("skip_stages", "one", "whole numbers"),
    ("bpe_char_cover", "2", "at most 1"), ("min_wav_duration", "nan", "at least"), ("fs", "16", "did you mean 16k"),
    ("max_wav_duration", "inf", "not finite"), ("min_wav_duration", "-1", "at least 0"), ("stage", "inf", "whole"),
    ("speed_perturb_factors", "0.9 nan", "'nan'"), ("speed_perturb_factors", "inf", "from 0.1 to 10"),
    ("speed_perturb_factors", "-0.9", "'-0.9'"), ("speed_perturb_factors", "0", "'0'"),
    ("speed_perturb_factors", "1e0", "'1e0'"), ("speed_perturb_factors", "0.9 0.90", "each once"),
    ("skip_stages", "-1", "whole numbers"), ("skip_stages", "nan", "whole numbers"),
    ("nbpe", "99999999999999999999", "at most 2147483647"), ("bpe_char_cover", "nan", "at least"),
])  # fmt: skip
def test_wrong_value_is_named_with_what_is_valid(name, value, valid):
    with pytest.raises(UsageError) as refused:
        parse([*SETS, f"--{name}", value])
    assert f"--{name}" in str(refused.value) and value in str(refused.value) and valid in str(refused.value)


@pytest.mark.parametrize("name", ["train_set", "valid_set", "test_sets"])
def test_a_set_that_is_needed_is_asked_for(name):
    position = SETS.index(f"--{name}")
    with pytest.raises(UsageError, match=f"--{name} is required"):
        parse(SETS[:position] + SETS[position + 2 :])


def test_decoding_alone_needs_no_training_set():
    parse(["--skip_train", "true", "--test_sets", "test"])


def test_training_set_is_neither_validation_nor_test_set():
    for other in ("valid_set", "test_sets"):
        with pytest.raises(UsageError, match=other):
            parse([*SETS, f"--{other}", "train"])


def test_an_option_without_value_is_refused():
    with pytest.raises(UsageError, match="--nbpe lacks its value"):
        parse([*SETS, "--nbpe"])


def test_a_word_alone_is_refused():
    with pytest.raises(UsageError, match="'train'"):
        parse(["train"])


def test_sampling_rate_in_kilohertz_or_hertz():
    assert options.hertz("16k") == options.hertz("16000") == 16000
    assert options.hertz("22.05k") == 22050


def test_usage_error_ends_with_status_2_and_one_line():
    command = [sys.executable, "-m", "espnet_mla.recipe", "--nonsense", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown option --nonsense") and done.stderr.count("\n") == 1


def test_on_gpus_a_few_jobs_decode_on_each(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ("H100", "H100"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert parse([*SETS, "--gpu_inference", "true"]).inference_nj == 4
    assert parse([*SETS, "--gpu_inference", "true", "--inference_nj", "3"]).inference_nj == 3
    assert parse(SETS).inference_nj == machine.CORES
    monkeypatch.setattr(machine, "gpus", tuple)  # as where nothing says how many there are
    assert parse([*SETS, "--gpu_inference", "true"]).inference_nj == 2

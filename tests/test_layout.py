"""Tags and folders have the names that ESPnet's asr.sh gives them."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_mla.common.errors import UsageError
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse

SETS = ("--train_set", "train", "--valid_set", "dev", "--test_sets", "clean other")


def layout(*arguments: str) -> Layout:
    return Layout(parse([*SETS, *arguments]))


def sed(text: str, *scripts: str) -> str:
    command = ["sed", *(word for script in scripts for word in ("-e", script))]
    return subprocess.run(command, input=text + "\n", capture_output=True, text=True, check=True).stdout.rstrip("\n")


@pytest.mark.parametrize("args", ["--max_epoch 3", "--encoder_conf num_blocks=4 --optim_conf lr=0.1", "--x a/b|c"])
def test_options_of_training_are_in_the_tag_as_upstream_writes_them(args):
    suffix = sed(args, r"s/--/\_/g", "s/[ |=/]//g")
    assert layout("--asr_args", args).asr_tag == f"train_raw_bpe30{suffix}"


@pytest.mark.parametrize("args", ["--beam_size 5", "--ctc_weight=0.5 --lm_file a/b"])
def test_options_of_decoding_are_in_the_tag_as_upstream_writes_them(args):
    suffix = sed(args, r"s/--/\_/g", "s/[ |=]//g")
    assert layout("--inference_args", args).inference_tag == f"inference{suffix}_asr_model_valid.acc.ave"


@pytest.mark.parametrize("model", ["valid.acc.ave.pth", "3epoch.pth", "sub/valid.loss.best.pth"])
def test_model_is_in_the_tag_of_decoding(model):
    assert layout("--inference_asr_model", model).inference_tag.endswith(
        "_asr_model_" + sed(model, r"s/\//_/g", r"s/\.[^.]*$//g")
    )


def test_folders_of_a_librispeech_run():
    at = layout("--asr_config", "conf/branchformer_mla.yaml", "--inference_config", "conf/decode_asr.yaml",
                "--lang", "en", "--nbpe", "5000", "--speed_perturb_factors", "0.9 1.0 1.1")  # fmt: skip
    assert str(at.asr_exp) == "exp/asr_branchformer_mla_raw_en_bpe5000_sp"
    assert str(at.asr_stats_dir) == "exp/asr_stats_raw_en_bpe5000_sp"
    assert str(at.token_list) == "data/en_token_list/bpe_unigram5000/tokens.txt"
    assert at.bpemodel == "data/en_token_list/bpe_unigram5000/bpe.model"
    assert str(at.train_dir) == "dump/raw/train_sp"
    assert str(at.decode_dir("clean")) == f"{at.asr_exp}/decode_asr_asr_model_valid.acc.ave/clean"


def test_characters_need_no_bpe_model_and_no_size():
    at = layout("--token_type", "char")
    assert (at.bpemodel, str(at.token_list)) == ("none", "data/token_list/char/tokens.txt")
    assert at.asr_tag == "train_raw_char" and str(at.asr_stats_dir) == "exp/asr_stats_raw_char"


@pytest.mark.parametrize("model", ["valid.acc.ave.pth", "3epoch.pth", "sub/valid.loss.best.pth"])
def test_archive_and_folder_of_the_upload_are_named_as_upstream_names_them(model):
    at = layout("--asr_tag", "mine", "--inference_asr_model", model, "--hf_repo", "me/model")
    script = 'asr_exp=$0; inference_asr_model=$1; echo "${asr_exp}/${asr_exp##*/}_${inference_asr_model%.*}.zip"'
    upstream = subprocess.run(["bash", "-c", script, "exp/asr_mine", model], capture_output=True, text=True).stdout
    assert str(at.packed_model) == upstream.strip()
    assert str(at.hf_folder) == "exp/hf_me_model"


def test_names_given_win():
    at = layout("--asr_tag", "mine", "--asr_stats_dir", "s", "--inference_tag", "d", "--expdir", "e")
    assert (str(at.asr_exp), str(at.asr_stats_dir), at.inference_tag) == ("e/asr_mine", "s", "d")
    assert str(layout("--asr_exp", "here").asr_exp) == "here"


def test_validation_set_among_test_sets_is_decoded_from_org():
    at = layout("--test_sets", "clean dev clean")
    assert at.test_sets == ("clean",)
    assert at.decoded_sets == ("org/dev", "clean")


def test_formatted_sets_go_below_org_where_stage_4_reads_them():
    at = layout("--speed_perturb_factors", "0.9 1.0")
    assert {name: str(folder) for name, folder in at.formatted_sets.items()} == {
        "train_sp": "dump/raw/org/train_sp", "dev": "dump/raw/org/dev",
        "clean": "dump/raw/clean", "other": "dump/raw/other",
    }  # fmt: skip
    assert list(layout("--skip_train", "true").formatted_sets) == ["clean", "other"]


@pytest.mark.parametrize("given, performed", [
    ((), [1, 2, 3, 4, 5, 10, 11, 12, 13]),
    (("--stage", "3", "--stop_stage", "10"), [3, 4, 5, 10]),
    (("--skip_data_prep", "true"), [10, 11, 12, 13]),
    (("--skip_train", "true"), [1, 3, 12, 13]),
    (("--skip_eval", "true", "--stage", "5"), [5, 10, 11]),
    (("--skip_stages", "2 12"), [1, 3, 4, 5, 10, 11, 13]),
    (("--skip_stages", "3", "--skip_train", "true"), [1, 12, 13]),
    (("--stage", "13", "--skip_packing", "false"), [13, 14]),
    (("--skip_eval", "true", "--stage", "11", "--skip_upload_hf", "false"), [11, 15]),
])  # fmt: skip
def test_stages_that_are_performed(given, performed):
    assert list(layout(*given).performed) == performed


@given(st.integers(-2, 20), st.integers(-2, 20))
def test_performed_stages_lie_in_the_range_and_are_not_skipped(first, last):
    at = layout("--stage", str(first), "--stop_stage", str(last))
    assert all(first <= number <= last and number not in at.skipped for number in at.performed)


def test_resume_script_repeats_the_arguments_and_takes_more():
    arguments = (*SETS, "--asr_args", "--max_epoch 3")
    script = Layout(parse(arguments), arguments).resume_script(11)
    assert "'--max_epoch 3' --stage 11 \"$@\"; exit $?" in script


LONG = "--max_epoch 1 " * 30


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--asr_args", LONG), "put options of --asr_args into a file for --asr_config, or give --asr_tag"),
        (("--inference_args", LONG), "or give --inference_tag"),
        (("--asr_tag", "x" * 252), "give a short --asr_tag"),
        (("--asr_tag", "ö" * 126), "a name of 256 bytes, and at most 255 are possible: give a short --asr_tag"),
        (("--inference_tag", "x" * 256), "give a short --inference_tag"),
        (("--asr_exp", f"a/{'x' * 256}/b"), "give a short --asr_exp"),
        (("--lang", "x" * 250, "--asr_tag", "mine"), "give a short --lang"),
        (("--test_sets", "x" * 256), "give a short name of the set"),
        (("--asr_tag", "x" * 240, "--skip_packing", "false"), "give a short --asr_tag"),
        (("--hf_repo", f"me/{'x' * 256}", "--skip_upload_hf", "false"), "give a short --hf_repo"),
    ],
)
def test_a_name_that_no_file_system_takes_is_refused_with_the_option_that_shortens_it(arguments, option):
    with pytest.raises(UsageError, match=option):
        layout(*arguments).check_names()


def test_names_as_long_as_a_file_system_takes_are_let_pass():
    layout("--asr_tag", "x" * 251).check_names()
    layout("--asr_args", LONG, "--asr_tag", "x", "--inference_args", LONG, "--inference_tag", "y").check_names()

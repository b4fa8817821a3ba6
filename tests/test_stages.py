"""Stages run in order, and what would fail is found before any work, with the name of the file and of its maker."""

from pathlib import Path

import pytest

from espnet_mla.common.errors import UserError
from espnet_mla.recipe import stages
from espnet_mla.recipe.__main__ import main
from espnet_mla.recipe.layout import IMPLEMENTED, Layout
from espnet_mla.recipe.options import parse

SETS = ("--train_set", "train", "--valid_set", "dev", "--test_sets", "test", "--ngpu", "0")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def layout(*arguments: str) -> Layout:
    return Layout(parse([*SETS, *arguments]))


def test_every_stage_of_the_table_is_one_that_the_layout_knows():
    assert tuple(stages.STAGES) == IMPLEMENTED


@pytest.mark.parametrize("stage, file, maker", [
    (2, "data/train/wav.scp", 1), (3, "data/train_sp/wav.scp", 2), (4, "dump/raw/org/train_sp/utt2num_samples", 3),
    (5, "dump/raw/org/train_sp/text", 3), (10, "dump/raw/train_sp/wav.scp", 4), (11, "dump/raw/train_sp/wav.scp", 4),
    (12, "dump/raw/test/wav.scp", 3), (13, "dump/raw/test/text", 3), (14, "exp/asr_train_raw_bpe30_sp/config.yaml", 11),
])  # fmt: skip
def test_a_missing_input_is_named_with_the_stage_that_makes_it(stage, file, maker):
    with pytest.raises(UserError, match=f"stage {stage} needs {file}, which stage {maker} makes"):
        stages.perform(layout("--stage", str(stage), "--speed_perturb_factors", "0.9 1.0", "--skip_packing", "false"))


def test_where_the_stage_that_makes_an_input_is_skipped_the_message_says_so():
    with pytest.raises(UserError, match="stage 11 needs .*, which stage 4 makes: start with --stage 4 and do not skip"):
        stages.perform(layout("--stage", "11", "--skip_stages", "4"))


def test_stages_are_performed_in_order_and_tell_when_they_begin_and_end(monkeypatch, capsys):
    done = []

    def fake(number):
        return stages.Stage(
            lambda at: f"work {number}", lambda at: done.append(number), lambda at: {}, lambda at: Path("x")
        )

    monkeypatch.setattr(stages, "STAGES", {number: fake(number) for number in IMPLEMENTED})
    stages.perform(layout("--stage", "4", "--stop_stage", "11", "--skip_stages", "10"))
    assert done == [4, 5, 11]
    told = capsys.readouterr().out
    assert "Skipped stages: 6 7 8 9 10 14 15" in told
    assert "Stage 5: work 5" in told and "Stage 5 finished. [elapsed=0:00:00]" in told
    assert "Successfully finished. [elapsed=0s]" in told


@pytest.mark.parametrize("option", ["asr_config", "inference_config"])
def test_a_configuration_that_does_not_exist_is_found_first_and_the_others_are_listed(option):
    Path("conf").mkdir()
    Path("conf/there.yaml").write_text("max_epoch: 1\n")
    with pytest.raises(UserError, match=f"--{option} conf/absent.yaml does not exist; there are: conf/there.yaml"):
        stages.perform(layout(f"--{option}", "conf/absent.yaml"))


@pytest.mark.parametrize("which", ["asr", "inference"])
def test_a_name_too_long_for_a_folder_is_found_before_anything_is_made(which):
    with pytest.raises(UserError, match=f"--{which}_tag"):
        stages.perform(layout(f"--{which}_args", "--max_epoch 3 " * 30))
    assert not list(Path().iterdir())


def test_a_symbol_that_bpe_cannot_take_is_found_first():
    with pytest.raises(UserError, match="--bpe_nlsyms <a>,<unk>: <unk> can't be given, as BPE has it among its tokens"):
        stages.perform(layout("--bpe_nlsyms", "<a>,<unk>"))


@pytest.mark.parametrize("content, problem", [("a: [1\n", "cannot be read"), ("just words\n", "key: value")])
def test_a_configuration_that_cannot_be_read_is_found_first(content, problem):
    Path("broken.yaml").write_text(content)
    with pytest.raises(UserError, match=f"--asr_config broken.yaml .*{problem}"):
        stages.perform(layout("--asr_config", "broken.yaml"))


def test_a_gpu_that_is_not_there_is_found_first(monkeypatch):
    monkeypatch.setattr(stages, "_gpus", lambda: 0)
    with pytest.raises(UserError, match="--ngpu 1: 0 GPUs are visible; --ngpu 0 takes the CPU"):
        stages.check(layout("--ngpu", "1"))
    with pytest.raises(UserError, match="--gpu_inference true: 0 GPUs"):
        stages.check(layout("--gpu_inference", "true"))
    stages.check(layout("--ngpu", "1", "--stop_stage", "10"))


def test_outside_a_recipe_folder_stage_1_says_where_to_run():
    with pytest.raises(UserError, match=r"local/data\.sh does not exist"):
        stages.perform(layout("--stop_stage", "1"))


def test_an_error_is_one_line_and_status_1(capsys):
    assert main([*SETS, "--stage", "12"]) == 1
    assert capsys.readouterr().err.startswith("error: stage 12 needs dump/raw/test/wav.scp")


def test_text_without_words_is_left_out_of_lm_train(monkeypatch):
    monkeypatch.setattr(stages.audio, "remove_long_short", lambda *arguments: None)
    Path("text").write_text("a ONE\nb\nc TWO WORDS\n")
    Path("dump/raw/org/train").mkdir(parents=True)
    stages._remove_long_short(layout("--lm_train_text", "text"))
    assert Path("dump/raw/lm_train.txt").read_text() == "a ONE\nc TWO WORDS\n"

"""The whole recipe, by run.sh and ESPnet's own programs, on a few utterances; and data preparation on real speech."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recipes import ONE_SET, ROOT, SMALL, TRAINED, recipe_folder, run

SPEECH = ROOT.parent / "shared" / "speech"


def test_all_stages_run_and_leave_upstreams_files(trained_recipe):
    folder, stdout = trained_recipe, (trained_recipe / "stdout").read_text()
    for number in (1, 2, 3, 4, 5, 10, 11, 12, 13):
        assert f"Stage {number}: " in stdout and f"Stage {number} finished. [elapsed=" in stdout
    assert "epoch 1: train loss" in stdout

    stats, exp = folder / "exp" / "asr_stats_raw_en_bpe40", folder / "exp" / "asr_tiny"
    decoded = exp / "decode_asr_beam_size2_maxlenratio0.1_asr_model_valid.acc.ave" / "test_clean"
    tokens = (folder / "data/en_token_list/bpe_unigram40/tokens.txt").read_text().splitlines()
    shapes = (stats / "train" / "text_shape.bpe").read_text().splitlines()
    assert len(tokens) == 40 and len(shapes) == 12 and all(shape.endswith(f",{len(tokens)}") for shape in shapes)
    for made in (stats / "train" / "feats_stats.npz", stats / "logdir" / "stats.2.log", stats / "run.sh",
                 exp / "run.sh", exp / "train.log", exp / "config.yaml", exp / "valid.acc.ave.pth",
                 decoded / "token_int", decoded / "score", decoded / "logdir" / "asr_inference.1.log",
                 decoded / "logdir" / "output.1" / "1best_recog" / "text",
                 decoded / "score_wer" / "result.txt", exp / "RESULTS.md"):  # fmt: skip
        assert made.exists(), made
    keys = [line.split()[0] for line in (folder / "dump/raw/test_clean/wav.scp").read_text().splitlines()]
    assert [line.split()[0] for line in (decoded / "text").read_text().splitlines()] == keys
    assert "/test_clean|2|" in stdout
    assert not list(folder.rglob("*.partial*"))

    wrong = run(folder, None, *TRAINED, "--stage", "12", "--inference_asr_model", "99epoch.pth")
    assert wrong.returncode == 1
    assert wrong.stderr.strip() == (
        "error: stage 12 needs exp/asr_tiny/99epoch.pth, which stage 11 makes: start with --stage 11"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "teacher", ["", " --model distilled --model_conf teacher=exp/asr_tiny/valid.acc.ave.pth --model_conf labels=1"]
)
def test_a_trained_model_is_converted_scored_and_trained_on(trained_recipe, tmp_path, teacher):
    """The commands of docs/convert.md, but for the second scoring."""
    folder = Path(shutil.copytree(trained_recipe, tmp_path / "recipe", symlinks=True))
    command = [
        sys.executable, "-m", "espnet_mla.cli", "convert", "--asr_model_file", "exp/asr_tiny/valid.acc.ave.pth",
        "--kv_lora_rank", "8", "--calibration", "data/train_clean_100/wav.scp", "--output_dir", "exp/mla8",
    ]  # fmt: skip
    converted = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert converted.returncode == 0, converted.stdout + converted.stderr
    scoring = ("--stage", "12", "--stop_stage", "13", "--asr_exp", "exp/mla8", "--inference_asr_model", "model.pth")
    scored = run(folder, None, *ONE_SET, *scoring)
    assert scored.returncode == 0, scored.stdout + scored.stderr
    assert "asr_model_model/test_clean|2|" in (folder / "exp/mla8/RESULTS.md").read_text()
    tuned = run(
        folder, None, *ONE_SET, "--asr_args", f"--num_iters_per_epoch 2 --num_workers 0{teacher}",
        "--stage", "11", "--stop_stage", "11", "--asr_config", "exp/mla8/finetune.yaml",
        "--pretrained_model", "exp/mla8/model.pth", "--asr_exp", "exp/mla8_tuned",
    )  # fmt: skip
    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    before, after = (
        torch.load(folder / "exp" / name)["encoder.encoders.0.attn.linear_kv_down.weight"]
        for name in ("mla8/model.pth", "mla8_tuned/1epoch.pth")
    )
    assert 0 < (after - before).norm() < 0.1 * before.norm()  # trained on from there
    assert (folder / "exp/mla8_tuned/valid.acc.ave.pth").exists()  # what the second scoring starts from


@pytest.mark.slow
@pytest.mark.skipif(not SPEECH.is_dir(), reason=f"no recordings: {SPEECH} is not there")
def test_real_speech_passes_through_data_preparation_and_statistics(tmp_path):
    folder = recipe_folder(tmp_path)
    done = run(folder, SPEECH, *SMALL, "--nj", "1", "--nbpe", "100", "--stop_stage", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    prepared = (folder / "dump" / "raw" / "train_clean_100_sp" / "text").read_text().splitlines()
    shapes = (folder / "exp" / "asr_stats_raw_en_bpe100_sp" / "train" / "speech_shape").read_text().splitlines()
    plain = (folder / "data" / "train_clean_100" / "text").read_text().splitlines()
    assert len(prepared) == len(shapes) == 3 * len(plain)


def test_a_mini_run_keeps_to_its_own_folder_and_scales_the_configuration(tmp_path):
    folder = recipe_folder(tmp_path)
    (folder / "asr.sh").unlink()
    (folder / "asr.sh").write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    (folder / "asr.sh").chmod(0o755)
    done = run(folder, tmp_path / "real", "--corpus", "mini", "--asr-config=conf/conformer_mla.yaml", "--stage", "3",
               "--asr_args", "--max_epoch 2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    where, *words = done.stdout.splitlines()
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert where == str(folder / "mini")
    assert given["--local_data_opts"] == "--corpus mini" and given["--stage"] == "3"
    assert given["--asr_tag"] == "conformer_mla_raw_en_bpe60_max_epoch2"
    assert "num_blocks=4" in given["--asr_args"] and given["--asr_args"].endswith(" --max_epoch 2")


def test_an_unknown_corpus_is_refused(tmp_path):
    done = run(recipe_folder(tmp_path), None, "--corpus", "timit")
    assert done.returncode == 2 and done.stderr == "error: --corpus timit: valid are librispeech_100 and mini\n"

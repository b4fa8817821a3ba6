"""The whole recipe, by run.sh and ESPnet's own programs, on a few utterances; and data preparation on real speech."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from espnet_mla.recipe import mini

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "egs2" / "librispeech_100" / "asr1"
SPEECH = ROOT.parent / "shared" / "speech"
TINY = (
    "--encoder_conf output_size=64 --encoder_conf num_blocks=1 --encoder_conf cgmlp_linear_units=32 "
    "--decoder_conf num_blocks=1 --decoder_conf linear_units=16 --batch_type unsorted --batch_size 4 --accum_grad 1 "
    "--max_epoch 1 --num_iters_per_epoch 2 --num_workers 0"
)
SMALL = ("--ngpu", "0", "--gpu_inference", "false", "--nj", "2", "--inference_nj", "1", "--asr_args", TINY)


def recipe_folder(folder: Path) -> Path:
    for name in ("run.sh", "asr.sh", "path.sh", "cmd.sh", "db.sh", "local", "conf"):
        (folder / name).symlink_to(RECIPE / name)
    return folder


def run(folder: Path, corpus: Path | None, *arguments: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in ("ESPNET_ROOT", "LIBRISPEECH")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["PYTHONPATH"] = f"{ROOT}:{environment.get('PYTHONPATH', '')}"
    if corpus:
        environment["LIBRISPEECH"] = str(corpus)
    return subprocess.run(
        [str(folder / "run.sh"), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_all_stages_run_and_leave_upstreams_files(tmp_path):
    folder = recipe_folder(tmp_path)
    sizes = {"train-clean-100": 12, "dev-clean": 2, "dev-other": 2, "test-clean": 2, "test-other": 2}
    mini.synthesise(tmp_path / "downloads", sizes=sizes)
    given = (*SMALL, "--nbpe", "40", "--speed_perturb_factors", "", "--test_sets", "test_clean", "--asr_tag", "tiny",
             "--inference_args", "--beam_size 2 --maxlenratio 0.1")  # fmt: skip
    done = run(folder, None, *given)
    assert done.returncode == 0, done.stdout + done.stderr
    for number in (1, 2, 3, 4, 5, 10, 11, 12, 13):
        assert f"Stage {number}: " in done.stdout and f"Stage {number} finished. [elapsed=" in done.stdout
    assert "epoch 1: train loss" in done.stdout

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
    assert "/test_clean|2|" in done.stdout
    assert not list(folder.rglob("*.partial*"))

    wrong = run(folder, None, *given, "--stage", "12", "--inference_asr_model", "99epoch.pth")
    assert wrong.returncode == 1
    assert wrong.stderr.strip() == (
        "error: stage 12 needs exp/asr_tiny/99epoch.pth, which stage 11 makes: start with --stage 11"
    )


def test_a_trained_model_is_converted_scored_trained_on_and_scored_again(tmp_path):
    """The five commands of README."""
    folder = recipe_folder(tmp_path)
    sizes = {"train-clean-100": 12, "dev-clean": 2, "dev-other": 2, "test-clean": 2, "test-other": 2}
    mini.synthesise(tmp_path / "downloads", sizes=sizes)
    given = (*SMALL, "--nbpe", "40", "--speed_perturb_factors", "", "--test_sets", "test_clean",
             "--inference_args", "--beam_size 2 --maxlenratio 0.1")  # fmt: skip
    conf = (*given, "--asr_config", "conf/branchformer_mha.yaml", "--asr_exp", "exp/A")
    trained = run(folder, None, *conf, "--stop_stage", "11")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    command = [
        sys.executable, "-m", "espnet_mla.cli", "convert", "--asr_model_file", "exp/A/valid.acc.ave.pth",
        "--kv_lora_rank", "8", "--calibration", "data/train_clean_100/wav.scp", "--output_dir", "exp/A_mla8",
    ]  # fmt: skip
    converted = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert converted.returncode == 0, converted.stdout + converted.stderr
    scoring = ("--stage", "12", "--stop_stage", "13", "--asr_exp")
    scored = run(folder, None, *given, *scoring, "exp/A_mla8", "--inference_asr_model", "model.pth")
    assert scored.returncode == 0, scored.stdout + scored.stderr
    assert "asr_model_model/test_clean|2|" in (folder / "exp/A_mla8/RESULTS.md").read_text()
    tuned = run(
        folder, None, *given, "--asr_args", "--num_iters_per_epoch 2 --num_workers 0", "--stage", "11", "--stop_stage",
        "11", "--asr_config", "exp/A_mla8/finetune.yaml", "--pretrained_model", "exp/A_mla8/model.pth", "--asr_exp",
        "exp/A_mla8_tuned",
    )  # fmt: skip
    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    before, after = (
        torch.load(folder / "exp" / name)["encoder.encoders.0.attn.linear_kv_down.weight"]
        for name in ("A_mla8/model.pth", "A_mla8_tuned/1epoch.pth")
    )
    assert 0 < (after - before).norm() < 0.1 * before.norm()  # trained on from there
    again = run(folder, None, *given, *scoring, "exp/A_mla8_tuned")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "/test_clean|2|" in (folder / "exp/A_mla8_tuned/RESULTS.md").read_text()


@pytest.mark.skipif(not SPEECH.is_dir(), reason=f"no recordings: {SPEECH} is not there")
def test_real_speech_passes_through_data_preparation_and_statistics(tmp_path):
    folder = recipe_folder(tmp_path)
    done = run(folder, SPEECH, *SMALL, "--nbpe", "100", "--stop_stage", "10")
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

"""run_all_baselines.sh: every pair, one command; what is done is skipped, and what fails is shown."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from recipes import RECIPE, SHORT, SIZES, recipe_folder, run_script

from espnet_mla.baselines import __main__ as baselines
from espnet_mla.baselines import plan
from espnet_mla.common import machine
from espnet_mla.recipe import mini, run_sh
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse
from espnet_mla.trained.figures import write as write_figures

DATA = ("--ngpu", "0", "--gpu_inference", "false", "--nj", "1", "--inference_nj", "1",
        "--speed_perturb_factors", "", "--test_sets", "test_clean", "--nbpe", "40", "--seconds", "1")  # fmt: skip
SMALL = (*DATA, "--inference_args", "--beam_size 2 --maxlenratio 0.1")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return run_script(folder, "run_all_baselines.sh", *arguments)


@pytest.fixture
def folder(tmp_path):
    """A recipe with a small corpus of LibriSpeech's form, a good configuration and one that can't be built."""
    recipe_folder(tmp_path)
    config = yaml.safe_load((tmp_path / "conf/branchformer_mla.yaml").read_text())
    for conf in (tmp_path / "conf").glob("*former_*.yaml"):
        conf.unlink()
    config["encoder_conf"] |= {"output_size": 64, "num_blocks": 1, "cgmlp_linear_units": 32}
    config["decoder_conf"] |= {"num_blocks": 1, "linear_units": 16}
    config |= {"batch_type": "unsorted", "batch_size": 4, "accum_grad": 1, "max_epoch": 2, "num_workers": 0}
    (tmp_path / "conf/branchformer_mla.yaml").write_text(yaml.safe_dump(config))
    config["encoder_conf"]["attention_conf"] = {"kv_lora_rank": 0}
    (tmp_path / "conf/branchformer_gqa.yaml").write_text(yaml.safe_dump(config))  # the first, and for the statistics
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["1", "1 2"])
def test_a_failing_pair_stops_no_other_is_shown_with_its_log_and_what_is_done_is_skipped(folder, seeds):
    mini.synthesise(folder / "downloads", sizes=SIZES, longest=SHORT)
    given = ("--only", "branchformer_*", "--seeds", seeds, "--jobs", "2", "--asr_args", "--max_epoch 1", *SMALL)
    done = run(folder, *given)
    assert done.returncode == 1, done.stdout + done.stderr
    table = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith("branchformer_")}
    for seed in seeds.split():
        assert table[f"branchformer_mla_seed{seed}"][1:3] == ["done", "done"]
        _, trained, measured, _, log = table[f"branchformer_gqa_seed{seed}"]
        assert (trained, measured) == ("FAILED", "-")
        assert "kv_lora_rank (0) must be at least 1" in (folder / log).read_text()
    results = (folder / "exp/comparison/RESULTS.md").read_text()
    assert "_mla_raw_en_bpe40" in results and ("(2 seeds)" in results) == (seeds == "1 2") and "_gqa" not in results
    models = sorted((folder / "exp").glob("asr_branchformer_mla*/valid.acc.ave*best.pth"))
    made = [path.stat().st_mtime_ns for path in models]
    assert len(models) == len(seeds.split())

    again = run(folder, "--only", "branchformer_mla", *given[2:])
    assert again.returncode == 0, again.stdout + again.stderr
    assert "./run.sh" not in again.stdout and "espnet-mla profile" not in again.stdout
    assert [path.stat().st_mtime_ns for path in models] == made
    dry = run(folder, "--only", "branchformer_mla", *given[2:], "--dry_run")
    assert (
        dry.stdout.startswith("# branchformer_mla_seed1 is trained and scored\n") and "0 models to train" in dry.stdout
    )


@pytest.mark.slow
def test_what_was_done_on_another_machine_is_compared_by_its_figures(folder, figures):
    """Without data, and without its experiment."""
    config, place = folder / "conf/branchformer_mla.yaml", folder / "results/figures"
    shutil.copyfile(config, folder / "conf/branchformer_mha.yaml")
    for seed, attention in enumerate(("mla", "mha")):
        name = f"asr_branchformer_{attention}_raw_en_bpe40"
        content = figures | {"model": figures["model"] | {"name": name, "conf": attention, "seed": seed}}
        write_figures(place / name, content)
    only = ("--only", "branchformer_mla branchformer_mha", *DATA)
    given = ("--figures", "results/figures", "--output", "results", *only)
    assert "0 models to train" in run(folder, *given, "--dry_run").stdout
    done = run(folder, *given)
    assert done.returncode == 0, done.stdout + done.stderr
    results = (folder / "results/RESULTS.md").read_text()
    assert "_mla_raw_en_bpe40 |" in results and "./run.sh" not in done.stdout
    (folder / "exp/asr_branchformer_mla_raw_en_bpe40").mkdir(parents=True)  # begun here: to be trained
    assert "1 models to train" in run(folder, *given, "--dry_run").stdout
    assert "2 models to train" in run(folder, *only, "--dry_run").stdout


def test_a_failure_of_the_data_ends_it_with_the_reason(folder):
    (folder / "downloads" / "LibriSpeech").mkdir(parents=True)
    (folder / "local/data.sh").write_text("#!/bin/sh\necho no corpus here >&2\nexit 1\n")
    (folder / "local/data.sh").chmod(0o755)
    done = run(folder, "--only", "branchformer_mla", *DATA)
    assert done.returncode == 1
    assert "error: preparing the data failed" in done.stderr and "exp/baselines/data.log" in done.stderr
    assert "no corpus here" in done.stderr


def test_a_second_run_beside_the_first_is_refused(folder):
    from espnet_mla.common.lock import lock, unlock

    held = lock(folder / "exp/baselines")
    done = run(folder, "--only", "branchformer_mla", *DATA)
    unlock(held)
    assert done.returncode == 1 and "exp/baselines/.lock is held by process" in done.stderr


@pytest.fixture
def dry(tmp_path, monkeypatch, capsys):
    """A function that gives the lines of a dry run in a recipe's folder without experiments, where there is no GPU."""
    (tmp_path / "conf").symlink_to(RECIPE / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "gpus", tuple)

    def lines(*arguments: str) -> list[str]:
        assert baselines.main([*arguments, "--dry_run"]) == 0
        return capsys.readouterr().out.splitlines()

    return lines


def test_a_dry_run_prints_every_command_of_the_twelve_pairs_with_hours_and_disk(dry):
    lines = dry("--corpus", "mini", "--output", "elsewhere")
    training = [line for line in lines if "--stage 11" in line]
    assert len(training) == 12 and all("hours" in line and "GB" in line for line in training)
    assert [line.split("conf/")[1].split(".yaml")[0] for line in training] == list(plan.PAIRS)
    assert len([line for line in lines if line.startswith("espnet-mla profile ")]) == 12
    compared = next(line for line in lines if line.startswith("espnet-mla compare "))
    baselines = (f"asr_{architecture}_mha_raw_en_bpe60" for architecture in plan.ARCHITECTURES)
    assert compared.endswith(f"--baseline {' '.join(baselines)} --output elsewhere")
    assert lines[-1].startswith("# about ") and "12 models to train" in lines[-1]


def test_seeds_patterns_and_options_of_run_sh_reach_the_commands(dry):
    lines = dry("--only", "conformer_m?? *_linear conformer_mla_decoder", "--seeds", "1 2",
                "--asr_args", "--max_epoch 3", "--batch_size", "4", "--jobs", "3")  # fmt: skip
    training = [line for line in lines if "--stage 11" in line]
    names = ["conformer_mha", "conformer_mla", "conformer_linear", "branchformer_linear", "e_branchformer_linear",
             "conformer_mla_decoder"]  # fmt: skip
    assert [line.split("conf/")[1].split(".yaml")[0] for line in training] == [name for name in names for _ in "12"]
    assert "--asr_args '--max_epoch 3 --seed 2'" in training[1] and "--batch_size 4" in training[1]
    assert "--asr_tag conformer_mha_raw_en_bpe5000_max_epoch3_seed2_sp" in training[1]


@pytest.mark.parametrize(
    "more", [(), ("--nbpe", "70"), ("--speed_perturb_factors", "0.8"), ("--speed_perturb_factors", "")]
)
@pytest.mark.parametrize("corpus", ["librispeech_100", "mini"])
def test_experiments_are_looked_for_where_run_sh_puts_them(dry, corpus, more):
    lines = dry("--corpus", corpus, "--seeds", "7", *more)
    training = shlex.split(next(line for line in lines if "--stage 11" in line), comments=True)
    tag = training.index("--asr_tag")
    used, options = run_sh.asr_sh_options(training[1:tag] + training[tag + 2 :])  # without it, asr.sh names it
    layout = Layout(parse(run_sh.as_arguments(options)))
    assert training[tag + 1] == layout.asr_tag
    profile = shlex.split(next(line for line in lines if line.startswith("espnet-mla profile")), comments=True)
    assert profile[profile.index("--asr_model_file") + 1] == str(used.folder / layout.asr_model)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "transducer_*"], "--only 'transducer_*' fits none of conformer_mha"),
        (["--seeds", "1 x"], "--seeds '1 x': 'x' is not a whole number"),
        (["--seeds", "1 1"], "a seed is given twice"),
        (["--jobs", "0"], "--jobs 0: at least 1 is needed"),
        (["--stage", "11"], "--stage: run_all_baselines.sh sets it itself"),
        (["--expdir=elsewhere"], "--expdir: run_all_baselines.sh sets it itself"),
        (["--seconds", "ten"], "invalid float value: 'ten'"),
        (["--seconds", "0"], "--seconds 0: at least 1 is needed"),
        (["--inference_args", "--beam_size 2 --lm_weight 0.3"], "--inference_args: --lm_weight can't be measured with"),
        (["--inference_args", "--beam_size=x"], "--inference_args: argument --beam_size: invalid int value: 'x'"),
        (["--inference_args", "--ctc_weight=nan"], "--ctc_weight nan"),
        (["--only", "conformer_mha", "--asr_args", "--max_epoch=0"], "max_epoch: 0: at least 1 is needed"),
        (["--asr-tag=x"], "--asr_tag: run_all_baselines.sh sets it itself"),
        (["--corpus", "timit"], "invalid choice: 'timit'"),
        (["--asr_args", "--max_epoch 1 " * 30], "put options of --asr_args into a file for --asr_config"),
    ],
)
def test_bad_options_are_named(dry, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        baselines.main([*arguments, "--dry_run"])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_dry_run_estimates_by_the_epochs_that_are_asked_for(dry):
    def hours(*more: str) -> float:
        return float(dry("--only", "conformer_mha", *more)[-1].split()[2])

    assert hours("--asr_args", "--max_epoch=7") == pytest.approx(hours() / 10, rel=0.01)
    assert hours("--jobs", "2") == hours()  # the cores are all taken anyhow


def test_on_a_gpu_the_estimate_is_that_of_espnets_conformer(dry, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ("V100",))
    training = next(line for line in dry("--only", "conformer_mha") if "--stage 11" in line)
    assert f"# {57072 / 3600:.2f} hours" in training


def test_jobs_share_cores_and_the_visible_gpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 8})
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert baselines._share(0, 1, ("0",)) == []
    assert [baselines._share(slot, 2, ())[-1] for slot in (0, 1)] == ["0,1", "2,3,8"]
    assert all(baselines._share(slot, 7, ())[-1] in "01238" for slot in range(7))  # one each, where there are fewer
    assert baselines._share(2, 3, ("4", "6"))[:2] == ["env", "CUDA_VISIBLE_DEVICES=4"]
    monkeypatch.setattr(machine, "gpus", lambda: ("H100", "H100"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.visible_gpus() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert machine.visible_gpus() == ("2", "3")

"""With ESPNET_ROOT an ESPnet checkout does the work: its asr.sh is run with the plugin, and what one engine begins the
other finishes. The latter needs a real checkout, and the programs that its scripts run."""

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from recipes import RECIPE, TINY, recipe_folder
from recipes import run_script as run

from espnet_mla.common.errors import UserError
from espnet_mla.recipe import checkout, mini
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse

SETS = ("--train_set", "train", "--valid_set", "dev", "--test_sets", "test")
REAL = os.environ.get("ESPNET_ROOT", "")


@pytest.fixture
def espnet(tmp_path):
    """A folder of a checkout's shape, whose asr.sh only says how it was called."""
    template = tmp_path / "espnet" / checkout.TEMPLATE
    for name in checkout.LINKS:
        (template / name).mkdir(parents=True)
    (template / "utils" / "run.pl").touch()
    (template / "asr.sh").write_text('#!/bin/sh\nprintf "%s\\n" upstream "$@"\n')
    (template / "asr.sh").chmod(0o755)
    return tmp_path / "espnet"


@pytest.fixture
def folder(tmp_path):
    """A recipe's folder without data and experiments."""
    return recipe_folder(tmp_path / "recipe")


def links(folder: Path) -> set[str]:
    return {name for name in checkout.LINKS if (folder / name).is_symlink()}


@pytest.mark.parametrize("blanks", [" ", "\t", "  "])
def test_a_program_that_an_audio_list_runs_is_found_behind_any_white_space(tmp_path, monkeypatch, blanks):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "wav.scp").write_text(f"a{blanks}sox a.flac -t wav - speed 0.9 |\n")
    layout = Layout(parse([*SETS, "--lang", "en"]))
    assert checkout._piped(layout, "sox") and not checkout._piped(layout, "flac")


def test_its_own_asr_sh_is_run_with_the_plugin(espnet, folder):
    options = (*SETS, "--stage", "4", "--stop_stage", "5", "--use_lm", "true", "--num_nodes", "2")
    done = run(folder, "asr.sh", *options, ESPNET_ROOT=str(espnet))
    assert done.stdout.splitlines() == ["upstream", "--python", "python3 -m espnet_mla.run", *options], done.stderr
    assert links(folder) == set(checkout.LINKS)


def test_run_sh_hands_everything_over_and_unlink_removes_the_links(espnet, folder):
    arguments = ("--asr_config", "conf/conformer_mla.yaml", "--stage", "10", "--stop_stage", "11", "--ngpu", "4")
    done = run(folder, "run.sh", *arguments, ESPNET_ROOT=os.path.relpath(espnet, folder))
    given = done.stdout.splitlines()
    assert given[0] == "upstream", done.stderr
    options = dict(zip(given[1::2], given[2::2], strict=True))
    assert options.items() >= dict(zip(arguments[::2], arguments[1::2], strict=True)).items()
    assert run(folder, "run.sh", "--unlink").returncode == 0
    assert links(folder) == set()


def test_a_link_that_points_to_another_checkout_is_made_anew(espnet, folder, monkeypatch):
    monkeypatch.chdir(folder)
    Path("utils").symlink_to("/nowhere")
    checkout.link(espnet)
    assert Path("utils").resolve() == espnet / checkout.TEMPLATE / "utils"


def test_a_folder_in_the_way_is_named_and_left_alone(espnet, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "steps" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{folder}/steps is in the way"):
        checkout.link(espnet)
    checkout.unlink()
    assert (folder / "steps" / "mine").is_dir()


@pytest.mark.parametrize(("lost", "message"), [
    ("asr.sh", "is no ESPnet checkout: egs2/TEMPLATE/asr1/asr.sh is not there"),
    ("scripts", "is no ESPnet checkout of today: egs2/TEMPLATE/asr1/scripts is not there"),
    ("utils/run.pl", "carries no Kaldi scripts; checkouts of 2026 do"),
])  # fmt: skip
def test_a_checkout_that_lacks_something_is_refused_with_what_it_lacks(espnet, folder, lost, message):
    path = espnet / checkout.TEMPLATE / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = run(folder, "asr.sh", *SETS, ESPNET_ROOT=str(espnet))
    assert done.returncode == 1 and done.stderr.startswith(f"error: ESPNET_ROOT={espnet} {message}")
    assert links(folder) == set()


def test_a_configuration_that_espnet_would_misread_is_refused_with_what_to_add(espnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("optim: adam\noptim_conf: {weight_decay: 1e-6, betas: [9e-1, 0.98]}\n")
    given = [*SETS, "--stage", "10", "--asr_config", "a.yaml", "--asr_args", "--max_epoch 3"]
    added = "--optim_conf weight_decay=1.0e-06 --optim_conf betas=[0.9,0.98]"
    with pytest.raises(UserError) as refused:
        checkout.check(espnet, given)
    assert f'"--max_epoch 3 {added}"' in str(refused.value)
    given[-1] += f" {added}"
    checkout._check_configuration(Layout(parse(given)))
    with pytest.raises(UserError, match="accum_grad: 0: at least 1 is needed"):
        checkout.check(espnet, [*given[:-1], "--accum_grad 0"])


def test_a_checkout_that_does_not_exist_is_named(folder):
    done = run(folder, "asr.sh", *SETS, ESPNET_ROOT="/no/such/espnet")
    assert done.returncode == 1 and done.stderr.startswith("error: ESPNET_ROOT=/no/such/espnet is no ESPnet checkout")


@pytest.mark.parametrize(("options", "missing"), [
    (("--speed_perturb_factors", "0.9 1.0"), {"perl", "sox", "sclite"}),
    (("--stop_stage", "12"), {"perl"}),
    (("--stage", "12"), {"perl", "sclite"}),
    (("--stage", "10", "--stop_stage", "11", "--speed_perturb_factors", "0.9"), {"perl"}),
    (("--skip_eval", "true", "--use_k2", "true", "--feats_type", "fbank_pitch"), {"perl"}),
])  # fmt: skip
def test_a_program_is_asked_for_where_a_stage_needs_it_and_told_how_to_get(espnet, monkeypatch, options, missing):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="these programs are needed with ESPNET_ROOT and not found") as refused:
        checkout.check(espnet, (*SETS, *options))
    told = [line.split()[0] for line in str(refused.value).splitlines()[1:]]
    assert set(told) == missing and "install" in str(refused.value)


def test_flac_is_asked_for_where_a_list_of_audio_runs_it(espnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "data" / "test").mkdir(parents=True)
    (tmp_path / "data" / "test" / "wav.scp").write_text("a flac -c -d -s a.flac |\n")
    with pytest.raises(UserError, match=r"flac \(audio in data"):
        checkout.check(espnet, (*SETS, "--stop_stage", "3"))


def test_a_python_package_is_asked_for_where_the_checkouts_script_imports_it(espnet, monkeypatch):
    absent = dataclasses.replace(checkout.PROGRAMS["kaldiio"], find=lambda name: None)
    monkeypatch.setattr(checkout, "PROGRAMS", {"kaldiio": absent})
    script = espnet / checkout.TEMPLATE / "pyscripts" / "audio" / "format_wav_scp.py"
    script.parent.mkdir()
    script.write_text("import omniio\n")
    checkout.check(espnet, SETS)
    script.write_text("import kaldiio\nimport numpy\n")
    checkout.check(espnet, (*SETS, "--stage", "4"))
    with pytest.raises(UserError, match=r"kaldiio \(Python package for stage 3\): pip install kaldiio"):
        checkout.check(espnet, SETS)


@pytest.mark.parametrize(("backend", "command"), [
    ("local", "run.pl"), ("slurm", "slurm.pl"), ("sge", "queue.pl"), ("pbs", "pbs.pl"),
])  # fmt: skip
def test_cmd_sh_knows_the_usual_schedulers(backend, command):
    shell = f"set -euo pipefail; unset OMP_NUM_THREADS; . {RECIPE}/cmd.sh; echo $train_cmd $cuda_cmd $decode_cmd"
    environment = {**os.environ, "cmd_backend": backend}
    done = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [command] * 3


def test_an_unknown_scheduler_is_refused():
    environment = {**os.environ, "cmd_backend": "lsf"}
    done = subprocess.run(["bash", "-c", f". {RECIPE}/cmd.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "cmd_backend=lsf: valid are local, slurm, sge and pbs" in done.stderr


OPTIONS = (
    "--ngpu", "0", "--gpu_inference", "false", "--nj", "2", "--inference_nj", "1", "--asr_args", TINY, "--nbpe", "40",
    "--speed_perturb_factors", "0.9 1.0", "--test_sets", "test_clean", "--asr_tag", "tiny",
    "--inference_args", "--beam_size 2 --maxlenratio 0.1",
)  # fmt: skip


def _figures(result: Path) -> list[str]:
    """The row of totals of a result.txt, whose columns are as wide as it pleases a version of sclite."""
    return re.search(r"Sum/Avg.*", result.read_text())[0].split()


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="ESPNET_ROOT names no ESPnet checkout")
def test_what_one_engine_begins_the_other_finishes(folder, tmp_path):
    """Prepared and trained by one, decoded and scored by both: the same hypotheses, the same figures."""
    environment = {"LIBRISPEECH": str(tmp_path / "corpus")}
    sizes = {"train-clean-100": 12, "dev-clean": 2, "dev-other": 2, "test-clean": 3, "test-other": 2}
    mini.synthesise(tmp_path / "corpus", sizes=sizes)
    other = tmp_path / "other"
    shutil.copytree(folder, other, symlinks=True)
    engines = {"ours": environment, "upstream's": {**environment, "ESPNET_ROOT": REAL}}
    for where, first in ((folder, "ours"), (other, "upstream's")):
        begun = run(where, "run.sh", *OPTIONS, "--stop_stage", "11", **engines[first])
        assert begun.returncode == 0, begun.stdout + begun.stderr
        found = {}
        for second, variables in engines.items():
            done = run(where, "run.sh", *OPTIONS, "--stage", "12", **variables)
            assert done.returncode == 0, done.stdout + done.stderr
            decoded = next((where / "exp" / "asr_tiny").glob("decode_asr_*")) / "test_clean"
            found[second] = {name: (decoded / name).read_text() for name in ("text", "token", "token_int", "score")}
            found[second] |= {
                kind: _figures(decoded / f"score_{kind}" / "result.txt") for kind in ("wer", "cer", "ter")
            }
            shutil.rmtree(decoded)
        assert found["ours"] == found["upstream's"]
    # Nothing that a training reads may differ, but for the samples that sox makes of another speed.
    for name in ("data/train_clean_100/text", "data/train_clean_100_sp/utt2spk", "data/en_token_list/bpe_unigram40/tokens.txt",
                 "dump/raw/train_clean_100_sp/text", "dump/raw/train_clean_100_sp/spk2utt", "dump/raw/test_clean/utt2num_samples",
                 "exp/asr_stats_raw_en_bpe40_sp/train/text_shape.bpe"):  # fmt: skip
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name

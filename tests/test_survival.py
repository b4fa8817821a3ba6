"""Killed at any moment and run again, a stage leaves what an undisturbed one leaves."""

import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes import SHORT, TINY, environment, recipe_folder

from espnet_mla.recipe import mini

EPOCHS = 3
KILLS = {1: 4, 3: 4, 5: 3, 10: 3, 11: 4, 12: 3, 13: 3}  # stage -> how often it is killed
GIVEN = (
    "--ngpu", "0", "--gpu_inference", "false", "--nj", "2", "--inference_nj", "2", "--nbpe", "40", "--asr_tag", "tiny",
    "--speed_perturb_factors", "0.9 1.0", "--test_sets", "test_clean test_other",
    "--asr_args", TINY.replace("--max_epoch 1", f"--max_epoch {EPOCHS}"),
    "--inference_args", "--beam_size 2 --maxlenratio 0.1",
)  # fmt: skip


def start(folder: Path, first: int, last: int) -> subprocess.Popen:
    variables = environment(LIBRISPEECH=str(folder.parent / "corpus"))
    command = [str(folder / "run.sh"), *GIVEN, "--stage", str(first), "--stop_stage", str(last)]
    with (folder / "told").open("w") as told:
        return subprocess.Popen(command, cwd=folder, env=variables, stdout=told, stderr=subprocess.STDOUT)


def finish(folder: Path, first: int, last: int) -> float:
    began = time.monotonic()
    process = start(folder, first, last)
    assert process.wait() == 0, (folder / "told").read_text()
    return time.monotonic() - began


def kill(run: subprocess.Popen) -> None:
    """Kill run.sh, which becomes `python -m espnet_mla.recipe`, and nothing that that started."""
    run.kill()
    run.wait()


def kill_after(folder: Path, stage: int, seconds: float) -> bool:
    """Run a stage and kill the recipe's process after that time; whether that came before its end."""
    process = start(folder, stage, stage)
    time.sleep(seconds)
    if process.poll() is not None:
        assert process.returncode == 0, (folder / "told").read_text()
        return False
    kill(process)
    return True


def contents(folder: Path) -> dict[str, bytes]:
    """All that has to be the same: not what tells times, and no model."""
    left_out = re.compile(r"\.log$|^told$|\.lock$|\.pth$|/images/|/tensorboard/|RESULTS\.md$|\.npz$|dist_init")
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    named = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {name: content for name, content in named.items() if not left_out.search(name)}


@pytest.mark.slow
def test_stages_killed_at_random_moments_leave_what_undisturbed_ones_leave(tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    sizes = {"train-clean-100": 12, "dev-clean": 2, "dev-other": 2, "test-clean": 3, "test-other": 3}
    mini.synthesise(tmp_path / "corpus", sizes=sizes, longest=SHORT)
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    for folder in (quiet, killed):
        folder.mkdir()
        recipe_folder(folder)
    kills = 0
    for stage in (1, 2, 3, 4, 5, 10, 11, 12, 13):
        seconds = finish(quiet, stage, stage)
        for _ in range(KILLS.get(stage, 0)):
            # A run that ended all the same is no kill: another one then.
            while not kill_after(killed, stage, chosen.uniform(0, 0.95 * seconds)):
                pass
            kills += 1
        finish(killed, stage, stage)
        left = contents(killed)
        assert left == contents(quiet), f"seed {seed}, stage {stage}: {differing(left, contents(quiet))}"
        assert not list(killed.rglob("*.partial*"))
        if stage == 10:
            for part in ("train", "valid"):
                same_statistics(*(f / f"exp/asr_stats_raw_en_bpe40_sp/{part}/feats_stats.npz" for f in (killed, quiet)))
        if stage == 11:
            for folder in (killed, quiet):
                reporter = torch.load(folder / "exp/asr_tiny/checkpoint.pth", weights_only=True)["reporter"]
                assert reporter["epoch"] == EPOCHS
                assert torch.load(folder / "exp/asr_tiny/valid.acc.ave.pth", weights_only=True)
            names = [{path.name for path in (folder / "exp/asr_tiny").glob("*.pth")} for folder in (killed, quiet)]
            assert names[0] >= {f"{EPOCHS}epoch.pth", "valid.acc.ave.pth", "latest.pth", "valid.acc.best.pth"}
            # From here on with the same model, but not the same files: the times of both are their own.
            for path in (killed / "exp/asr_tiny").glob("*.pth"):
                path.unlink()
            for path in (quiet / "exp/asr_tiny").glob("*.pth"):
                shutil.copy(path, killed / "exp/asr_tiny" / path.name, follow_symlinks=True)
    assert kills >= 20
    results = [(folder / "exp/asr_tiny/RESULTS.md").read_text() for folder in (killed, quiet)]
    assert re.sub("- date: .*", "", results[0]) == re.sub("- date: .*", "", results[1])


def same_statistics(one: Path, other: Path) -> None:
    with np.load(one) as a, np.load(other) as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))

"""Recipe folders for tests: the scripts and configurations of egs2/librispeech_100/asr1, without a user's work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "egs2" / "librispeech_100" / "asr1"
WORKING_FOLDERS = ("data", "dump", "exp", "download", "downloads", "mini")
"""What runs make in a recipe's folder: no test reads or writes those of the repository."""

TINY = (
    "--encoder_conf output_size=64 --encoder_conf num_blocks=1 --encoder_conf cgmlp_linear_units=32 "
    "--decoder_conf num_blocks=1 --decoder_conf linear_units=16 --batch_type unsorted --batch_size 4 --accum_grad 1 "
    "--max_epoch 1 --num_iters_per_epoch 2 --num_workers 0"
)
SMALL = ("--ngpu", "0", "--gpu_inference", "false", "--nj", "2", "--inference_nj", "1", "--asr_args", TINY)
SIZES = {"train-clean-100": 12, "dev-clean": 2, "dev-other": 2, "test-clean": 2, "test-other": 2}
SHORT = 8
"""Most words of a sentence."""
ONE_SET = (*SMALL, "--nbpe", "40", "--speed_perturb_factors", "", "--test_sets", "test_clean",
           "--inference_args", "--beam_size 2 --maxlenratio 0.1")  # fmt: skip
TRAINED = (*ONE_SET, "--asr_config", "conf/branchformer_mha.yaml", "--asr_tag", "tiny")


def copy_recipe(source: Path, target: Path) -> Path:
    """Copy a recipe's folder without what runs have made in it, and return the copy."""
    runs = shutil.ignore_patterns(*WORKING_FOLDERS, "steps", "utils", "scripts", "pyscripts")
    shutil.copytree(source, target, ignore=runs, dirs_exist_ok=True)
    return target


def recipe_folder(folder: Path) -> Path:
    """Make `folder` a recipe's folder without any data or experiment."""
    return copy_recipe(RECIPE, folder)


def environment(**variables: str) -> dict[str, str]:
    """The environment for a recipe's scripts: this Python and this package, and no corpus or checkout of the user's."""
    paths = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    users = ("ESPNET_ROOT", "LIBRISPEECH")
    return {key: value for key, value in os.environ.items() if key not in users} | paths | variables


def run_script(folder: Path, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the recipe in `folder`."""
    return subprocess.run(
        [str(folder / script), *arguments], cwd=folder, env=environment(**variables), capture_output=True, text=True
    )


def run(folder: Path, corpus: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_script(folder, "run.sh", *arguments, **({"LIBRISPEECH": str(corpus)} if corpus else {}))


def train(folder: Path) -> None:
    """Run all stages on a small corpus, for the fixture `trained_recipe`."""
    from espnet_mla.recipe import mini  # not above: it imports torch, and conftest.py sets its threads first

    mini.synthesise(recipe_folder(folder) / "downloads", sizes=SIZES, longest=SHORT)
    done = run(folder, None, *TRAINED)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout").write_text(done.stdout)


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder in the working folders of all recipes, with its size and time of last change."""
    working = (folder for name in WORKING_FOLDERS for folder in root.glob(f"egs[23]/*/*/{name}"))
    return {
        str(path.relative_to(root)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for folder in working
        for path in (folder, *folder.rglob("*"))
    }

"""Tests work in copies of a recipe's folder: what a user has made there is neither read nor changed."""

import pytest
import recipes


def test_a_copy_of_a_recipe_leaves_a_users_work_behind(tmp_path):
    source, copy = tmp_path / "egs2/corpus/asr1", tmp_path / "copy"
    work = ["data/train/text", "dump/raw/a.flac", "exp/asr_x/config.yaml", "downloads/a", "mini/exp/asr_x/RESULTS.md"]
    scripts = ["run.sh", "local/data.sh", "conf/a.yaml"]
    for name in (*work, *scripts):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    recipes.copy_recipe(source, copy)
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()) == sorted(scripts)


def test_a_recipes_folder_for_tests_has_its_scripts_and_configurations_as_files_of_its_own(tmp_path):
    folder = recipes.recipe_folder(tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert {"run.sh", "asr.sh", "run_all_baselines.sh", "local", "conf"} <= names
    assert not names & {*recipes.WORKING_FOLDERS}
    assert not [path for path in folder.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("recipe", ["egs2/corpus/asr1/mini", "egs3/corpus/esp2_asr"])
def test_every_change_of_a_users_work_is_found(recipe, tmp_path):
    folder = tmp_path / recipe / "exp/asr_x"
    folder.mkdir(parents=True)
    results = folder / "RESULTS.md"
    snapshots = [recipes.snapshot(tmp_path)]
    for change in (results.touch, lambda: results.write_text("a"), results.unlink, folder.rmdir):
        change()
        snapshots.append(recipes.snapshot(tmp_path))
        assert snapshots[-1] != snapshots[-2]

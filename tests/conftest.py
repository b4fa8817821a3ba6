"""What several test files share."""

import contextlib
import json
import resource
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def largest_file():
    """A context in which no file grows beyond so many bytes: what stands for a disk that fills up.

    Not for the whole of a test: pytest's own output may go to a file.
    """

    @contextlib.contextmanager
    def limited(size: int):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    """The folder of a recipe with an experiment, exp/asr_tiny, that is ready to be packed. Not to be changed."""
    import experiment

    folder = tmp_path_factory.mktemp("recipe")
    experiment.build(folder)
    return folder


@pytest.fixture(scope="session")
def archive(recipe) -> Path:
    """That experiment packed, by stage 14."""
    import experiment

    from espnet_mla.recipe import stages

    with contextlib.chdir(recipe):
        stages.perform(experiment.layout("--stage", "14", "--skip_packing", "false"))
    return recipe / "exp" / "asr_tiny" / "asr_tiny_valid.acc.ave.zip"


@pytest.fixture(scope="session")
def expected(recipe) -> list[tuple[str, float]]:
    """What ESPnet's own Speech2Text hears in speech.flac by the experiment as it lies there."""
    import experiment
    from espnet2.bin.asr_inference import Speech2Text

    with contextlib.chdir(recipe):
        files = ("exp/asr_tiny/config.yaml", "exp/asr_tiny/valid.acc.ave.pth")
        heard = experiment.heard(Speech2Text(*files, **experiment.DECODING), experiment.samples(recipe))
    assert heard[0][0], "a test that compares empty texts would say little"
    return heard


@pytest.fixture(scope="session")
def figures(recipe, tmp_path_factory) -> dict:
    """What espnet-mla profile finds of that experiment, with a training and the scores of two sets. Not to be changed."""
    import profiled

    folder = tmp_path_factory.mktemp("profiled") / "recipe"
    shutil.copytree(recipe, folder, symlinks=True)
    (folder / "exp/asr_tiny/train.log").write_text(profiled.TRAIN_LOG)
    with contextlib.chdir(folder):
        assert profiled.profile(folder) == 0
    found = json.loads((folder / "exp/asr_tiny/figures.json").read_text())
    sets = {"test_clean": profiled.scored([0, 1, 2, 0], [5, 6, 7, 8]), "test_other": profiled.scored([3, 0], [4, 4])}
    return found | {"scores": {"decode_asr": sets}}

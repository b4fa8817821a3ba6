"""What the tests share: a thread each, fixtures built once for all workers, and a check on the user's folders."""

import contextlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import recipes
from filelock import FileLock

from espnet_mla.common.machine import CORES

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the workers of pytest-xdist share the cores


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: a worker for each core that this process may use; 8 at most, for the memory they need."""
    return min(CORES, 8)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--device` is what `on_device.py` compares with the CPU."""
    parser.addoption(
        "--device", default="cpu", help="of tests/on_device.py: cuda, simulated, ... (default: %(default)s)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The simulated device has to be there before anything else is."""
    if config.getoption("--device") == "simulated":
        import simulated

        simulated.install()


@pytest.fixture(scope="session")
def device(request):
    """The device under test."""
    import torch

    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session", autouse=True)
def users_folders_stay_as_they_are() -> Iterator[None]:
    """Fails the run if anything changes in the folders where the repository's recipes keep a user's work."""
    before = recipes.snapshot(recipes.ROOT)
    yield
    after = recipes.snapshot(recipes.ROOT)
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    assert not changed, f"changed by a test, or by a recipe that ran beside the tests: {changed[:9]}"


@pytest.fixture(scope="session")
def build_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A function that builds a folder once for all workers of a run and returns this worker's own copy of it.

    `build_once(name, build)` calls `build(folder)` in the first worker that asks for `name`; the others wait for it.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of the whole run

    def build_or_wait(name: str, build: Callable[[Path], None]) -> Path:
        folder, complete = base / f"built_{name}", base / f"built_{name}.complete"
        with FileLock(f"{folder}.lock"):
            if not complete.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                build(folder)
                complete.touch()
        return Path(shutil.copytree(folder, tmp_path_factory.mktemp(name) / "copy", symlinks=True))

    return build_or_wait


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
def recipe(build_once) -> Path:
    """The folder of a recipe with an experiment, exp/asr_tiny, that is ready to be packed. Not to be changed."""
    import experiment

    return build_once("recipe", experiment.build)


@pytest.fixture
def recipe_copy(recipe, tmp_path) -> Iterator[Path]:
    """A copy of it in which a test may change what it likes; the current folder."""
    import espnet_mla

    espnet_mla.register()
    folder = Path(shutil.copytree(recipe, tmp_path / "recipe", symlinks=True))
    with contextlib.chdir(folder):
        yield folder


@pytest.fixture(scope="session")
def trained_recipe(build_once) -> Path:
    """The folder of a recipe after all stages, with exp/asr_tiny of `mha`, and their `stdout`. Not to be changed."""
    return build_once("trained_recipe", recipes.train)


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

    import espnet_mla

    espnet_mla.register()
    with contextlib.chdir(recipe):
        files = ("exp/asr_tiny/config.yaml", "exp/asr_tiny/valid.acc.ave.pth")
        heard = experiment.heard(Speech2Text(*files, **experiment.DECODING), experiment.samples(recipe))
    assert heard[0][0], "a test that compares empty texts would say little"
    return heard


@pytest.fixture(scope="session")
def profiled_recipe(recipe, build_once) -> Path:
    """The recipe after a training, two decodings and espnet-mla profile, with its `stdout`. Not to be changed."""
    import profiled

    def profile(folder: Path) -> None:
        shutil.copytree(recipe, folder, symlinks=True, dirs_exist_ok=True)
        profiled.decode(folder, "decode_asr_asr_model_valid.acc.ave")
        profiled.decode(folder, "decode_asr_asr_model_latest")  # of another model
        (folder / "exp/asr_tiny/train.log").write_text(profiled.TRAIN_LOG)
        with contextlib.chdir(folder), (folder / "stdout").open("w") as stdout, contextlib.redirect_stdout(stdout):
            assert profiled.profile(folder) == 0

    return build_once("profiled", profile)


@pytest.fixture(scope="session")
def figures(profiled_recipe) -> dict:
    """What espnet-mla profile measures of that experiment, with the scores of two sets. Not to be changed."""
    import profiled

    found = json.loads((profiled_recipe / "exp/asr_tiny/figures.json").read_text())
    sets = {"test_clean": profiled.scored([0, 1, 2, 0], [5, 6, 7, 8]), "test_other": profiled.scored([3, 0], [4, 4])}
    return found | {"scores": {"decode_asr": sets}}

"""from_pretrained() hears what the original hears, wherever the model lies, and says plainly what it can't take."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from espnet2.bin.asr_inference import Speech2Text
from espnet_model_zoo.downloader import ModelDownloader
from experiment import DECODING, heard, samples

import espnet_mla
from espnet_mla.common.errors import UserError
from espnet_mla.trained.archive import unpack
from espnet_mla.trained.locate import with_files


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def zipped(path: Path, **files: str) -> Path:
    with zipfile.ZipFile(path, "w") as members:
        for name, text in files.items():
            members.writestr(name, text)
    return path


def with_another_version(archive: Path, path: Path, version: str) -> Path:
    """The archive as another version of this package would have packed it."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, yaml.safe_dump({"version": version}) if name == "espnet_mla.yaml" else old.read(name))
    return path


def test_an_archive_hears_what_the_original_hears(recipe, archive, expected):
    assert heard(espnet_mla.from_pretrained(archive, **DECODING), samples(recipe)) == expected


def test_an_unpacked_archive_hears_it_too(recipe, archive, expected, tmp_path):
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    assert heard(espnet_mla.from_pretrained("unpacked", **DECODING), samples(recipe)) == expected


def test_the_folder_of_an_experiment_does_too_from_wherever_it_is_asked(recipe, expected):
    experiment = os.path.relpath(recipe / "exp" / "asr_tiny")
    assert heard(espnet_mla.from_pretrained(experiment, **DECODING), samples(recipe)) == expected
    other = espnet_mla.from_pretrained(experiment, inference_asr_model="valid.acc.ave_1best.pth", **DECODING)
    assert heard(other, samples(recipe)) == expected


def test_options_are_those_of_speech2text(archive):
    assert espnet_mla.from_pretrained(archive, beam_size=7, nbest=3).beam_search.beam_size == 7
    with pytest.raises(TypeError, match="beamsize"):
        espnet_mla.from_pretrained(archive, beamsize=7)


def test_espnets_own_downloader_takes_the_archive_once_the_plugin_is_registered(recipe, archive, expected, tmp_path):
    espnet_mla.register()
    files = ModelDownloader(tmp_path / "zoo").download_and_unpack(str(archive))
    assert heard(Speech2Text(**files, **DECODING), samples(recipe)) == expected


@pytest.mark.slow
def test_without_the_plugin_espnet_refuses_the_archive(archive, tmp_path):
    code = (
        "import sys\n"
        "from espnet2.bin.asr_inference import Speech2Text\n"
        "from espnet_model_zoo.downloader import ModelDownloader\n"
        "Speech2Text(**ModelDownloader(sys.argv[2]).download_and_unpack(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, archive, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "attention_conf" in done.stderr.splitlines()[-1]


def test_another_archive_under_the_same_name_is_not_taken_for_the_old_one(archive, tmp_path):
    path = shutil.copy(archive, tmp_path / "model.zip")
    espnet_mla.from_pretrained(path)
    with_another_version(archive, path, "99.1")
    with pytest.raises(UserError, match=r"99\.1"):
        espnet_mla.from_pretrained(path)


@pytest.mark.parametrize("version, taken", [("0.0.9", True), ("0.1.0.dev3", True), ("0.1.10", False), ("99.1", False)])
def test_a_newer_packer_is_needed_by_name_and_an_older_one_is_not(version, taken, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(espnet_mla, "__version__", "0.1.9")
    path = with_another_version(archive, tmp_path / "model.zip", version)
    if taken:
        espnet_mla.from_pretrained(path)
        return
    with pytest.raises(UserError) as refused:
        espnet_mla.from_pretrained(path)
    assert str(refused.value) == f"{path} needs espnet_mla {version} or newer, which packed it; installed is 0.1.9"


@pytest.mark.parametrize("name", ["../outside", "/outside", "inside/../../outside"])
def test_a_member_that_would_land_outside_is_refused(name, tmp_path):
    archive = zipped(tmp_path / "evil.zip", **{"meta.yaml": "a: b\n", name: "evil"})
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "before").touch()
    with pytest.raises(UserError, match=f"evil.zip: its member {name} would land outside"):
        unpack(archive, tmp_path / "target")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["before", "evil.zip", "target"]


@pytest.mark.parametrize("source", ["nowhere.zip", "owner/nowhere.zip", "/no/such/place", "nothing"])
def test_what_does_not_exist_is_named_with_what_is_valid(source):
    with pytest.raises(UserError, match=f"{source} does not exist: valid are an archive .*owner/name on the Hugging"):
        espnet_mla.from_pretrained(source)


def test_a_model_that_the_hub_does_not_give_is_named_with_the_reason(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"nobody/nothing is neither a local file nor available .* \(.+\): valid"):
        espnet_mla.from_pretrained("nobody/nothing")


def test_what_is_no_model_is_named(recipe, archive, tmp_path):
    half = tmp_path / "half.zip"
    half.write_bytes(archive.read_bytes()[:-1000])
    voice = zipped(tmp_path / "voice.zip", **{"meta.yaml": yaml.safe_dump(
        {"yaml_files": {"train_config": "config.yaml"}, "files": {"model_file": "model.pth"}}
    )})  # fmt: skip
    (tmp_path / "empty").mkdir()
    for source, problem in {
        half: "half.zip is not a whole zip archive",
        voice: "voice.zip holds no model: its meta.yaml names only train_config, model_file",
        tmp_path / "empty": "empty holds neither meta.yaml nor config.yaml: valid are",
    }.items():
        with pytest.raises(UserError, match=problem):
            espnet_mla.from_pretrained(source)
    with pytest.raises(UserError, match="lacks 7epoch.pth; inference_asr_model may be valid.acc.ave.pth, valid"):
        espnet_mla.from_pretrained(recipe / "exp" / "asr_tiny", inference_asr_model="7epoch.pth")


def test_a_model_that_is_no_longer_whole_is_named(recipe, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(recipe / "exp" / "asr_tiny", moved, symlinks=True)
    with pytest.raises(UserError, match="moved cannot be loaded: .*feats_stats.npz.*recipe's folder"):
        espnet_mla.from_pretrained(moved)
    (moved / "config.yaml").write_text("")
    with pytest.raises(UserError, match="config.yaml must hold"):
        espnet_mla.from_pretrained(moved)
    shutil.copytree(recipe, tmp_path / "whole", symlinks=True)
    model = tmp_path / "whole" / "exp" / "asr_tiny" / "valid.acc.ave_1best.pth"
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(UserError, match="valid.acc.ave.pth is no whole file of parameters"):
        espnet_mla.from_pretrained(tmp_path / "whole" / "exp" / "asr_tiny")


def test_a_batch_of_utterances_is_decoded_as_one_at_a_time(recipe):
    """--batch_size of stage 12: utterances of different lengths, in one beam search."""
    speech2text = espnet_mla.from_pretrained(recipe / "exp" / "asr_tiny", **DECODING)
    speech = [samples(recipe)[:length] for length in (24000, 16000, 20500)]
    for batched, one in zip(speech2text(speech), map(speech2text, speech), strict=True):
        assert [text for text, *_ in batched] == [text for text, *_ in one]
        assert [float(hypothesis.score) for *_, hypothesis in batched] == pytest.approx(
            [float(hypothesis.score) for *_, hypothesis in one], rel=1e-5
        )


def test_files_get_their_whole_path_and_tokens_stay_words(tmp_path):
    (tmp_path / "exp").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bpe.model").write_text("")
    config = {"token_list": ["exp", "data"], "bpemodel": "data/bpe.model", "encoder": "data",
              "normalize_conf": {"stats_file": "exp"}, "files": [["data/bpe.model", "a"]], "n": 3,
              "preprocessor_conf": {"text_name": "exp"}}  # fmt: skip
    assert with_files(config, tmp_path) == config | {
        "bpemodel": f"{tmp_path}/data/bpe.model", "normalize_conf": {"stats_file": f"{tmp_path}/exp"},
        "files": [[f"{tmp_path}/data/bpe.model", "a"]],
    }  # fmt: skip

"""An archive that can't be taken is refused in one line, before anything of it comes to the cache."""

import shutil
import struct
import tarfile
import zipfile

import pytest
import torch
import yaml

from espnet_mla.common.errors import UserError
from espnet_mla.recipe import packing
from espnet_mla.trained.archive import unpack
from espnet_mla.trained.locate import locate
from espnet_mla.trained.model import find
from espnet_mla.trained.names import MODEL_FILE

META = {"yaml_files": {"asr_train_config": "exp/config.yaml"}, "files": {"asr_model_file": "exp/model.pth"}}
CONFIG = {"encoder": "conformer", "ctc_conf": {}, "token_list": ["a"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def members(**changed):
    """The members of an archive, as far as they are looked at before the model is loaded."""
    texts = {"meta.yaml": yaml.safe_dump(META), "exp/config.yaml": yaml.safe_dump(CONFIG), "exp/model.pth": "x" * 999}
    return texts | changed


def zipped(*pairs, path="model.zip", method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, text in pairs or members().items():
            archive.writestr(name, text)
    return path


def change_field(path, in_directory, in_header, value):
    """Change a field of two bytes of every member, of which the archive has a copy in its directory."""
    content = bytearray(open(path, "rb").read())
    for signature, offset in ((b"PK\x01\x02", in_directory), (b"PK\x03\x04", in_header)):
        at = content.find(signature)
        while at >= 0:
            struct.pack_into("<H", content, at + offset, value)
            at = content.find(signature, at + 4)
    open(path, "wb").write(content)


def rotten(path, method):
    zipped(("meta.yaml", yaml.safe_dump(META)), ("exp/model.pth", "abcdefghijklmnop" * 99), path=path, method=method)
    content = bytearray(open(path, "rb").read())
    at = content.find(b"exp/model.pth") + len(b"exp/model.pth")
    content[at : at + 12] = b"\xff" * 12
    open(path, "wb").write(content)


def duplicate(path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(*members().items(), ("meta.yaml", "a: b\n"), path=path)


def tar(path):
    with tarfile.open(path, "w:gz") as archive:
        zipped(path="inside")
        archive.add("inside")


def with_meta(content):
    return lambda path: zipped(*members(**{"meta.yaml": content}).items(), path=path)


BAD = {
    "encrypted": (lambda path: change_field(zipped(path=path), 8, 6, 1), "model.zip: its meta.yaml is encrypted: unpack"),
    "of an unknown method": (
        lambda path: change_field(zipped(path=path), 10, 8, 97), "model.zip: its meta.yaml can't be read: That compression",
    ),
    "of a newer format": (lambda path: change_field(zipped(path=path), 6, 4, 99), "model.zip: its directory can't be read: "),
    "rotten deflate": (lambda path: rotten(path, zipfile.ZIP_DEFLATED), "its exp/model.pth can't be unpacked: Error -3"),
    "rotten bzip2": (lambda path: rotten(path, zipfile.ZIP_BZIP2), "its exp/model.pth can't be unpacked: Invalid data"),
    "rotten lzma": (lambda path: rotten(path, zipfile.ZIP_LZMA), "exp/model.pth"),
    "rotten": (lambda path: rotten(path, zipfile.ZIP_STORED), "model.zip is not a whole zip archive: Bad CRC-32"),
    "too long a name": (lambda path: zipped(*members().items(), ("a" * 300, ""), path=path), "can't be unpacked: File name too"),
    "a file as a folder": (lambda path: zipped(*members().items(), ("meta.yaml/a", ""), path=path), "its meta.yaml/a can't be"),
    "a member twice": (duplicate, "model.zip: its meta.yaml is there 2 times"),
    "no member": (lambda path: zipfile.ZipFile(path, "w").close(), "model.zip holds no meta.yaml: valid are"),
    "no meta.yaml": (lambda path: zipped(("a", "b"), path=path), "model.zip holds no meta.yaml: valid are"),
    "empty": (lambda path: open(path, "w").close(), "model.zip is empty"),
    "no archive": (lambda path: open(path, "w").write("text\n"), "model.zip is not a whole zip archive: "),
    "tar": (tar, "model.zip is a tar archive: unpack it (tar -xf model.zip)"),
    "parameters": (lambda path: torch.save({"a": torch.zeros(1)}, path), "model.zip holds parameters alone: give its folder"),
    **{
        f"meta.yaml {content}": (with_meta(content), f"model.zip: meta.yaml{message}")
        for content, message in (
            ("null", " must hold `key: value` lines"),
            ("[a]", " must hold `key: value` lines"),
            ("3", " must hold `key: value` lines"),
            ("{", " cannot be read: "),
            ("yaml_files: null", ": yaml_files: null: `name: path` lines are needed"),
            ("files: [a]", ": files: ['a']: `name: path` lines are needed"),
            ("files: {asr_model_file: 3}", ": files: {'asr_model_file': 3}: `name: path` lines"),
        )
    },
    "an empty meta.yaml": (with_meta("{}"), "model.zip holds no model: its meta.yaml names only no file"),
    "no model": (lambda path: zipped(*list(members().items())[:2], path=path), "model.zip lacks exp/model.pth"),
    "a configuration that is none": (
        lambda path: zipped(*members(**{"exp/config.yaml": "3"}).items(), path=path), "model.zip: exp/config.yaml must hold",
    ),
    "another task's": (
        lambda path: zipped(*members(**{"exp/config.yaml": "tts: vits\n"}).items(), path=path),
        "model.zip is a model for text to speech (TTS)",
    ),
    **{
        f"of version {version}": (
            lambda path, version=version: zipped(*members(**{"espnet_mla.yaml": f"version: {version}\n"}).items(), path=path),
            f"model.zip: espnet_mla.yaml: version: {said} is none",
        )
        for version, said in (("[1]", "[1]"), ("new", "new"))
    },
}  # fmt: skip


@pytest.mark.parametrize("how", BAD)
def test_a_bad_archive_is_one_line_and_nothing_of_it_stays_in_the_cache(how, tmp_path):
    make, message = BAD[how]
    make("model.zip")
    with pytest.raises(UserError) as refused:
        locate("model.zip", MODEL_FILE)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert str(tmp_path / "cache") not in str(refused.value)
    assert [path.name for path in tmp_path.glob("cache/espnet_mla/*") if path.name != ".lock"] == []


def test_a_whole_archive_is_unpacked_once():
    files = locate(zipped(), MODEL_FILE).files
    files["asr_model_file"].write_text("still there")
    assert locate("model.zip", MODEL_FILE).model.read_text() == "still there"


def test_an_archive_holds_one_model_and_no_other_is_taken_for_it():
    assert locate(zipped(), "model.pth")
    with pytest.raises(
        UserError, match="model.zip holds one model, model.pth: inference_asr_model 7epoch.pth can only"
    ):
        locate("model.zip", "7epoch.pth")


def test_the_archive_of_another_task_is_named_as_one():
    meta = {"yaml_files": {"train_config": "exp/config.yaml"}, "files": {"model_file": "exp/model.pth"}}
    zipped(*members(**{"meta.yaml": yaml.safe_dump(meta), "exp/config.yaml": "separator: rnn\n"}).items())
    with pytest.raises(UserError, match=r"model.zip is a model for speech enhancement .*\(ENH\): only models for"):
        locate("model.zip", MODEL_FILE)


def test_the_file_of_a_model_is_no_archive():
    torch.save({"a": torch.zeros(1)}, "model.pth")
    for given in (lambda: locate("model.pth", MODEL_FILE), lambda: find(None, None, "model.pth")):
        with pytest.raises(
            UserError, match="model.pth holds parameters alone: .*--inference_asr_model.*--asr_model_file"
        ):
            given()


def test_a_cache_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        UserError, match="model.zip cannot be unpacked into .*/file/espnet_mla: Not a dir.*XDG_CACHE_HOME"
    ):
        locate(zipped(), MODEL_FILE)


def test_more_than_the_disk_holds_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 100))
    with pytest.raises(UserError, match="100B are free, unpacking model.zip needs 1"):
        locate(zipped(), MODEL_FILE)


def test_what_is_no_name_of_a_file_does_not_exist():
    for source in ("a" * 300, "~nobody-at-all/model", "a\0b"):
        with pytest.raises(UserError, match="does not exist: valid are"):
            locate(source, MODEL_FILE)


def test_stage_15_unpacks_by_the_same_function():
    assert packing.unpack is unpack

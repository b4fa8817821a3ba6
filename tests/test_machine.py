"""What a machine has is found where its usual tools are missing too."""

import pytest

from espnet_mla.common import machine


@pytest.fixture(autouse=True)
def asked_anew():
    machine.gpus.cache_clear()
    yield
    machine.gpus.cache_clear()


def tool(folder, monkeypatch, text):
    """nvidia-smi on the path."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_gpus_have_the_names_that_nvidia_smi_gives(tmp_path, monkeypatch):
    tool(tmp_path, monkeypatch, "echo NVIDIA H100; echo NVIDIA A40")
    assert machine.gpus() == ("NVIDIA H100", "NVIDIA A40")


@pytest.mark.parametrize("text", ["exit 9", ""])
def test_there_are_none_where_neither_tool_nor_driver_is(tmp_path, monkeypatch, text):
    tool(tmp_path, monkeypatch, text)
    monkeypatch.setattr(machine, "DRIVERS", (tmp_path / "nvidiactl",))
    assert machine.gpus() == ()


def test_pytorch_is_asked_where_a_driver_is_without_its_tool(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(machine, "DRIVERS", (tmp_path / "nvidiactl",))
    monkeypatch.setattr(machine, "_PYTORCH", "print('one'); print('other')")
    assert machine.gpus() == ("one", "other")


def test_visible_ones_are_those_that_the_environment_leaves(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ("a", "b", "c"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.visible_gpus() == ("0", "1", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 0")
    assert machine.visible_gpus() == ("2", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.visible_gpus() == ()

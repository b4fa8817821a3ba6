"""What a killed training leaves is whole: torch.save, as `python -m espnet_mla.run` has it."""

import io
import subprocess
import sys

import pytest
import torch

from espnet_mla.common import torch_save as whole_files


class Bad:
    """Cannot be saved: what stands for a process that ends in the midst of it."""

    def __reduce__(self):
        raise InterruptedError


def test_a_save_that_is_cut_off_leaves_the_file_before(tmp_path):
    path = tmp_path / "3epoch.pth"
    whole_files.save({"a": torch.ones(3)}, path)
    with pytest.raises(InterruptedError):
        whole_files.save({"a": torch.zeros(3), "b": Bad()}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))


def test_a_checkpoint_counts_only_with_the_model_of_its_epoch(tmp_path):
    for epoch in (1, 2):
        whole_files.save({"epoch": epoch}, tmp_path / "checkpoint.pth")
        found = (tmp_path / "checkpoint.pth").exists() and torch.load(tmp_path / "checkpoint.pth")["epoch"]
        assert found == epoch - 1
        whole_files.save({}, tmp_path / f"{epoch}epoch.pth")
        assert torch.load(tmp_path / "checkpoint.pth")["epoch"] == epoch
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1epoch.pth", "2epoch.pth", "checkpoint.pth"]


def test_a_buffer_is_saved_to_as_ever():
    buffer = io.BytesIO()
    whole_files.save({"a": 1}, buffer)
    buffer.seek(0)
    assert torch.load(buffer) == {"a": 1}


def test_trainings_of_espnet_have_it_and_nothing_else(tmp_path):
    (tmp_path / "script.py").write_text("import torch; print(torch.save.__module__)")
    code = (
        "import runpy, torch; runpy.run_module = lambda *given, **named: print(torch.save.__module__)\n"
        "from espnet_mla import run\n"
        "for command in ['script.py'], ['-m', 'espnet2.bin.asr_inference'], ['-m', 'espnet2.bin.asr_train']:\n"
        "    run.main(command)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    modules = ["torch.serialization", "torch.serialization", "espnet_mla.common.torch_save"]
    assert done.stdout.splitlines() == modules, done.stderr

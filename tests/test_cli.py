"""The espnet-mla command answers at once and hands over to what it names."""

import subprocess
import sys
import types

import pytest

from espnet_mla import cli
from espnet_mla.trained.decoding import DECODING


def test_help_lists_every_command_and_loads_neither_torch_nor_espnet():
    code = "import sys; from espnet_mla import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'espnet2'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("recipe", ["--stage", "--asr_config"]),
        ("profile", ["--asr_model_file", "--wav_scp"]),
        ("compare", ["--baseline"]),
        ("convert", ["--kv_lora_rank"]),
        ("transcribe", ["--timing", "--device", *(f"--{name}" for name in DECODING)]),
        ("stream", ["--realtime", "--chunk_size", "--left_chunks", "arecord"]),
    ],
)
def test_help_of_a_command_loads_neither_torch_nor_espnet(command, options):
    code = f"import sys; from espnet_mla import cli\ntry: cli.main(['{command}', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'espnet2', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(option in done.stdout for option in options)


def test_what_follows_the_command_is_the_commands_own(monkeypatch):
    given = []
    recorder = types.ModuleType("recorder")
    recorder.main = lambda arguments: given.append(arguments) or 7
    monkeypatch.setitem(sys.modules, "recorder", recorder)
    monkeypatch.setitem(cli.COMMANDS, "recipe", ("", "recorder"))
    assert cli.main(["recipe", "--stage", "3", "--help"]) == 7
    assert given == [["--stage", "3", "--help"]]


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("espnet-mla ")


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["trian"])
    assert ended.value.code == 2 and "recipe" in capsys.readouterr().err

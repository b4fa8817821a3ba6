"""The promises of setup_environment.sh: which interpreter it takes, what it says without one, what a second run does.

Every interpreter here is a few lines of shell that answer as Python would, so nothing is downloaded or installed.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ("bash", "env", "cat", "cksum", "cp", "dirname", "flock", "mkdir", "rm", "sleep", "touch")

PYTHON = """#!/usr/bin/env bash
case "$*" in
    *ensurepip*) echo "{version} $0" ;;
    *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *"-m pip install"*) echo "$*" >>pip.log; exit {pip} ;;
    *) exit 2 ;;
esac
"""
SHIM = "#!/usr/bin/env bash\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n"


class Machine:
    """A folder with a copy of the script, a home, and a PATH that holds some tools and what a test adds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.repository = folder, folder / "bin", folder / "a repository"
        for path in (self.bin, self.repository, folder / "home"):
            path.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        shutil.copy(ROOT / "setup_environment.sh", self.repository)
        for name in ("pyproject.toml", "setup.py"):
            (self.repository / name).write_text("# a stand-in\n")

    def add(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def python(self, name: str, version: str, pip: int = 0) -> Path:
        return self.add(name, PYTHON.format(version=version, pip=pip))

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["./setup_environment.sh", *arguments],
            cwd=self.repository,
            env={"PATH": str(self.bin), "HOME": str(self.folder / "home"), **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def installs(self) -> int:
        log = self.repository / "pip.log"
        return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def test_it_takes_the_first_that_fits(machine):
    machine.python("python3", "3.12")
    assert machine.run("--find").stdout.strip() == str(machine.bin / "python3")
    machine.python("python3.12", "3.12")
    assert machine.run("--find").stdout.strip() == str(machine.bin / "python3.12")
    machine.python("python3.13", "3.13")
    assert machine.run("--find").stdout.strip() == str(machine.bin / "python3.13")
    own = machine.python("elsewhere/python", "3.12")
    assert machine.run("--find", PYTHON=str(own)).stdout.strip() == str(own)


def test_an_interpreter_is_asked_for_its_version(machine):
    machine.python("python3.13", "3.14")
    machine.python("python3.12", "3.1")
    machine.python("python3", "3.13")
    assert machine.run("--find").stdout.strip() == str(machine.bin / "python3")


def test_a_PYTHON_that_does_not_fit_is_said_and_passed_over(machine):
    machine.python("python3.12", "3.12")
    result = machine.run("--find", PYTHON=str(machine.python("old", "3.8")))
    assert result.stdout.strip() == str(machine.bin / "python3.12")
    assert "is Python 3.8" in result.stderr


def test_a_shim_that_answers_command_not_found_is_none_and_pyenv_is_asked(machine):
    machine.add("python3.12", SHIM)
    machine.python("python3", "3.11")
    prefix = machine.bin / "versions"
    machine.python("versions/3.9.18/bin/python", "3.9")
    wanted = machine.python("versions/3.12.1/bin/python", "3.12")
    answers = f"case $1 in versions) echo 3.9.18; echo 3.12.1 ;; prefix) echo '{prefix}'/$2 ;; esac"
    pyenv = machine.add("pyenv", f"#!/usr/bin/env bash\n{answers}\n")
    assert machine.run("--find").stdout.strip() == str(wanted)
    home = machine.folder / "home/.pyenv/bin"
    home.mkdir(parents=True)
    pyenv.rename(home / "pyenv")  # not on the PATH, but where it is by default
    assert machine.run("--find").stdout.strip() == str(wanted)


def test_uv_comes_last(machine):
    wanted = machine.python("uvs/python", "3.12")
    machine.add("uv", f'#!/usr/bin/env bash\n[ "${{*: -1}}" = 3.12 ] && echo "{wanted}"\n')
    assert machine.run("--find").stdout.strip() == str(wanted)


def test_without_any_it_says_what_it_tried_and_how_to_get_one(machine):
    machine.add("python3.12", SHIM)
    machine.python("python3", "3.11")
    for arguments in (("--find",), ()):
        result = machine.run(*arguments)
        assert result.returncode == 1 and result.stdout == ""
        for line in (
            "$PYTHON: is not set",
            "python3.13: there is no such command",
            "python3.12: does not run: pyenv: python3.12: command not found",
            "python3: is Python 3.11",
            "pyenv: there is no such command",
            "uv: there is no such command",
        ):
            assert f"\n  {line}\n" in result.stderr
        assert "uv python install 3.12" in result.stderr and "PYTHON=/path/to/python3.12" in result.stderr
    assert not (machine.repository / ".venv").exists()


def test_a_python_without_venv_is_passed_over_with_its_reason(machine):
    error = "Traceback:\\n  File x\\nModuleNotFoundError: No module named ensurepip"
    machine.add("python3", f'#!/usr/bin/env bash\nprintf "{error}\\n" >&2\nexit 1\n')
    assert "python3: does not run: ModuleNotFoundError: No module named ensurepip" in machine.run("--find").stderr


def test_a_second_run_does_nothing_until_the_package_changes(machine):
    machine.python("python3.12", "3.12")
    assert machine.run().returncode == 0 and machine.installs() == 1
    again = machine.run()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "") and machine.installs() == 1
    (machine.repository / "pyproject.toml").write_text("# changed\n")
    assert machine.run().returncode == 0 and machine.installs() == 2


def test_an_environment_that_a_killed_run_left_is_made_again(machine):
    machine.python("python3.12", "3.12")
    machine.run()
    (machine.repository / ".venv/.espnet_mla_begun").touch()
    (machine.repository / ".venv/left").touch()
    result = machine.run()
    assert "half made" in result.stdout and machine.installs() == 2
    assert not (machine.repository / ".venv/left").exists()
    assert machine.run().stdout == ""


def test_a_failed_installation_is_said_and_continued(machine):
    machine.python("python3.12", "3.12", pip=1)
    result = machine.run()
    assert result.returncode == 1 and "run this again" in result.stderr
    machine.python("../a repository/.venv/bin/python", "3.12")
    (machine.repository / ".venv/kept").touch()
    assert machine.run().returncode == 0 and (machine.repository / ".venv/kept").exists()


def test_an_environment_that_is_already_there_is_used_where_it_fits_and_never_removed(machine):
    machine.python("../a repository/.venv/bin/python", "3.13")
    (machine.repository / ".venv/kept").touch()
    assert machine.run().returncode == 0 and machine.installs() == 1
    assert (machine.repository / ".venv/kept").exists()


def test_an_environment_of_another_python_is_refused_and_left(machine):
    machine.python("python3.12", "3.12")
    machine.python("../a repository/.venv/bin/python", "3.10")
    result = machine.run()
    assert result.returncode == 1 and "but: 3.10" in result.stderr and machine.installs() == 0
    assert (machine.repository / ".venv/bin/python").exists()


def test_the_users_other_environments_stay_out_of_it(machine):
    reports = PYTHON.format(version="3.12", pip=0).replace("exit 0", "env >environment; exit 0")
    machine.add("python3.12", reports)
    other = machine.folder / "other"
    users = {"PYTHONPATH": "/x", "PYTHONHOME": "/x", "PIP_USER": "1", "PIP_TARGET": "/x", "VIRTUAL_ENV": str(other)}
    assert machine.run(**users).returncode == 0
    seen = (machine.repository / "environment").read_text()
    assert not any(f"{name}=" in seen for name in ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET"))
    assert not other.exists()


def test_an_unknown_option_is_refused(machine):
    result = machine.run("--fnid")
    assert result.returncode == 2 and "Usage" in result.stderr


def test_commands_that_the_documents_name_can_be_run():
    assert all(os.access(ROOT / name, os.X_OK) for name in ("setup_environment.sh", ".ci/run"))
    listing = subprocess.run(
        ["make", "--no-print-directory", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    setup, test = listing.splitlines()
    assert setup == "./setup_environment.sh"
    assert test == '.venv/bin/python -m pytest -q -n auto --dist worksteal -m "not slow" tests'

"""A run that is killed leaves no process behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what the kernel does on Linux")

SLEEP = "import os, time; open({path!r}, 'a').write(str(os.getpid()) + chr(10)); time.sleep(100)"

JOBS = """
import sys
from pathlib import Path
from espnet_mla.common.jobs import run_jobs
code = {sleep!r}
inner = [sys.executable, "-m", "espnet_mla.common.jobs", {log!r}, sys.executable, "-c", code]
starter = "import subprocess; subprocess.run(" + repr(inner) + ")"
run_jobs([[sys.executable, "-c", code], [sys.executable, "-c", starter]], [Path({log!r} + n) for n in "ab"], what="x")
"""

WORKERS = """
import os, time
from espnet_mla.common.workers import map_in_processes

def wait(path):
    with open(path, "a") as file:
        file.write(str(os.getpid()) + chr(10))
    time.sleep(100)

if __name__ == "__main__":
    list(map_in_processes(wait, [{path!r}] * 2, 2, "waiting"))
"""


def running(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize("code", [JOBS, WORKERS], ids=["jobs, as launch starts one too", "workers"])
def test_what_a_killed_run_has_started_dies_with_it(code, tmp_path):
    pids = tmp_path / "pids"
    script = tmp_path / "script.py"
    script.write_text(code.format(path=str(pids), sleep=SLEEP.format(path=str(pids)), log=str(tmp_path / "log")))
    process = subprocess.Popen([sys.executable, script], start_new_session=True, cwd=Path(__file__).parents[1])
    try:
        until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        started = [int(pid) for pid in pids.read_text().split()]
        assert all(map(running, started))
        process.send_signal(signal.SIGKILL)
        process.wait()
        until(lambda: not any(map(running, started)), seconds=10)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_training_of_several_gpus_ends_with_the_process_that_started_it(tmp_path):
    """ESPnet starts a process for each by `spawn`."""
    (tmp_path / "work.py").write_text(
        "import os, pathlib, time\n"
        "def wait(path):\n"
        "    pathlib.Path(path).write_text(str(os.getpid()))\n"
        "    time.sleep(100)\n"
    )
    (tmp_path / "main.py").write_text(
        "import multiprocessing, work\n"
        f"process = multiprocessing.get_context('spawn').Process(target=work.wait, args=({str(tmp_path / 'pid')!r},))\n"
        "process.start(); process.join()\n"
    )
    with subprocess.Popen([sys.executable, "-m", "espnet_mla.run", "main.py"], cwd=tmp_path) as process:
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), seconds=100)
        worker = int((tmp_path / "pid").read_text())
        assert running(worker)
        process.kill()
    until(lambda: not running(worker), seconds=10)


CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*CONTAINER, "true"], capture_output=True).returncode != 0,
    reason="no process may get id 1 here",
)
def test_in_a_container_the_recipe_may_be_the_first_process(tmp_path):
    code = (
        "import os; from pathlib import Path; from espnet_mla.common.jobs import run_jobs\n"
        f"assert os.getpid() == 1; run_jobs([['true']], [Path({str(tmp_path / 'log')!r})], what='a job')\n"
    )
    done = subprocess.run([*CONTAINER, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

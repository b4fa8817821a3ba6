"""Jobs leave a log each; the first that fails is reported with what it said, and nothing is left running."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_mla.common import jobs
from espnet_mla.common.errors import UserError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_each_job_has_a_log_in_the_form_of_run_pl(tmp_path):
    logs = [tmp_path / "logdir" / f"job.{n}.log" for n in (1, 2)]
    jobs.run_jobs([python(f"print('said {n}')") for n in (1, 2)], logs, what="trying")
    for number, log in enumerate(logs, 1):
        lines = log.read_text().splitlines()
        assert (
            lines[0].startswith("# ")
            and lines[1].startswith("# Running on ")
            and lines[2].startswith("# Started at ")
        )
        assert f"said {number}" in lines
        assert lines[-1].startswith("# Ended (code 0) at ")


def test_a_failing_job_is_reported_with_its_log_and_the_reason(tmp_path):
    log = tmp_path / "job.2.log"
    with pytest.raises(UserError) as failed:
        commands = [python("pass"), python("raise ValueError('too wide')")]
        jobs.run_jobs(commands, [tmp_path / "job.1.log", log], what="trying")
    first, *rest = str(failed.value).splitlines()
    assert first == f"trying failed (job 2 of 2): ValueError: too wide (exit status 1; log: {log})"
    assert any("Traceback" in line for line in rest)


def test_a_killed_job_is_reported_with_its_signal(tmp_path):
    with pytest.raises(UserError, match="signal 9"):
        jobs.run_jobs([python("import os; os.kill(os.getpid(), 9)")], [tmp_path / "log"], what="trying")


def test_a_command_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match="no/such/python"):
        jobs.run_jobs([["no/such/python"]], [tmp_path / "log"], what="trying")


def test_a_failure_ends_the_others_and_what_they_started(tmp_path):
    pid_file = tmp_path / "pid"
    starts = f"p = subprocess.Popen(['sleep', '60']); open({str(pid_file)!r}, 'w').write(str(p.pid)); p.wait()"
    child = f"import subprocess; {starts}"
    told = f"os.path.exists({str(pid_file)!r}) and open({str(pid_file)!r}).read()"
    fails = f"import os, sys, time\nwhile not ({told}): time.sleep(0.05)\nsys.exit(3)"
    began = time.monotonic()
    with pytest.raises(UserError, match="exit status 3"):
        jobs.run_jobs([python(child), python(fails)], [tmp_path / "1", tmp_path / "2"], what="trying")
    assert time.monotonic() - began < 30
    with contextlib.suppress(ProcessLookupError):
        for _ in range(50):
            os.kill(int(pid_file.read_text()), 0)
            state = Path("/proc", pid_file.read_text(), "stat")
            if state.exists() and state.read_text().split()[2] == "Z":  # Dead, and not yet waited for by init.
                break
            time.sleep(0.1)
        else:
            pytest.fail("what the job had started still runs")


def test_threads_are_given_unless_the_user_has_set_them(tmp_path, monkeypatch):
    shown = python("import os; print('threads', os.environ['OMP_NUM_THREADS'])")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    jobs.run_jobs([shown], [tmp_path / "log"], what="trying", threads=3)
    assert "threads 3" in (tmp_path / "log").read_text()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    jobs.run_jobs([shown], [tmp_path / "log"], what="trying", threads=3)
    assert "threads 5" in (tmp_path / "log").read_text()


def test_as_a_program_it_takes_what_launch_gives_it(tmp_path):
    log = tmp_path / "train.log"
    command = [sys.executable, "-m", "espnet_mla.common.jobs", "--name", "x", "--gpu", "0", str(log)]
    assert subprocess.run([*command, *python("print('trained')")]).returncode == 0
    assert "trained" in log.read_text()
    assert subprocess.run([*command, *python("raise SystemExit(7)")]).returncode == 7
    assert "# Ended (code 7)" in log.read_text()


@given(st.lists(st.text("ab \u2028\x85\r", max_size=5), min_size=1, max_size=40), st.integers(1, 12))
def test_splitting_loses_nothing_and_is_even(tmp_path_factory, lines, parts):
    parts = min(parts, len(lines))
    folder = tmp_path_factory.mktemp("split")
    source = folder / "keys.scp"
    source.write_text("".join(f"{line}\n" for line in lines))
    pieces = [folder / f"keys.{n}.scp" for n in range(parts)]
    jobs.split_table(source, pieces)
    assert "".join(piece.read_text() for piece in pieces) == source.read_text()
    sizes = [jobs.count_lines(piece) for piece in pieces]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1


def test_a_followed_log_gives_each_whole_line_once(tmp_path):
    log = tmp_path / "log"
    followed = jobs.Followed(log)
    assert list(followed.new_lines()) == []
    log.write_text("one\ntw")
    assert list(followed.new_lines()) == ["one"]
    with log.open("a") as more:
        more.write("o\nthree\n")
    assert list(followed.new_lines()) == ["two", "three"]
    assert list(followed.new_lines()) == []

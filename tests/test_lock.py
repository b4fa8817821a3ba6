"""A folder has one run at a time; a lock ends with its process, however that ends."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from espnet_mla.common.errors import UserError
from espnet_mla.common.lock import lock, unlock
from espnet_mla.recipe import stages
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse

HOLD = "import sys, time; from pathlib import Path; from espnet_mla.common.lock import lock\n"
HOLD += "held = lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(100)"


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "exp"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_with_the_lock_and_its_holder(holder, tmp_path):
    with pytest.raises(
        UserError, match=rf"exp/\.lock is held by process {holder.pid} on .+ since \d{{4}}-[-T:\d]+: wait for its end"
    ):
        lock(tmp_path / "exp")


def test_a_lock_left_by_a_killed_process_is_taken_over(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    said = tmp_path / "exp" / ".lock.holder"
    assert said.read_text().startswith(f"process {holder.pid} ")
    held = lock(tmp_path / "exp")
    assert said.read_text().startswith(f"process {os.getpid()} ")
    unlock(held)
    assert not said.exists()
    unlock(lock(tmp_path / "exp"))


def test_a_process_that_is_started_holds_no_lock_of_its_starter(tmp_path):
    held = lock(tmp_path)
    with subprocess.Popen(["sleep", "100"]) as child:
        unlock(held)
        unlock(lock(tmp_path))
        child.kill()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_only_warns(tmp_path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    unlock(lock(tmp_path / "exp"))
    assert "exp: this file system knows no locks" in caplog.text


def layout(*options: str) -> Layout:
    given = ("--train_set", "train", "--valid_set", "dev", "--test_sets", "test", "--ngpu", "0",
             "--speed_perturb_factors", "", *options)  # fmt: skip
    return Layout(parse(given))


@pytest.fixture
def performed(tmp_path, monkeypatch):
    """The stages that were performed, each of which does nothing but to run `then`."""
    done = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "check", lambda at: None)
    for number, stage in stages.STAGES.items():
        new = stages.Stage(stage.title, lambda at, number=number: done.append(number), lambda at: {}, stage.writes)
        monkeypatch.setitem(stages.STAGES, number, new)
    return done


def test_every_folder_of_a_run_is_locked_before_its_first_stage(performed, tmp_path):
    held = lock(tmp_path / "exp" / "asr_train_raw_bpe30")
    with pytest.raises(UserError, match="asr_train_raw_bpe30/.lock is held by"):
        stages.perform(layout())
    assert not performed
    stages.perform(layout("--stop_stage", "10"))
    stages.perform(layout("--stage", "11", "--asr_tag", "another"))
    assert performed == [1, 2, 3, 4, 5, 10, 11, 12, 13]
    unlock(held)
    stages.perform(layout())


def test_a_folder_is_free_again_after_the_last_stage_that_writes_to_it(performed, monkeypatch):
    at, seen = layout(), {}

    def look(_):
        for number in (1, 3, 10, 11):
            try:
                unlock(lock(stages.STAGES[number].writes(at)))
                seen[number] = "free"
            except UserError:
                seen[number] = "held"

    old = stages.STAGES[11]
    monkeypatch.setitem(stages.STAGES, 11, stages.Stage(old.title, look, old.needs, old.writes))
    stages.perform(at)
    assert seen == {1: "free", 3: "free", 10: "free", 11: "held"}


def test_a_run_that_fails_leaves_no_lock(performed, monkeypatch):
    def fail(_):
        raise UserError("no")

    old = stages.STAGES[5]
    monkeypatch.setitem(stages.STAGES, 5, stages.Stage(old.title, fail, old.needs, old.writes))
    with pytest.raises(UserError, match="^no$"):
        stages.perform(layout())
    monkeypatch.setitem(stages.STAGES, 5, old)
    stages.perform(layout())

"""espnet_mla.common.workers: the same results in the same order, however many processes."""

import os
from pathlib import Path

import pytest

from espnet_mla.common.errors import UserError
from espnet_mla.common.workers import map_in_processes

CALLS = []


def square(number):
    return number * number


def where(_):
    return os.getcwd()


def calls(item):
    CALLS.append(item)
    return os.getpid(), len(CALLS)


def refuse(item):
    raise UserError(f"{item} is refused")


def die(_):
    os._exit(9)


@pytest.mark.parametrize("nj", [1, 2])
def test_results_come_in_the_order_of_the_items(nj):
    assert list(map_in_processes(square, range(50), nj, "test")) == [number * number for number in range(50)]


def test_no_items_give_no_results():
    assert list(map_in_processes(square, [], 4, "test")) == []


def test_workers_are_in_the_callers_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {Path(folder) for folder in map_in_processes(where, [1, 2], 2, "test")} == {tmp_path}


def test_fresh_gives_every_item_a_process_of_its_own():
    results = list(map_in_processes(calls, range(3), 2, "test", fresh=True))
    assert len({pid for pid, _ in results}) == 3
    assert all(count == 1 for _, count in results)


@pytest.mark.parametrize("nj", [1, 2])
def test_a_workers_refusal_reaches_the_caller(nj):
    with pytest.raises(UserError, match="7 is refused"):
        list(map_in_processes(refuse, [7, 8], nj, "test"))


def test_a_killed_worker_is_one_clear_error():
    with pytest.raises(UserError, match="testing: a worker process was killed"):
        list(map_in_processes(die, [1, 2], 2, "testing"))

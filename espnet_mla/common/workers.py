"""A function over many items in worker processes, with a progress bar."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from espnet_mla.common.errors import UserError


def map_in_processes[Item, Result](
    function: Callable[[Item], Result],
    items: Sequence[Item],
    nj: int,
    description: str,
    fresh: bool = False,
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the order of the items.

    Args:
        function: defined at the top of a module, so that a worker can import it.
        items: what it is called with.
        nj: at most so many processes; no more are started than there are items or processors. With one, and unless
            `fresh`, the calling process does the work.
        description: stands before the progress bar.
        fresh: give every item a process of its own, for libraries whose state outlives a call.

    Raises:
        UserError: a worker was killed from outside (by the kernel, where memory ran out).
    """
    nj = min(nj, len(items), os.cpu_count() or 1)

    def progress(results: Iterator[Result]) -> Iterable[Result]:
        return tqdm(results, total=len(items), desc=description, dynamic_ncols=True)

    if not fresh and nj <= 1:
        yield from progress(map(function, items))
        return
    pool = ProcessPoolExecutor(
        max(nj, 1),
        # Not fork: the caller may have threads. Not spawn: it would import the caller's main module once a worker.
        mp_context=multiprocessing.get_context("forkserver"),
        initializer=_begin,
        initargs=(str(Path.cwd()),),
        max_tasks_per_child=1 if fresh else None,
    )
    try:
        chunk = 1 if fresh else max(1, min(64, len(items) // (8 * nj)))
        yield from progress(pool.map(function, items, chunksize=chunk))
    except BrokenProcessPool:
        raise UserError(f"{description}: a worker process was killed; was there enough memory?") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(folder: str) -> None:
    # Workers start in the folder the caller started in, which is not always the one it is in now.
    os.chdir(folder)
    # The fork server does not end with the caller while there are workers.
    threading.Thread(target=_end_with_caller, daemon=True).start()


def _end_with_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os._exit(1)

"""Processes end with the one that started them: a killed run leaves none behind that would go on writing."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends, however it ends. On Linux alone.

    As `preexec_fn` of a subprocess it holds for the program that is run too.

    Args:
        parent: its id, which may be 1 (in a container). Where it is not given, 1 is taken for who has adopted this.
    """
    if _libc is None:
        return
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    now = os.getppid()
    if now == 1 if parent is None else now != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does, so that the commands it started end with it."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)

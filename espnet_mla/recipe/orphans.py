"""No process outlives the one that has started it: a killed run leaves none behind that would go on writing."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however it ends. On Linux alone.

    As `preexec_fn` of a subprocess it holds for the program that is run too.
    """
    if _libc is None:
        return
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)

"""One run at a time in a folder, by a lock that ends with the process that holds it, however that ends."""

import errno
import logging
import os
import shlex
import socket
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from espnet_mla.common.errors import UserError
from espnet_mla.common.log import TIME

logger = logging.getLogger(__name__)

NAME = ".lock"
HOLDER = ".lock.holder"
"""Beside the lock, while it is held: who holds it."""


def lock(folder: Path) -> FileLock:
    """Lock a folder, which is made where it is missing; `unlock`, or the end of this process, ends it.

    Raises:
        UserError: another process holds the lock; the message says which.
        OSError: the folder can't be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / HOLDER
    held = FileLock(folder / NAME)
    try:
        held.acquire(blocking=False)
    except Timeout:
        name = holder.read_text(encoding="utf-8").partition(" (")[0] if holder.exists() else "another process"
        raise UserError(f"{folder / NAME} is held by {name}: wait for its end, or end it") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        logger.warning("%s: this file system knows no locks; see that no other run writes here", folder)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime(TIME)}"
    holder.write_text(f"{since} ({command})\n", encoding="utf-8")
    return held


def unlock(held: FileLock) -> None:
    """End a lock."""
    Path(held.lock_file).with_name(HOLDER).unlink(missing_ok=True)
    held.release()

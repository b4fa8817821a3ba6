"""One run at a time in a folder, by a lock that ends with the process that holds it, however that ends."""

import errno
import fcntl
import logging
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import IO

from espnet_mla.common.errors import UserError
from espnet_mla.common.log import TIME

logger = logging.getLogger(__name__)

NAME = ".lock"


def lock(folder: Path) -> IO[str]:
    """Lock a folder, which is made where it is missing, until the file that is returned is closed.

    `folder`/.lock says who holds it. What a dead process has left there is no lock.

    Raises:
        UserError: another process holds it.
        OSError: the folder can't be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().partition(" (")[0] or "another process"
        file.close()
        raise UserError(f"{path} is held by {holder}: wait for its end, or end it") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            file.close()
            raise
        logger.warning("%s: this file system knows no locks; see that no other run writes here", folder)
    file.truncate(0)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime(TIME)} ({command})\n")
    file.flush()
    return file


def unlock(file: IO[str]) -> None:
    """End a lock."""
    file.truncate(0)
    file.close()

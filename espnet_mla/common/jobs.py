"""Commands run side by side on this machine, each with a log file of the form that Kaldi's run.pl writes.

`python -m espnet_mla.common.jobs [--gpu N] [--name NAME] LOG COMMAND...` runs one command as `run.pl` would: it is what
`espnet2.bin.launch` takes as `--cmd`.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from espnet_mla.common.errors import UserError
from espnet_mla.common.machine import CORES, gpus, processor
from espnet_mla.common.processes import die_with_parent, end_on_signals

POLL_SECONDS = 0.2
TAIL_LINES = 25


class Job:
    """A running command whose output goes to `log`, with what it computes on in the first lines."""

    def __init__(
        self, command: Sequence[str], log: Path, threads: int | None = None, new_session: bool = True, ngpu: int = 0
    ) -> None:
        self.log = log
        self.new_session = new_session
        log.parent.mkdir(parents=True, exist_ok=True)
        self.output = log.open("w", encoding="utf-8")
        self.started = time.monotonic()
        self.seconds = 0.0  # that it ran, once it has ended
        running_on = f"{processor()}, {CORES} cores, {environment(threads).get('OMP_NUM_THREADS', CORES)} threads"
        running_on += f", {ngpu} x {next(iter(gpus()), 'GPU')}" if ngpu else ""
        self._write(f"# {shlex.join(command)}\n# Running on {running_on}\n# Started at {time.ctime()}\n#\n")
        try:
            self.process = subprocess.Popen(
                command, stdout=self.output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=environment(threads), start_new_session=new_session,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )  # fmt: skip
        except OSError as error:
            self.output.close()
            raise UserError(f"{command[0]} cannot be run: {error.strerror}") from None

    def finished(self) -> int | None:
        """The exit status, or None while the command runs."""
        status = self.process.poll()
        if status is not None and not self.output.closed:
            self.seconds = time.monotonic() - self.started
            elapsed = round(self.seconds)
            self._write(f"# Accounting: time={elapsed} threads=1\n")
            self._write(f"# Ended (code {status}) at {time.ctime()}, elapsed time {elapsed} seconds\n")
            self.output.close()
        return status

    def stop(self) -> None:
        """End the command and all that it started, if it still runs."""
        if self.finished() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number) if self.new_session else self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
                break
        self.finished()

    def _write(self, text: str) -> None:
        self.output.write(text)
        self.output.flush()


def run_side_by_side[Item](
    items: Iterable[Item],
    *,
    slots: int,
    start: Callable[[Item, int], Job],
    end: Callable[[Item, Job, int], None],
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Run a command for each item, at most `slots` at a time; where this raises, the running ones are ended.

    Args:
        start: starts the command of an item in a slot, a number from 0: its share of the machine.
        end: is called with the item, its job and the exit status when the command has ended.
        watch: is called now and then.
    """
    waiting = list(items)
    running: dict[int, tuple[Item, Job]] = {}
    try:
        while waiting or running:
            for slot in range(slots):
                if waiting and slot not in running:
                    item = waiting.pop(0)
                    running[slot] = item, start(item, slot)
            for slot, (item, job) in list(running.items()):
                if (status := job.finished()) is not None:
                    del running[slot]
                    end(item, job, status)
            watch()
            if running:
                time.sleep(POLL_SECONDS)
    finally:
        for _, job in running.values():
            job.stop()


def run_jobs(
    commands: Sequence[Sequence[str]],
    logs: Sequence[Path],
    *,
    what: str,
    threads: int | None = None,
    watch: Callable[[], None] = lambda: None,
    error_log: Path | None = None,
) -> None:
    """Run all commands at once, calling `watch` now and then; the first that fails ends the others.

    `error_log` is the file whose end an error shows, where that is not the log of the command that failed.

    Raises:
        UserError: a command failed; the message names its log and shows how it ends.
    """

    def end(number: int, job: Job, status: int) -> None:
        if status:
            place = f" (job {number + 1} of {len(commands)})" if len(commands) > 1 else ""
            log = error_log if error_log and error_log.exists() else job.log
            raise failure(f"{what} failed{place}", status, log)

    run_side_by_side(
        range(len(commands)),
        slots=len(commands),
        start=lambda number, _: Job(commands[number], logs[number], threads),
        end=end,
        watch=watch,
    )


def failure(what: str, status: int, log: Path) -> UserError:
    """The error for a command that ended with `status`: where its log is, and the log's last lines."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    # A Python program's last line says what went wrong.
    told = lines and re.match(r"(error|[\w.]+(Error|Exception)): .", lines[-1])
    because = f": {lines[-1].removeprefix('error: ')}" if told else ""
    reason = f"signal {-status}" if status < 0 else f"exit status {status}"
    ending = "".join(f"\n    {line}" for line in lines[-TAIL_LINES:])
    return UserError(f"{what}{because} ({reason}; log: {log})" + (f"\nThe log ends:{ending}" if ending else ""))


def environment(threads: int | None) -> dict[str, str]:
    """The environment with OMP_NUM_THREADS set to `threads`, unless the user has set it; None: as it is."""
    return {**({} if threads is None else {"OMP_NUM_THREADS": str(threads)}), **os.environ}


def threads_for(jobs: int) -> int:
    """Threads for each of `jobs` commands that share this machine's cores."""
    return max(1, CORES // jobs)


def split_table(source: Path, parts: Sequence[Path]) -> None:
    """Cut the lines of `source` into consecutive `parts` whose sizes differ by one at most, the larger ones first."""
    with source.open(encoding="utf-8", newline="\n") as file:
        lines = file.readlines()
    size, larger = divmod(len(lines), len(parts))
    begin = 0
    for number, part in enumerate(parts):
        end = begin + size + (number < larger)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("".join(lines[begin:end]), encoding="utf-8")
        begin = end


def count_lines(path: Path) -> int:
    """The number of lines of a file."""
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


class Followed:
    """A log file that grows: `new_lines` gives the whole lines that came since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0

    def new_lines(self) -> Iterator[str]:
        try:
            with self.path.open("rb") as log:
                log.seek(self.position)
                grown = log.read()
        except FileNotFoundError:
            return
        whole = grown[: grown.rfind(b"\n") + 1]
        self.position += len(whole)
        yield from whole.decode("utf-8", errors="replace").splitlines()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command as Kaldi's run.pl does: options with a value each, the log, the command."""
    rest = list(sys.argv[1:] if arguments is None else arguments)
    ngpu = 0
    while rest and rest[0].startswith("--"):
        ngpu = int(rest[1]) if rest[0] == "--gpu" else ngpu
        del rest[:2]
    if len(rest) < 2:
        print("usage: python -m espnet_mla.common.jobs [--gpu N] [--name NAME] LOG COMMAND...", file=sys.stderr)
        return 2
    end_on_signals()
    die_with_parent()
    log, *command = rest
    job = Job(command, Path(log), new_session=False, ngpu=ngpu)
    try:
        job.process.wait()
        return abs(job.finished() or 0)
    finally:
        job.stop()


if __name__ == "__main__":
    sys.exit(main())

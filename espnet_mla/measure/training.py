"""How long a model was trained: read off the logs that ESPnet's trainer leaves."""

import re
from datetime import datetime
from pathlib import Path

_EPOCH = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ \(trainer:\d+\) INFO: (\d+)epoch results: (.*)")
_TOOK = re.compile(r", time=(.*?), total_count")
_RUNNING_ON = "# Running on "
_UNITS = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}


def figures(asr_exp: Path) -> dict | None:
    """Epochs and seconds of a training, all runs that went on from one another taken together.

    The seconds are what the trainer itself counts for each epoch: training and validation. An epoch that a rerun did
    again counts once, by its last run.

    Args:
        asr_exp: a folder with train.log, and after reruns train.1.log, train.2.log, ...

    Returns:
        epochs, seconds, the day of the last one, and what the logs say that they ran on (all of it, where runs differ;
        None where they don't say); None where no log tells of an epoch.
    """
    took: dict[int, tuple[str, float, str]] = {}
    for log in sorted(asr_exp.glob("train*.log")):
        where = ""
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(_RUNNING_ON):
                where = line.removeprefix(_RUNNING_ON)
            elif found := _EPOCH.search(line):
                when, epoch, results = found.groups()
                seconds = sum(_seconds(text) for text in _TOOK.findall(results))
                took[int(epoch)] = max(took.get(int(epoch), ("", 0.0, "")), (when, seconds, where))
    if not took:
        return None
    last = datetime.fromisoformat(max(when for when, _, _ in took.values()))
    return {
        "epochs": len(took),
        "seconds": round(sum(seconds for _, seconds, _ in took.values()), 1),
        "finished": last.date().isoformat(),
        "running_on": "; ".join(sorted({where for _, _, where in took.values() if where})) or None,
    }


def _seconds(text: str) -> float:
    """`1 minute and 2.5 seconds` -> 62.5."""
    return sum(
        float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+) (day|hour|minute|second)s?", text)
    )

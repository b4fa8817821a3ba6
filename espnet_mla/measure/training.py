"""How long a model was trained, read off the logs of ESPnet's trainer."""

import re
from datetime import datetime
from pathlib import Path

_EPOCH = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ \(trainer:\d+\) INFO: (\d+)epoch results: (.*)")
_TOOK = re.compile(r", time=(.*?), total_count")
_RUNNING_ON = "# Running on "
_UNITS = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}


def figures(asr_exp: Path) -> dict | None:
    """Epochs and seconds of a training, over all runs that resumed one another.

    The seconds are those that the trainer reports for each epoch: training and validation. An epoch that was repeated
    counts once, by its last run.

    Args:
        asr_exp: a folder with train.log, and after reruns train.1.log, train.2.log, ...

    Returns:
        epochs, seconds, the date of the last epoch, and the machines that the logs name (None where they name none);
        None where no log reports an epoch.
    """
    epochs: dict[int, tuple[str, float, str]] = {}
    for log in sorted(asr_exp.glob("train*.log")):
        machine = ""
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(_RUNNING_ON):
                machine = line.removeprefix(_RUNNING_ON)
            elif found := _EPOCH.search(line):
                when, epoch, results = found.groups()
                seconds = sum(_seconds(text) for text in _TOOK.findall(results))
                epochs[int(epoch)] = max(epochs.get(int(epoch), ("", 0.0, "")), (when, seconds, machine))
    if not epochs:
        return None
    last = datetime.fromisoformat(max(when for when, _, _ in epochs.values()))
    return {
        "epochs": len(epochs),
        "seconds": round(sum(seconds for _, seconds, _ in epochs.values()), 1),
        "finished": last.date().isoformat(),
        "running_on": "; ".join(sorted({machine for _, _, machine in epochs.values() if machine})) or None,
    }


def _seconds(text: str) -> float:
    """`1 minute and 2.5 seconds` -> 62.5."""
    return sum(
        float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+) (day|hour|minute|second)s?", text)
    )

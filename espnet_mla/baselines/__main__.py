"""run_all_baselines.sh: every configuration trained, scored and measured, and all of them compared."""

import argparse
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from espnet_mla.baselines.plan import Experiment, Plan, estimate, make_plan
from espnet_mla.common.errors import UsageError, UserError
from espnet_mla.common.files import write_text
from espnet_mla.common.jobs import Job, failure, run_side_by_side
from espnet_mla.common.lock import lock, unlock
from espnet_mla.common.log import log
from espnet_mla.common.processes import end_on_signals
from espnet_mla.common.units import duration
from espnet_mla.recipe.corpora import CORPORA, DEFAULT
from espnet_mla.trained.names import FIGURES_FILE

LOGS = "baselines"
"""The folder of the logs, below that of the experiments; one run at a time writes there."""

DESCRIPTION = """\
Train, decode and score every pair of architecture and attention, measure each, and compare all. What is done is
skipped. A pair that fails stops no other: the table at the end names its log. Options that are not listed here go to
run.sh, as --batch_size.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do it, and return the exit status: 1 where something failed."""
    parser = _parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    for name in ("--asr_args", "--inference_args"):  # whose values may look like options
        while name in given[:-1]:
            place = given.index(name)
            given[place : place + 2] = [f"{name}={given[place + 1]}"]
    options, rest = parser.parse_known_args(given)
    try:
        plan = make_plan(options, rest)
        if options.dry_run:
            _print_plan(plan)
            return 0
        end_on_signals()
        held = lock(plan.exp / LOGS)
        try:
            return _perform(plan)
        finally:
            unlock(held)
    except UsageError as error:
        parser.error(str(error))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 130


def _perform(plan: Plan) -> int:
    began = time.monotonic()
    logs = plan.exp / LOGS
    if not plan.prepared and any(not one.elsewhere for one in plan.experiments):
        _prepare(plan, logs)
    _step(plan, plan.train, "trained", plan.jobs, [one for one in plan.experiments if not one.trained])
    # One at a time: beside another program no time means anything.
    _step(plan, plan.profile, "measured", 1, [one for one in plan.experiments if one.trained and not one.measured])
    measured = [one for one in plan.experiments if one.measured]
    for one in measured:
        if one.kept and not one.elsewhere:
            write_text(one.kept / FIGURES_FILE, (one.folder / FIGURES_FILE).read_text(encoding="utf-8"))
    compared, failed = bool(measured), [one.name for one in plan.experiments if one.failed]
    if measured:
        log(f"Comparing {len(measured)} models")

        def end(name: str, job: Job, status: int) -> None:
            nonlocal compared
            if status:
                compared = (plan.output / "RESULTS.md").exists()  # 1 may only say that something was left out
                print(f"error: {failure('comparing failed', status, job.log)}", file=sys.stderr)
                failed.append("compare")

        _run({"compare": plan.compare(measured)}, logs, end)
    print(_table(plan.experiments))
    log(
        (f"The comparison is in {plan.output}. " if compared else "Nothing was compared. ")
        + f"[elapsed={duration(time.monotonic() - began)}]"
    )
    return int(not compared or bool(failed))


def _prepare(plan: Plan, logs: Path) -> None:
    """Data, and statistics with the first configuration that can be built.

    Raises:
        UserError: it fails.
    """
    statuses: dict[str, int] = {}

    def end(name: str, _: Job, status: int) -> None:
        statuses[name] = status

    _run({"data": plan.data}, logs, end)
    if statuses["data"]:
        raise failure("preparing the data failed", statuses["data"], logs / "data.log")
    for one in {one.config: one for one in plan.experiments}.values():
        _run({"statistics": plan.statistics(one)}, logs, end)
        if not statuses["statistics"]:
            return
    raise failure(
        "collecting statistics failed with every configuration", statuses["statistics"], logs / "statistics.log"
    )


def _step(
    plan: Plan,
    command: Callable[[Experiment], list[str]],
    what: str,
    slots: int,
    experiments: Sequence[Experiment],
) -> None:
    """One step of each of the experiments."""
    by_name = {one.name: one for one in experiments}

    def end(name: str, job: Job, status: int) -> None:
        one = by_name[name]
        one.log, one.seconds = job.log, one.seconds + job.seconds
        if status:
            one.failed = what
            log(f"{name}: not {what}, log: {one.log}")
        else:
            log(f"{name}: {what} [elapsed={duration(job.seconds)}]")

    commands = {name: command(one) for name, one in by_name.items()}
    _run(commands, plan.exp / LOGS / what, end, slots, plan.gpus)


def _run(
    commands: Mapping[str, list[str]],
    logs: Path,
    end: Callable[[str, Job, int], None],
    slots: int = 1,
    gpus: Sequence[str] = (),
) -> None:
    """Run the commands, at most `slots` at a time, each with a log of its name; `end` gets name, job and exit status.

    Cores and GPUs are shared out among commands that run side by side.
    """

    def start(name: str, slot: int) -> Job:
        log(f"{name}: {shlex.join(commands[name])}")
        return Job([*_share(slot, slots, gpus), *commands[name]], logs / f"{name}.log")

    run_side_by_side(commands, slots=slots, start=start, end=end)


def _share(slot: int, slots: int, gpus: Sequence[str]) -> list[str]:
    """The prefix that limits a command to the slot's share of cores and GPUs; what counts cores then counts those."""
    if slots == 1:
        return []
    command = ["env", f"CUDA_VISIBLE_DEVICES={gpus[slot % len(gpus)]}"] if gpus else []
    if shutil.which("taskset") and hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        share = cores[slot * len(cores) // slots : (slot + 1) * len(cores) // slots] or [cores[slot % len(cores)]]
        command += ["taskset", "-c", ",".join(map(str, share))]
    return command


def _table(experiments: Sequence[Experiment]) -> str:
    rows = [["model", "trained and scored", "measured", "time", "log"]]
    for one in experiments:
        steps = {"trained": one.trained, "measured": one.measured}
        cells = ["done" if done else "FAILED" if one.failed == what else "-" for what, done in steps.items()]
        rows.append([one.name, *cells, duration(one.seconds), str(one.log) if one.failed else ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _print_plan(plan: Plan) -> None:
    """Print every command that would be run, and what it would take."""
    hours, gigabytes, source = estimate(plan)
    if not plan.prepared:
        print(f"{shlex.join(plan.data)}  # {plan.data_gigabytes:.2f} GB")
        print(shlex.join(plan.statistics(plan.experiments[0])))
    for one in plan.experiments:
        if one.trained:
            print(f"# {one.name} is trained and scored")
        else:
            print(f"{shlex.join(plan.train(one))}  # {hours:.2f} hours, {gigabytes:.2f} GB")
    for one in plan.experiments:
        if one.measured:
            print(f"# {one.name} is measured")
        else:
            print(f"{shlex.join(plan.profile(one))}  # {plan.measuring_hours:.2f} hours")
    print(shlex.join(plan.compare(plan.experiments)))
    untrained = sum(not one.trained for one in plan.experiments)
    unmeasured = sum(not one.measured for one in plan.experiments)
    print(
        f"# about {untrained * hours + unmeasured * plan.measuring_hours:.1f} hours and "
        f"{untrained * gigabytes + plan.data_gigabytes:.1f} GB: {untrained} models to train, {plan.jobs} at a time "
        f"({source}), {unmeasured} to measure"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_all_baselines.sh", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--corpus", choices=CORPORA, default=DEFAULT, help="(default: %(default)s)")
    parser.add_argument(
        "--only",
        metavar="PATTERNS",
        help='names of conf/, as "conformer_* branchformer_mla" (default: the twelve pairs)',
    )
    parser.add_argument(
        "--seeds",
        metavar="SEEDS",
        default="",
        help='seeds to train every pair with, as "1 2 3" (default: the configuration\'s)',
    )
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=1,
        help="trainings side by side; they share cores and GPUs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="print all commands, with an estimate of hours and disk"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="for the comparison (default: exp/comparison, mini/exp/comparison)"
    )
    parser.add_argument(
        "--figures", metavar="FOLDER",
        help="keep the figures of each model there too; what has some there, and no experiment here, is done",
    )  # fmt: skip
    parser.add_argument(
        "--asr_args", metavar="OPTIONS", default="", help="options of training, for all pairs, as for run.sh"
    )
    parser.add_argument("--nbpe", metavar="N", help="size of the BPE vocabulary, as for run.sh")
    parser.add_argument("--ngpu", metavar="N", type=int, help="as for run.sh; 0 measures on the CPU too")
    parser.add_argument(
        "--inference_args",
        metavar="OPTIONS",
        help="options of decoding, as for run.sh; times are measured with them too",
    )
    parser.add_argument("--test_sets", metavar="SETS", help="as for run.sh; times are measured on the first of them")
    parser.add_argument(
        "--speed_perturb_factors",
        metavar="FACTORS",
        help='as for run.sh; "" for none (default: run.sh\'s of the corpus)',
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        nargs="+",
        type=float,
        default=[],
        help="lengths of speech to measure, as for espnet-mla profile",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

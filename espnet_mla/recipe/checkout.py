"""`python -m espnet_mla.recipe.checkout`: ready this folder for the asr.sh of the ESPnet checkout in ESPNET_ROOT.

asr.sh calls it with its own options before it hands over. With `--unlink` it removes what it has made.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_mla.common.errors import UserError
from espnet_mla.common.tables import read_rows
from espnet_mla.recipe.configuration import read
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse

LINKS = ("utils", "steps", "scripts", "pyscripts")
TEMPLATE = Path("egs2/TEMPLATE/asr1")
# What decides which stages are performed, and the training; upstream takes many more options, and checks them itself.
DECISIVE = (
    "stage", "stop_stage", "skip_stages", "skip_data_prep", "skip_train", "skip_eval", "eval_valid_set",
    "speed_perturb_factors", "train_set", "valid_set", "test_sets", "asr_config", "asr_args",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """What upstream's scripts run or import: for what, when, and how to get it.

    Args:
        purpose: what it does.
        needed: whether the stages that are asked for need it, with the checkout at the path.
        source: how to get it; `{root}` stands for the checkout.
        find: gives something for the name of what is there.
    """

    purpose: str
    needed: Callable[[Layout, Path], bool]
    source: str
    find: Callable[[str], object] = shutil.which


def _imported(layout: Layout, root: Path, module: str) -> bool:
    """Whether the script of stage 3 imports the module."""
    script = root / TEMPLATE / "pyscripts" / "audio" / "format_wav_scp.py"
    return 3 in layout.performed and script.exists() and f"import {module}\n" in script.read_text(encoding="utf-8")


def _piped(layout: Layout, program: str) -> bool:
    """Whether an audio list that stage 3 reads runs the program."""
    lists = (Path("data") / name / "wav.scp" for name in layout.formatted_sets)
    entries = (entry for path in lists if path.exists() for _, entry in read_rows(path))
    return 3 in layout.performed and any(program in entry.split() for entry in entries)


PROGRAMS = {
    "perl": Program("Kaldi's scripts", lambda at, root: True, "apt install perl"),
    "sox": Program(
        "speed perturbation",
        lambda at, root: bool(at.settings.speed_perturb_factors) and not {2, 3}.isdisjoint(at.performed),
        "apt install sox, or conda install -c conda-forge sox",
    ),
    "flac": Program("audio in data/*/wav.scp", lambda at, root: _piped(at, "flac"), "apt install flac"),
    "sclite": Program(
        "stage 13",
        lambda at, root: 13 in at.performed,
        "installers/install_sctk.sh in {root}/tools, or apt install sctk and /usr/lib/sctk/bin in PATH",
    ),
    "kaldiio": Program(
        "Python package for stage 3",
        lambda at, root: _imported(at, root, "kaldiio"),
        "pip install kaldiio",
        importlib.util.find_spec,
    ),
}


def check(root: Path, arguments: Sequence[str]) -> None:
    """Find before any work what upstream's asr.sh would miss.

    Args:
        root: the checkout.
        arguments: options of asr.sh, `--name value`.

    Raises:
        UserError: this is no checkout, its Kaldi scripts are missing, or a program that the stages run; or the
            configuration of training has a value that its option can't have.
    """
    template = root / TEMPLATE
    for name, lacking in (
        ("asr.sh", "is no ESPnet checkout"),
        *((name, "is no ESPnet checkout of today") for name in LINKS),
        ("utils/run.pl", "carries no Kaldi scripts; checkouts of 2026 do"),
    ):
        if not (template / name).exists():
            raise UserError(f"ESPNET_ROOT={root} {lacking}: {TEMPLATE / name} is not there")
    pairs = zip(arguments[::2], arguments[1::2], strict=False)
    decisive = [word for pair in pairs if pair[0].removeprefix("--") in DECISIVE for word in pair]
    layout = Layout(parse(decisive))
    if "--asr_task" not in arguments and not {10, 11}.isdisjoint(layout.performed):
        _check_configuration(layout)
    missing = [
        f"{name} ({program.purpose}): {program.source.format(root=root)}"
        for name, program in PROGRAMS.items()
        if program.needed(layout, root) and not program.find(name)
    ]
    if missing:
        raise UserError("these programs are needed with ESPNET_ROOT and not found:\n  " + "\n  ".join(missing))


def _check_configuration(layout: Layout) -> None:
    """See that asr_train takes every value as the type that its option has: upstream gives it the file as it is.

    Raises:
        UserError: it does not, or the configuration is wrong.
    """
    settings = layout.settings
    if corrections := read(settings.asr_config, settings.asr_args.split()).corrections:
        raise UserError(
            f"--asr_config {settings.asr_config}: ESPnet would take numbers for text; give --asr_args "
            f'"{settings.asr_args} {" ".join(corrections)}"'
        )


def link(root: Path) -> None:
    """Link into this folder what upstream's asr.sh looks for in it.

    Raises:
        UserError: something that is no link is in the way.
    """
    for name in LINKS:
        path = Path(name)
        if path.exists() and not path.is_symlink():
            raise UserError(f"{path.absolute()} is in the way: a link to {root / TEMPLATE / name} belongs there")
        path.unlink(missing_ok=True)
        path.symlink_to(root / TEMPLATE / name)


def unlink() -> None:
    """Remove the links."""
    for name in LINKS:
        if Path(name).is_symlink():
            Path(name).unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and link, or unlink; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given == ["--unlink"]:
            unlink()
        else:
            root = Path(os.environ["ESPNET_ROOT"])
            check(root, given)
            link(root)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

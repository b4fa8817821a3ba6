"""Stage 1, as local/data.sh calls it: a corpus in, the folders data/train_clean_100, data/dev, ... out."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from espnet_mla.common.errors import UserError
from espnet_mla.common.files import write_text
from espnet_mla.common.log import show_logging
from espnet_mla.common.machine import CORES
from espnet_mla.common.processes import end_on_signals
from espnet_mla.recipe import librispeech, mini
from espnet_mla.recipe.corpora import CORPORA, DEFAULT

DATA = Path("data")


def _librispeech_100(corpus_dir: Path, options: argparse.Namespace) -> None:
    librispeech.download(corpus_dir)
    librispeech.prepare(corpus_dir, DATA, options.nj)


def _mini(corpus_dir: Path, options: argparse.Namespace) -> None:
    mini.synthesise(corpus_dir, seed=options.seed, nj=options.nj)
    librispeech.prepare(corpus_dir, DATA, options.nj, parts=tuple(mini.PARTS))
    mini.write_word_times(corpus_dir, DATA)


PREPARE: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "librispeech_100": _librispeech_100,
    "mini": _mini,
}
"""Corpus -> what brings it into a folder, unless it is there, and writes data/."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Bring the corpus into the folder that LIBRISPEECH names, and write data/."""
    parser = argparse.ArgumentParser(prog="local/data.sh", description=__doc__)
    parser.add_argument("--corpus", choices=CORPORA, default=DEFAULT)
    parser.add_argument("--nj", type=int, default=CORES, help="processes side by side (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mini corpus (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.nj < 1:
        parser.error(f"--nj {options.nj}: at least 1 is needed")
    corpus_dir = Path(os.environ.get("LIBRISPEECH") or "downloads")
    end_on_signals()
    show_logging()
    try:
        PREPARE[options.corpus](corpus_dir, options)
        write_text(DATA / "note", f"{CORPORA[options.corpus].note}\n")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Whether the mini corpus is the same on another Python, or on another machine.

    python benchmarks/corpus.py make FOLDER         # with each Python; numpy, soxr, soundfile and eSpeak NG are enough
    python benchmarks/corpus.py compare A B

`compare` prints how many files are equal to the byte, by kind, and by how much the samples of the others differ.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile

from espnet_mla.recipe import mini


def compare(one: Path, other: Path) -> None:
    """Print what is equal and what is not."""
    files = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    if files != {path.relative_to(other) for path in other.rglob("*") if path.is_file()}:
        raise SystemExit(f"{one} and {other} have other files")
    equal, all_files = Counter[str](), Counter[str]()
    differing, samples, most = 0, 0, 0
    for path in sorted(files):
        kind = path.suffix or path.name
        all_files[kind] += 1
        if (one / path).read_bytes() == (other / path).read_bytes():
            equal[kind] += 1
        elif kind == ".flac":
            these, those = (soundfile.read(folder / path, dtype="int16")[0].astype(int) for folder in (one, other))
            differing, samples = differing + int((these != those).sum()), samples + len(these)
            most = max(most, int(np.abs(these - those).max()))
    for kind, number in sorted(all_files.items()):
        print(f"{kind}: {equal[kind]} of {number} files are equal to the byte")
    if samples:
        print(f"in the other audio {differing / samples:.1%} of the samples differ, by at most {most} of 65,536 steps")


def main() -> None:
    """What the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make").add_argument("folder", type=Path)
    compared = commands.add_parser("compare")
    for name in ("one", "other"):
        compared.add_argument(name, type=Path)
    options = parser.parse_args()
    if options.command == "make":
        mini.synthesise(options.folder)
    else:
        compare(options.one, options.other)


if __name__ == "__main__":
    main()

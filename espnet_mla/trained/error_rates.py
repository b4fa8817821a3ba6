"""Word and character error rates of transcripts against references, by jiwer."""

from collections.abc import Mapping
from pathlib import Path

from espnet_mla.common.errors import UserError
from espnet_mla.common.tables import read_table


def references(path: Path, files: list[str]) -> dict[str, str]:
    """The reference of each file: in a table like Kaldi's `text`, under the file's name, without its ending or whole.

    Raises:
        UserError: the table can't be read, or lacks a file, or has an empty text for one.
    """
    table = read_table(path)
    found = {}
    for file in files:
        name = next((name for name in (file, Path(file).name, Path(file).stem) if name in table), None)
        if name is None:
            raise UserError(f"--text {path} lacks {Path(file).stem}, for {file}")
        if not table[name].strip():
            raise UserError(f"--text {path}: {name} has no words")
        found[file] = table[name]
    return found


def report(wanted: Mapping[str, str], found: Mapping[str, str], alignment: bool) -> str:
    """The rates over all files that were transcribed, and what they are made of.

    Args:
        wanted: file -> reference.
        found: file -> text, of those that could be transcribed.
        alignment: show each file's words above those of its reference as well.
    """
    import jiwer

    texts, heard = [wanted[file] for file in found], list(found.values())
    words, characters = jiwer.process_words(texts, heard), jiwer.process_characters(texts, heard)
    lines = [jiwer.visualize_alignment(words, show_measures=False).rstrip()] if alignment else []
    for name, rate, unit, one in (
        ("WER", words.wer, "words", words), ("CER", characters.cer, "characters", characters)
    ):  # fmt: skip
        total = one.hits + one.substitutions + one.deletions
        lines.append(
            f"{name} {100 * rate:.2f} %: {one.substitutions} substitutions, {one.deletions} deletions, "
            f"{one.insertions} insertions in {total} {unit}"
        )
    return "\n".join(lines)

"""NIST sclite's alignment, counts and report, so that scores can be compared with every table that ESPnet published.

The counts are not those of a Levenshtein distance, so jiwer (unit costs) can't make them. sclite weighs a substitution
4, an insertion and a deletion 3 each, and it breaks ties by rule: `a b c` against `x y a` costs 12 as three
substitutions, and as one correct word with two insertions before it and two deletions after it, and the two have
different error rates. So the alignment is made here, with sclite's weights and sclite's rule: a diagonal step where it
is not worse, else a deletion where it is cheaper, else an insertion.

What sclite (2.10, called as ESPnet calls it) reads into a line of text, and this does too: letters A-Z and a-z are the
same, all others differ by case (it compares bytes); `word*` is `word`; of `word;x` only `word` counts; a backslash is
dropped.

Two things it reads are words here: alternatives, `{ a / b }`, and `@` for no word. `has_markup` finds them.
"""

import re
import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

INSERTION = DELETION = 3
SUBSTITUTION = 4

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
_SPACE = " \t\n\v\f\r"
_TOKEN = re.compile(rf"[^{_SPACE}]+")
_END_OF_WORD = re.compile(r"(?<!\\);")

Pair = tuple[str | None, str | None]
"""A word of the reference and one of the hypothesis; None where there is none."""


class Counts(NamedTuple):
    """The correct, substituted, deleted and inserted words of an alignment."""

    correct: int
    substituted: int
    deleted: int
    inserted: int

    @property
    def words(self) -> int:
        """The words of the reference."""
        return self.correct + self.substituted + self.deleted

    @property
    def errors(self) -> int:
        """The words that are wrong."""
        return self.substituted + self.deleted + self.inserted


class Utterance(NamedTuple):
    """One scored line: its id as it stands in a .trn file, `(speaker-utterance)`, and its alignment."""

    trn_id: str
    pairs: list[Pair]

    @property
    def speaker(self) -> str:
        """What sclite takes for the speaker (`-i rm`): the id up to its first hyphen, or else underscore."""
        inside = self.trn_id.lower()[1:-1]
        return inside.partition("-" if "-" in inside else "_")[0]

    @property
    def counts(self) -> Counts:
        """The words counted over the alignment."""
        return count(self.pairs)


def count(pairs: Sequence[Pair]) -> Counts:
    """Count an alignment."""
    inserted = sum(reference is None for reference, _ in pairs)
    deleted = sum(hypothesis is None for _, hypothesis in pairs)
    correct = sum(reference == hypothesis for reference, hypothesis in pairs)
    return Counts(correct, len(pairs) - correct - deleted - inserted, deleted, inserted)


def align(reference: str, hypothesis: str) -> list[Pair]:
    """Align the words of two lines of text as sclite does."""
    return _align_words(_words(reference), _words(hypothesis))


def has_markup(text: str) -> bool:
    """Whether sclite would read alternatives or no word into a line of text where `align` reads words."""
    return any(word.startswith("{") or word == "@" for word in _words(text))


def _words(text: str) -> list[str]:
    return [_word(token) for token in _TOKEN.findall(text.translate(_LOWER))]


def _word(token: str) -> str:
    """The part of a token that sclite compares."""
    word = _END_OF_WORD.split(token, maxsplit=1)[0].replace("\\", "")
    return word[:-1] if len(word) > 1 and word.endswith("*") else word


def _align_words(reference: list[str], hypothesis: list[str]) -> list[Pair]:
    if reference == hypothesis:
        return list(zip(reference, hypothesis, strict=True))
    ids = {word: number for number, word in enumerate(dict.fromkeys(reference + hypothesis))}
    columns = np.array([ids[word] for word in hypothesis], dtype=np.int64)
    insertions = INSERTION * np.arange(len(hypothesis) + 1)
    costs = np.empty((len(reference) + 1, len(hypothesis) + 1), dtype=np.int64)
    costs[0] = insertions
    for i, word in enumerate(reference, 1):
        row = costs[i - 1] + DELETION
        np.minimum(row[1:], costs[i - 1, :-1] + SUBSTITUTION * (columns != ids[word]), out=row[1:])
        # Insertions run along the row: the cheapest of all cells to the left and the way from there.
        costs[i] = np.minimum.accumulate(row - insertions) + insertions

    pairs: list[Pair] = []
    cost, i, j = costs.tolist(), len(reference), len(hypothesis)
    while i or j:
        if i and j and cost[i][j] == cost[i - 1][j - 1] + SUBSTITUTION * (reference[i - 1] != hypothesis[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((reference[i], hypothesis[j]))
        elif i and (not j or cost[i - 1][j] < cost[i][j - 1]):
            i -= 1
            pairs.append((reference[i], None))
        else:
            j -= 1
            pairs.append((None, hypothesis[j]))
    return pairs[::-1]


def percent(part: float, whole: float) -> float:
    """`part` of `whole` in percent; 0 of nothing is 0."""
    return part / whole * 100.0 if whole else 0.0


def rounded(value: float, digits: int) -> str:
    """Print a number that isn't negative as sclite does: halves go up."""
    return f"{int(value * 10**digits + 0.5) / 10**digits:.{digits}f}"


def report(utterances: Sequence[Utterance], title: str, note: str = "") -> str:
    """What `sclite -i rm -o all stdout` prints: percentages by speaker, counts by speaker, and every alignment.

    Args:
        utterances: in the order of the hypothesis file.
        title: stands above the tables; ESPnet gives the name of the hypothesis file.
        note: stands between the tables and the alignments.
    """
    speakers: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        speakers.setdefault(utterance.speaker, []).append(utterance)
    blocks = [_table(speakers, title, raw=False), _table(speakers, title, raw=True)]
    blocks += [note] if note else []
    names = "\n".join(f"   {number:2d}:  {name}" for number, name in enumerate(speakers))
    blocks.append(f"\t\tDUMP OF SYSTEM ALIGNMENT STRUCTURE\n\nSystem name:   {title}\n\nSpeakers: \n{names}\n")
    alignments = [
        f"Speaker sentences{number:4d}:  {name}   #utts: {len(spoken)}\n" + "\n".join(map(_alignment, spoken))
        for number, (name, spoken) in enumerate(speakers.items())
    ]
    return "\n\n".join([*blocks, "\n".join(alignments)]) + "\n"


def _alignment(utterance: Utterance) -> str:
    """The lines of one utterance. Wrong words are in capitals, the missing one of a pair is as many asterisks."""
    rows: list[list[str]] = [[], [], []]
    for reference, hypothesis in utterance.pairs:
        width = max(len(reference or ""), len(hypothesis or ""), 1)
        mark = " " if reference == hypothesis else "I" if reference is None else "D" if hypothesis is None else "S"
        words = ["*" * width if word is None else word for word in (reference, hypothesis)]
        words = words if mark == " " else [word.translate(_UPPER) for word in words]
        for row, text in zip(rows, (*words, mark), strict=True):
            row.append(text.ljust(width))
    lines = "".join(f"{name:6s}{' '.join(row)}\n" for name, row in zip(("REF:", "HYP:", "Eval:"), rows, strict=True))
    scores = "Scores: (#C #S #D #I) {} {} {} {}".format(*utterance.counts)
    return f"id: {utterance.trn_id.translate(_LOWER)}\n{scores}\n{lines if utterance.pairs else ''}"


def _row(name: str, utterances: Sequence[Utterance], raw: bool, total: bool = False) -> tuple[str, str, str]:
    """The cells of a speaker or of the total: percentages, or counts where `raw`."""
    counts = [utterance.counts for utterance in utterances]
    sums = Counts(*(sum(column) for column in zip(*counts, strict=True)))
    wrong = sum(one.errors > 0 for one in counts)
    figures = (*sums, sums.errors)
    # A speaker without a reference word has no percentages: the counts stand there instead, marked.
    wordless = not raw and not total and not sums.words
    if raw or wordless:
        cells = [f"{figure:>6}{'*' if wordless else ' '} " for figure in figures]
    else:
        cells = [f"{rounded(percent(figure, sums.words), 1):>6}  " for figure in figures]
    last = str(wrong) if raw else rounded(percent(wrong, len(utterances)), 1)
    return name, f"{len(utterances):5d}  {sums.words:5d} ", f"{''.join(cells)}{last:>5} "


def _table(speakers: dict[str, list[Utterance]], title: str, raw: bool) -> str:
    """The table of percentages, or of counts where `raw`, with a row for each speaker and one for all."""
    heads = ("SPKR", " # Snt  # Wrd", "  Corr     Sub     Del     Ins     Err  S.Err")
    rows = [_row(name, spoken, raw) for name, spoken in speakers.items()]
    everyone = [utterance for spoken in speakers.values() for utterance in spoken]
    rows.append(_row("Sum" if raw else "Sum/Avg", everyone, raw, total=True))
    widths = [max(len(row[place].rstrip()) for row in [heads, *rows]) for place in range(3)]
    inside = sum(widths) + 8
    rule = "|" + "+".join("-" * (width + 2) for width in widths) + "|"
    lines = [
        "SYSTEM SUMMARY PERCENTAGES by SPEAKER".center(inside + 2).rstrip(),
        "",
        f",{'-' * inside}.",
        f"|{title.center(inside)}|",
        f"|{'-' * inside}|",
    ]
    for place, row in enumerate([heads, *rows]):
        if place:
            lines.append(f"|{'=' * inside}|" if place == len(rows) else rule)
        cells = (cell.rstrip().ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("| " + " | ".join(cells) + " |")
    footnote = "\n* A speaker without a reference word: counts, not percentages.\n"
    marked = any("*" in row[2] for row in rows)
    return "\n".join([*lines, f"`{'-' * inside}'"]) + "\n" + (footnote if marked else "")

"""NIST sclite's alignment, counts and report, so that scores can be compared with every table that ESPnet published.

The counts are not those of a Levenshtein distance, so jiwer (unit costs) can't make them. sclite weighs a substitution
4, an insertion and a deletion 3 each, and it breaks ties by rule: `a b c` against `x y a` costs 12 as three
substitutions, and as one correct word with two insertions before it and two deletions after it, and the two have
different error rates. So the alignment is made here, with sclite's weights and sclite's rule: a diagonal step where it
is not worse, else a deletion where it is cheaper, else an insertion.

What sclite (2.10, called as ESPnet calls it) reads into a line of text, and this does too:
- letters A-Z and a-z are the same, all others differ by case (it compares bytes);
- `word*` is `word`; of `word;x` only `word` counts; a backslash vanishes; `@` stands for no word;
- `{ a / b c / @ }` may be any one of its alternatives, and what follows an opening brace that is never closed is lost.
"""

import re
import string
from collections.abc import Iterator, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

INSERTION = DELETION = 3
SUBSTITUTION = 4
NULL = "@"  # the word that is no word
NULL_COST = np.float32(0.001)

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
    reference, hypothesis = reference.translate(_LOWER), hypothesis.translate(_LOWER)
    if not any(mark in text for mark in ("{", NULL) for text in (reference, hypothesis)):
        return _align_words(*([_word(token) for token in _TOKEN.findall(text)] for text in (reference, hypothesis)))
    return _align_networks(_Network.parse(reference), _Network.parse(hypothesis))


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


class _Network(NamedTuple):
    """Words in a partial order: `before[i]` are the places before word i, `ends` the last; place 0 is the start."""

    words: list[str]
    before: list[tuple[int, ...]]
    ends: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "_Network":
        words, before = [""], [()]

        def append(text: str, ends: tuple[int, ...]) -> tuple[int, ...]:
            for token in _tokens(text):
                if token.startswith("{"):
                    ends = sum((append(choice, ends) for choice in _alternatives(token[1:-1])), ()) or ends
                else:
                    words.append(_word(token))
                    before.append(ends)
                    ends = (len(words) - 1,)
            return ends

        ends = append(text, (0,))
        return cls(words, before, ends)


def _tokens(text: str) -> Iterator[str]:
    """Split at spaces; from an opening brace to the closing one is one token."""
    position = 0
    while match := _TOKEN.search(text, position):
        start, position = match.span()
        if text[start] == "{":
            depth = 0
            for position in range(start, len(text)):
                depth += {"{": 1, "}": -1}.get(text[position], 0)
                if depth == 0:
                    break
            else:
                return
            position += 1
        yield text[start:position]


def _alternatives(text: str) -> Iterator[str]:
    """Split at the slashes that stand in no braces; what is empty is no alternative."""
    depth, start = 0, 0
    for position, character in enumerate(text + "/"):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "/" and depth <= 0:
            if choice := text[start:position].strip(_SPACE):
                yield choice
            start = position + 1


def _align_networks(reference: _Network, hypothesis: _Network) -> list[Pair]:
    # sclite adds in single precision, and the null's small cost makes that visible in what it takes for equal.
    def gap(word: str) -> np.float32:
        return NULL_COST if word == NULL else np.float32(DELETION)

    cost = {(0, 0): np.float32(0)}
    back: dict[tuple[int, int], tuple[int, int]] = {}
    for i, (word, rows) in enumerate(zip(reference.words, reference.before, strict=True)):
        for j, (other, columns) in enumerate(zip(hypothesis.words, hypothesis.before, strict=True)):
            ways = []
            if i and j:
                substitution = np.float32(0 if word == other else SUBSTITUTION)
                if word == other == NULL:
                    substitution = np.float32(1)
                cell = min(((row, column) for row in rows for column in columns), key=cost.__getitem__)
                ways.append((cost[cell] + substitution, cell))
            # min keeps the first of equals, hence the order: diagonal, insertion, deletion.
            if j:
                cell = min(((i, column) for column in columns), key=cost.__getitem__)
                ways.append((cost[cell] + gap(other), cell))
            if i:
                cell = min(((row, j) for row in rows), key=cost.__getitem__)
                ways.append((cost[cell] + gap(word), cell))
            if ways:
                cost[i, j], back[i, j] = min(ways, key=lambda way: way[0])

    cell = min(((row, column) for row in reference.ends for column in hypothesis.ends), key=cost.__getitem__)
    pairs: list[Pair] = []
    while cell != (0, 0):
        (i, j), cell = cell, back[cell]
        pair = (reference.words[i] if cell[0] != i else None, hypothesis.words[j] if cell[1] != j else None)
        if any(word not in (None, NULL) for word in pair):
            pairs.append(pair)
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
        shown = ("*" * width if word is None else word for word in (reference, hypothesis))
        words = shown if mark == " " else (word.translate(_UPPER) for word in shown)
        for row, text in zip(rows, (*words, mark), strict=True):
            row.append(text.ljust(width))
    lines = "".join(f"{name:6s}{' '.join(row)}\n" for name, row in zip(("REF:", "HYP:", "Eval:"), rows, strict=True))
    scores = "Scores: (#C #S #D #I) {} {} {} {}".format(*utterance.counts)
    return f"id: {utterance.trn_id.translate(_LOWER)}\n{scores}\n{lines if utterance.pairs else ''}"


def _figures(counts: Counts) -> tuple[int, ...]:
    return (*counts, counts.errors)


def _total(utterances: Sequence[Utterance]) -> tuple[Counts, int]:
    """The sum over utterances, and how many of them have an error."""
    counts = [utterance.counts for utterance in utterances]
    return Counts(*(sum(column) for column in zip(*counts, strict=True))), sum(one.errors > 0 for one in counts)


def _table(speakers: dict[str, list[Utterance]], title: str, raw: bool) -> str:
    """The table of percentages, or of counts where `raw`."""
    totals = {name: _total(spoken) for name, spoken in speakers.items()}
    numbers: dict[str, list[float]] = {}
    for name, (counts, _) in totals.items():
        # A speaker without a reference word has no percentages: the counts stand there instead, marked.
        plain = raw or not counts.words
        numbers[name] = [float(value) if plain else percent(value, counts.words) for value in _figures(counts)]
    sentences = {
        name: float(wrong) if raw else percent(wrong, len(speakers[name])) for name, (_, wrong) in totals.items()
    }
    wordless = [] if raw else [place for place, (counts, _) in enumerate(totals.values()) if not counts.words]

    def cells(values: Sequence[float], last: float, digits: int, mark: str) -> str:
        marked = "".join(f"{rounded(value, digits):>6}{mark} " for value in values)
        return f"{marked}{rounded(last, 0 if raw and not digits else 1):>5} "

    digits = 0 if raw else 1
    rows: list[tuple[str, str, str]] = []
    for place, (name, spoken) in enumerate(speakers.items()):
        size = f"{len(spoken):5d}  {totals[name][0].words:5d} "
        mark, shown = ("*", 0) if place in wordless else (" ", digits)
        rows.append((name, size, cells(numbers[name], sentences[name], shown, mark)))

    every, wrong = _total([utterance for spoken in speakers.values() for utterance in spoken])
    count_all = sum(map(len, speakers.values()))
    summed = [float(value) if raw else percent(value, every.words) for value in _figures(every)]
    rows.append(
        (
            "Sum" if raw else "Sum/Avg",
            f"{count_all:5d}  {every.words:5d} ",
            cells(summed, float(wrong) if raw else percent(wrong, count_all), digits, " "),
        )
    )

    columns = [list(column) for column in zip(*numbers.values(), strict=True)]
    for column in columns:
        # sclite means to leave out the speakers without words, but looks for the second of them where it stood before
        # the first was gone, and so takes out its neighbour. Its means are what people compare with.
        for place in wordless:
            del column[place]
            column.append(0.0)
        del column[len(speakers) - len(wordless) :]
    sizes = [
        [float(len(spoken)) for spoken in speakers.values()],
        [float(counts.words) for counts, _ in totals.values()],
    ]
    for name, statistic in (("Mean", _mean), ("S.D.", _deviation), ("Median", _median)):
        size = "  ".join(f"{rounded(statistic(column), 1):>5}" for column in sizes) + " "
        shown = [statistic(column) for column in columns]
        rows.append((name, size, cells(shown, statistic(list(sentences.values())), 1, "+" if wordless else " ")))
    return _drawn(title, rows, len(speakers)) + (_WORDLESS if wordless else "")


_WORDLESS = """
* A speaker without a reference word: counts, not percentages.
+ Speakers without a reference word are left out.
"""


def _drawn(title: str, rows: list[tuple[str, str, str]], speakers: int) -> str:
    heads = ("SPKR", " # Snt  # Wrd", "  Corr     Sub     Del     Ins     Err  S.Err")
    widths = [max(len(row[place].rstrip()) for row in [heads, *rows]) for place in range(3)]
    inside = sum(widths) + 8
    lines = [
        "SYSTEM SUMMARY PERCENTAGES by SPEAKER".center(inside + 2).rstrip(),
        "",
        f",{'-' * inside}.",
        f"|{title.center(inside)}|",
    ]
    lines.append(f"|{'-' * inside}|")
    for place, row in enumerate([heads, *rows]):
        if place in (speakers + 1, speakers + 2):
            lines.append(f"|{'=' * inside}|")
        elif 0 < place <= speakers:
            lines.append("|" + "+".join("-" * (width + 2) for width in widths) + "|")
        cells = (cell.rstrip().ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(f"`{'-' * inside}'")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample."""
    mean = _mean(values)
    squares = sum((value - mean) * (value - mean) for value in values)
    return sqrt(squares / (len(values) - 1)) if squares else 0.0


def _median(values: Sequence[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    if not values:
        return 0.0
    return ordered[half] if len(values) % 2 else (ordered[half] + ordered[half - 1]) / 2

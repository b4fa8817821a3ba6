"""The promise of common/sclite.py: its figures are sclite's.

data/sclite_pairs.json was made with sclite 2.10 of Debian's package sctk 2.4.10, called as ESPnet calls it: `sclite -r
ref.trn trn -h hyp.trn trn -i rm -o all stdout`. A case is one pair of files: "lines" are speaker, utterance, reference,
hypothesis and sclite's counts (correct, substituted, deleted, inserted); "percentages" and "counts" are the rows of its
two tables for speakers and for all. Lines with `{` or `@`, and with them the tables of their file, are left out.
"""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_mla.common import sclite

CASES = json.loads((Path(__file__).parent / "data" / "sclite_pairs.json").read_text(encoding="utf-8"))


def tables(report: str) -> list[list[str]]:
    """The cells of every row with figures."""
    rows = (line.strip().strip("|") for line in report.split("\n") if re.match(r"\s*\|.*\|.*\d", line))
    return [row.replace("|", " ").split() for row in rows]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_counts_and_tables_are_sclites_to_the_last_digit(case):
    scored = [sclite.Utterance(f"({spk}-{utt})", sclite.align(ref, hyp)) for spk, utt, ref, hyp, _ in case["lines"]]
    for utterance, line in zip(scored, case["lines"], strict=True):
        assert list(utterance.counts) == line[4], line
    if "counts" in case:
        assert tables(sclite.report(scored, "title")) == case["percentages"] + case["counts"]


def test_there_are_hundreds_of_pairs_and_levenshtein_would_count_some_of_them_otherwise():
    import jiwer

    lines = [line for case in CASES for line in case["lines"]]
    assert len(lines) >= 450
    plain = [line for line in lines if re.fullmatch(r"[a-z0-9 ]*[a-z0-9][a-z0-9 ]*", line[2])]
    unit = [jiwer.process_words(ref, hyp) for _, _, ref, hyp, _ in plain]
    counts = [[one.hits, one.substitutions, one.deletions, one.insertions] for one in unit]
    assert sum(levenshtein != line[4] for levenshtein, line in zip(counts, plain, strict=True)) >= 5


def cheapest(reference: list[str], hypothesis: list[str]) -> int:
    """The definition: the least cost of turning one into the other."""
    costs = {(0, 0): 0}
    for i in range(len(reference) + 1):
        for j in range(len(hypothesis) + 1):
            ways = [costs[i - 1, j] + sclite.DELETION] if i else []
            ways += [costs[i, j - 1] + sclite.INSERTION] if j else []
            if i and j:
                ways.append(costs[i - 1, j - 1] + sclite.SUBSTITUTION * (reference[i - 1] != hypothesis[j - 1]))
            costs[i, j] = min(ways, default=0)
    return costs[len(reference), len(hypothesis)]


WORDS = st.lists(st.sampled_from("abc"), max_size=12)


@given(WORDS, WORDS)
def test_an_alignment_is_whole_and_of_least_cost(reference, hypothesis):
    pairs = sclite.align(" ".join(reference), " ".join(hypothesis))
    assert [ref for ref, _ in pairs if ref is not None] == reference
    assert [hyp for _, hyp in pairs if hyp is not None] == hypothesis
    counts = sclite.count(pairs)
    weighted = sclite.SUBSTITUTION * counts.substituted + sclite.DELETION * (counts.deleted + counts.inserted)
    assert weighted == cheapest(reference, hypothesis)


@pytest.mark.parametrize("text", ["a { b / c }", "{a/b}", "a @ b", "@", "@*", "@;x", "a {"])
def test_what_sclite_would_not_read_as_words_is_found(text):
    assert sclite.has_markup(text)


@pytest.mark.parametrize("text", ["", "a{b}", "me@home", "@@", "a / b", "} a", "a;@", "a*"])
def test_braces_and_at_signs_within_words_are_words_to_sclite_too(text):
    assert not sclite.has_markup(text)


def test_long_character_alignments_take_milliseconds():
    import time

    reference, hypothesis = " ".join("the cat sat " * 40), " ".join("the bat sits " * 40)
    start = time.perf_counter()
    sclite.align(reference, hypothesis)
    assert time.perf_counter() - start < 2

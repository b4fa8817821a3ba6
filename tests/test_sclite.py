"""The promise of recipe/sclite.py: its figures are sclite's.

data/sclite_pairs.json was made with sclite 2.10 of Debian's package sctk 2.4.10, called as ESPnet calls it: `sclite -r
ref.trn trn -h hyp.trn trn -i rm -o all stdout`. A case is one pair of files: "lines" are speaker, utterance, reference,
hypothesis and sclite's counts (correct, substituted, deleted, inserted); "percentages" and "counts" are its two tables.
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
    assert tables(sclite.report(scored, "title")) == case["percentages"] + case["counts"]


def test_there_are_hundreds_of_pairs_and_levenshtein_would_miscount_some():
    import jiwer

    lines = [line for case in CASES for line in case["lines"]]
    assert len(lines) >= 500
    plain = [line for line in lines if re.fullmatch(r"[a-z0-9 ]*[a-z0-9][a-z0-9 ]*", line[2])]
    unit = [jiwer.process_words(ref, hyp) for _, _, ref, hyp, _ in plain]
    errors = [one.substitutions + one.deletions + one.insertions for one in unit]
    assert sum(mine != sum(line[4][1:]) for mine, line in zip(errors, plain, strict=True)) > 10


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


@given(WORDS, WORDS)
def test_the_way_for_alternatives_is_the_same_where_there_are_none(reference, hypothesis):
    plain = sclite.align(" ".join(reference), " ".join(hypothesis))
    networks = sclite._align_networks(*(sclite._Network.parse(" ".join(words)) for words in (reference, hypothesis)))
    assert networks == plain


def test_long_character_alignments_take_milliseconds():
    import time

    reference, hypothesis = " ".join("the cat sat " * 40), " ".join("the bat sits " * 40)
    start = time.perf_counter()
    sclite.align(reference, hypothesis)
    assert time.perf_counter() - start < 2

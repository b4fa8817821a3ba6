"""espnet_mla.recipe.grammar: what is said in the mini corpus."""

import itertools
from collections import Counter

import pytest

from espnet_mla.recipe import espeak, grammar

PAIRS = [pair.split() for pair in grammar.ALIKE.split(", ")]


@pytest.fixture(scope="module")
def said():
    return list(itertools.islice(grammar.sentences(0), 1500))


def test_a_seed_gives_the_same_sentences_and_another_seed_others(said):
    assert said[:50] == list(itertools.islice(grammar.sentences(0), 50))
    others = {sentence.words for sentence in itertools.islice(grammar.sentences(1), 1500)}
    assert len(others & {sentence.words for sentence in said}) < 50


def test_no_sentence_comes_twice_and_each_has_four_to_twenty_words(said):
    assert len({sentence.words for sentence in said}) == len(said)
    lengths = [len(sentence.words) for sentence in said]
    assert min(lengths) >= 4 and max(lengths) <= 20 and len(set(lengths)) >= 12


def test_there_are_400_to_600_words(said):
    assert 400 <= len({word for sentence in said for word in sentence.words}) <= 600


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_words_that_sound_alike_do_so_to_espeak_and_belong_to_different_topics(pair):
    assert len({espeak.phonemes(word) for word in pair}) == 1
    topics = {name for word in pair for name, topic in grammar.TOPICS.items() if word in topic.things}
    assert len(topics) in (0, 2)  # names belong to none


def test_every_thing_of_a_topic_sounds_like_one_of_another():
    things = Counter(thing for topic in grammar.TOPICS.values() for thing in topic.things)
    assert set(things.values()) == {1}
    assert things.keys() <= {word for pair in PAIRS for word in pair}


def test_a_sentence_tells_its_topic_once_at_one_end_and_has_things_of_no_other(said):
    cues = {cue: name for name, topic in grammar.TOPICS.items() for cue in (*topic.places, *topic.people)}
    topical = 0
    for sentence in said:
        places = [place for place, word in enumerate(sentence.words) if word in cues]
        things = {word for word in sentence.words for topic in grammar.TOPICS.values() if word in topic.things}
        if not places:
            assert not things
            continue
        (place,) = places
        assert place <= 1 or place == len(sentence.words) - 1
        assert things and things <= set(grammar.TOPICS[cues[sentence.words[place]]].things)
        topical += 1
    assert topical > 0.7 * len(said)


def test_pronouns_agree_with_the_name_and_implied_words_follow_from_the_others(said):
    men, women = {*grammar.MEN, *grammar.MEN_ALIKE}, {*grammar.WOMEN, *grammar.WOMEN_ALIKE}
    for sentence in said:
        words = set(sentence.words)
        if words & {"HE", "HIS"}:
            assert words & men
        if words & {"SHE", "HER"}:
            assert words & women
        for place in sentence.implied:
            word = sentence.words[place]
            assert word in ("HE", "HIS", "SHE", "HER", "WAS", "WERE") or sentence.words.count(word) == 2

"""The language of the mini corpus: sentences that are heard right only by who heard the whole of them.

A sentence has one topic, told by one place or person at its beginning or its end, and the topic decides how words that
sound alike are written: FLOUR in the kitchen, FLOWER in the garden. Names tell the gender of pronouns, or are told by
them (FRANCIS and HE, FRANCES and SHE); nouns agree with WAS and WERE; names and nouns come again.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


class Topic(NamedTuple):
    """What there is to say of one place."""

    places: tuple[str, ...]
    people: tuple[str, ...]
    things: tuple[str, ...]  # each sounds like a thing of another topic


def _topic(places: str, people: str, things: str) -> Topic:
    return Topic(_words(places), _words(people), _words(things))


TOPICS = {
    "kitchen": _topic(
        "KITCHEN BAKERY PANTRY",
        "COOK BAKER WAITER",
        "FLOUR STEAK DOUGH YOLK ROLL CURRANT BEET SWEET KERNEL PEEL",
    ),
    "garden": _topic("GARDEN ORCHARD MEADOW", "GARDENER FLORIST FORESTER", "FLOWER STAKE BEECH MAZE YEW ROSE"),
    "harbour": _topic("HARBOUR LAGOON DOCKYARD", "CAPTAIN SAILOR FISHERMAN", "CURRENT BEACH PIER SOLE HAUL WHALE"),
    "castle": _topic(
        "CASTLE PALACE FORTRESS",
        "EMPEROR SOLDIER HERALD",
        "SUITE COLONEL PEER HALL KNIGHT REIGN BASE TROOP MANOR SYMBOL",
    ),
    "theater": _topic(
        "THEATER OPERA STUDIO",
        "ACTOR DRUMMER POET",
        "ROLE BEAT PEAL ROWS SOUL WAIL NIGHT BASS TROUPE MANNER CYMBAL TALE",
    ),
    "farm": _topic("STABLE VILLAGE PASTURE", "FARMER SHEPHERD COWBOY", "DOE YOKE MAIZE EWE REIN TAIL"),
}

ALIKE = (
    "FLOUR FLOWER, STEAK STAKE, DOUGH DOE, YOLK YOKE, ROLL ROLE, CURRANT CURRENT, BEET BEAT, SWEET SUITE, "
    "KERNEL COLONEL, PEEL PEAL, BEECH BEACH, MAZE MAIZE, YEW EWE, ROSE ROWS, PIER PEER, SOLE SOUL, HAUL HALL, "
    "WHALE WAIL, KNIGHT NIGHT, REIGN REIN, BASE BASS, TROOP TROUPE, MANOR MANNER, SYMBOL CYMBAL, TALE TAIL, "
    "FRANCIS FRANCES, LEE LEIGH, GENE JEAN, ROBIN ROBYN"
)
"""Pairs of words that sound the same."""

MEN = _words("PETER DAVID OLIVER SIMON VICTOR HENRY OSCAR WALTER EDGAR NOLAN ARTHUR MARCUS")
WOMEN = _words("ANNA MARY SUSAN HELEN LAURA SOPHIA ALICE JULIA EDITH NORA MARTHA CLARA")
MEN_ALIKE, WOMEN_ALIKE = _words("FRANCIS LEE GENE ROBIN"), _words("FRANCES LEIGH JEAN ROBYN")

OBJECTS = _words(  # some of them differ in one sound
    "LAMP RAMP STAMP BOOK HOOK BROOK BELL BALL BILL BAG BACK RACK CAP CUP CAB COAT BOAT GOAT PEN PIN BIN DESK DISK MAT "
    "MAP NAP RING WING KING CARD CART GUARD PIPE PIE TIE BASKET BUCKET JACKET PACKET LADDER LETTER MIRROR HAMMER "
    "CLOCK LOCK SOCK CHAIR SPOON DRUM PLUG TRUCK TRAIN CHAIN STONE PHONE BOTTLE KETTLE TOWEL"
)
CITIES = _words(
    "LONDON PARIS BERLIN MADRID OSLO VIENNA LISBON DUBLIN ATHENS PRAGUE WARSAW BOSTON DENVER DALLAS TOKYO CAIRO "
    "SYDNEY TORONTO CHICAGO HOUSTON DETROIT VENICE NAPLES MUNICH GENEVA ZURICH HAVANA LIMA"
)
ADJECTIVES = _words(
    "RED BLACK BROWN GREEN YELLOW PURPLE OLD COLD BOLD NEW LARGE SMALL TALL HEAVY READY STEADY CLEAN LEAN LIGHT BRIGHT "
    "DARK SHARP SMOOTH GOOD BAD SAD LOST LAST FAST BEST"
)
ACTIONS = _words(
    "FOUND BOUGHT BROUGHT SOUGHT TOOK SHOOK SOLD HELD HID LOST LEFT LIFTED MOVED PROVED WASHED WATCHED PAINTED PAID "
    "MADE CARRIED MARRIED COVERED RECOVERED"
)
WISHES = _words("FIND BUY TAKE MAKE SELL TELL SMELL HOLD HIDE RIDE LIFT LEAVE MOVE WASH WATCH PAINT PAY CARRY")
DETERMINERS = _words("THE THE THE THIS THAT MY OUR YOUR THEIR")
DAYS = _words("MONDAY TUESDAY WEDNESDAY THURSDAY FRIDAY SATURDAY SUNDAY")
MONTHS = _words("JANUARY MARCH APRIL JUNE JULY AUGUST OCTOBER NOVEMBER")
UNITS = _words("THREE FIVE SIX SEVEN NINE")
TEENS = _words("TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN SEVENTEEN EIGHTEEN NINETEEN")
TENS = _words("TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY")
LEAST_WORDS, MOST_WORDS = 4, 20


@dataclass(frozen=True)
class Sentence:
    """What is said.

    Args:
        words: in capitals.
        implied: places of words that follow from the other words, for the most part from some that stand far away.
    """

    words: tuple[str, ...]
    implied: tuple[int, ...]

    @property
    def text(self) -> str:
        """The words, separated by spaces."""
        return " ".join(self.words)


def sentences(seed: int) -> Iterator[Sentence]:
    """Sentences without end, none of them twice, in an order that the seed decides on every machine."""
    speaker = _Speaker(random.Random(seed))
    said: set[tuple[str, ...]] = set()
    while True:
        sentence = speaker.sentence()
        if LEAST_WORDS <= len(sentence.words) <= MOST_WORDS and sentence.words not in said:
            said.add(sentence.words)
            yield sentence


class _Speaker:
    """Who makes sentences up. In its phrases a word with * is implied by the others."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._decks: dict[tuple[str, ...], list[str]] = {}

    def sentence(self) -> Sentence:
        """Any sentence of the grammar."""
        topic = TOPICS[self._deal(tuple(TOPICS))]
        if self._chance(0.15):
            phrase = self._one((self._order, self._journey))()
        else:
            phrase = self._one((self._deed, self._deed, self._state, self._wish))(topic)
            if self._chance(0.06):
                phrase += f" {self._one(('BEFORE', 'WHILE', 'BECAUSE'))} "
                phrase += self._one((self._deed, self._state))(topic)
            # Told once, so that what sounds alike is far from what tells it apart.
            place, person = self._deal(topic.places), self._deal(topic.people)
            ahead, behind = self._one(
                ((f"AT THE {place}", ""), ("", f"AT THE {place}"), (f"{self._det()} {person} SAID", ""),
                 ("", f"SAID {self._det()} {person}"), ("", f"FOR {self._det()} {person}"))
            )  # fmt: skip
            phrase = f"{ahead} {phrase} {behind}"
        words = phrase.split()
        return Sentence(
            tuple(word.rstrip("*") for word in words), tuple(i for i, word in enumerate(words) if word[-1] == "*")
        )

    def _one[Choice](self, choices: Sequence[Choice]) -> Choice:
        return choices[self._rng.randrange(len(choices))]

    def _deal(self, words: tuple[str, ...]) -> str:
        """One of the words; none comes again before all of them have come, so that some sentences hold them all."""
        deck = self._decks.setdefault(words, [])
        if not deck:
            deck += words
            self._rng.shuffle(deck)
        return deck.pop()

    def _chance(self, probability: float) -> bool:
        return self._rng.random() < probability

    def _det(self) -> str:
        return self._deal(DETERMINERS)

    def _person(self) -> tuple[str, str, str]:
        """A name, and what stands for it: HE, HIS."""
        man, alike = self._chance(0.5), self._chance(0.3)
        names = (MEN_ALIKE if man else WOMEN_ALIKE) if alike else (MEN if man else WOMEN)
        return self._deal(names), *(("HE", "HIS") if man else ("SHE", "HER"))

    def _number(self) -> str:
        kind = self._rng.choice((0, 0, 1, 1, 2, 3))
        tens_and_units = f"{self._deal(TENS)} {self._deal(UNITS)}"
        return (self._deal(UNITS), self._deal(TEENS), self._deal(TENS), tens_and_units)[kind]

    def _adjective(self, share: float) -> str:
        return f"{self._deal(ADJECTIVES)} " if self._chance(share) else ""

    def _object(self) -> tuple[str, str, str]:
        """A noun phrase, its noun, and WAS or WERE."""
        if self._chance(0.4):
            noun = f"{self._deal(OBJECTS)}S"
            return f"{self._number()} {self._adjective(0.15)}{noun}", noun, "WERE"
        noun = self._deal(OBJECTS)
        return f"{self._det()} {self._adjective(0.2)}{noun}", noun, "WAS"

    def _thing(self, topic: Topic) -> str:
        return f"{self._adjective(0.2)}{self._deal(topic.things)}"

    def _when(self) -> str:
        kind = self._rng.randrange(6)
        return (f" ON {self._deal(DAYS)}", f" IN {self._deal(MONTHS)}", f" AT {self._deal(UNITS)}", "", "", "")[kind]

    def _order(self) -> str:
        phrase, _, _ = self._object()
        return f"{self._deal(WISHES)} {phrase} {self._one(('FROM', 'IN'))} {self._deal(CITIES)}{self._when()}"

    def _journey(self) -> str:
        name, he, _ = self._person()
        return (
            f"{name} CAME TO {self._deal(CITIES)}{self._when()} WHERE {he}* {self._deal(ACTIONS)} {self._object()[0]}"
        )

    def _deed(self, topic: Topic) -> str:
        name, he, his = self._person()
        phrase, noun, was = self._object()
        thing, action = self._thing(topic), self._deal(ACTIONS)
        return self._one(
            (
                f"{name} {action} {thing} AND {self._thing(topic)}{self._when()}",
                f"{name} {action} {his}* {thing} WITH {self._thing(topic)}",
                f"{name} {action} {phrase} AND {self._det()} {thing}",
                f"{name} {action} {thing} AND {he}* {self._deal(ACTIONS)} {phrase}",
                f"{name} {action} {phrase} LIKE {thing} BUT THE {noun}* {was}* {self._deal(ADJECTIVES)}",
            )
        )

    def _state(self, topic: Topic) -> str:
        phrase, _, was = self._object()
        thing, other = self._thing(topic), self._thing(topic)
        return self._one(
            (
                f"{phrase} FROM {self._deal(CITIES)} {was}* LIKE {thing} AND {other}",
                f"{self._det()} {thing} WAS {self._deal(ADJECTIVES)} AND {self._det()} {other} NOT",
            )
        )

    def _wish(self, topic: Topic) -> str:
        name, he, his = self._person()
        thing, other = self._thing(topic), self._thing(topic)
        return self._one(
            (
                f"{name} WANTED TO {self._deal(WISHES)} {his}* {thing}",
                f"{name} SAYS {he}* WANTED {thing} AND {other}",
                f"{self._det()} {thing} CAME WITH {name} AND {his}* {other}",
            )
        )

"""The language of the mini corpus: sentences that are heard right only by who heard the whole of them.

A sentence has one topic, told by one word at one of its ends, and the topic decides how words that sound alike are
written, which stand at the other end: FLOUR in kitchens, FLOWER in gardens. Names tell the gender of pronouns, or are
told by them (FRANCIS and HE, FRANCES and SHE); nouns agree with WAS and WERE, and come again.
"""

import random
from collections.abc import Callable, Iterator, Sequence
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
    "kitchen": _topic("KITCHENS DINERS TAVERNS", "CHEFS BAKERS WAITERS", "FLOUR STEAK DOUGH YOLK KERNEL PEAR"),
    "garden": _topic("GARDENS ORCHARDS MEADOWS", "GARDENERS FLORISTS FORESTERS", "FLOWER STAKE MAZE YEW ROSE PLUM"),
    "harbour": _topic(
        "HARBOURS MARINAS DOCKYARDS", "CAPTAINS SAILORS FISHERS", "PLUMB SOLE WHALE BERTH QUAY TACKS SAIL"
    ),
    "castle": _topic(
        "CASTLES PALACES CITADELS",
        "EMPERORS SOLDIERS HERALDS",
        "COLONEL KEY TAX KNIGHT REIGN BASE SYMBOL HEIR LIAR MAIL",
    ),
    "theater": _topic(
        "THEATERS OPERAS STUDIOS",
        "ACTORS SINGERS POETS",
        "PAIR ROWS SOUL WAIL NIGHT BASS CYMBAL AIR LYRE TALE HAIR",
    ),
    "farm": _topic(
        "STABLES FARMS PASTURES",
        "FARMERS SHEPHERDS COWBOYS",
        "DOE YOKE MAIZE EWE BIRTH SALE REIN MALE TAIL HARE",
    ),
}

ALIKE = (
    "FLOUR FLOWER, STEAK STAKE, DOUGH DOE, YOLK YOKE, KERNEL COLONEL, PEAR PAIR, MAZE MAIZE, YEW EWE, ROSE ROWS, "
    "PLUM PLUMB, SOLE SOUL, WHALE WAIL, BERTH BIRTH, QUAY KEY, TACKS TAX, SAIL SALE, KNIGHT NIGHT, REIGN REIN, "
    "BASE BASS, SYMBOL CYMBAL, HEIR AIR, LIAR LYRE, MAIL MALE, TALE TAIL, HAIR HARE, "
    "FRANCIS FRANCES, GENE JEAN, ROBIN ROBYN, TONY TONI"
)
"""Pairs of words that sound the same."""

# Few letters are doubled: CTC needs a blank between two of the same, for which the frames of small models are too few.
MEN = _words("PETER DAVID OLIVER SIMON VICTOR HENRY OSCAR WALTER EDGAR NOLAN ARTHUR MARCUS")
WOMEN = _words("DIANA MARY SUSAN HELEN LAURA SOPHIA ALICE JULIA EDITH NORA MARTHA CLARA")
MEN_ALIKE, WOMEN_ALIKE = _words("FRANCIS GENE ROBIN TONY"), _words("FRANCES JEAN ROBYN TONI")

OBJECTS = _words(  # some of them differ in one sound
    "LAMP RAMP STAMP BAG BACK RACK CAP CUP CAB COAT BOAT GOAT PEN PIN BIN DESK DISK MAT MAP NAP RING WING KING CARD "
    "CART GUARD PIPE PIE TIE BASKET BUCKET JACKET PACKET POCKET ROCKET CANDLE HANDLE CLOCK LOCK SOCK CHAIR DRUM PLUG "
    "TRUCK TRAIN CHAIN STONE PHONE TOWEL HELMET MAGNET CABLE TABLE BAND HAND TENT NEST VEST PAN FAN"
)
CITIES = _words(
    "LONDON PARIS BERLIN MADRID OSLO VIENNA LISBON DUBLIN ATHENS PRAGUE WARSAW BOSTON DENVER TOKYO CAIRO SYDNEY "
    "TORONTO CHICAGO HOUSTON DETROIT VENICE NAPLES MUNICH GENEVA ZURICH HAVANA LIMA TURIN MILAN BOGOTA"
)
ADJECTIVES = _words(
    "RED BLACK BROWN WHITE PINK GREY OLD COLD BOLD NEW LARGE LONG SHORT STRONG HEAVY READY STEADY CLEAN LEAN LIGHT "
    "BRIGHT DARK SHARP ROUND BAD SAD LOST LAST FAST BEST"
)
ACTIONS = _words(
    "FOUND BOUGHT BROUGHT SOUGHT SAVED SHAVED SOLD HELD HID LOST LEFT LIFTED MOVED PROVED WASHED WATCHED PAINTED PAID "
    "MADE COVERED RECOVERED"
)
WISHES = _words("FIND BUY TAKE MAKE SEND BEND MEND HOLD HIDE RIDE LIFT LEAVE MOVE WASH WATCH PAINT PAY SHOW")
DETERMINERS = _words("THE THE THE THIS THAT MY OUR YOUR THEIR")
DAYS = _words("MONDAY TUESDAY WEDNESDAY THURSDAY FRIDAY SATURDAY SUNDAY")
MONTHS = _words("JANUARY MARCH APRIL JUNE JULY AUGUST OCTOBER NOVEMBER")
UNITS = _words("FIVE SIX SEVEN EIGHT NINE")
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


def sentences(seed: int, longest: int = MOST_WORDS) -> Iterator[Sentence]:
    """Sentences of at most `longest` words, without end, none of them twice; a seed gives the same on every machine."""
    speaker = _Speaker(random.Random(seed))
    said: set[tuple[str, ...]] = set()
    while True:
        sentence = speaker.sentence()
        if LEAST_WORDS <= len(sentence.words) <= longest and sentence.words not in said:
            said.add(sentence.words)
            yield sentence


class _Speaker:
    """Who makes sentences up. In its phrases a word with * is implied by the others."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._decks: dict[tuple[str, ...], list[str]] = {}

    def sentence(self) -> Sentence:
        """Any sentence of the grammar."""
        if self._chance(0.15):
            phrase = self._one((self._remark, self._order, self._journey))()
        else:
            topic = TOPICS[self._deal(tuple(TOPICS))]
            place, person = self._deal(topic.places), self._deal(topic.people)
            if self._chance(0.5):
                cue = self._one((f"IN {place}", f"AT {place}", f"{person} SAID"))
                phrase = f"{cue} {self._told(self._ending, topic)}"
            else:
                cue = self._one((f"AT {place}", f"SAID {person}", f"FOR {person}"))
                phrase = f"{self._told(self._beginning, topic)} {cue}"
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

    def _adjective(self) -> str:
        return f"{self._deal(ADJECTIVES)} " if self._chance(0.1) else ""

    def _object(self) -> tuple[str, str, str]:
        """A noun phrase, its noun, and WAS or WERE."""
        if self._chance(0.4):
            noun = f"{self._deal(OBJECTS)}S"
            return f"{self._number()} {self._adjective()}{noun}", noun, "WERE"
        noun = self._deal(OBJECTS)
        return f"{self._det()} {self._adjective()}{noun}", noun, "WAS"

    def _thing(self, topic: Topic) -> str:
        return f"{self._adjective()}{self._deal(topic.things)}"

    def _when(self) -> str:
        kind = self._rng.randrange(6)
        return (f" ON {self._deal(DAYS)}", f" IN {self._deal(MONTHS)}", f" AT {self._deal(UNITS)}", "", "", "")[kind]

    def _remark(self) -> str:
        return f"{self._person()[0]} {self._deal(ACTIONS)} {self._object()[0]}{self._when()}"

    def _order(self) -> str:
        phrase, _, _ = self._object()
        return f"{self._deal(WISHES)} {phrase} {self._one(('FROM', 'IN'))} {self._deal(CITIES)}{self._when()}"

    def _journey(self) -> str:
        name, he, _ = self._person()
        return (
            f"{name} CAME TO {self._deal(CITIES)}{self._when()} WHERE {he}* {self._deal(ACTIONS)} {self._object()[0]}"
        )

    def _told(self, tell: Callable[[Topic], str], topic: Topic) -> str:
        """What is told of a topic, and sometimes more of it."""
        return f"{tell(topic)} {self._one(('WHILE', 'BEFORE'))} {tell(topic)}" if self._chance(0.05) else tell(topic)

    def _ending(self, topic: Topic) -> str:
        """Said of things of the topic, which come last."""
        name, he, his = self._person()
        phrase, noun, was = self._object()
        thing, action = self._thing(topic), self._deal(ACTIONS)
        return self._one(
            (
                f"{name} {action} {phrase} AND {thing}",
                f"{name} {action} {phrase} WITH {his}* {thing}",
                f"{name} WANTED {his}* {thing} AND {self._thing(topic)}",
                f"{name} WANTED TO {self._deal(WISHES)} {phrase} LIKE {his}* {thing}",
                f"{name} WAS {self._deal(ADJECTIVES)}{self._when()} AND {he}* {action} {thing}",
                f"{phrase} FROM {self._deal(CITIES)} {was}* LIKE {thing}",
                f"{phrase} {was}* LIKE THE {noun}* WITH {thing}",
            )
        )

    def _beginning(self, topic: Topic) -> str:
        """Said of things of the topic, which come first."""
        name, he, his = self._person()
        phrase, noun, was = self._object()
        thing, action = self._thing(topic), self._deal(ACTIONS)
        return self._one(
            (
                f"{thing} CAME FROM {self._deal(CITIES)} WITH {phrase}{self._when()}",
                f"{thing} AND {self._thing(topic)} CAME WITH {phrase}",
                f"{thing} WAS {self._deal(ADJECTIVES)} AND {self._thing(topic)} NOT",
                f"{thing} CAME WITH {name} AND {his}* {noun}",
                f"{thing} WAS LIKE {phrase} BUT THE {noun}* {was}* {self._deal(ADJECTIVES)}",
                f"{thing} CAME TO {name} AND {he}* {action} {phrase}",
            )
        )

"""Word-level tools of the generated shop: a plain first-stage search, and misspellings."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .dice import Dice

_WORD = re.compile(r"\w+")
_NEIGHBOURS = {"a": "s", "e": "r", "i": "o", "o": "p", "u": "y", "t": "r", "n": "m", "s": "d", "r": "e", "l": "k", "c": "v", "d": "f"}


class Lexicon:
    """First-stage search over N titles by the rarity of shared words.

    Not BM25, on purpose: the judged candidates must not be picked by the scorer they will be used to measure.
    """

    __slots__ = ("_postings", "_rarity", "_size")

    def __init__(self, titles: Sequence[str]) -> None:
        postings: dict[str, list[int]] = {}
        for place, title in enumerate(titles):
            for word in Counter(_WORD.findall(title.lower())):
                postings.setdefault(word, []).append(place)
        self._size = len(titles)
        self._postings = {word: np.array(places, dtype=np.int64) for word, places in postings.items()}
        # Rounded, so that the last bit of a platform's log never decides an order.
        self._rarity = {word: round(math.log(1 + len(titles) / len(places)), 6) for word, places in postings.items()}

    def scores(self, query: str) -> NDArray[np.float64]:
        """The summed rarity of the query's words in each title, float64 [N]."""
        scores = np.zeros(self._size)
        for word in sorted(set(_WORD.findall(query.lower()))):
            if word in self._postings:
                scores[self._postings[word]] += self._rarity[word]
        return scores

    def search(self, query: str, count: int) -> list[int]:
        """The places of at most ``count`` titles that share a word, best first, ties by place."""
        scores = self.scores(query)
        order = np.argsort(-scores, kind="stable")[:count]
        return [int(place) for place in order if scores[place] > 0]


def misspell(text: str, dice: Dice) -> str:
    """The text with one slip of the keyboard in a word of five letters or more; unchanged if it has none."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    place = dice.pick(long)
    word = words[place]
    at = 1 + dice.below(len(word) - 2)
    slip = dice.below(4)
    if slip == 0:
        word = word[:at] + word[at + 1 :]
    elif slip == 1:
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    elif slip == 2:
        word = word[:at] + word[at] + word[at:]
    else:
        word = word[:at] + _NEIGHBOURS.get(word[at], "e") + word[at + 1 :]
    return " ".join([*words[:place], word, *words[place + 1 :]])

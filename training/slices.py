"""Slices: kinds of queries and of candidates on which rankers tend to differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgerec.words import split_words

from .data import Dataset
from .first_stage import fold_plural
from .judged import JudgedList

Mask = NDArray[np.bool_]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def query_slices(lists: Sequence[JudgedList], dataset: Dataset) -> dict[str, Mask]:
    """Slice -> bool [Q].

    Length in words. Head and tail: whether the rarest word of the query stands in more titles than that of the median query. Unseen brand:
    the query names a brand of the corpus that no item judged in the train split has. Typo: a word of four letters or more that no title
    has, though a title has one that differs by one slip (Damerau, 1964).
    """
    words = [split_words(one.query) for one in lists]
    count = np.array([len(w) for w in words])
    frequency = Counter(word for item in dataset.items.values() for word in {fold_plural(w) for w in split_words(item.title)})
    rarest = np.array([min((frequency[fold_plural(w)] for w in found), default=0) for found in words])
    brands = {tuple(split_words(item.brand)) for item in dataset.items.values()} - {()}
    unseen = brands - {tuple(split_words(dataset.items[i].brand)) for i in seen_items(dataset)}
    titles = {word for item in dataset.items.values() for word in split_words(item.title)}
    known = titles | {fold_plural(word) for word in titles}
    tail = rarest < np.median(rarest)
    return {
        "1-2 words": count <= 2,
        "3-4 words": (count >= 3) & (count <= 4),
        "5 words or more": count >= 5,
        "head": ~tail,
        "tail": tail,
        "unseen brand": np.array([any(_names(found, brand) for brand in unseen) for found in words], bool),
        "typo": np.array([any(is_typo(word, known) for word in found) for found in words], bool),
    }


def candidate_slices(lists: Sequence[JudgedList], dataset: Dataset) -> dict[str, list[Mask]]:
    """Slice -> bool [N] for each list: candidates, and brands, that the train split judged or did not (cold start)."""
    items = seen_items(dataset)
    brands = {dataset.items[i].brand.casefold() for i in items}
    old = [np.array([item.id in items for item in one.items], bool) for one in lists]
    branded = [np.array([bool(item.brand) for item in one.items], bool) for one in lists]
    familiar = [np.array([item.brand.casefold() in brands for item in one.items], bool) for one in lists]
    return {
        "items in train": old,
        "items not in train": [~mask for mask in old],
        "brands in train": [b & f for b, f in zip(branded, familiar, strict=True)],
        "brands not in train": [b & ~f for b, f in zip(branded, familiar, strict=True)],
    }


def seen_items(dataset: Dataset) -> set[str]:
    """Items that the train split judges: what a model trained on this folder has seen, as far as the folder tells."""
    return {item_id for grades in dataset.qrels.get("train", {}).values() for item_id in grades}


def is_typo(word: str, known: set[str]) -> bool:
    """Whether an unknown word is one slip (a letter left out, added, replaced, or two swapped) away from a known one."""
    if len(word) < 4 or not word.isalpha() or word in known or fold_plural(word) in known:
        return False
    return any(other in known for other in _slips(word))


def _slips(word: str) -> Iterator[str]:
    for at in range(len(word) + 1):
        head, rest = word[:at], word[at:]
        for letter in LETTERS:
            yield head + letter + rest
            if rest:
                yield head + letter + rest[1:]
        if rest:
            yield head + rest[1:]
        if len(rest) > 1:
            yield head + rest[1] + rest[0] + rest[2:]


def _names(words: Sequence[str], brand: tuple[str, ...]) -> bool:
    return any(tuple(words[at : at + len(brand)]) == brand for at in range(len(words) - len(brand) + 1))

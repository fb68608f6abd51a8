"""Text augmentation: what training sees of a query and an item, changed a little, differently in every epoch.

Nothing is stored: the change of a row is a function of the seed, the epoch and the row, so a resumed run sees what an unbroken one sees.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from edgerec.errors import InputError
from edgerec.types import Item

from .config import AugmentSettings
from .pairs import Pairs, Rows

Rewrite: TypeAlias = Callable[[str, int], str]
"""``(text, seed) -> text``: back-translation, a paraphrase, whatever a shop has. Must give the same answer to the same question."""

_LINES = (("qwertyuiop", 0.0), ("asdfghjkl", 0.25), ("zxcvbnm", 0.75))
_KEYS = {key: (x + shift, y) for y, (line, shift) in enumerate(_LINES) for x, key in enumerate(line)}
_REACH = 1.3
"""How far apart, in key widths, two keys of a slip are; the nearer the likelier."""


class Augmenter:
    """Rows of some Pairs with changed texts.

    Parameters
    ----------
    item_fields : what the model reads of an item; the first of them is never dropped.
    hook : used in place of ``settings.hook_function``.

    Raises
    ------
    InputError : ``settings.hook_function`` cannot be imported.
    """

    def __init__(self, settings: AugmentSettings, *, item_fields: Sequence[str], seed: int, hook: Rewrite | None = None) -> None:
        self._settings, self._fields, self._seed = settings, tuple(item_fields), seed
        self._hook = hook or (_imported(settings.hook_function) if settings.hook else None)

    def pairs(self, pairs: Pairs, rows: Rows, epoch: int) -> Pairs:
        """The rows as Pairs of their own, each with its own query and item; labels and grades stay."""
        texts, items = [], []
        for row in rows.tolist():
            rng = np.random.default_rng([self._seed, epoch, row])
            texts.append(self._query(pairs.query_texts[pairs.query[row]], rng))
            items.append(self._item(pairs.items[pairs.item[row]], rng))
        own = np.arange(len(rows))
        return dataclasses.replace(
            pairs,
            query=own,
            item=own,
            label=pairs.label[rows],
            grade=pairs.grade[rows],
            dataset=pairs.dataset[rows],
            query_texts=tuple(texts),
            items=tuple(items),
        )

    def _query(self, text: str, rng: np.random.Generator) -> str:
        s = self._settings
        if self._hook and rng.random() < s.hook:
            text = self._hook(text, int(rng.integers(2**31)))
        for chance, change in ((s.token_drop, drop_word), (s.token_swap, swap_words), (s.typo, typo)):
            if rng.random() < chance:
                text = change(text, rng)
        return text

    def _item(self, item: Item, rng: np.random.Generator) -> Item:
        dropped: dict[str, Any] = {name: "" for name in self._fields[1:] if rng.random() < self._settings.field_drop}
        return dataclasses.replace(item, **dropped) if dropped else item


def augmenter(settings: AugmentSettings, *, item_fields: Sequence[str], seed: int) -> Augmenter | None:
    """The augmenter of a recipe; None where it asks for no change."""
    wanted = settings.typo + settings.token_drop + settings.token_swap + settings.field_drop + settings.hook
    return Augmenter(settings, item_fields=item_fields, seed=seed) if wanted else None


def typo(text: str, rng: np.random.Generator) -> str:
    """One slip of the keyboard in a word of four letters or more: a letter left out, doubled, swapped, or its neighbour's. The first
    letter stays, as it does when people mistype."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not long:
        return text
    place = long[int(rng.integers(len(long)))]
    word = words[place]
    at = int(rng.integers(1, len(word) - 1))
    slips = (
        lambda: word[:at] + word[at + 1 :],
        lambda: word[: at + 1] + word[at:],
        lambda: word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        lambda: word[:at] + _neighbour(word[at], rng) + word[at + 1 :],
    )
    words[place] = slips[int(rng.integers(len(slips)))]()
    return " ".join(words)


def drop_word(text: str, rng: np.random.Generator) -> str:
    """The text without one of its words; unchanged if it has only one."""
    words = text.split(" ")
    if len(words) > 1:
        del words[int(rng.integers(len(words)))]
    return " ".join(words)


def swap_words(text: str, rng: np.random.Generator) -> str:
    """The text with two neighbouring words swapped; unchanged if it has only one."""
    words = text.split(" ")
    if len(words) > 1:
        at = int(rng.integers(len(words) - 1))
        words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def _neighbour(letter: str, rng: np.random.Generator) -> str:
    """A key near this one on a QWERTY keyboard, by a chance that falls with the distance; letters of other scripts stay."""
    if letter.lower() not in _KEYS:
        return letter
    here = _KEYS[letter.lower()]
    near = {key: math.dist(here, place) for key, place in _KEYS.items() if 0 < math.dist(here, place) <= _REACH}
    chances = np.array([1 / distance for distance in near.values()])
    key = str(rng.choice(list(near), p=chances / chances.sum()))
    return key.upper() if letter.isupper() else key


def _imported(name: str) -> Rewrite:
    module, _, function = name.partition(":")
    try:
        found: Rewrite = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as e:
        raise InputError(f"augment.hook_function {name!r}: {e}; expected 'module:function' of a module that can be imported") from e
    return found

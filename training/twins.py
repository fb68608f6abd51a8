"""Near-twin queries: the same search in other clothes. They belong on one side of a split, or the split leaks."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence

from edgerec.errors import InputError
from edgerec.words import split_words

SHARES: Mapping[str, float] = {"train": 0.7, "dev": 0.15, "test": 0.15}
"""The share of the queries each split gets where the publisher made no split."""

# Below this many characters, one changed letter makes another word ("bed lamp", "red lamp"), above it a misspelling.
_SHORTEST_MISSPELT = 8


def query_key(text: str) -> str:
    """The words of a query, folded (NFKC, casefold, no plural s), sorted and joined by a space; equal keys are twins."""
    return " ".join(sorted(_words(text)))


def twin_groups(texts: Sequence[str], keys: Sequence[Hashable] | None = None) -> list[int]:
    """Group queries that are near twins.

    Twins have the same words in any order, or differ in one letter (changed, missing, added, or swapped with its
    neighbour) and are 8 characters or longer; digits never differ. Twins of twins are in one group.

    Parameters
    ----------
    texts : the queries.
    keys : queries with equal keys are twins too, whatever their texts.

    Returns
    -------
    For each query, the place of the first query of its group.
    """
    parents = list(range(len(texts)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    def join(one: int, other: int) -> None:
        one, other = root(one), root(other)
        parents[max(one, other)] = min(one, other)

    first: dict[Hashable, int] = {}
    by_length: dict[int, dict[str, int]] = {}
    for place, text in enumerate(texts):
        words = _words(text)
        join(first.setdefault(("words", *sorted(words)) if words else ("text", text), place), place)
        if keys is not None:
            join(first.setdefault(("key", keys[place]), place), place)
        squeezed = "".join(words) or text
        join(by_length.setdefault(len(squeezed), {}).setdefault(squeezed, place), place)
    for length in sorted(by_length):
        if length < _SHORTEST_MISSPELT:
            continue
        same, shorter = by_length[length], by_length.get(length - 1, {})
        masked: dict[str, int] = {}
        for string, place in same.items():
            for at, letter in enumerate(string):
                if letter.isdecimal():
                    continue
                before, after = string[:at], string[at + 1 :]
                join(masked.setdefault(f"{before}\0{after}", place), place)
                if before + after in shorter and length - 1 >= _SHORTEST_MISSPELT:
                    join(shorter[before + after], place)
                if after and not after[0].isdecimal():
                    swapped = same.get(before + after[0] + letter + after[1:])
                    if swapped is not None:
                        join(swapped, place)
    return [root(place) for place in range(len(texts))]


def split_groups(texts: Sequence[str], groups: Sequence[int], *, seed: int, shares: Mapping[str, float] = SHARES) -> list[str]:
    """Give every query a split; a group is never cut.

    Groups are put in the order of a hash of the seed and their smallest ``query_key``, then cut by share: the split
    depends on the queries, not on their order in the file.

    Returns
    -------
    The split of each query. Each split gets at least one group when there are as many groups as splits.

    Raises
    ------
    InputError : a share is not positive.
    """
    if not shares or any(share <= 0 for share in shares.values()):
        raise InputError(f"shares must be positive, got {dict(shares)}; leave out a split that is not wanted")
    names: dict[int, str] = {}
    sizes: dict[int, int] = {}
    for text, group in zip(texts, groups, strict=True):
        key = query_key(text)
        names[group] = min(names.get(group, key), key)
        sizes[group] = sizes.get(group, 0) + 1
    order = sorted(names, key=lambda group: (hashlib.blake2b(f"{seed}:{names[group]}".encode(errors="surrogatepass")).digest(), group))
    splits = list(shares)
    total = sum(shares.values())
    bounds = [sum(list(shares.values())[: place + 1]) / total * len(texts) for place in range(len(splits))]
    chosen: dict[int, str] = {}
    split, seen, filled = 0, 0, 0
    for place, group in enumerate(order):
        must_move = filled and len(order) - place <= len(splits) - 1 - split
        while split < len(splits) - 1 and filled and (must_move or seen >= bounds[split]):
            split, filled, must_move = split + 1, 0, False
        chosen[group] = splits[split]
        seen, filled = seen + sizes[group], filled + 1
    return [chosen[group] for group in groups]


def _words(text: str) -> list[str]:
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in split_words(text)]

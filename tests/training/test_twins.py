"""Near twins are found, others are not, and a split never parts them."""

from __future__ import annotations

from collections import Counter

import pytest
from edgerec.training.twins import query_key, split_groups, twin_groups
from hypothesis import given
from hypothesis import strategies as st

from edgerec.errors import InputError


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Red Lamps", "lamp, red"),
        ("ｗｉｄｅ lamp", "wide lamp"),
        ("refrigerator", "refrigeratr"),
        ("refrigerator", "refridgerator"),
        ("refrigerator", "refrigirator"),
        ("refrigerator", "refrigertaor"),
        ("12 x 12 pavers", "12x12 paver"),
        ("!!", "!!"),
        ("", ""),
    ],
)
def test_twins_share_a_group(one: str, other: str) -> None:
    assert twin_groups([one, "something else", other]) == [0, 1, 0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("red lamp", "bed lamp"),
        ("16 gb memory card", "64 gb memory card"),
        ("memory card 16 gb", "memory card 1 gb"),
        ("sofa", "couch"),
        ("glass", "glas"),
        ("!!", "??"),
    ],
)
def test_others_do_not(one: str, other: str) -> None:
    assert twin_groups([one, other]) == [0, 1]


def test_twins_of_twins_and_equal_keys_are_one_group() -> None:
    assert twin_groups(["garden hoses", "garden hose", "garden hoze"]) == [0, 0, 0]
    assert twin_groups(["sofa", "lamp", "couch"], keys=["seat", "light", "seat"]) == [0, 1, 0]


def test_query_key_folds_case_order_and_plural() -> None:
    assert query_key("Lamps,  RED") == query_key("red lamp") == "lamp red"


@given(texts=st.lists(st.text(st.sampled_from("ab c1"), min_size=1, max_size=12), max_size=40), seed=st.integers(0, 3))
def test_a_group_is_never_cut_and_every_query_has_a_side(texts: list[str], seed: int) -> None:
    groups = twin_groups(texts)
    assert all(groups[group] == group <= place for place, group in enumerate(groups))
    splits = split_groups(texts, groups, seed=seed)
    assert len(splits) == len(texts)
    sides: dict[int, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        sides.setdefault(group, set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    if len(set(groups)) >= 3:
        assert set(splits) == {"train", "dev", "test"}


def test_the_split_has_the_shares_asked_for_and_depends_on_the_seed_only() -> None:
    texts = [f"query number {place}" for place in range(400)]
    groups = twin_groups(texts)
    splits = split_groups(texts, groups, seed=1)
    assert Counter(splits) == {"train": 280, "dev": 60, "test": 60}
    assert split_groups(texts, groups, seed=2) != splits
    backwards = split_groups(texts[::-1], twin_groups(texts[::-1]), seed=1)
    assert backwards[::-1] == splits


def test_shares_must_be_positive() -> None:
    with pytest.raises(InputError, match="positive"):
        split_groups(["a"], [0], seed=0, shares={"train": 1.0, "dev": 0.0})

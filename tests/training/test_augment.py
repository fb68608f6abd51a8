"""Augmentation: what each change does, that it is repeatable, and that only training sees it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgerec.training import augment
from edgerec.training.augment import Augmenter, augmenter, drop_word, swap_words, typo
from edgerec.training.config import AugmentSettings, LossSettings
from edgerec.training.data import load_dataset
from edgerec.training.distill import distill
from edgerec.training.pairs import Pairs, judged_pairs
from edgerec.training.teacher import train_teacher
from fixtures_tiny import tiny_recipe, write_base_model
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec.errors import InputError

TEXTS = st.lists(st.text("abcxyz019", min_size=1, max_size=9), min_size=1, max_size=5).map(" ".join)
ALL = AugmentSettings(typo=0.5, token_drop=0.5, token_swap=0.5, field_drop=0.5)


@pytest.fixture(scope="module")
def pairs(shop: Path) -> Pairs:
    found = judged_pairs([load_dataset(shop)], "train")
    return replace(found, items=tuple(replace(item, text="long text", brand="acme") for item in found.items))


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.integers(0, 2**31))
def test_words_are_dropped_and_swapped_but_never_made_up(text: str, seed: int) -> None:
    words = Counter(text.split())
    dropped, swapped = (change(text, np.random.default_rng(seed)) for change in (drop_word, swap_words))
    assert words - Counter(dropped.split()) == Counter() or sum((words - Counter(dropped.split())).values()) == 1
    assert Counter(dropped.split()) <= words
    assert len(dropped.split()) == max(1, len(text.split()) - 1)
    assert Counter(swapped.split()) == words


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.integers(0, 2**31))
def test_a_typo_is_one_slip_in_one_long_word(text: str, seed: int) -> None:
    found = typo(text, np.random.default_rng(seed))
    before, after = text.split(" "), found.split(" ")
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) <= 1
    for a, b in changed:
        assert len(a) >= 4
        assert a.isalpha()
        assert a[0] == b[0]
        assert abs(len(a) - len(b)) <= 1


def test_a_wrong_key_is_a_near_one() -> None:
    rng = np.random.default_rng(0)
    found = Counter(augment._neighbour("s", rng) for _ in range(400))
    assert set(found) <= set("awedxz")
    assert found["a"] > found["w"] / 2
    assert augment._neighbour("S", rng).isupper()
    assert augment._neighbour("ß", rng) == "ß"
    for key, place in augment._KEYS.items():
        near = [other for other, there in augment._KEYS.items() if 0 < math.dist(place, there) <= augment._REACH]
        assert len(near) >= 2, key


def test_changes_depend_on_seed_epoch_and_row_alone(pairs: Pairs) -> None:
    rows = np.arange(len(pairs))
    one = Augmenter(ALL, item_fields=("title", "text", "brand"), seed=1)
    first, again = one.pairs(pairs, rows, 0), one.pairs(pairs, rows, 0)
    assert (first.query_texts, first.items) == (again.query_texts, again.items)
    alone = one.pairs(pairs, rows[5:6], 0)
    assert (alone.query_texts[0], alone.items[0]) == (first.query_texts[5], first.items[5])
    assert one.pairs(pairs, rows, 1).query_texts != first.query_texts
    assert Augmenter(ALL, item_fields=("title",), seed=2).pairs(pairs, rows, 0).query_texts != first.query_texts
    np.testing.assert_array_equal(first.label, pairs.label)


def test_fields_but_the_first_are_dropped(pairs: Pairs) -> None:
    settings = AugmentSettings(field_drop=0.5)
    found = Augmenter(settings, item_fields=("title", "text"), seed=0).pairs(pairs, np.arange(60), 0)
    assert {item.text for item in found.items} == {"", "long text"}
    assert {item.brand for item in found.items} == {"acme"}, "a field that the model does not read stays"
    assert [i.title for i in found.items] == [pairs.items[i].title for i in pairs.item[:60]]
    assert found.query_texts == tuple(pairs.query_texts[q] for q in pairs.query[:60])


def shout(text: str, seed: int) -> str:
    return f"{text.upper()} {seed % 10}"


def test_a_hook_takes_any_callable(pairs: Pairs) -> None:
    named = Augmenter(AugmentSettings(hook=1.0, hook_function=f"{__name__}:shout"), item_fields=("title",), seed=0)
    given_ = Augmenter(AugmentSettings(hook=1.0), item_fields=("title",), seed=0, hook=shout)
    rows = np.arange(8)
    texts = named.pairs(pairs, rows, 0).query_texts
    assert texts == given_.pairs(pairs, rows, 0).query_texts
    assert all(text[:-2] == pairs.query_texts[q].upper() for text, q in zip(texts, pairs.query[:8], strict=True))
    for wrong in ("nowhere:shout", f"{__name__}:whisper", f"{__name__}:"):
        with pytest.raises(InputError, match="hook_function"):
            Augmenter(AugmentSettings(hook=1.0, hook_function=wrong), item_fields=("title",), seed=0)


def test_a_recipe_without_changes_has_no_augmenter() -> None:
    assert augmenter(AugmentSettings(), item_fields=("title",), seed=0) is None


def test_teacher_and_student_train_on_changed_text_and_are_judged_on_clean_text(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(Augmenter, "_query", lambda self, text, rng: seen.append(text) or "lamp")  # type: ignore[func-returns-value]
    base = write_base_model(tmp_path / "bert")
    dataset = load_dataset(shop)
    dev = {dataset.queries[q] for q in dataset.qrels["dev"]} - {dataset.queries[q] for q in dataset.qrels["train"]}
    settings = AugmentSettings(typo=1.0)
    info = train_teacher([shop], str(base), tiny_recipe(augment=settings), tmp_path / "t")
    assert 6 * 10 < len(seen) <= 6 * 24
    assert not dev & set(seen)
    seen.clear()
    recipe = tiny_recipe(augment=settings, loss=LossSettings(bce=0.3, mse=0.5))
    distill(tmp_path / "t", [shop], recipe, tmp_path / "s")
    assert 6 * 10 < len(seen) <= 6 * 24
    assert not dev & set(seen)
    assert info["recipe"]["augment"]["typo"] == 1.0

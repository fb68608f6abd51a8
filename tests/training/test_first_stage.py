"""BM25 against the formula written out, and the choices around it."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from edgerec.training.data import Dataset, load_dataset
from edgerec.training.first_stage import Bm25, fold_plural
from fixtures_judged import write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec.errors import InputError, MissingExtraError
from edgerec.types import Item


def dataset_of(*titles: str, text: str = "") -> Dataset:
    items = {f"i{n}": Item(f"i{n}", title, text) for n, title in enumerate(titles)}
    return Dataset("toy", items, {}, {}, 1.0, 4.0, "")


def slow_bm25(query: str, titles: list[str], k1: float, b: float) -> list[float]:
    docs = [title.split() for title in titles]
    mean = sum(map(len, docs)) / len(docs)
    totals = []
    for doc in docs:
        counts, total = Counter(doc), 0.0
        for word in query.split():
            holding = sum(word in other for other in docs)
            idf = math.log(1 + (len(docs) - holding + 0.5) / (holding + 0.5))
            total += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(doc) / mean))
        totals.append(total)
    return totals


words = st.lists(st.sampled_from(["oak", "pine", "elm", "ash", "fir"]), min_size=1, max_size=5).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(words, st.lists(words, min_size=2, max_size=8), st.sampled_from([(0.9, 0.4), (1.5, 0.75)]))
def test_scores_equal_the_formula(query: str, titles: list[str], parameters: tuple[float, float]) -> None:
    dataset = dataset_of(*titles)
    bm25 = Bm25(dataset, k1=parameters[0], b=parameters[1])
    np.testing.assert_allclose(bm25.score(query, list(dataset.items.values())), slow_bm25(query, titles, *parameters), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(words, st.lists(words, min_size=1, max_size=8), st.integers(1, 10))
def test_search_is_the_sorted_scores_without_the_items_that_do_not_match(query: str, titles: list[str], k: int) -> None:
    dataset = dataset_of(*titles)
    bm25 = Bm25(dataset)
    scores = bm25.score(query, list(dataset.items.values()))
    expected = [(f"i{n}", float(scores[n])) for n in np.argsort(-scores, kind="stable") if scores[n] > 0][:k]
    assert bm25.search(query, k) == expected


def test_search_finds_plurals_any_case_and_width(tmp_path: Path) -> None:
    bm25 = Bm25(load_dataset(write_folder(tmp_path / "toy")))
    assert bm25.search("RED lamps", 1)[0][0] == "i0"
    assert bm25.search("ｒｅｄ lamp", 1)[0][0] == "i0"
    assert bm25.search_many(["red lamp", "blue rug"], 1) == [bm25.search("red lamp", 1), bm25.search("blue rug", 1)]


def test_search_without_a_known_word_finds_nothing(tmp_path: Path) -> None:
    dataset = load_dataset(write_folder(tmp_path / "toy"))
    bm25 = Bm25(dataset)
    for query in ("", "?!", "sofa", "\ud800"):
        assert bm25.search(query, 5) == []
        assert not bm25.score(query, list(dataset.items.values())).any()


def test_a_corpus_without_words_can_be_searched() -> None:
    dataset = dataset_of("", "!")
    assert Bm25(dataset).search("red", 3) == []
    assert Bm25(dataset).score("red", list(dataset.items.values())).tolist() == [0.0, 0.0]


def test_fields_are_a_choice() -> None:
    dataset = dataset_of("lamp", "chair", text="brass")
    assert Bm25(dataset).search("brass", 2) == []
    assert [i for i, _ in Bm25(dataset, fields=("title", "text")).search("brass chair", 2)] == ["i1", "i0"]


def test_plural_folding_is_a_choice() -> None:
    assert Bm25(dataset_of("lamp", "chair"), fold_plurals=False).search("lamps", 2) == []


@pytest.mark.parametrize(
    ("word", "folded"),
    [
        ("lamps", "lamp"), ("batteries", "battery"), ("shelves", "shelve"), ("shoes", "shoe"), ("glass", "glass"), ("bus", "bus"),
        ("gas", "gas"), ("s", "s"), ("", ""), ("movies", "movy"),
    ],
)  # fmt: skip
def test_fold_plural(word: str, folded: str) -> None:
    assert fold_plural(word) == folded


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    dataset = dataset_of("lamp")
    for wrong in ({"fields": ("colour",)}, {"fields": ()}, {"k1": -1.0}, {"b": 1.5}):
        with pytest.raises(InputError):
            Bm25(dataset, **wrong)
    with pytest.raises(InputError, match="k must be"):
        Bm25(dataset).search("lamp", 0)
    with pytest.raises(InputError, match="not in the data set"):
        Bm25(dataset).score("lamp", [Item("other", "lamp")])


def test_without_bm25s_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingExtraError, match=r"edgerec\[train\]"):
        Bm25(dataset_of("lamp"))

"""Pairs: what a split becomes, the order of training, forward passes without much padding."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from edgerec.training.config import FitSettings
from edgerec.training.data import load_dataset
from edgerec.training.pairs import MOST_ROWS, PASS, Pairs, TokenTable, epoch_batches, judged_pairs, starts
from fixtures_export import write_tokenizer
from fixtures_tiny import write_shop
from hypothesis import given
from hypothesis import strategies as st

from edgerec.errors import InputError
from edgerec.text import TextEncoder, text_spec_from_tokenizer


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    shop = write_shop(tmp_path_factory.mktemp("pairs") / "shop")
    dataset = load_dataset(shop)
    dataset.qrels["train"]["q1"]["i34"] = float("nan")  # q1 judges every second item: i34 is new to it
    return judged_pairs([dataset], "train")


def test_labels_follow_the_grades_and_unjudged_pairs_are_nan(pairs: Pairs) -> None:
    judged = ~np.isnan(pairs.label)
    np.testing.assert_allclose(pairs.label[judged], (pairs.grade[judged] - 1) / 2)
    assert np.array_equal(np.isnan(pairs.label), np.isnan(pairs.grade))
    assert int(np.isnan(pairs.label).sum()) == 1


def test_an_absent_split_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holdout"):
        judged_pairs([load_dataset(write_shop(tmp_path / "shop"))], "holdout")


def test_an_epoch_shows_every_row_as_often_as_passes_say(pairs: Pairs) -> None:
    for passes, times in (({}, 1), ({"tiny": 3}, 3)):
        batches = epoch_batches(pairs, FitSettings(batch_size=16, group_size=4, passes=passes), seed=5, epoch=0)
        assert np.array_equal(np.bincount(np.concatenate(batches), minlength=len(pairs)), np.full(len(pairs), times))
        assert max(map(len, batches)) <= 16


def test_batches_depend_on_seed_and_epoch_only(pairs: Pairs) -> None:
    def batches(seed: int, epoch: int) -> list[list[int]]:
        return [b.tolist() for b in epoch_batches(pairs, FitSettings(batch_size=16, group_size=4), seed=seed, epoch=epoch)]

    assert batches(0, 1) == batches(0, 1)
    assert batches(0, 1) != batches(0, 2)
    assert batches(0, 1) != batches(1, 1)


def test_passes_of_an_unknown_data_set_are_an_input_error(pairs: Pairs) -> None:
    for settings in (FitSettings(passes={"elsewhere": 2}), FitSettings(curriculum=("elsewhere",))):
        with pytest.raises(InputError, match="elsewhere"):
            epoch_batches(pairs, settings, seed=0, epoch=0)


def test_no_pass_over_anything_is_an_input_error(pairs: Pairs) -> None:
    with pytest.raises(InputError, match="no training pair"):
        epoch_batches(pairs, FitSettings(passes={"tiny": 0}), seed=0, epoch=0)


def test_a_curriculum_shows_one_data_set_after_the_other(pairs: Pairs) -> None:
    half = np.where(np.arange(len(pairs)) < pairs.query.searchsorted(pairs.query.max() // 2), 0, 1)
    two = dataclasses.replace(pairs, dataset=half, names=("first", "second"), grade_min=pairs.grade_min * 2)
    for order in (("first", "second"), ("second", "first")):
        settings = FitSettings(batch_size=16, group_size=4, passes={"first": 2}, curriculum=order)
        batches = epoch_batches(two, settings, seed=0, epoch=0)
        seen = [order.index(two.names[d]) for rows in batches for d in two.dataset[rows]]
        assert seen == sorted(seen)
        assert np.array_equal(np.bincount(np.concatenate(batches)), np.where(half == 0, 2, 1))
    for order in (("first",), ("first", "first")):
        with pytest.raises(InputError, match="each of"):
            epoch_batches(two, FitSettings(curriculum=order), seed=0, epoch=0)
    assert epoch_batches(two, FitSettings(curriculum=("second",)), seed=0, epoch=0, only=["first"])  # a warm-up is not part of it


@pytest.mark.parametrize("few_shapes", [True, False])
def test_forward_passes_hold_every_row_once_with_its_own_tokens(few_shapes: bool, pairs: Pairs, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    spec = text_spec_from_tokenizer(tmp_path / "tokenizer.json", max_tokens=16, max_query_tokens=6, item_fields=["title"])
    table = TokenTable(pairs, TextEncoder(tmp_path / "tokenizer.json", spec))
    rows = np.arange(len(pairs))[::-1]
    batches = table.forward_batches(rows, size=10, few_shapes=few_shapes)
    assert sorted(np.concatenate([b.rows for b in batches]).tolist()) == list(range(len(pairs)))
    for batch in batches:
        height, width = batch.input_ids.shape
        longest = int(batch.attention_mask.sum(axis=1).max())
        assert (height % 8, width % 8) == (0, 0) if few_shapes else (height, width) == (len(batch.rows), longest)
        for place, row in enumerate(batch.rows):
            alone = table.forward_batches(rows[row : row + 1])[0]
            length = int(alone.attention_mask[0].sum())
            assert length == int(batch.attention_mask[place].sum()) <= 16
            assert np.array_equal(batch.input_ids[place, :length], alone.input_ids[0, :length])
            assert np.array_equal(batch.token_type_ids[place, :length], alone.token_type_ids[0, :length])
            assert not batch.attention_mask[place, length:].any()


def cost(lengths: list[int], begin: tuple[int, ...]) -> int:
    ends = [*begin[1:], len(lengths)]
    return sum((end - start) * lengths[end - 1] + PASS for start, end in zip(begin, ends, strict=True))


@given(st.lists(st.integers(1, 64), min_size=1, max_size=9).map(lambda lengths: sorted(n * 16 for n in lengths)))
def test_no_other_cuts_cost_less(lengths: list[int]) -> None:
    inner = range(1, len(lengths))
    others = [(0, *chosen) for count in range(len(lengths)) for chosen in combinations(inner, count)]
    found = starts(np.array(lengths), size=32, few_shapes=False)
    assert cost(lengths, tuple(found)) == min(cost(lengths, other) for other in others)


def test_a_pass_has_a_most_of_rows() -> None:
    found = starts(np.full(3 * MOST_ROWS + 1, 20), size=32, few_shapes=False)
    assert len(found) == 4
    assert max(np.diff([*found, 3 * MOST_ROWS + 1])) <= MOST_ROWS

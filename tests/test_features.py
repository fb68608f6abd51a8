"""Hashed features against a slow reading of docs/formats.md, with the PyPI xxhash as the hash."""

from __future__ import annotations

import copy
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from fixtures_features import EVERY_KIND, oracle_row
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec.errors import InputError
from edgerec.features import (
    FeatureEncoder,
    FeatureSpec,
    Field,
    Template,
    default_spec,
)
from edgerec.types import Item, UserProfile

texts = st.text("abc AB\u00e9\u00df\u2460\ufb01\x00\ud800-,", max_size=20)
weights = st.dictionaries(texts, st.floats(0, 1, width=32), max_size=3)
items = st.builds(
    Item,
    id=st.text("abc", min_size=1, max_size=3),
    title=texts,
    text=texts,
    brand=texts,
    category=texts,
    price=st.none() | st.just("") | st.floats(-1, 1e6) | st.sampled_from([math.nan, math.inf, 0.01, 8]),
    attributes=st.dictionaries(texts, texts, max_size=3),
)
users = st.none() | st.builds(UserProfile, id=texts, brands=weights, categories=weights)
contexts = st.none() | st.dictionaries(st.sampled_from(["device", "page", "other"]), texts)


@pytest.mark.parametrize("spec", [EVERY_KIND, default_spec(), default_spec(buckets=11, slots=3)], ids=["every kind", "default", "crowded"])
@settings(max_examples=60)
@given(query=texts, shop=st.lists(items, min_size=1, max_size=4), user=users, context=contexts)
def test_rows_are_those_of_the_slow_reading_of_the_format(spec, query, shop, user, context):
    encoder = FeatureEncoder(spec)
    ids, weights = encoder.encode_rows(encoder.encode_query(query, user, context), encoder.encode_items(shop), np.arange(len(shop)))
    expected = [oracle_row(spec, query, item, user, context) for item in shop]
    np.testing.assert_array_equal(ids, [row for row, _ in expected])
    np.testing.assert_allclose(weights, [row for _, row in expected], rtol=1e-6)
    assert ids.dtype == np.int32
    assert weights.dtype == np.float32


@settings(max_examples=30)
@given(query=texts, shop=st.lists(items, min_size=1, max_size=6), data=st.data())
def test_items_encoded_together_give_the_rows_of_items_encoded_alone(query, shop, data):
    encoder = FeatureEncoder(EVERY_KIND)
    asked = encoder.encode_query(query)
    rows = np.array(data.draw(st.lists(st.integers(0, len(shop) - 1), max_size=8)), np.int64)
    ids, weights = encoder.encode_rows(asked, encoder.encode_items(shop), rows)
    for i, row in enumerate(rows):
        alone = encoder.encode_rows(asked, encoder.encode_items([shop[row]]), np.zeros(1, np.int64))
        np.testing.assert_array_equal(ids[i], alone[0][0])
        np.testing.assert_array_equal(weights[i], alone[1][0])


@given(shop=st.lists(items, max_size=5))
@settings(max_examples=30)
def test_item_columns_are_sorted_sets(shop):
    features = FeatureEncoder(EVERY_KIND).encode_items(shop)
    assert features.fields == len(features.sets) == 7
    assert len(features.offsets) == len(shop) * 7 + 1
    assert features.offsets[0] == 0
    assert features.offsets[-1] == len(features.hashes)
    for start, end in itertools.pairwise(features.offsets):
        one = features.hashes[start:end].tolist()
        assert one == sorted(set(one))


def test_a_known_row():
    """Worked out by hand from the format, so that a shared misreading of oracle and encoder would show."""
    spec = FeatureSpec(
        buckets=2**31 - 1,
        slots=4,
        fields=(Field("q", "query", "text", "words", "w"), Field("t", "item", "title", "words", "w")),
        templates=(Template("m", "match", "q", "t"),),
    )
    encoder = FeatureEncoder(spec)
    ids, weights = encoder.encode_rows(
        encoder.encode_query("Red, LAMP!"), encoder.encode_items([Item("1", "lamp shade")]), np.zeros(1, np.int64)
    )
    t = xxhash.xxh64_intdigest(b"m")
    step = xxhash.xxh64_intdigest((2).to_bytes(8, "little"), t)
    assert ids[0].tolist() == [((h >> 32) * (2**31 - 1)) >> 32 for h in (t, step)] + [0, 0]
    assert weights[0].tolist() == [0.5 if t & 1 else -0.5, 1.0 if step & 1 else -1.0, 0.0, 0.0]


def test_missing_brand_and_price_are_a_value_of_their_own():
    encoder = FeatureEncoder(default_spec())
    names = encoder.item_fields
    features = encoder.encode_items(
        [Item("1", "lamp"), Item("2", "lamp", brand="  ", price=math.nan), Item("3", "lamp", brand="acme", price=8.0)]
    )
    for name, value in (("brand", "brand=acme"), ("price", "price=12")):
        first = names.index(name)
        column = [features.hashes[features.offsets[i * len(names) + first]] for i in range(3)]
        missing = xxhash.xxh64_intdigest(f"{name}=<missing>".encode())
        assert column == [missing, missing, xxhash.xxh64_intdigest(value.encode())]


def test_long_text_is_read_up_to_a_bound():
    encoder = FeatureEncoder(default_spec())
    long, longer = "red lamp " * 12_000, "red lamp " * 12_000 + "chair"
    for a, b in zip(encoder.encode_query(long).hashes, encoder.encode_query(longer).hashes, strict=True):
        np.testing.assert_array_equal(a, b)


def test_arguments_are_not_changed():
    encoder = FeatureEncoder(EVERY_KIND)
    item, user, context = Item("1", "Lamp", attributes={"Colour": "Red"}), UserProfile("u", {"Acme": 0.5}), {"device": "Phone"}
    before = copy.deepcopy((item, user, context))
    encoder.encode_rows(encoder.encode_query("red", user, context), encoder.encode_items([item]), np.zeros(1, np.int64))
    assert (item, user, context) == before


def test_sixteen_threads_get_the_rows_of_one():
    encoder = FeatureEncoder(default_spec())
    shop = encoder.encode_items([Item(str(i), f"lamp {i} red", brand=f"brand {i % 3}") for i in range(50)])

    def run(i):
        return encoder.encode_rows(encoder.encode_query(f"red lamp {i}"), shop, np.arange(50))

    serial = [run(i) for i in range(64)]
    with ThreadPoolExecutor(16) as pool:
        for (ids, weights), (want_ids, want_weights) in zip(pool.map(run, range(64)), serial, strict=True):
            np.testing.assert_array_equal(ids, want_ids)
            np.testing.assert_array_equal(weights, want_weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "query must be a str"),
        ((b"red",), "query must be a str"),
        (("red", {"brands": {}}), "user must be a UserProfile"),
        (("red", UserProfile(brands=["acme"])), "mappings of str to a weight"),
        (("red", UserProfile(brands={"acme": "much"})), "must be numbers"),
        (("red", UserProfile(brands={"acme": math.nan})), "must be finite"),
        (("red", UserProfile(brands={3: 1.0})), "expected text as str"),
        (("red", None, ["device"]), "context must be a mapping"),
        (("red", None, {"device": 3}), "expected text as str"),
    ],
)
def test_a_request_of_wrong_types_is_an_input_error(arguments, message):
    with pytest.raises(InputError, match=message):
        FeatureEncoder(EVERY_KIND).encode_query(*arguments)


@pytest.mark.parametrize("change", [{"title": None}, {"brand": 3}, {"price": "cheap"}, {"attributes": {"colour": 3}}])
def test_an_item_of_wrong_types_is_an_input_error(change):
    with pytest.raises(InputError):
        FeatureEncoder(EVERY_KIND).encode_items([replace(Item("1", "lamp"), **change)])

"""Hashed features against a slow reading of docs/formats.md, with the PyPI xxhash as the hash."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec.errors import FeatureError, InputError
from edgerec.features import (
    FeatureEncoder,
    FeatureSpec,
    Field,
    Template,
    add_golden,
    check_golden,
    default_spec,
)
from edgerec.types import Item, UserProfile
from edgerec.words import MAX_CHARS

# ---------------------------------------------------------------------------------------------------------- oracle


def oracle_normal(text):
    return unicodedata.normalize("NFKC", re.sub("[\ud800-\udfff]", "\ufffd", text.replace("\x00", " "))).casefold().strip()


def oracle_words(text):
    return re.findall(r"\w+", oracle_normal(text[:MAX_CHARS]))


def oracle_values(field, source):
    """List of (value, weight)."""
    if field.kind == "log2":
        known = source not in (None, "") and math.isfinite(source)
        return [(str(math.floor(4 * math.log2(max(source, 0.01)))), 1)] if known else []
    if field.kind == "weights":
        return [(oracle_normal(value), weight) for value, weight in (source or {}).items() if oracle_normal(value)]
    if field.kind == "value" and isinstance(source, dict):
        return [(f"{oracle_normal(key)}:{oracle_normal(value)}", 1) for key, value in source.items() if oracle_normal(value)]
    if isinstance(source, dict):
        source = " ".join(source.values())
    if field.kind == "value":
        return [(oracle_normal(source), 1)] if oracle_normal(source) else []
    words = oracle_words(source)
    if field.kind == "words":
        return [(word, 1) for word in words]
    return [(f"^{word}$"[i : i + 3], 1) for word in words for i in range(len(word))]


def oracle_set(field, source, seed):
    """Hash -> weight."""
    values = oracle_values(field, source)
    if not values and field.side == "item" and field.kind in ("value", "log2"):
        values = [("<missing>", 1)]
    found = {}
    for value, weight in values:
        h = xxhash.xxh64_intdigest(f"{field.namespace}={value}".encode(), seed)
        if field.kind == "weights":
            found[h] = np.float32(found.get(h, np.float32(0)) + np.float32(weight))
        else:
            found[h] = np.float32(1)
    return dict(sorted(found.items()))


def le(number):
    return number.to_bytes(8, "little")


def oracle_emissions(spec, template, sets):
    t = xxhash.xxh64_intdigest(template.name.encode(), spec.seed)
    left, right = sets[template.left], sets.get(template.right, {})
    if template.op == "match":
        total = math.fsum(left.values())
        if total > 0:
            c = np.float32(sum(float(w) for a, w in left.items() if a in right) / sum(float(w) for w in left.values()))
            yield t, c
            yield xxhash.xxh64_intdigest(le(math.floor(4 * c)), t), np.float32(1)
        return
    for a, weight in left.items():
        if template.op == "cross":
            for b, other in right.items():
                yield xxhash.xxh64_intdigest(le(a) + le(b), t), weight * other
        elif template.op == "emit" or (a in right) == (template.op == "common"):
            yield xxhash.xxh64_intdigest(le(a), t), weight


def oracle_row(spec, query, item, user=None, context=None):
    sources = {"query": {"text": query}, "context": context or {}}
    sources["user"] = {name: getattr(user, name) for name in ("id", "brands", "categories")} if user else {}
    sources["item"] = {name: getattr(item, name) for name in ("id", "title", "text", "brand", "category", "price", "attributes")}
    sets = {f.name: oracle_set(f, sources[f.side].get(f.source, ""), spec.seed) for f in spec.fields}
    row = {}
    for template in spec.templates:
        for h, weight in oracle_emissions(spec, template, sets):
            place = ((h >> 32) * spec.buckets) >> 32
            if place in row or len(row) < spec.slots:
                row[place] = np.float32(row.get(place, np.float32(0)) + weight * np.float32(1 if h & 1 else -1))
    ids, weights = np.zeros(spec.slots, np.int32), np.zeros(spec.slots, np.float32)
    ids[: len(row)], weights[: len(row)] = list(row), list(row.values())
    return ids, weights


# ------------------------------------------------------------------------------------------------------------ specs

EVERY_KIND = FeatureSpec(
    buckets=997,
    slots=24,
    seed=7,
    fields=(
        Field("query_words", "query", "text", "words", "w"),
        Field("query_trigrams", "query", "text", "trigrams", "3"),
        Field("query_value", "query", "text", "value", "brand"),
        Field("title_words", "item", "title", "words", "w"),
        Field("text_trigrams", "item", "text", "trigrams", "3"),
        Field("brand", "item", "brand", "value", "brand"),
        Field("attributes", "item", "attributes", "value", "a"),
        Field("attribute_words", "item", "attributes", "words", "w"),
        Field("price", "item", "price", "log2", "price"),
        Field("item_id", "item", "id", "value", "id"),
        Field("user_id", "user", "id", "value", "user"),
        Field("user_brands", "user", "brands", "weights", "brand"),
        Field("user_categories", "user", "categories", "weights", "category"),
        Field("device", "context", "device", "value", "device"),
        Field("page_words", "context", "page", "words", "w"),
    ),
    templates=(
        Template("match", "match", "query_words", "title_words"),
        Template("attributes", "common", "query_words", "attribute_words"),
        Template("asked_brand", "match", "query_value", "brand"),
        Template("user_brand", "match", "user_brands", "brand"),
        Template("user_brand_weight", "common", "user_brands", "brand"),
        Template("not_there", "left_only", "query_trigrams", "text_trigrams"),
        Template("price", "emit", "price"),
        Template("each_attribute", "emit", "attributes"),
        Template("device_price", "cross", "device", "price"),
        Template("user_item", "cross", "user_id", "item_id"),
        Template("taste_title", "cross", "user_categories", "title_words"),
        Template("page", "common", "page_words", "title_words"),
    ),
)

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


# ------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("spec", [EVERY_KIND, default_spec()])
def test_spec_survives_json(spec):
    assert FeatureSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_default_spec_leaves_room_for_the_words_of_a_query():
    spec = default_spec()
    encoder = FeatureEncoder(spec)
    full = Item("1", "red lamp", brand="acme", category="lamps", price=5.0, attributes={"colour": "red"})
    user = UserProfile(brands={"acme": 1.0}, categories={"lamps": 1.0})
    query = " ".join(f"w{i}" for i in range(12))
    _, weights = encoder.encode_rows(encoder.encode_query(query, user), encoder.encode_items([full]), np.zeros(1, np.int64))
    assert weights.shape == (1, 32)
    assert np.count_nonzero(weights) > 12 + 10


def edit(body, path, value):
    body = copy.deepcopy(body)
    *parents, last = path
    place = body
    for key in parents:
        place = place[key]
    place[last] = value
    return body


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 2, "version 2"),
        (("hash",), "murmur3", "hash 'murmur3'"),
        (("buckets",), 0, "buckets is 0"),
        (("buckets",), 2**31, "buckets is"),
        (("slots",), "32", "slots is '32'"),
        (("slots",), True, "slots is True"),
        (("seed",), -1, "seed is -1"),
        (("fields",), {}, "fields of a feature spec must be a list"),
        (("fields",), [], "at least one field"),
        (("templates",), [], "at least one template"),
        (("fields", 0, "side"), "shop", "has side 'shop'"),
        (("fields", 0, "kind"), "log2", "reads query 'text' as 'log2'"),
        (("fields", 0, "source"), "title", "reads query 'title'"),
        (("fields", 0, "name"), 3, "holds strings only"),
        (("fields", 0, "name"), "query_trigrams", "same name"),
        (("fields", 0, "colour"), "red", "has the keys"),
        (("fields", 0), "query_words", "has the keys"),
        (("templates", 0, "op"), "and", "has op 'and'"),
        (("templates", 0, "left"), "nothing", "unknown field 'nothing'"),
        (("templates", 0, "right"), "", "takes a right field"),
        (("templates", 0, "name"), "price_prior", "same name"),
        (("more",), 1, "has the keys"),
        (("golden",), [{"query": "red"}], "a golden example has the keys"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_reason(path, value, message):
    with pytest.raises(FeatureError, match=message):
        FeatureSpec.from_json(edit(default_spec().to_json(), path, value))


def test_more_templates_than_the_core_takes_are_refused():
    spec = default_spec()
    with pytest.raises(FeatureError, match="at most 128 templates"):
        replace(spec, templates=tuple(Template(f"t{i}", "emit", "brand") for i in range(129)))
    with pytest.raises(FeatureError, match="at most 256 fields"):
        replace(spec, fields=(*spec.fields, *(Field(f"f{i}", "item", "brand", "value", "b") for i in range(256))))


@pytest.mark.parametrize("data", [None, [], "spec", 3])
def test_what_is_no_spec_is_refused(data):
    with pytest.raises(FeatureError, match="has the keys"):
        FeatureSpec.from_json(data)


# ----------------------------------------------------------------------------------------------------------- golden

EXAMPLES = [
    ("red lamp", Item("1", "Lamp, red", brand="Acme", price=12.5, attributes={"colour": "red"}), None),
    ("\u00c9clair \u2460", Item("2", "\u00e9clairs"), UserProfile("u", {"acme": 0.25}, {"cakes": 1.0})),
    ("", Item("3", ""), None),
]


def test_golden_examples_reproduce_after_a_trip_through_json():
    spec = add_golden(EVERY_KIND, EXAMPLES)
    assert len(spec.golden) == 3
    check_golden(FeatureSpec.from_json(json.loads(json.dumps(spec.to_json()))))


def test_golden_ids_are_those_of_the_oracle():
    for (query, item, user), example in zip(EXAMPLES, add_golden(default_spec(), EXAMPLES).golden, strict=True):
        ids, weights = oracle_row(default_spec(), query, item, user)
        count = len(example["ids"])
        assert ids[:count].tolist() == example["ids"]
        assert weights[:count].tolist() == pytest.approx(example["weights"])
        assert not weights[count:].any()


@pytest.mark.parametrize(
    ("path", "value"),
    [(("ids", 0), 5), (("weights", 0), 0.123), (("ids",), []), (("query",), "blue lamp"), (("item", "title"), "Blue")],
)
def test_a_golden_example_that_differs_is_a_feature_error(path, value):
    spec = add_golden(default_spec(), EXAMPLES[:1])
    with pytest.raises(FeatureError, match="golden example 1"):
        check_golden(replace(spec, golden=(edit(spec.golden[0], path, value),)))


@pytest.mark.parametrize(("path", "value"), [(("item",), None), (("item",), {"title": "no id"}), (("user",), {"age": 3}), (("query",), 3)])
def test_a_golden_example_that_cannot_be_read_is_a_feature_error(path, value):
    spec = add_golden(default_spec(), EXAMPLES[:1])
    with pytest.raises(FeatureError, match="golden example 1 of the feature spec cannot be read"):
        check_golden(replace(spec, golden=(edit(spec.golden[0], path, value),)))


def test_another_seed_does_not_reproduce():
    spec = add_golden(default_spec(), EXAMPLES[:1])
    with pytest.raises(FeatureError, match="does not compute what the model was trained with"):
        check_golden(replace(spec, seed=1))

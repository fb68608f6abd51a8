"""The feature spec: through JSON and back, refused with a reason when wrong, and bound to golden examples."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures_features import EVERY_KIND, oracle_row

from edgerec.errors import FeatureError
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

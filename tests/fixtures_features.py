"""A slow, obvious reading of the feature format of docs/formats.md, and a spec that has every kind of field and template."""

from __future__ import annotations

import math
import re
import unicodedata

import numpy as np
import xxhash

from edgerec.features import FeatureSpec, Field, Template
from edgerec.words import MAX_CHARS


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

"""FeatureSpec: which hashed features a model reads. Written to disk with the model, and part of it.

The semantics of every kind and op are in docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import FeatureError

MAX_FIELDS, MAX_TEMPLATES = 256, 128
"""What the C core takes."""

OPS = {"emit": 0, "common": 1, "left_only": 2, "match": 3, "cross": 4}

_TEXT_KINDS = ("words", "trigrams", "value")
_ANY_KEY = "any key"
_SOURCES: dict[str, dict[str, tuple[str, ...]]] = {  # side -> source -> the kinds that can read it
    "query": {"text": _TEXT_KINDS},
    "user": {"id": ("value",), "brands": ("weights",), "categories": ("weights",)},
    "context": {_ANY_KEY: _TEXT_KINDS},
    "item": {
        **dict.fromkeys(("title", "text", "brand", "category", "attributes"), _TEXT_KINDS),
        "id": ("value",),
        "price": ("log2",),
    },
}
_FIELD_KEYS = ("name", "side", "source", "kind", "namespace")


@dataclass(frozen=True, slots=True)
class Field:
    """One set of hashes made from one source: ``XXH64(namespace=value)``."""

    name: str
    side: str
    source: str
    kind: str
    namespace: str

    def __post_init__(self) -> None:
        sources = _SOURCES.get(self.side)
        if sources is None:
            raise FeatureError(f"field {self.name!r} has side {self.side!r}; expected one of {sorted(_SOURCES)}")
        if self.kind not in sources.get(self.source, sources.get(_ANY_KEY, ())):
            where = f"field {self.name!r} reads {self.side} {self.source!r} as {self.kind!r}"
            raise FeatureError(f"{where}; the sources of {self.side} and the kinds that read them: {sources}")


@dataclass(frozen=True, slots=True)
class Template:
    """One rule that turns fields into features; `right` is empty for ``emit``."""

    name: str
    op: str
    left: str
    right: str = ""

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise FeatureError(f"template {self.name!r} has op {self.op!r}; expected one of {list(OPS)}")
        if (self.right == "") != (self.op == "emit"):
            raise FeatureError(f"template {self.name!r}: op {self.op!r} takes {'no' if self.op == 'emit' else 'a'} right field")


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """What a model's features are: part of the model, fixed when it is trained.

    Attributes
    ----------
    buckets : V, the number of feature ids. slots : F, the most features of one row.
    fields, templates : in the order in which they are computed; when the slots are full, later templates lose.
    golden : examples with the ids and weights they must give, see `check_golden`.
    seed : of every hash.
    """

    buckets: int
    slots: int
    fields: tuple[Field, ...]
    templates: tuple[Template, ...]
    golden: tuple[Mapping[str, Any], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"buckets": (1, 2**31 - 1), "slots": (1, 4096), "seed": (0, 2**64 - 1)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise FeatureError(f"{name} is {value!r}; expected an integer from {low} to {high}")
        names = {f.name for f in self.fields}
        for kind, given, most in (("field", self.fields, MAX_FIELDS), ("template", self.templates, MAX_TEMPLATES)):
            if not 1 <= len(given) <= most:
                raise FeatureError(f"a feature spec has {len(given)} {kind}s; expected at least one {kind} and at most {most} {kind}s")
            if len({entry.name for entry in given}) != len(given):
                raise FeatureError(f"two {kind}s of a feature spec have the same name: {sorted(entry.name for entry in given)}")
        for template in self.templates:
            for name in (template.left, template.right):
                if name not in names and not (name == "" and template.op == "emit"):
                    raise FeatureError(f"template {template.name!r} reads the unknown field {name!r}; fields: {sorted(names)}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FeatureSpec:
        """The ``features`` object of `model.json`. Raises FeatureError naming what is missing, unknown or wrong."""
        body = _checked(data, "a feature spec", ("version", "hash", "seed", "buckets", "slots", "fields", "templates"), ("golden",))
        if body["version"] != 1 or body["hash"] != "xxh64":
            raise FeatureError(
                f"feature spec version {body['version']!r}, hash {body['hash']!r}; this edgerec reads version 1, hash 'xxh64'"
            )
        for name in ("fields", "templates", "golden"):
            if not isinstance(body.get(name, []), list):
                raise FeatureError(f"{name} of a feature spec must be a list")
        required = ("query", "item", "ids", "weights")
        golden = [_checked(example, "a golden example", required, ("user",)) for example in body.get("golden", [])]
        return cls(
            buckets=body["buckets"],
            slots=body["slots"],
            seed=body["seed"],
            fields=tuple(Field(**_strings(entry, "a field", _FIELD_KEYS)) for entry in body["fields"]),
            templates=tuple(Template(**_strings(entry, "a template", ("name", "op", "left"), ("right",))) for entry in body["templates"]),
            golden=tuple(golden),
        )

    def to_json(self) -> dict[str, Any]:
        """The object `from_json` reads."""
        body: dict[str, Any] = {"version": 1, "hash": "xxh64", "seed": self.seed, "buckets": self.buckets, "slots": self.slots}
        body["fields"] = [{key: getattr(entry, key) for key in _FIELD_KEYS} for entry in self.fields]
        body["templates"] = [{k: v for k in ("name", "op", "left", "right") if (v := getattr(entry, k))} for entry in self.templates]
        body["golden"] = [dict(example) for example in self.golden]
        return body


def _checked(data: Any, what: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(data, Mapping) or not {*required} <= {*data} <= {*required, *optional}:
        given = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
        raise FeatureError(f"{what} has the keys {list(required)} and may have {list(optional)}; got {given}")
    return dict(data)


def _strings(data: Any, what: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, str]:
    body = _checked(data, what, required, optional)
    if not all(isinstance(value, str) for value in body.values()):
        raise FeatureError(f"{what} holds strings only; got {body}")
    return body


def default_spec(*, buckets: int = 32768, slots: int = 32) -> FeatureSpec:
    """The features of a shop: how well the words meet the item's fields, what the user likes, brand, category and price.

    The templates that always give one or two features come first; those that give one per query word come last,
    so that a long query crowds out none of the others.
    """
    fields = [
        Field("query_words", "query", "text", "words", "w"),
        Field("query_trigrams", "query", "text", "trigrams", "3"),
        Field("title_words", "item", "title", "words", "w"),
        Field("title_trigrams", "item", "title", "trigrams", "3"),
        Field("brand_words", "item", "brand", "words", "w"),
        Field("category_words", "item", "category", "words", "w"),
        Field("attribute_words", "item", "attributes", "words", "w"),
        Field("brand", "item", "brand", "value", "brand"),
        Field("category", "item", "category", "value", "category"),
        Field("price", "item", "price", "log2", "price"),
        Field("user_brands", "user", "brands", "weights", "brand"),
        Field("user_categories", "user", "categories", "weights", "category"),
    ]
    templates = [
        Template("title_match", "match", "query_words", "title_words"),
        Template("title_covered", "match", "title_words", "query_words"),
        Template("trigram_match", "match", "query_trigrams", "title_trigrams"),
        Template("brand_match", "match", "brand_words", "query_words"),
        Template("category_match", "match", "query_words", "category_words"),
        Template("attribute_match", "match", "query_words", "attribute_words"),
        Template("user_brand", "match", "user_brands", "brand"),
        Template("user_category", "match", "user_categories", "category"),
        Template("brand_prior", "emit", "brand"),
        Template("category_prior", "emit", "category"),
        Template("price_prior", "emit", "price"),
        Template("query_unmatched", "left_only", "query_words", "title_words"),
        Template("query_matched", "common", "query_words", "title_words"),
    ]
    return FeatureSpec(buckets=buckets, slots=slots, fields=tuple(fields), templates=tuple(templates))

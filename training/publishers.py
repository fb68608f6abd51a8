"""The formats of the publishers of product-search judgements, each read into a ``Draft``."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edgerec.errors import InputError
from edgerec.types import Item

from .tables import read_csv, read_parquet

_T = TypeVar("_T")

WANDS_GRADES = {"Exact": 2.0, "Partial": 1.0, "Irrelevant": 0.0}
ESCI_GRADES = {"E": 3.0, "S": 2.0, "C": 1.0, "I": 0.0}


@dataclass(slots=True)
class Draft:
    """A data set between its publisher's format and ours.

    ``grades`` are summed by (query id, item id); ``repeats`` counts the further grades of a pair that has more than one.
    """

    name: str
    task: str
    origin: str
    range: tuple[float, float]
    items: Iterable[Item] = ()
    queries: dict[str, str] = field(default_factory=dict)
    grades: dict[tuple[str, str], float] = field(default_factory=dict)
    repeats: dict[tuple[str, str], int] = field(default_factory=dict)
    published: dict[str, str] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    language: str = "en"

    def judge(self, place: str, query_id: str, query: str, item_id: str, grade: float) -> None:
        """Add one judgement; a query id keeps one text."""
        if not query_id or not item_id or not query.strip():
            raise InputError(f"{place}: query id {query_id!a}, query {query[:60]!a}, item id {item_id!a}: none of them may be empty")
        if self.queries.setdefault(query_id, query) != query:
            raise InputError(f"{place}: query {query_id!a} is {query[:60]!a} here and {self.queries[query_id][:60]!a} before")
        pair = (sys.intern(query_id), sys.intern(item_id))
        if pair in self.grades:
            self.repeats[pair] = self.repeats.get(pair, 0) + 1
        self.grades[pair] = self.grades.get(pair, 0.0) + grade

    def note(self, what: str, count: int = 1) -> None:
        """Count something that was merged or left out."""
        self.notes[what] = self.notes.get(what, 0) + count


def read_wands(source: Path) -> Draft:
    """Source: github.com/wayfair/WANDS (ECIR 2022); tab-separated, UTF-8."""
    draft = Draft("wands", "graded product-search relevance (home goods)", "WANDS, Wayfair, ECIR 2022", (0.0, 2.0))
    queries = {}
    for place, row in read_csv(source, "query.csv", ("query_id", "query"), delimiter="\t"):
        if row["query_id"] in queries:
            raise InputError(f"{place}: query {row['query_id']!a} is there already")
        queries[row["query_id"]] = row["query"]
    for place, row in read_csv(source, "label.csv", ("query_id", "product_id", "label"), delimiter="\t"):
        if row["query_id"] not in queries:
            raise InputError(f"{place}: query {row['query_id']!a} is not in query.csv")
        grade = _known(place, "label", row["label"], WANDS_GRADES)
        draft.judge(place, row["query_id"], queries[row["query_id"]], row["product_id"], grade)
    columns = ("product_id", "product_name", "product_class", "category hierarchy|category_hierarchy", "product_description")
    rows = read_csv(source, "product.csv", (*columns, "product_features"), delimiter="\t")
    draft.items = (
        Item(
            id=row["product_id"],
            title=row["product_name"],
            text=row["product_description"],
            category=row["category hierarchy"] or row["product_class"],
            attributes=_features(row["product_features"]),
        )
        for _, row in rows
    )
    return draft


def read_esci(source: Path, locale: str, small: bool) -> Draft:
    """Source: github.com/amazon-science/esci-data (arXiv 2206.06588); parquet."""
    languages = {"us": "en", "es": "es", "jp": "ja"}
    if locale not in languages:
        raise InputError(f"locale {locale!r} is unknown; expected one of {', '.join(languages)}")
    name = f"esci-{locale}-small" if small else f"esci-{locale}"
    draft = Draft(name, "graded product-search relevance (E, S, C, I)", "Shopping Queries Dataset (ESCI), Amazon, 2022", (0.0, 3.0))
    draft.language = languages[locale]
    version = "small_version" if small else "large_version"
    columns = ("query", "query_id", "product_id", "product_locale", "esci_label", "split", version)
    for place, row in read_parquet(source, "shopping_queries_dataset_examples.parquet", columns):
        if row["product_locale"] != locale or not row[version]:
            continue
        split = _known(place, "split", row["split"], {"train": "train", "test": "test"})
        query_id = _id(row["query_id"])
        grade = _known(place, "esci_label", row["esci_label"], ESCI_GRADES)
        draft.judge(place, query_id, row["query"] or "", _id(row["product_id"]), grade)
        if draft.published.setdefault(query_id, split) != split:
            raise InputError(f"{place}: query {query_id!a} is in both splits")
    texts = ("product_title", "product_description", "product_bullet_point", "product_brand", "product_color")
    rows = read_parquet(source, "shopping_queries_dataset_products.parquet", ("product_id", "product_locale", *texts))
    draft.items = (
        Item(
            id=_id(row["product_id"]),
            title=row["product_title"] or "",
            text="\n".join(filter(None, (row["product_description"], row["product_bullet_point"]))),
            brand=row["product_brand"] or "",
            attributes={"color": row["product_color"]} if row["product_color"] else {},
        )
        for _, row in rows
        if row["product_locale"] == locale
    )
    return draft


def read_homedepot(source: Path) -> Draft:
    """Source: kaggle.com/c/home-depot-product-search-relevance; ISO 8859-1. The labelled part, train.csv."""
    origin = "Home Depot product search relevance, Kaggle 2016, labelled part"
    draft = Draft("homedepot", "graded product-search relevance (home improvement), grades averaged over raters", origin, (1.0, 3.0))
    titles: dict[str, str] = {}
    judged: list[tuple[str, str, str, float]] = []
    for place, row in read_csv(source, "train.csv", ("product_uid", "product_title", "search_term", "relevance"), encoding="latin-1"):
        titles.setdefault(row["product_uid"], row["product_title"])
        judged.append((place, row["search_term"], row["product_uid"], _grade(place, "relevance", row["relevance"], draft.range)))
    _judge_by_text(draft, judged)
    columns = ("product_uid", "product_description")
    rows = read_csv(source, "product_descriptions.csv", columns, encoding="latin-1")
    texts = {row["product_uid"]: row["product_description"] for _, row in rows}
    attributes: dict[str, dict[str, str]] = {}
    for _, row in read_csv(source, "attributes.csv", ("product_uid", "name", "value"), encoding="latin-1"):
        if row["product_uid"] and row["name"]:
            attributes.setdefault(row["product_uid"].removesuffix(".0"), {})[row["name"]] = row["value"]
        else:
            draft.note("attribute rows without a product or a name left out")

    def item(item_id: str, title: str) -> Item:
        its = attributes.get(item_id, {})
        bullets = [its[name] for name in sorted(its) if name.startswith("Bullet")]
        rest = {name: value for name, value in its.items() if not name.startswith("Bullet") and name != "MFG Brand Name"}
        text = "\n".join(filter(None, (texts.get(item_id, ""), *bullets)))
        return Item(item_id, title, text, brand=its.get("MFG Brand Name", ""), attributes=rest)

    draft.items = (item(item_id, title) for item_id, title in titles.items())
    return draft


def read_crowdflower(source: Path) -> Draft:
    """Source: kaggle.com/c/crowdflower-search-relevance; UTF-8. It has no product ids: equal title and description are one item."""
    origin = "CrowdFlower search results relevance, Kaggle 2015, labelled part"
    draft = Draft("crowdflower", "graded product-search relevance (general merchandise)", origin, (1.0, 4.0))
    products: dict[tuple[str, str], str] = {}
    judged: list[tuple[str, str, str, float]] = []
    columns = ("query", "product_title", "product_description", "median_relevance")
    for place, row in read_csv(source, "train.csv", columns):
        product = (row["product_title"], row["product_description"])
        item_id = products.setdefault(product, f"cf{len(products):05d}")
        judged.append((place, row["query"], item_id, _grade(place, "median_relevance", row["median_relevance"], draft.range)))
    _judge_by_text(draft, judged)
    draft.items = (Item(item_id, title, text) for (title, text), item_id in products.items())
    return draft


def _judge_by_text(draft: Draft, judged: list[tuple[str, str, str, float]]) -> None:
    """For sources without query ids: numbered in the order of the text."""
    ids = {text: f"q{place:05d}" for place, text in enumerate(sorted({text.strip() for _, text, _, _ in judged}))}
    draft.queries = {query_id: text for text, query_id in ids.items()}
    for place, text, item_id, grade in judged:
        draft.judge(place, ids[text.strip()], text.strip(), item_id, grade)


def _features(features: str) -> dict[str, str]:
    """WANDS product_features: ``name : value`` between bars; a repeated name keeps all its values."""
    found: dict[str, str] = {}
    for part in features.split("|"):
        name, colon, value = (piece.strip() for piece in part.partition(":"))
        if colon and name and value:
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _grade(place: str, column: str, said: str, bounds: tuple[float, float]) -> float:
    try:
        grade = float(said)
    except ValueError:
        grade = math.nan
    if not bounds[0] <= grade <= bounds[1]:
        raise InputError(f"{place}: {column} is {said!a}; expected a number from {bounds[0]:g} to {bounds[1]:g}")
    return grade


def _known(place: str, column: str, said: object, values: Mapping[str, _T]) -> _T:
    if not isinstance(said, str) or said not in values:
        raise InputError(f"{place}: {column} is {said!a}; expected one of {', '.join(values)}")
    return values[said]


def _id(value: object) -> str:
    return "" if value is None else str(value)

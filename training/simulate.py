"""A generated shop with known truth: items, queries, graded relevance, users, impressions and clicks.

It stands in for real judgements where there are none. Words of query and title differ as they do in a real shop: synonyms,
misspellings, accessories that share the words of the thing they go with. Truth is in the attributes, not in the words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerec.errors import InputError
from edgerec.types import Item

from .clicks import ClickModel, Searcher, draw_users, simulate_log
from .dice import Dice
from .folder import item_row, new_folder, write_json, write_jsonl, write_qrels
from .lexicon import Lexicon, misspell
from .shop import Kind, brands, dimensions, kinds
from .twins import split_groups, twin_groups

GRADES = (0, 3)
"""Grades: 3 the thing asked for; 2 the thing, half of the wishes or more met; 1 the thing, fewer met, or a stand-in; 0 no."""

_JUDGED = 30  # candidates a query is judged on
_MISSPELT = 0.15  # share of queries with a misspelling
_PLAIN = 0.3  # how often a query says a kind or a value by its first name, whatever else it is called
_MOST_REPEATS = 500  # draws in a row that give no new query, before the shop counts as exhausted
_UNTOLD = 0.08  # share of attribute values that a title leaves out


@dataclass(frozen=True, slots=True)
class Product:
    """An item and the truth behind its title: the kind and, by attribute, the true value."""

    item: Item
    kind: Kind
    traits: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Need:
    """A query and the truth behind its words: the kind wanted and the traits wished for."""

    id: str
    text: str
    kind: Kind
    wishes: Mapping[str, str]


def simulate(folder: Path | str, *, items: int, queries: int, users: int, events: int, seed: int) -> Path:
    """Write a generated shop as a data folder. The same arguments give the same bytes.

    Parameters
    ----------
    folder : must not exist, or be empty.
    items : at least 50.
    queries : at least 10; all different. Split 70 / 15 / 15 into train, dev and test, near twins on one side.
    users : at least 1 if there are events.
    events : lines of ``events.jsonl``; 0 writes none. Only train queries are searched for in it.
    seed : of everything.

    Returns
    -------
    The folder.

    Raises
    ------
    InputError : a size is too small, or so few items cannot give so many different queries.
    """
    for name, value, least in (("items", items, 50), ("queries", queries, 10), ("users", users, min(events, 1)), ("events", events, 0)):
        if value < least:
            raise InputError(f"{name} is {value}; a generated shop needs at least {least}")
    products = _stock(items, Dice(seed, "items"))
    needs = _ask(products, queries, Dice(seed, "queries"))
    lexicon = Lexicon([product.item.title for product in products])
    texts = [need.text for need in needs]
    groups = twin_groups(texts, [(need.kind.names[0], *sorted(need.wishes.items())) for need in needs])
    splits = split_groups(texts, groups, seed=seed)
    dice = Dice(seed, "judged")
    judged = {need.id: _judge(need, products, lexicon, dice) for need in needs}
    model = ClickModel()
    searchers = draw_users(users, products, Dice(seed, "users"))
    qrels = {
        split: [
            (need.id, products[place].item.id, float(grade))
            for need, its in zip(needs, splits, strict=True)
            if its == split
            for place, grade in sorted(judged[need.id].items())
        ]
        for split in ("train", "dev", "test")
    }
    searched = [need for need, split in zip(needs, splits, strict=True) if split == "train"]
    with new_folder(Path(folder)) as staging:
        write_json(staging / "dataset.json", _description(items, queries, users, events, seed, model))
        write_jsonl(staging / "corpus.jsonl", (item_row(product.item) for product in products))
        write_jsonl(staging / "queries.jsonl", ({"_id": need.id, "text": need.text} for need in needs))
        write_qrels(staging, qrels)
        write_jsonl(staging / "users.jsonl", (_user_row(searcher) for searcher in searchers))
        if events:
            log = simulate_log(searched, judged, products, lexicon, searchers, model, events, Dice(seed, "events"))
            write_jsonl(staging / "events.jsonl", log)
    return Path(folder)


def grade(need: Need, product: Product) -> int:
    """The true relevance, 0 to 3; see ``GRADES``."""
    if product.kind is not need.kind:
        return int(product.kind.family == need.kind.family and not product.kind.accessory_of)
    met = sum(product.traits.get(name) == value for name, value in need.wishes.items())
    if met == len(need.wishes):
        return 3
    return 2 if 2 * met >= len(need.wishes) else 1


def _stock(count: int, dice: Dice) -> list[Product]:
    """The items: kinds in random order, each equally often."""
    # A small shop sells fewer kinds, so that each kind still has rivals to tell apart.
    sold = _closed(dice.sample(kinds(), max(12, count // 8)))
    each = [sold[place % len(sold)] for place in range(count)]
    digits = max(5, len(str(count)))
    return [_product(f"p{place:0{digits}d}", kind, dice) for place, kind in enumerate(dice.sample(each, count))]


def _closed(chosen: Sequence[Kind]) -> list[Kind]:
    """The chosen kinds with what they are accessories of, in the order of the table."""
    names = {kind.names[0] for kind in chosen} | {kind.accessory_of for kind in chosen}
    return [kind for kind in kinds() if kind.names[0] in names]


def _product(item_id: str, kind: Kind, dice: Dice) -> Product:
    makers = brands()[kind.category]
    maker = dice.below(len(makers))
    traits, said = {"brand": makers[maker]}, []
    for key in kind.dimensions:
        names = dice.pick(dimensions()[key].values)
        traits[dimensions()[key].attribute] = names[0]
        if not dice.chance(_UNTOLD):
            said.append(names[0] if dice.chance(0.6) else dice.pick(names))
    noun = kind.names[0] if dice.chance(0.45) else dice.pick(kind.names)
    model = f"{dice.pick('ABCDEGHKLMNPRSTVX')}{dice.pick('ABCDEGHKLMNPRSTVX')}{10 + dice.below(990)}"
    words = dice.sample(said, len(said))
    title = dice.pick(
        (
            f"{makers[maker]} {' '.join([*words, noun])}",
            f"{makers[maker]} {noun} {model}, {', '.join(words)}",
            f"{' '.join([*words[:1], noun])} by {makers[maker]} {model} {' '.join(words[1:])}",
            f"{makers[maker]} {model} {' '.join([*words, noun])}",
        )
    ).strip(" ,")
    low, high = kind.prices
    # Dearer brands sit higher in the kind's range; prices are even in log, as shops' are.
    height = min(max(0.6 * maker / (len(makers) - 1) + 0.4 * dice.uniform(), 0.0), 1.0)
    price = round(low * math.exp(height * math.log(high / low))) - 0.01
    attributes = {name: value for name, value in traits.items() if name != "brand"}
    item = Item(item_id, " ".join(title.split()), "", makers[maker], kind.category, round(price, 2), attributes)
    return Product(item, kind, traits)


def _ask(products: Sequence[Product], count: int, dice: Dice) -> list[Need]:
    """The queries: each starts from an item, so that something fits, and no two have the same words."""
    needs: list[Need] = []
    seen: set[str] = set()
    repeats = 0
    while len(needs) < count:
        product = dice.pick(products)
        wished = dice.sample(list(product.traits), dice.pick_weighted((0, 1, 2, 3), (0.12, 0.4, 0.36, 0.12)))
        if "brand" in wished and dice.chance(0.5):
            wished.remove("brand")
        wishes = {name: product.traits[name] for name in wished}
        text = _words(product.kind, wishes, dice)
        repeats = repeats + 1 if text in seen else 0
        if repeats > _MOST_REPEATS:
            raise InputError(
                f"{len(products)} items give about {len(needs)} different queries, not {count}; ask for more items or fewer queries"
            )
        if text not in seen:
            seen.add(text)
            needs.append(Need(f"q{len(needs):0{max(5, len(str(count)))}d}", text, product.kind, wishes))
    return needs


def _words(kind: Kind, wishes: Mapping[str, str], dice: Dice) -> str:
    names = {dimensions()[key].attribute: dimensions()[key].values for key in kind.dimensions}
    said = []
    for name, value in wishes.items():
        others = next((spoken for spoken in names.get(name, ()) if spoken[0] == value), (value,))
        said.append(others[0] if dice.chance(_PLAIN) else dice.pick(others))
    noun = kind.names[0] if dice.chance(_PLAIN) else dice.pick((*kind.names, *kind.asked))
    form = dice.uniform()
    if form < 0.15 and said:
        words = [noun, *said]
    elif form < 0.25 and said:
        words = [*said[:-1], noun, "in" if "color" in wishes else "with", said[-1]]
    else:
        words = [*said, noun]
    text = " ".join(words).lower()
    return misspell(text, dice) if dice.chance(_MISSPELT) else text


def _judge(need: Need, products: Sequence[Product], lexicon: Lexicon, dice: Dice) -> dict[int, int]:
    """Places and grades of the candidates: some of each grade, the best by shared words, the rest by chance."""
    grades = [grade(need, product) for product in products]
    chosen: dict[int, int] = {}
    for wanted, most in ((3, 5), (2, 5), (1, 6)):
        chosen |= dict.fromkeys(dice.sample([place for place, given in enumerate(grades) if given == wanted], most), wanted)
    # The second search is for the bare kind: it brings the accessories, whatever the wishes.
    for text, most in ((need.text, 8), (need.kind.names[0], 3)):
        added = 0
        for place in lexicon.search(text, _JUDGED + most):
            if added < most and place not in chosen:
                chosen[place] = grades[place]
                added += 1
    for place in dice.sample(range(len(products)), _JUDGED):
        if len(chosen) < _JUDGED:
            chosen.setdefault(place, grades[place])
    return chosen


def _user_row(searcher: Searcher) -> dict[str, Any]:
    return {
        "_id": searcher.id,
        "brands": dict(searcher.brands),
        "categories": dict(searcher.categories),
        "price_level": searcher.price_level,
    }


def _description(items: int, queries: int, users: int, events: int, seed: int, model: ClickModel) -> dict[str, Any]:
    return {
        "name": f"simulated-shop-{seed}",
        "task": "graded product-search relevance, generated",
        "grades": {"min": GRADES[0], "max": GRADES[1]},
        "language": "en",
        "origin": f"edgerec data simulate --items {items} --queries {queries} --users {users} --events {events} --seed {seed}",
        "click_model": model.to_json(),
    }

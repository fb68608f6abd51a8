"""Who searches in the generated shop, and what they click: a position-based model whose propensities are known.

Source: Richardson, Dominowska, Ragno, "Predicting clicks", WWW 2007 (the examination hypothesis); Joachims, Swaminathan, Schnabel,
"Unbiased learning-to-rank with biased feedback", WSDM 2017 (propensities (1 / position) ** eta).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .dice import Dice
from .lexicon import Lexicon

if TYPE_CHECKING:
    from .simulate import Need, Product

_START = 1767225600  # 2026-01-01T00:00:00Z, in Unix seconds
_PAUSE_S = 90.0  # mean time between two searches in the shop
_TASTEFUL = 0.7  # share of searches in a category the user likes
_NOISE = 4.0  # of the shop's own ranking, in the unit of Lexicon.scores


@dataclass(frozen=True, slots=True)
class ClickModel:
    """P(click at position p) = propensity(p) * attraction(grade, taste).

    Attributes
    ----------
    eta : how fast examination falls with the position.
    attraction : the chance that an examined item of grade 0, 1, 2, 3 is clicked by a user with no taste either way.
    taste : at most how much the log-odds of attraction rise with a liked brand, and fall with a price out of reach.
    cart, purchase : the chance of a cart after a click, and of a purchase after a cart, by grade.
    shown : items on a page.
    """

    eta: float = 1.0
    attraction: tuple[float, ...] = (0.04, 0.15, 0.4, 0.75)
    taste: float = 1.2
    cart: tuple[float, ...] = (0.02, 0.1, 0.25, 0.45)
    purchase: tuple[float, ...] = (0.1, 0.25, 0.4, 0.55)
    shown: int = 10

    def propensity(self, position: int) -> float:
        """The chance that an item at this position, counted from 1, is looked at."""
        return round(float(1.0 / position**self.eta), 6)

    def to_json(self) -> dict[str, Any]:
        """The parameters, for ``dataset.json``."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Searcher:
    """A user: liked brands and categories with weights in [0, 1], and where in a price range they buy (0 cheap, 1 dear)."""

    id: str
    brands: Mapping[str, float]
    categories: Mapping[str, float]
    price_level: float


def draw_users(count: int, products: Sequence[Product], dice: Dice) -> list[Searcher]:
    """``count`` users; each likes two categories and a few brands of them."""
    brands: dict[str, set[str]] = {}
    for product in products:
        brands.setdefault(product.item.category, set()).add(product.item.brand)
    users = []
    for place in range(count):
        categories = {name: round(dice.uniform(0.4, 1.0), 2) for name in dice.sample(sorted(brands), 2)}
        liked = {
            brand: round(dice.uniform(0.3, 1.0), 2)
            for category in sorted(brands)
            for brand in dice.sample(sorted(brands[category]), 2 if category in categories else 1)
        }
        users.append(Searcher(f"u{place:05d}", liked, categories, round(dice.uniform(), 2)))
    return users


def simulate_log(
    needs: Sequence[Need],
    judged: Mapping[str, Mapping[int, int]],
    products: Sequence[Product],
    lexicon: Lexicon,
    users: Sequence[Searcher],
    model: ClickModel,
    count: int,
    dice: Dice,
) -> list[dict[str, Any]]:
    """``count`` lines of ``events.jsonl``, in order of time: searches and what came of them, until the log ends."""
    by_category: dict[str, list[Need]] = {}
    for need in needs:
        by_category.setdefault(need.kind.category, []).append(need)
    overlap = {need.id: lexicon.scores(need.text) for need in needs}
    log: list[dict[str, Any]] = []
    # Pages overlap in time: what is yet to happen waits, ordered by time and then by the order it was drawn in.
    waiting: list[tuple[int, int, dict[str, Any]]] = []
    now, searches, drawn = float(_START), 0, 0
    while len(log) < count:
        now += -_PAUSE_S * math.log(1.0 - dice.uniform())
        while waiting and waiting[0][0] < int(now):
            log.append(heapq.heappop(waiting)[2])
        user = dice.pick(users)
        liked = [by_category[name] for name in user.categories if name in by_category]
        need = dice.pick(dice.pick(liked)) if liked and dice.chance(_TASTEFUL) else dice.pick(needs)
        # The shop's own ranking is shared words and a lot of noise, so that every item is seen at several positions.
        ranking = sorted((-overlap[need.id][place] - _NOISE * dice.uniform(), place) for place in judged[need.id])
        ranked = [place for _, place in ranking[: model.shown]]
        for line in _page(f"r{searches:07d}", int(now), user, need, ranked, judged[need.id], products, model, dice):
            heapq.heappush(waiting, (line["ts"], drawn, line))
            drawn += 1
        searches += 1
    return log[:count]


def _page(
    request_id: str,
    ts: int,
    user: Searcher,
    need: Need,
    ranked: Sequence[int],
    grades: Mapping[int, int],
    products: Sequence[Product],
    model: ClickModel,
    dice: Dice,
) -> Iterator[dict[str, Any]]:
    """One impression and its actions."""
    positions = list(range(1, len(ranked) + 1))
    yield {
        "type": "impression",
        "request_id": request_id,
        "ts": ts,
        "user_id": user.id,
        "query": need.text,
        "items": [products[place].item.id for place in ranked],
        "positions": positions,
        "propensities": [model.propensity(position) for position in positions],
    }
    later = ts
    for position, place in zip(positions, ranked, strict=True):
        if not dice.chance(model.propensity(position)):
            continue
        grade = grades[place]
        if not dice.chance(_attraction(grade, user, products[place], model)):
            continue
        later += 3 + dice.below(40)
        yield _action("click", request_id, products[place], later)
        if dice.chance(model.cart[grade]):
            later += 5 + dice.below(60)
            yield _action("cart", request_id, products[place], later)
            if dice.chance(model.purchase[grade]):
                later += 20 + dice.below(120)
                yield _action("purchase", request_id, products[place], later)


def _attraction(grade: int, user: Searcher, product: Product, model: ClickModel) -> float:
    base = model.attraction[grade]
    low, high = product.kind.prices
    height = math.log(max(product.item.price or low, low) / low) / math.log(high / low)
    liking = user.brands.get(product.item.brand, 0.0) - abs(height - user.price_level)
    return 1.0 / (1.0 + math.exp(-(math.log(base / (1.0 - base)) + model.taste * liking)))


def _action(kind: str, request_id: str, product: Product, ts: int) -> dict[str, Any]:
    return {"type": kind, "request_id": request_id, "item_id": product.item.id, "ts": ts}

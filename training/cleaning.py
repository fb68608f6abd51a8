"""Cleaning a behaviour log: pages joined to their actions by request id, and an account of everything that was dropped."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgerec.errors import InputError
from edgerec.events import ACTIONS, Action, Event, Fault, Impression, read_events

GRADES: Mapping[str, int] = {kind: grade for grade, kind in enumerate(ACTIONS, 1)}
"""What an action is worth: click 1, cart 2, purchase 3; an item that was only shown is worth 0."""

_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class CleaningRules:
    """When a record is not a person's behaviour.

    Attributes
    ----------
    most_requests_an_hour : a user with more searches within any hour is a bot; all of theirs is dropped.
    most_acted_on : a user who acts on a larger share of what they are shown is a bot, if they saw ``least_pages``.
    least_pages : pages a user must have seen before ``most_acted_on`` is asked.
    most_delay_s : an action later than this after its page is not one on that page.
    """

    most_requests_an_hour: int = 200
    most_acted_on: float = 0.9
    least_pages: int = 5
    most_delay_s: float = 86400.0

    def __post_init__(self) -> None:
        if self.most_requests_an_hour < 1 or not 0 < self.most_acted_on <= 1 or self.least_pages < 1 or self.most_delay_s <= 0:
            raise InputError(f"{self!r}: counts must be at least 1, most_acted_on in (0, 1], most_delay_s above 0")


@dataclass(slots=True)
class CleaningReport:
    """What was read, what was kept, and what was dropped by reason, with some places ``file:line`` of each.

    Attributes
    ----------
    noted : what was kept although it is odd, by kind.
    """

    read: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, place: str, count: int = 1) -> None:
        """Count something dropped."""
        self.dropped[reason] += count
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(place)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return {
            **{name: dict(getattr(self, name)) for name in ("read", "kept", "dropped", "noted")},
            "examples": {reason: list(places) for reason, places in self.examples.items()},
        }

    def to_text(self) -> str:
        """For people: one line each."""
        lines = [f"{name} {what}: {count:,}" for name in ("read", "kept", "noted") for what, count in getattr(self, name).items()]
        for reason, count in self.dropped.most_common():
            lines.append(f"dropped {reason}: {count:,} (e.g. {', '.join(self.examples[reason])})")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Request:
    """One page with what came of it.

    Attributes
    ----------
    page : as shown.
    grades : item id -> the strongest action, 1 to 3; an item without action is not in it.
    last_ts : of the last action, or of the page.
    """

    page: Impression
    grades: Mapping[str, int]
    last_ts: float


def read_requests(path: Path, items: Container[str], rules: CleaningRules, report: CleaningReport) -> list[Request]:
    """The cleaned requests of a log, in order of time.

    Parameters
    ----------
    items : the ids the shop knows.

    Raises
    ------
    InputError : the file cannot be opened. What is in it never raises.
    """

    def torn(fault: Fault) -> None:
        report.drop("line that cannot be read", f"{fault.file}:{fault.line}")

    return clean(((f"{path.name}:{line}", event) for line, event in read_events(path, on_fault=torn)), items, rules, report)


def clean(events: Iterable[tuple[str, Event]], items: Container[str], rules: CleaningRules, report: CleaningReport) -> list[Request]:
    """The cleaned requests of events given with their places, in order of time; see :func:`read_requests`."""
    pages: dict[str, tuple[str, Impression]] = {}
    actions: list[tuple[str, Action]] = []
    before = float("-inf")
    for place, event in events:
        if event.ts < before:
            report.noted["lines out of order of time"] += 1
        before = max(before, event.ts)
        if isinstance(event, Action):
            report.read[event.kind] += 1
            actions.append((place, event))
            continue
        report.read["impression"] += 1
        if event.request_id in pages:
            same = pages[event.request_id][1] == event
            report.drop("impression sent twice" if same else "impression of a request id that is taken", place)
        else:
            pages[event.request_id] = (place, event)
    grades, last = _join(pages, actions, items, rules, report)
    bots = _bots(pages, grades, rules)
    requests = []
    for request_id, (place, page) in pages.items():
        if page.user_id in bots:
            report.drop(bots[page.user_id], place)
        elif not page.query.strip():
            report.drop("impression without a query", place)
        elif (known := _known_items(page, items)) is None:
            requests.append(Request(page, grades[request_id], last[request_id]))
        else:
            report.drop("shown item the shop does not know", place, len(page.items) - len(known.items))
            if known.items:
                requests.append(Request(known, grades[request_id], last[request_id]))
            else:
                report.drop("impression without a known item", place)
    requests.sort(key=lambda request: (request.page.ts, request.page.request_id))
    report.kept["requests"] += len(requests)
    report.kept["shown items"] += sum(len(request.page.items) for request in requests)
    report.kept["items acted on"] += sum(len(request.grades) for request in requests)
    return requests


def _join(
    pages: Mapping[str, tuple[str, Impression]],
    actions: Iterable[tuple[str, Action]],
    items: Container[str],
    rules: CleaningRules,
    report: CleaningReport,
) -> tuple[dict[str, dict[str, int]], dict[str, float]]:
    """Actions to their pages, whatever their order in the file: request id -> item id -> grade, and the last time of each."""
    grades: dict[str, dict[str, int]] = {request_id: {} for request_id in pages}
    last = {request_id: page.ts for request_id, (_, page) in pages.items()}
    shown = {request_id: frozenset(page.items) for request_id, (_, page) in pages.items()}
    done: set[tuple[str, str, str]] = set()
    for place, action in actions:
        request_id = action.request_id
        if request_id not in pages:
            report.drop("action without its impression", place)
        elif action.item_id not in items:
            report.drop("action on an item the shop does not know", place)
        elif action.item_id not in shown[request_id]:
            report.drop("action on an item that was not shown", place)
        elif action.ts < pages[request_id][1].ts:
            report.drop("action before its impression", place)
        elif action.ts - pages[request_id][1].ts > rules.most_delay_s:
            report.drop("action long after its impression", place)
        elif (request_id, action.item_id, action.kind) in done:
            report.drop("action repeated", place)
        else:
            done.add((request_id, action.item_id, action.kind))
            its = grades[request_id]
            its[action.item_id] = max(its.get(action.item_id, 0), GRADES[action.kind])
            last[request_id] = max(last[request_id], action.ts)
    return grades, last


def _bots(pages: Mapping[str, tuple[str, Impression]], grades: Mapping[str, Mapping[str, int]], rules: CleaningRules) -> dict[str, str]:
    """User id -> why it is no person. An unknown user is nobody in particular, so never a bot."""
    by_user: dict[str, list[Impression]] = {}
    for _, page in pages.values():
        if page.user_id:
            by_user.setdefault(page.user_id, []).append(page)
    bots = {}
    for user_id, its in by_user.items():
        window: deque[float] = deque()
        for ts in sorted(page.ts for page in its):
            window.append(ts)
            while window[0] <= ts - 3600.0:
                window.popleft()
            if len(window) > rules.most_requests_an_hour:
                bots[user_id] = "impression of a bot: too many searches an hour"
                break
        acted = sum(len(grades[page.request_id]) for page in its)
        if user_id not in bots and len(its) >= rules.least_pages and acted > rules.most_acted_on * sum(len(page.items) for page in its):
            bots[user_id] = "impression of a bot: acts on nearly all it is shown"
    return bots


def _known_items(page: Impression, items: Container[str]) -> Impression | None:
    """The page without unknown items; None when it has none to lose and something to keep."""
    places = [place for place, item in enumerate(page.items) if item in items]
    if places and len(places) == len(page.items):
        return None
    return Impression(
        page.request_id,
        page.ts,
        page.user_id,
        page.query,
        tuple(page.items[place] for place in places),
        tuple(page.positions[place] for place in places),
        None if page.propensities is None else tuple(page.propensities[place] for place in places),
    )

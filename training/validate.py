"""``edgerec data validate``: read a whole data folder and say everything that is wrong with it, each with file and line.

The loaders stop at the first fault; this goes on. Errors make the data wrong or unreadable; warnings are allowed and
probably not meant. Files are streamed; ids, hashes of titles, and the text of the queries are what is held.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

from edgerec.errors import InputError
from edgerec.events import Fault, Impression, read_events
from edgerec.words import normalize

from .check import Check, file_faults, one_of, texts
from .check_shop import check_corpus, check_dataset_json, check_queries, check_users
from .findings import ValidationReport
from .folder import QRELS_HEADER
from .text_faults import check_text
from .twins import twin_groups

SPLITS = ("train", "dev", "test")

_MOST_GRADES_LISTED = 20
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def validate(folder: Path | str) -> ValidationReport:
    """Check a data folder.

    Returns
    -------
    Everything found; ``report.errors`` is empty when the folder can be used.

    Raises
    ------
    InputError : ``folder`` is not a folder. What is in it never raises.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name one with corpus.jsonl, queries.jsonl and qrels/")
    check = Check(folder)
    check_dataset_json(check)
    check_corpus(check)
    check_queries(check)
    _qrels(check)
    check_users(check)
    _events(check)
    _splits(check)
    found = check.found
    grades = {split: _histogram(seen) for split, seen in check.grades.items()}
    return ValidationReport(str(folder), check.counts, grades, tuple(found.errors), tuple(found.warnings), dict(found.totals))


def _qrels(check: Check) -> None:
    paths = sorted(
        (check.folder / "qrels").glob("*.tsv"), key=lambda path: (SPLITS.index(path.stem) if path.stem in SPLITS else 3, path.name)
    )
    for path in sorted((check.folder / "qrels").glob("*")):
        if path not in paths:
            check.found.warn("unread-file", f"qrels/{path.name}", 0, "is not read; expected SPLIT.tsv")
    if not paths:
        has_events = any((check.folder / f"events.jsonl{end}").exists() for end in ("", ".gz"))
        note = check.found.warn if has_events else check.found.error
        note("missing-file", "qrels", 0, "holds no .tsv file; expected train.tsv, dev.tsv, test.tsv")
    check.counts["judgements"] = {}
    for path in paths:
        file = f"qrels/{path.name}"
        if path.stem not in SPLITS:
            check.found.warn("unknown-split", file, 0, f"split {path.stem!a} is none of {', '.join(SPLITS)}")
        check.grades[path.stem], check.judged[path.stem] = Counter(), {}
        _judgements(check, path, file)
        check.counts["judgements"][path.stem] = check.grades[path.stem].total()
    judged = set().union(*check.judged.values()) if check.judged else set()
    check.counts["judged queries"] = {split: len(queries) for split, queries in check.judged.items()}
    check.counts["queries without judgements"] = len(check.queries.keys() - judged)


def _judgements(check: Check, path: Path, file: str) -> None:
    found, grades, judged = check.found, check.grades[path.stem], check.judged[path.stem]
    pairs: dict[tuple[str, str], tuple[int, float]] = {}
    for line, text in texts(check, path, file, blank=True):
        if line == 1:
            if text != QRELS_HEADER:
                found.error("malformed", file, line, f"the first line is {text!a:.80}; expected {QRELS_HEADER!a}")
            continue
        parts = text.split("\t")
        if len(parts) != 3:
            found.error("malformed", file, line, f"has {len(parts)} columns; expected query id, item id and grade, with tabs between")
            continue
        query_id, item_id, said = parts
        if query_id not in check.queries:
            found.error("orphan-query", file, line, f"query {query_id!a} is not in queries.jsonl")
        if item_id not in check.items:
            found.error("orphan-item", file, line, f"item {item_id!a} is not in corpus.jsonl")
        judged.setdefault(query_id, line)
        # Python's float() takes more than other readers do: spaces, underscores, digits of any script.
        grade = float(said) if _NUMBER.fullmatch(said) else math.nan
        if not math.isfinite(grade):
            found.error("grade", file, line, f"grade {said!a} is not a finite number")
            continue
        if check.range is not None and not check.range[0] <= grade <= check.range[1]:
            found.error("grade", file, line, f"grade {said} is outside {check.range[0]:g} to {check.range[1]:g}, the range in dataset.json")
        grades[grade] += 1
        first, before = pairs.setdefault((query_id, item_id), (line, grade))
        if first != line:
            note = found.warn if before == grade else found.error
            note("duplicate-judgement", file, line, f"query {query_id!a} and item {item_id!a} are also on line {first}, grade {before:g}")


def _events(check: Check) -> None:
    path = one_of(check, "events.jsonl")
    if path is None:
        return
    seen: Counter[str] = Counter()
    requests: set[str] = set()

    def report(fault: Fault) -> None:
        check.found.error("malformed", fault.file, fault.line, fault.message)

    file_faults(check, path, path.name)
    for line, event in read_events(path, on_fault=report):
        if isinstance(event, Impression):
            seen["impression"] += 1
            if event.request_id in requests:
                check.found.warn("duplicate-request", path.name, line, f"request {event.request_id!a} has an impression already")
            requests.add(event.request_id)
            unknown = [item for item in event.items if item not in check.items]
            check_text(check.found, path.name, line, "query", event.query)
        else:
            seen[event.kind] += 1
            unknown = [event.item_id] if event.item_id not in check.items else []
            if event.request_id not in requests:
                check.found.warn(
                    "orphan-action", path.name, line, f"{event.kind} of request {event.request_id!a}, which had no impression before"
                )
        for item in unknown:
            check.found.warn("orphan-event-item", path.name, line, f"item {item!a} is not in corpus.jsonl")
    check.counts["events"] = dict(seen)


def _splits(check: Check) -> None:
    """No query, and no near twin of it, on two sides; unless the sides are before and after."""
    if check.split_by_time:
        times_judged = Counter(query_id for queries in check.judged.values() for query_id in queries)
        check.counts["queries in several splits"] = sum(times > 1 for times in times_judged.values())
        return
    sides: dict[str, list[str]] = {}
    for split, queries in check.judged.items():
        for query_id, line in queries.items():
            if query_id in sides:
                before = sides[query_id][0]
                check.found.error("split-overlap", f"qrels/{split}.tsv", line, f"query {query_id!a} is also judged in {before}")
            sides.setdefault(query_id, []).append(split)
    ids = [query_id for query_id in sides if query_id in check.queries]
    texts = [check.queries[query_id][1] for query_id in ids]
    for query_id, text, group in zip(ids, texts, twin_groups(texts), strict=True):
        split, first = sides[query_id][0], sides[ids[group]][0]
        if split == first:
            continue
        file, line = f"qrels/{split}.tsv", check.judged[split][query_id]
        if normalize(text) == normalize(texts[group]):
            check.found.error("split-overlap", file, line, f"query {text[:80]!a} is also judged in {first}, as {ids[group]!a}")
        else:
            check.found.warn("split-twins", file, line, f"query {text[:80]!a} is a near twin of {texts[group][:80]!a}, judged in {first}")


def _histogram(seen: Counter[float]) -> dict[str, int]:
    if len(seen) <= _MOST_GRADES_LISTED:
        return {f"{grade:g}": seen[grade] for grade in sorted(seen)}
    low, high = min(seen), max(seen)
    bins: Counter[int] = Counter()
    for grade, count in seen.items():
        bins[min(int(10 * (grade - low) / (high - low)), 9)] += count
    width = (high - low) / 10
    return {f"{low + place * width:.3g} to {low + (place + 1) * width:.3g}": bins[place] for place in range(10)}

"""The checks of what a shop is made of: ``dataset.json``, the items, the queries, the users."""

from __future__ import annotations

from edgerec.errors import InputError
from edgerec.events import parse_object
from edgerec.words import normalize

from .check import Check, is_number, new_id, rows
from .findings import Findings
from .text_faults import check_text


def check_dataset_json(check: Check) -> None:
    """``dataset.json``: a name and the range of the grades."""
    path = check.folder / "dataset.json"
    if not path.is_file():
        check.found.error("missing-file", path.name, 0, 'is missing; it must give {"name": ..., "grades": {"min": ..., "max": ...}}')
        return
    try:
        meta = parse_object(path.read_bytes())
        grades = meta.get("grades")
        low, high = (grades.get("min"), grades.get("max")) if isinstance(grades, dict) else (None, None)
        if not is_number(low) or not is_number(high) or not low < high:
            raise InputError(f"grades are {grades!a}; expected two numbers, min below max")
    except (InputError, OSError) as error:
        check.found.error("malformed", path.name, 0, str(error))
        return
    check.range = (float(low), float(high))
    check.split_by_time = meta.get("split") == "time"
    if not isinstance(meta.get("name"), str) or not meta["name"]:
        check.found.warn("no-name", path.name, 0, "name is missing; tables will show the folder's name")


def check_corpus(check: Check) -> None:
    """``corpus.jsonl``: ids, titles, types, prices."""
    titles: dict[int, int] = {}
    for file, line, row in rows(check, "corpus.jsonl", needed=True):
        found = check.found
        item_id = new_id(check, file, line, row, check.items)
        if item_id is not None:
            check.items[item_id] = line
        for name in ("title", "text", "brand", "category"):
            value = row.get(name)
            if isinstance(value, str):
                check_text(found, file, line, name, value)
            elif value is not None:
                found.error("wrong-type", file, line, f"{name} is {value!a:.60}; expected a string")
        title = row.get("title")
        if title is None or (isinstance(title, str) and not title.strip()):
            found.warn("empty-title", file, line, f"item {item_id!a} has no title; nothing can match it")
        elif isinstance(title, str):
            # The hash alone is kept: a false alarm takes two titles of one 64-bit hash.
            first = titles.setdefault(hash(normalize(title)), line)
            if first != line:
                found.warn("duplicate-title", file, line, f"title {title[:80]!a} is also on line {first}")
        _price(found, file, line, row.get("price"))
        _attributes(found, file, line, row.get("attributes"))
        vector = row.get("image_embedding")
        if vector is not None and not (isinstance(vector, list) and all(is_number(value) for value in vector)):
            found.error("wrong-type", file, line, "image_embedding must be a list of finite numbers")
    check.counts["items"] = len(check.items)


def check_queries(check: Check) -> None:
    """``queries.jsonl``: ids, texts, times."""
    for file, line, row in rows(check, "queries.jsonl", needed=True):
        query_id = new_id(check, file, line, row, check.queries)
        text = row.get("text")
        if not isinstance(text, str):
            check.found.error("wrong-type", file, line, f"text is {text!a:.60}; expected a string")
            text = ""
        elif not text.strip():
            check.found.warn("empty-query", file, line, f"query {query_id!a} has no text")
        check_text(check.found, file, line, "text", text)
        if row.get("ts") is not None and not is_number(row["ts"]):
            check.found.error("wrong-type", file, line, f"ts is {row['ts']!a:.60}; expected Unix seconds")
        if query_id is not None:
            check.queries[query_id] = (line, text)
    check.counts["queries"] = len(check.queries)


def check_users(check: Check) -> None:
    """``users.jsonl``, where there is one: ids, weights."""
    users: dict[str, int] = {}
    for file, line, row in rows(check, "users.jsonl", needed=False):
        user_id = new_id(check, file, line, row, users)
        if user_id is not None:
            users[user_id] = line
        for name in ("brands", "categories"):
            weights = row.get(name, {})
            if not isinstance(weights, dict) or not all(is_number(value) and 0 <= value <= 1 for value in weights.values()):
                check.found.error("wrong-type", file, line, f"{name} must map names to weights in [0, 1]")
    if users:
        check.counts["users"] = len(users)


def _price(found: Findings, file: str, line: int, price: object) -> None:
    if price is None or price == "":
        return
    value: object = price
    if isinstance(price, str):
        try:
            value = float(price)
        except ValueError:
            pass
        else:
            found.warn("price", file, line, f"price {price!a} is a string; write a number")
    if not is_number(value):
        found.error("price", file, line, f"price is {price!a:.60}; expected a finite number, or leave it out")
    elif value < 0:
        found.warn("price", file, line, f"price {value} is below zero")


def _attributes(found: Findings, file: str, line: int, attributes: object) -> None:
    if attributes is None:
        return
    if not isinstance(attributes, dict) or not all(isinstance(value, str | int | float) for value in attributes.values()):
        found.error("wrong-type", file, line, "attributes must map names to strings or numbers")
        return
    for name, value in attributes.items():
        check_text(found, file, line, f"attribute {name!a}", f"{name} {value}")

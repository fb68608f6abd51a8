"""Contestants take turns on the same inputs, in one process; a busy machine moves all times of a round, and hardly their ratio."""

from __future__ import annotations

import gc
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TypeVar

from edgerec.machine import describe_machine, installed_versions, utc_now

Input = TypeVar("Input")
Times = dict[str, list[float]]


def take_turns(contestants: Mapping[str, Callable[[Input], object]], inputs: Sequence[Input], *, rounds: int, per: int = 1) -> Times:
    """Nanoseconds by contestant and round, divided by `per` (operations in one call).

    In every round each contestant has one untimed call, which brings the input to the cache, and one timed call, on the round's input;
    who begins rotates. The garbage collector waits.
    """
    names = list(contestants)
    times: Times = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            given = inputs[turn % len(inputs)]
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                run = contestants[name]
                run(given)
                started = perf_counter_ns()
                run(given)
                times[name].append((perf_counter_ns() - started) / per)
            gc.collect(0)
    finally:
        if collecting:
            gc.enable()
    return times


def ratio(times: Times, over: str, under: str) -> float:
    """Median over the rounds of the time of `over` divided by that of `under`."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def summary(times: Times, against: str) -> list[dict[str, Any]]:
    """For each contestant median and minimum in ns, and how many times the time of `against` it takes."""
    return [
        {
            "name": name,
            "median_ns": round(statistics.median(found), 2),
            "min_ns": round(min(found), 2),
            "ratio": round(ratio(times, name, against), 3),
        }
        for name, found in times.items()
    ]


def target(name: str, value: float, comparison: str, limit: float) -> dict[str, Any]:
    """A promise, what was measured, and whether it was kept; `comparison` is ``<=`` or ``>=``."""
    kept = value <= limit if comparison == "<=" else value >= limit
    return {"target": f"{name} {comparison} {limit:g}", "measured": round(value, 3), "kept": kept}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table; the columns are the keys of the first row."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def report(format_name: str, machine: Mapping[str, Any], packages: Sequence[str], content: Mapping[str, Any], out: Path) -> None:
    """Write the JSON file that stands behind a quoted figure; `machine` is from before the measurement."""
    head = {
        "format": format_name,
        "version": 1,
        "command": shlex.join(["python", *sys.argv]),
        "date": utc_now(),
        "machine": dict(machine),
        "versions": installed_versions(("edgerec", *packages)),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**head, **content}, indent=1, default=dict) + "\n", encoding="utf-8")


__all__ = ["Times", "describe_machine", "ratio", "report", "summary", "table", "take_turns", "target"]

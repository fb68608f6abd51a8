"""Kills writers of a catalogue, and looks at what they leave. test_catalog_writer.py runs it: ``MODE BUNDLE FOLDER COUNT``.

It is a program of its own because it forks: a writer's process starts in milliseconds, and nothing but the writer has threads in it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgerec import Catalog, CatalogWriter, Item, catalog_writer
from edgerec.catalog import build_catalog
from edgerec.catalog_encoder import ItemEncoder

IDS = [f"i{n}" for n in range(12)]
State = dict[str, int]
"""Id -> version of its item."""


def item(name: str, version: int) -> Item:
    return Item(name, f"red lamp {version} " * (1 + version % 3), brand=f"brand {version}")


def operations(rng: random.Random) -> Iterator[dict[str, Any]]:
    version = 0
    while True:
        version += 1
        chosen = rng.sample(IDS, rng.randint(1, 4))
        kind = rng.choice(["upsert", "upsert", "upsert", "delete", "compact"])
        yield {"upsert": {"upsert": dict.fromkeys(chosen, version)}, "delete": {"delete": chosen}, "compact": {}}[kind]


def apply(writer: CatalogWriter, operation: dict[str, Any]) -> None:
    if "upsert" in operation:
        writer.upsert(item(name, version) for name, version in operation["upsert"].items())
    elif "delete" in operation:
        writer.delete(operation["delete"])
    else:
        writer.compact()


def after(state: State, operation: dict[str, Any]) -> State:
    gone = set(operation.get("delete", ()))
    return {name: version for name, version in {**state, **operation.get("upsert", {})}.items() if name not in gone}


def in_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Fork; the child works and writes to a pipe. Returns its process id and the end to read."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    try:
        work(writing)
    except BaseException as e:
        os.write(2, f"the writer failed: {e!r}\n".encode())
        os._exit(1)
    os._exit(0)


def check(catalog: Catalog, encoder: ItemEncoder, allowed: list[State]) -> State:
    """The state that the catalogue is in; it must be one of those allowed, in every column."""
    for segment in catalog.segments:
        segment.verify()
    for state in allowed:
        expected = encoder.encode([item(name, version) for name, version in sorted(state.items())])
        rows = catalog.find(sorted(state))
        if len(catalog) != len(state) or sorted(catalog.ids()) != sorted(state) or (rows < 0).any():
            continue
        found = catalog.columns(rows)
        if all(np.array_equal(found[name], expected[name]) for name in expected):
            return state
    raise SystemExit(f"generation {catalog.info.generation} holds {catalog.ids()}, expected one of {allowed}")


def kill_at_random(bundle: Path, folder: Path, rounds: int) -> None:
    """One catalogue, one writer after the other, each killed at an instant of its own."""
    encoder, rng = ItemEncoder(bundle), random.Random(rounds)
    state: State = {IDS[0]: 1}
    catalog = Catalog.open(folder)
    acknowledged = 0
    for number in range(rounds):

        def work(pipe: int, number: int = number) -> None:
            with CatalogWriter.open(folder, bundle) as writer:
                for operation in operations(random.Random(number)):
                    os.write(pipe, json.dumps(operation).encode() + b"\n")
                    apply(writer, operation)
                    os.write(pipe, b"done\n")

        child, reading = in_child(work)
        begun: list[dict[str, Any]] = []
        done, last = 0, rng.randrange(1, 25)
        with open(reading, "rb") as pipe:
            for line, text in enumerate(pipe, 1):
                done += text == b"done\n"
                if text != b"done\n":
                    begun.append(json.loads(text))
                if line == last:
                    for _ in range(rng.randrange(100_000)):  # somewhere in the middle of what it does next
                        pass
                    os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise SystemExit(f"round {number}: the writer ended by itself: {status}")
        for operation in begun[:done]:
            state = after(state, operation)
        acknowledged += done
        allowed = [state, *(after(state, operation) for operation in begun[done:])]
        catalog = catalog.refresh()
        state = check(catalog, encoder, allowed)
        check(Catalog.open(folder), encoder, [state])
    print(json.dumps({"kills": rounds, "acknowledged": acknowledged, "generation": catalog.info.generation}))


def kill_everywhere(bundle: Path, folder: Path, _: int) -> None:
    """The same changes again and again, killed before the first call that touches the disk, before the second, and so on."""
    encoder = ItemEncoder(bundle)
    changes = [{"upsert": {"i1": 2, "i0": 3}}, {"delete": ["i0"]}, {"upsert": {"i1": 4}}, {}]
    states: list[State] = [{IDS[0]: 1}]
    for change in changes:
        states.append(after(states[-1], change))
    for kills in range(1000):
        copy = folder.with_name(f"copy-{kills}")
        shutil.copytree(folder, copy)

        def work(pipe: int, kills: int = kills, copy: Path = copy) -> None:
            left = kills

            def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
                def wrapped(*args: Any, **kwargs: Any) -> Any:
                    nonlocal left
                    if not left:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                    return call(*args, **kwargs)

                return wrapped

            with CatalogWriter.open(copy, bundle) as writer:
                for name in ("fsync", "rename", "replace", "unlink", "utime", "open"):
                    setattr(os, name, deadly(getattr(os, name)))
                for change in changes:
                    apply(writer, change)
                    os.write(pipe, b".")

        child, reading = in_child(work)
        with open(reading, "rb") as pipe:
            done = len(pipe.read())
        _, status = os.waitpid(child, 0)
        check(Catalog.open(copy), encoder, states[done : done + 2])
        with CatalogWriter.open(copy, bundle) as writer:  # the next one clears away what is left
            listed = {segment.entry.file for segment in writer.catalog.segments}
            found = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
            if found != listed | {"catalog.json", "writer.lock"}:
                raise SystemExit(f"kill {kills}: the folder has {found}, listed are {listed}")
        shutil.rmtree(copy)
        if not status:
            print(json.dumps({"kills": kills}))
            return


if __name__ == "__main__":
    catalog_writer.MOST_SEGMENTS = 3
    mode, bundle, folder, count = sys.argv[1:]
    build_catalog([item(IDS[0], 1)], bundle, folder)
    {"random": kill_at_random, "everywhere": kill_everywhere}[mode](Path(bundle), Path(folder), int(count))

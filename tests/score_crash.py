"""Kills bulk runs before every call that touches the disk, and goes on with them.

test_score.py runs it: ``BUNDLE CATALOG EXPECTED FOLDER``.

It is a program of its own because it forks: a run's process starts in milliseconds, and nothing but the run has threads in it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgerec.score import score_queries
from edgerec.score_input import Request, Requests

REQUESTS = [Request(f"q{n}", f"red lamp {n}", tuple(f"i{m}" for m in range(n, n + 5))) for n in range(7)]


def score(bundle: str, catalog: str, out: Path, *, resume: bool = False) -> None:
    score_queries(Requests(REQUESTS, {"log": "1"}), bundle, catalog, out, part_queries=3, resume=resume)


def files(folder: Path) -> dict[str, bytes]:
    """All of a folder but the time of its making."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | {"scores.json": json.dumps({**json.loads(found["scores.json"]), "created": ""}).encode()}


def killed(work: Callable[[], None], calls: int) -> bool:
    """Whether a child that does the work was killed, before its call number `calls` to the disk."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"kill {calls}: the run ended with {code}")
        return code != 0
    left = calls

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*args, **kwargs)

        return wrapped

    for name in ("fsync", "rename", "replace", "unlink", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))
    try:
        work()
    except BaseException as error:
        os.write(2, f"the run failed: {error!r}\n".encode())
        os._exit(1)
    os._exit(0)


def main() -> None:
    bundle, catalog, expected, folder = sys.argv[1:]
    score(bundle, catalog, Path(expected))
    for kills in range(1000):
        out = Path(folder) / str(kills)
        if not killed(lambda out=out: score(bundle, catalog, out), kills):
            print(json.dumps({"kills": kills}))
            return
        if not out.exists():  # else the last thing that was left to do was to wait for the disk
            again = 0 if kills % 5 == 2 else 1000
            # Some are killed again while they go on, each time some calls later, until they end.
            while killed(lambda out=out: score(bundle, catalog, out, resume=True), again):
                again += 4
                if out.exists():
                    break
        if files(out) != files(Path(expected)):
            raise SystemExit(f"kill {kills}: {sorted(files(out))} are not what a run in one go writes")
        if list(Path(folder).glob("*.run")):
            raise SystemExit(f"kill {kills}: something was left")


if __name__ == "__main__":
    main()

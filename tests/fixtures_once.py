"""What takes seconds to make and is the same for every test: made once a run, by the first worker that wants it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

run_folder: Path | None = None
"""Set by conftest.py; pytest empties it."""


def once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder or file that ``make`` writes at the path it is given. It is everyone's: a test that changes it copies it first."""
    assert run_folder is not None
    shared = run_folder / "once"
    shared.mkdir(exist_ok=True)
    # The lock goes with the file when a worker dies; what it had begun has another name.
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made, begun = shared / name, shared / f"{name}.begun"
        if not made.exists():
            if begun.is_dir():
                shutil.rmtree(begun)
            make(begun)
            os.rename(begun, made)
    return made

"""Exports of tiny mid-fusion students, made once a test run: torch takes long to export even a tiny one."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from engine.backends import NARROW, PER_LAYER, Case

STUDENTS = {"narrow": NARROW, "per layer": PER_LAYER}
"""int8 states of one height, in a narrow width; float32 states of every height."""


@cache
def mid_export(kind: str) -> Path:
    """The export of one of ``STUDENTS``; its shop lies beside it, in ``shop``. Not to be changed."""
    folder = Path(tempfile.mkdtemp(prefix="edgerec-mid-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Case("", "", True, 0, mid=STUDENTS[kind]).mid_export(folder)

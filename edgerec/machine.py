"""What a measurement was taken on: processor, cores, load, versions, time. A figure without these is an anecdote."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from .engine.machine import usable_cores


def describe_machine() -> dict[str, Any]:
    """Processor, cores and how busy the machine is right now.

    Returns
    -------
    dict : ``processor`` (its name, where the system tells), ``arch``, ``os``, ``cores`` (those this process may use), ``load_1min``
    (runnable processes, averaged over a minute; None where the system has no such figure). No host name and no path.
    """
    return {
        "processor": _processor(),
        "arch": platform.machine(),
        "os": platform.system().lower(),
        "cores": usable_cores(),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Version of Python and of each distribution that is installed; the others are left out."""
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def utc_now() -> str:
    """The time in UTC to the second, ISO 8601 with a Z."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""How much longer does ``import edgerec`` take than ``import numpy``? At most 30 ms is promised.

    python benchmarks/bench_import.py

Each import runs in a fresh interpreter, the two alternating, with warm disk caches; the minimum and the median of many are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

CODE = "import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
LIMIT_MS = 30.0


def import_ms(module: str) -> float:
    """Milliseconds of one import in a fresh interpreter, its start excluded."""
    done = subprocess.run([sys.executable, "-c", CODE.format(module=module)], capture_output=True, text=True, check=True)
    return 1000 * float(done.stdout)


def main() -> None:
    """Print the figures and fail above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=20)
    repeat = parser.parse_args().repeat
    times: dict[str, list[float]] = {"numpy": [], "edgerec": []}
    for module in times:
        import_ms(module)
    for _ in range(repeat):
        for module, found in times.items():
            found.append(import_ms(module))
    extra = statistics.median(times["edgerec"]) - statistics.median(times["numpy"])
    result = {m: {"min_ms": round(min(t), 2), "median_ms": round(statistics.median(t), 2)} for m, t in times.items()}
    print(json.dumps({**result, "extra_ms": round(extra, 2), "limit_ms": LIMIT_MS}))
    if extra > LIMIT_MS:
        raise SystemExit(f"import edgerec takes {extra:.1f} ms more than import numpy; the limit is {LIMIT_MS:.0f} ms")


if __name__ == "__main__":
    main()

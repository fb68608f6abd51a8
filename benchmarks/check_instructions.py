"""Did the native engine get slower? Instructions a token, or a candidate, counted by callgrind, against the committed numbers.

    make bench-check                                       fails when a number has grown by more than 3 %
    python benchmarks/check_instructions.py --write        takes today's numbers; commit them with the reason

Times on a shared machine differ by more than most changes do; instructions do not. One int8 call on one thread of 100 seeded random rows
of 6 common tokens and 8 to 20 others (tests/csrc/count_engine.c); for mid-fusion students, of a query of 7 tokens with 100 (6 x 384: 30)
candidates of 9 to 21 states, and of encoding these (count_mid.c). With the AVX2 kernels, because valgrind knows no AVX-512. The compiler
matters: the file names the one that was used, and another may need numbers of its own. Needs valgrind, make and a C compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from turns import table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results" / "instructions.json"
CROSS, MID = "count_engine", "count_mid"
COUNTS = {
    "2 x 128": (CROSS, "edr_score", ("2", "128")),
    "6 x 384": (CROSS, "edr_score", ("6", "384")),
    "mid 2 x 128, a candidate": (MID, "edr_rank_all", ("2", "128", "1", "1", "128")),
    "mid 6 x 384, a candidate": (MID, "edr_rank_all", ("6", "384", "2", "4", "384", "30")),
    "mid 6 x 384, states of 128, a candidate": (MID, "edr_rank_all", ("6", "384", "2", "1", "128", "30")),
    "mid 2 x 128, a token of an item": (MID, "edr_encode_all", ("2", "128", "1", "1", "128")),
}
"""By name: the program, the function whose instructions count, and the program's arguments."""
ISA = "avx2"
MOST = 1.03


def build() -> Path:
    """The folder of the drivers, compiled as the extension is."""
    subprocess.run(["make", "--silent", "-C", str(ROOT / "tests" / "csrc"), "fast"], check=True, stdout=subprocess.DEVNULL)
    return ROOT / "build" / "csrc" / "fast"


def compiler() -> str:
    """The first line of ``cc --version``."""
    done = subprocess.run([os.environ.get("CC", "cc"), "--version"], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[0]


def count(folder: Path, name: str) -> float:
    """Instructions inside the function, for each candidate where the name says so, else for each token."""
    program, function, shape = COUNTS[name]
    with tempfile.TemporaryDirectory() as scratch:
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={scratch}/out", f"--toggle-collect={function}"]
        done = subprocess.run(
            [*tool, str(folder / program), *shape], env={**os.environ, "EDGEREC_ISA": ISA}, capture_output=True, text=True, check=False
        )
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or collected is None or int(collected.group(1)) == 0:
        raise SystemExit(f"valgrind failed on {program}:\n{done.stderr[-2000:]}")
    units = done.stdout.split()  # tokens; of count_mid candidates, then tokens
    return round(int(collected.group(1)) / int(units[0] if "candidate" in name else units[-1]), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="take today's numbers as the ones to keep")
    options = parser.parse_args()
    folder = build()
    found = {name: count(folder, name) for name in COUNTS}
    if options.write:
        content = {"format": "edgerec-instructions", "version": 2, "compiler": compiler(), "isa": ISA, "instructions": found}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = [
        {"of": name, "instructions": now, "committed": before, "ratio": f"{now / before:.4f}", "kept": now <= MOST * before}
        for name, before in kept["instructions"].items()
        for now in (found[name],)
    ]
    print(table(rows))
    if kept["compiler"] != compiler():
        print(f"\nThe committed numbers are of {kept['compiler']}; this is {compiler()}.")
    if not all(row["kept"] for row in rows):
        sys.exit(
            f"\nThe engine needs more than {100 * MOST - 100:.0f} % more instructions than before: find out why, or --write and say why"
        )


if __name__ == "__main__":
    main()

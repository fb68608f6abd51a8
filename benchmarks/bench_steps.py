r"""What does each technique of the fit cost? The time of a step, relative to the plain recipe's; techniques in turns, some steps of each.

    python benchmarks/bench_steps.py --data FOLDER --base-model MODEL --recipe BASE.toml

What a technique is worth is in bench_techniques.py. Times are those of the run's TensorBoard log: of steps alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
from bench_techniques import LONGER, PLAIN, TECHNIQUES, changed
from edgerec.training.config import load_recipe, recipe_from_json
from edgerec.training.teacher import train_teacher
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from turns import report

from edgerec.machine import describe_machine

RESULT = Path(__file__).parent / "results" / "steps.json"
SKIPPED = 5
"""Steps before the first that counts."""


def main() -> None:
    """Train in turns, print the table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base-model", required=True)
    parser.add_argument("--recipe", type=Path, required=True, help="the plain recipe: a TOML file, or a shipped name")
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    machine = describe_machine()
    names = [name for name in TECHNIQUES if name != LONGER]
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(step_time(name, options))
    rows = [{"name": name, "ratio": statistics.median(np.divide(times[name], times[PLAIN]))} for name in names]
    print("| | time of a step |\n|---|---:|")
    for row in rows:
        print(f"| {row['name']} | {row['ratio']:.2f} |")
    report(
        "edgerec-bench-steps",
        machine,
        ("torch", "transformers"),
        {"rounds": options.rounds, "steps": options.steps, "rows": rows},
        options.out,
    )


def step_time(name: str, options: argparse.Namespace) -> float:
    """The median time of a step, in seconds."""
    recipe = changed(load_recipe(options.recipe), name, 0).to_json()
    recipe["fit"] = {**recipe["fit"], "max_steps": options.steps}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        train_teacher([options.data], options.base_model, recipe_from_json(recipe, name), out)
        log = EventAccumulator(str(out / "tensorboard"))
        log.Reload()
        ends = [event.wall_time for event in log.Scalars("gradient_norm")]
    return statistics.median(np.diff(ends)[SKIPPED:])


if __name__ == "__main__":
    main()

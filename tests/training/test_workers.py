"""Several processes under torchrun learn what one process learns."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edgerec.training import workers
from edgerec.training.config import AttackSettings, LossSettings
from edgerec.training.distill import distill
from edgerec.training.teacher import train_teacher
from fixtures_tiny import tiny_recipe

PROGRAM = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
from test_workers import learn
learn(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
"""


def learn(shop: Path, base: str, work: Path) -> None:
    """A teacher with an adversarial step, and its student; without dropout, of which each process draws its own."""
    recipe = tiny_recipe(loss=LossSettings(bce=1.0))
    fit = replace(recipe.fit, dropout=0.0, ema=0.5, attack=AttackSettings(kind="fgm"), batch_size=20, group_size=7, eval_every=1)
    train_teacher([shop], base, replace(recipe, fit=fit), work / "teacher")
    student = tiny_recipe(loss=LossSettings(bce=0.5, mse=0.5), fit=replace(recipe.fit, dropout=0.0))
    distill(work / "teacher", [shop], student, work / "student")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_two_processes_follow_the_loss_curve_of_one(base: str, shop: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    learn(shop, base, tmp_path / "one")
    (tmp_path / "program.py").write_text(PROGRAM)
    here = Path(__file__).parent
    paths = f"{here}:{here.parent}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command += [f"--master-port={free_port()}", tmp_path / "program.py", paths, shop, base, tmp_path / "two"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as started:
        try:
            _, errors = started.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)  # torchrun's own children too
            raise
    assert started.returncode == 0, errors[-3000:]
    # BCE averages over judged rows, and a share weighs by all of its rows: a student's curve differs a little.
    for name, tolerance in (("teacher", 1e-4), ("student", 1e-2)):
        one, two = (json.loads((tmp_path / which / name / "training.json").read_text()) for which in ("one", "two"))
        assert two["machine"]["processes"] == 2
        assert one["machine"]["processes"] == 1
        curves = [[look["loss"] for look in info["history"]] for info in (one, two)]
        assert len(curves[0]) >= 3
        assert curves[0][0] != pytest.approx(curves[0][-1], abs=1e-3)  # it did learn
        np.testing.assert_allclose(curves[0], curves[1], rtol=tolerance)
        assert one["best_step"] == two["best_step"]


def test_shares_are_whole_queries_and_cover_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = np.arange(10), np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
    assert workers.share(rows, queries) is rows
    monkeypatch.setattr(workers, "count", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(workers, "rank", lambda rank=rank: rank)
        parts.append(workers.share(rows, queries).tolist())
    assert sorted(row for part in parts for row in part) == rows.tolist()
    owners = [{rank for rank, part in enumerate(parts) for row in part if queries[row] == query} for query in range(4)]
    assert all(len(owner) == 1 for owner in owners)
    assert workers.share(rows[:2], queries[:2]).tolist() == []  # one query, three processes: the last has nothing to do


def test_one_process_needs_no_group() -> None:
    assert (workers.count(), workers.rank()) == (1, 0)
    assert workers.first(lambda: 7) == 7
    with workers.joined():
        assert not torch.distributed.is_initialized()
    model = torch.nn.Linear(2, 1)
    workers.sum_gradients(model)
    assert model.weight.grad is None
    assert workers.sum_terms({"bce": 1.0}) == {"bce": 1.0}

"""What is special to ONNX Runtime: telemetry, forks, the probe, memory, versions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_export import make_export, random_rows

from edgerec.builder import build_engine
from edgerec.engine import open_engine
from edgerec.engine.ort import OrtEngine, ort
from edgerec.errors import EngineError
from edgerec.types import Batch

# The child and the grandchild score with sessions of their own; the child leaves in the ordinary way, through finalisation.
FORK = """
import os, sys
import numpy as np
from edgerec.engine import open_engine
from edgerec.types import Batch

engine = open_engine(sys.argv[1], threads=2)
rows = np.load(sys.argv[2])
batch = Batch(*(rows[name] for name in ("input_ids", "attention_mask", "token_type_ids", "feature_ids", "feature_weights")))
expected = engine.run(batch)
child = os.fork()
if child == 0:
    same = all(np.array_equal(engine.run(batch), expected) for _ in range(3))
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(0 if np.array_equal(engine.run(batch), expected) else 7)
    sys.exit(0 if same and os.waitpid(grandchild, 0)[1] == 0 else 3)
status = os.waitpid(child, 0)[1]
sys.exit(os.waitstatus_to_exitcode(status) if np.array_equal(engine.run(batch), expected) else 4)
"""

TELEMETRY = """
import os, sys
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
import edgerec.engine.ort
print(os.environ["ORT_DISABLE_TELEMETRY"], sorted(os.listdir(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ort")
    build_engine(make_export(root / "export"), root / "bundle", backend="ort")
    return root / "bundle"


def rows(count: int, seed: int = 0, width: int = 32) -> dict[str, Any]:
    return random_rows(np.random.default_rng(seed), count, vocab=110, features=True, width=width)


def test_a_forked_child_scores_with_its_own_session_and_exits(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", **rows(40))
    command = [sys.executable, "-c", FORK, str(bundle), str(tmp_path / "rows.npz")]
    # Files, not pipes: a child that hangs would hold a pipe open and hang the test too.
    with open(tmp_path / "stderr", "wb") as stderr:
        done = subprocess.run(command, timeout=60, stderr=stderr, check=False)
    assert done.returncode == 0, (tmp_path / "stderr").read_text()


def test_loading_the_backend_sends_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-c", TELEMETRY, str(home)]
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, timeout=60, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "[]"]


def test_the_session_gets_the_threads_and_the_spinning_it_was_asked_for(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, str]] = []
    create = ort.InferenceSession

    def spy(model: bytes, options: Any, **keywords: Any) -> Any:
        spinning = options.get_session_config_entry("session.intra_op.allow_spinning")
        seen.append((options.intra_op_num_threads, options.inter_op_num_threads, spinning))
        return create(model, options, **keywords)

    monkeypatch.setattr(ort, "InferenceSession", spy)
    monkeypatch.setattr("edgerec.engine.ort.usable_cores", lambda: 3)
    open_engine(bundle)
    open_engine(bundle, threads=1, spinning=True)
    assert seen == [(3, 1, "0"), (1, 1, "1")]


def test_a_machine_that_computes_otherwise_is_found_by_the_probe(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = OrtEngine.run
    monkeypatch.setattr(OrtEngine, "run", lambda self, batch: run(self, batch) * np.float32(1.01))
    with pytest.raises(EngineError, match=r"probe logit is off by .* allowed 0\.001"):
        open_engine(bundle)
    open_engine(bundle, probe=False).close()


def test_a_failure_of_the_runtime_is_an_engine_error_and_the_engine_goes_on(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(bundle)
    batch = Batch(**rows(2))

    def fail(*_: object) -> None:
        raise ort.capi.onnxruntime_pybind11_state.RuntimeException("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(ort.InferenceSession, "run", fail)
        with pytest.raises(EngineError, match="out of memory"):
            engine.run(batch)
    assert engine.run(batch).shape == (2,)


def test_a_refused_graph_names_both_versions(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ort.capi.onnxruntime_pybind11_state.Fail("unknown operator set")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    built_with = json.loads((bundle / "manifest.json").read_text())["fingerprint"]["onnxruntime"]
    with pytest.raises(EngineError, match=rf"{ort.__version__} refuses .*built with {built_with}.*build the bundle again"):
        open_engine(bundle)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell a process its resident size")
def test_memory_stays_bounded_over_many_shapes(bundle: Path) -> None:
    engine = open_engine(bundle)

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def score(seeds: range) -> None:
        for seed in seeds:
            engine.run(Batch(**rows(1 + seed % 37, seed=seed, width=5 + seed % 28)))

    score(range(200))
    before = resident_bytes()
    score(range(200, 700))
    assert resident_bytes() - before < 16 << 20

"""Building and bulk scoring on a Ray cluster: here one of this machine, started for the tests. The same as in one process.

Needs the extra: ``pip install -c constraints.txt -e .[ray]``. Slow: the cluster takes tens of seconds to start.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from fixtures_export import make_export

from edgerec import Item, catalog_encoder
from edgerec.builder import build_engine
from edgerec.catalog import build_catalog
from edgerec.errors import BundleError, EngineError, InputError
from edgerec.score import score_queries
from edgerec.score_input import Request, Requests

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of Ray's own, which are not ours to mend
]
ITEMS = [Item(f"i{n}", f"red lamp {n} " * (n % 4), brand="acme" if n % 3 else "", price=float(n)) for n in range(23)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    make_export(folder / "export")
    build_engine(folder / "export", folder / "bundle", backend="reference")
    return folder / "bundle"


@pytest.fixture
def cluster(monkeypatch):
    """Its workers leave nothing behind in the folder for temporary files."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:  # short: sockets lie in it
        monkeypatch.setenv("TMPDIR", folder)
        ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="error")
        yield
        ray.shutdown()
        assert list(Path(folder).glob("edgerec-bundle-*")) == []


def test_the_build_on_ray_makes_what_one_process_makes(cluster, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog_encoder, "CHUNK_ITEMS", 5)
    done = []
    build_catalog(ITEMS, bundle, tmp_path / "here")
    build_catalog(ITEMS, bundle, tmp_path / "ray", engine="ray", progress=done.append)
    assert done == [5, 10, 15, 20, 23]
    here, there = (json.loads((tmp_path / name / "catalog.json").read_text()) for name in ("here", "ray"))
    assert here | {"created": ""} == there | {"created": ""}
    file = here["segments"][0]["file"]
    assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "ray" / file).read_bytes()
    with pytest.raises(InputError, match="a price must be a number"):
        build_catalog([*ITEMS, Item("x", "lamp", price="cheap")], bundle, tmp_path / "wrong", engine="ray")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "ray"]
    assert ray.is_initialized()  # it was not ours to end


def test_scores_on_ray_are_those_of_one_process(cluster, bundle, tmp_path):
    build_catalog(ITEMS, bundle, tmp_path / "catalog")
    asked = [Request(f"q{n}", f"lamp {n}", tuple(f"i{(n * m) % 25}" for m in range(9))) for n in range(7)]

    def score(out, **options):
        score_queries(Requests(asked), bundle, tmp_path / "catalog", tmp_path / out, part_queries=2, **options)
        return {path.name: path.read_bytes() for path in (tmp_path / out).glob("part-*.jsonl")}

    def stop(done):
        if done == 4:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        score("ray", engine="ray", progress=stop)
    assert score("ray", engine="ray", resume=True) == score("here")
    (tmp_path / "catalog" / "catalog.json").rename(tmp_path / "gone.json")
    with pytest.raises(BundleError, match="cannot be read"):
        score("nowhere", engine="ray")


def test_a_machine_of_the_cluster_without_the_catalogue_says_so(cluster, bundle, tmp_path, monkeypatch):
    build_catalog(ITEMS, bundle, tmp_path / "catalog")

    def rows():  # read when the run has begun here, before a task opens the catalogue there
        (tmp_path / "catalog").rename(tmp_path / "moved")
        yield Request("q", "lamp", ("i1",))

    with pytest.raises(BundleError, match="must lie at the same path on every machine that scores"):
        score_queries(Requests(rows()), bundle, tmp_path / "catalog", tmp_path / "out", engine="ray")


def test_without_a_cluster_the_error_says_how_to_start_one(bundle, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(EngineError, match="ray start --head"):
        build_catalog(ITEMS, bundle, tmp_path / "catalog", engine="ray")

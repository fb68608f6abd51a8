"""The same build on a Ray cluster: here one of this machine, started for the test.

Needs the extra: ``pip install -c constraints.txt -e .[ray]``. Slow: the cluster takes tens of seconds to start.
"""

from __future__ import annotations

import json

import pytest
from fixtures_export import make_export

from edgerec import Item, catalog_encoder
from edgerec.builder import build_engine
from edgerec.catalog import build_catalog
from edgerec.errors import EngineError, InputError

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
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


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


def test_without_a_cluster_the_error_says_how_to_start_one(bundle, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(EngineError, match="ray start --head"):
        build_catalog(ITEMS, bundle, tmp_path / "catalog", engine="ray")

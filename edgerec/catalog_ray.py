"""Encoding the items of a build on the machines of a Ray cluster. Needs the extra ``edgerec[ray]``, here and there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .bundle import read_file, read_manifest
from .catalog_columns import Columns
from .catalog_encoder import ItemEncoder
from .catalog_workers import Crew
from .errors import EdgerecError, EngineError, MissingExtraError
from .manifest import MANIFEST
from .types import Item


@contextmanager
def encode_on_ray(bundle: str | os.PathLike[str], threads: int) -> Iterator[Crew]:
    """Encode in tasks of the cluster that this process is connected to, or of the one at ``RAY_ADDRESS`` or on this machine.

    The bundle goes to the cluster's machines, which need no shared disk; each must be able to load its engine. A task takes `threads` CPUs.

    Raises
    ------
    MissingExtraError : ray is not installed.
    EngineError : there is no cluster, or a task or its machine died more often than Ray tries again.
    """
    try:
        import ray as installed
    except ModuleNotFoundError as e:
        raise MissingExtraError("ray", "ray") from e
    ray: Any = installed  # its own types come and go with its versions
    connected = ray.is_initialized()
    if not connected:
        try:
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"))
        except ConnectionError as e:
            raise EngineError(f"there is no Ray cluster to connect to ({e}); start one with `ray start --head`, or set RAY_ADDRESS") from e
    try:
        root = Path(bundle)
        manifest = read_manifest(root)
        files = {name: read_file(root, manifest, name) for name in manifest.files}
        shipped = ray.put({**files, MANIFEST: (root / MANIFEST).read_bytes()})
        task = ray.remote(num_cpus=threads)(_encode)

        def submit(items: Sequence[Item]) -> Any:
            result = task.remote(shipped, manifest.model_version, threads, items)

            def wait() -> Columns:
                columns = ray.get(result)
                if isinstance(columns, EdgerecError):
                    raise columns
                return dict(columns)

            return wait

        yield Crew(submit, max(2, 2 * int(ray.cluster_resources().get("CPU", 1)) // threads))
    except ray.exceptions.RayError as e:
        raise EngineError(f"encoding on Ray failed: {e}; go on with resume") from e
    finally:
        if not connected:
            ray.shutdown()


_encoders: dict[tuple[str, int], tuple[ItemEncoder, tempfile.TemporaryDirectory[str]]] = {}
"""Of a worker process: tasks that follow each other share the open bundle. The folder is removed when the process ends."""


def _encode(files: Mapping[str, bytes], model_version: str, threads: int, items: Sequence[Item]) -> Columns | EdgerecError:
    """Runs on a worker; an error of ours is an answer, for Ray would wrap it in its own and try again."""
    try:
        key = (model_version, threads)
        if key not in _encoders:
            folder = tempfile.TemporaryDirectory(prefix="edgerec-bundle-")
            for name, data in files.items():
                (Path(folder.name) / name).write_bytes(data)
            _encoders[key] = ItemEncoder(folder.name, threads=threads), folder
        return _encoders[key][0].compute(items)
    except EdgerecError as e:
        return e

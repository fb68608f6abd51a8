"""Work on the machines of a Ray cluster. Needs the extra ``edgerec[ray]``, here and there."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .bundle import bundle_files
from .crew import Crew, Open, Result, Task
from .errors import EdgerecError, EngineError, MissingExtraError
from .manifest import MANIFEST


@contextmanager
def work_on_ray(open_work: Open[Task, Result], bundle: Path, threads: int, *, what: str) -> Iterator[Crew[Task, Result]]:
    """Work in tasks of the cluster that this process is connected to, or of the one at ``RAY_ADDRESS`` or on this machine.

    The bundle goes to the cluster's machines, which need no shared disk for it; each must be able to load its engine. A task takes
    `threads` CPUs.

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
        files, opener = ray.put(bundle_files(bundle)), pickle.dumps(open_work)
        task = ray.remote(num_cpus=threads)(_work)

        def submit(given: Task) -> Callable[[], Result]:
            handed_over = task.remote(files, opener, given)

            def wait() -> Result:
                result: Result | EdgerecError = ray.get(handed_over)
                if isinstance(result, EdgerecError):
                    raise result
                return result

            return wait

        yield Crew(submit, max(2, 2 * int(ray.cluster_resources().get("CPU", 1)) // threads))
    except ray.exceptions.RayError as e:
        raise EngineError(f"tasks on Ray that {what} failed: {e}; go on with resume") from e
    finally:
        if not connected:
            ray.shutdown()


_opened: dict[tuple[bytes, bytes], Callable[[Any], Any]] = {}
"""Of a worker process, by manifest and opener: tasks that follow each other share the open bundle."""


def _work(files: Mapping[str, bytes], opener: bytes, task: Any) -> Any:
    """Runs on a worker; an error of ours is an answer, for Ray would wrap it in its own and try again."""
    try:
        key = (files[MANIFEST], opener)
        if key in _opened:
            return _opened[key](task)
        # What the first task has opened stays open without its files. Later is too late: Ray kills its workers, which then remove nothing.
        with tempfile.TemporaryDirectory(prefix="edgerec-bundle-") as folder:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            work = pickle.loads(opener)(Path(folder))
            result = work(task)
        _opened[key] = work
        return result
    except EdgerecError as e:
        return e

"""A Triton model repository made of a bundle, for teams that want the ranker behind Triton Inference Server.

An ensemble without Python: the bundle's graph, and a small one after it that selects. Graphs go to Triton's ONNX Runtime backend, whose
shapes are free: of a TensorRT bundle the typed graph, on the GPU, with TensorRT as accelerator. Its plans stay behind: each runs whole
buckets only, and Triton's batcher makes batches of any size. Text is not handled by Triton: the caller sends token ids, and finds tokenizer
and layout beside the ensemble.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import read_file, read_json, verify_bundle
from .engine.probe import PROBE, batch_from, read_arrays
from .errors import BundleError, InputError, MissingExtraError
from .manifest import QUERY_ENGINE_FILE, Manifest, is_plain_name
from .states import PRECISIONS, StateSpec
from .triton_config import MODEL_FILE, Model, Tensor, ensemble, pbtxt
from .types import Batch

CROSS: Mapping[str, str] = {"ort": "engine.onnx", "tensorrt": "tensorrt.onnx"}
MID: Mapping[str, str] = {"ort": "engine.onnx"}
"""By backend of the bundle: the graph that gives logits."""
OUTPUTS = ("logits", "relevance", "top_places", "top_scores")
WARM_ROWS = 4
"""Candidates of the warm-up of a model without batches."""


def export_triton(
    bundle: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    *,
    name: str = "",
    max_batch: int = 128,
    instances: int = 1,
    queue_delay_us: int = 500,
) -> Path:
    """Write the ensemble ``REPOSITORY/NAME`` and what it runs: ``NAME-model``, ``NAME-top`` and, of a mid-fusion student, ``NAME-query``.

    A request of the ensemble is a query with its candidates: what `Ranker.rank` gives the engine, and ``top_k``. It gives ``logits``,
    ``relevance`` (their sigmoid: the grade to expect, from 0 to 1, of a student that was trained with ``bce``), and ``top_places`` and
    ``top_scores`` of the best.

    Parameters
    ----------
    bundle : built for ``ort``; of a cross student, for ``tensorrt`` too.
    name : of the ensemble in Triton; empty: the student's.
    max_batch : of a cross student: rows in one execution, and the most candidates of a request. Triton joins waiting requests of equal
        length. A request of a mid-fusion student is an execution: its rows share a query.
    instances : executions at once.
    queue_delay_us : microseconds that a request may wait for others.

    Returns
    -------
    The ensemble's folder.

    Raises
    ------
    BundleError : the bundle is damaged. InputError : it has no graph for Triton, a value is out of range, or a folder exists.
    MissingExtraError : onnx is not installed.
    """
    root = Path(bundle)
    manifest = verify_bundle(root)
    model = read_json(root, manifest, "model.json")
    states = StateSpec.from_model(model, f"{root}: model.json")
    graphs = CROSS if states is None else MID
    if manifest.backend not in graphs:
        kind = "cross" if states is None else "mid-fusion"
        raise InputError(
            f"{root} is the bundle of a {kind} student for {manifest.backend}; Triton runs those built for {' or '.join(graphs)}: "
            "build one with `edgerec build-engine EXPORT BUNDLE --backend ort`"
        )
    called = name or str(model["name"])
    if not is_plain_name(called):
        raise InputError(f"name is {called!r:.80}; expected ASCII letters, digits, '.', '_' or '-'")
    for what, value, most in (("max_batch", max_batch, 4096), ("instances", instances, 64), ("queue_delay_us", queue_delay_us, 10**6)):
        if not 1 <= value <= most:
            raise InputError(f"{what} is {value}; expected 1 to {most}")
    try:
        from .triton_graph import inputs_of, top_graph
    except ModuleNotFoundError as e:
        raise MissingExtraError("onnx", "build") from e
    graph, row = read_file(root, manifest, graphs[manifest.backend]), _first_row(root, manifest)
    if states is None:
        steps = [_cross(called, graph, row, max_batch, instances, queue_delay_us, gpu=manifest.backend == "tensorrt")]
    else:
        query = read_file(root, manifest, QUERY_ENGINE_FILE)
        wanted = inputs_of(graph, f"{root}: {graphs[manifest.backend]}")
        steps = _mid(called, query, graph, wanted, row, model, states, instances)
    logits = steps[-1].whole()[1][0]
    steps.append(_top(called, top_graph(len(logits.dims)), logits, instances))
    beside = {f"edgerec/{file}": read_file(root, manifest, file) for file in ("tokenizer.json", "model.json", "features.json")}
    identity = {"model_version": manifest.model_version, "content_id": manifest.content_id}
    beside["edgerec/bundle.json"] = json.dumps(identity).encode()
    folders: dict[str, dict[str, bytes]] = {step.name: _files(step, manifest.model_version) for step in steps}
    config = pbtxt(ensemble(called, steps, OUTPUTS, manifest.model_version)).encode()
    # An ensemble has no model of its own, but Triton wants a version.
    folders[called] = {"config.pbtxt": config, "1/.keep": b"", **beside}
    for folder in folders:
        if (Path(repository) / folder).exists():
            raise InputError(f"{Path(repository) / folder} exists; give another repository or name, or delete it")
    for folder, files in folders.items():  # the ensemble last: it is there when what it runs is
        _write(Path(repository) / folder, files)
    return Path(repository) / called


def _cross(name: str, graph: bytes, row: Batch, max_batch: int, instances: int, queue_delay_us: int, *, gpu: bool) -> Model:
    tokens = ("input_ids", "attention_mask", "token_type_ids")
    samples: dict[str, NDArray[Any]] = {key: getattr(row, key)[0] for key in tokens}
    if row.feature_ids.shape[1]:
        samples |= {"feature_ids": row.feature_ids[0], "feature_weights": row.feature_weights[0]}
    return Model(
        name=f"{name}-model",
        graph=graph,
        inputs=[Tensor(key, str(value.dtype), (-1 if key in tokens else len(value),)) for key, value in samples.items()],
        outputs=[Tensor("logits", "float32", (1,), scalar=True)],
        samples=samples,
        max_batch=max_batch,
        instances=instances,
        queue_delay_us=queue_delay_us,
        gpu=gpu,
    )


def _mid(
    name: str,
    query: bytes,
    joint: bytes,
    wanted: Mapping[str, Any],
    row: Batch,
    model: Mapping[str, Any],
    states: StateSpec,
    instances: int,
) -> list[Model]:
    """The layers that see the query alone, once a request; then the joint ones, for every candidate's states."""
    asking = row.input_ids[:1, (row.token_type_ids[0] == model["text"]["query_type"]) & (row.attention_mask[0] == 1)]
    tokens = row.input_ids.shape[1] - asking.shape[1]
    asked = {"query_ids": asking, "query_lengths": np.array([asking.shape[1]], np.int32)}
    samples: dict[str, NDArray[Any]] = {
        **asked,
        "query_index": np.zeros(WARM_ROWS, np.int32),
        "states": np.zeros((WARM_ROWS, tokens, states.numbers), PRECISIONS[states.precision]),
        "state_scales": np.zeros((WARM_ROWS, tokens, states.scales), np.float32),
        "item_lengths": np.full(WARM_ROWS, tokens, np.int32),
        "queries": np.zeros((1, asking.shape[1], int(model["student"]["hidden"])), np.float32),
        "feature_ids": np.repeat(row.feature_ids, WARM_ROWS, axis=0),
        "feature_weights": np.repeat(row.feature_weights, WARM_ROWS, axis=0),
    }
    dims = {"query_ids": (1, -1), "query_lengths": (1,), "query_index": (-1,), "item_lengths": (-1,)}
    dims |= {"queries": (1, -1, samples["queries"].shape[2])}

    def tensor(key: str) -> Tensor:
        value = samples[key]
        return Tensor(key, str(np.dtype(value.dtype)), dims.get(key, (*(-1,) * (value.ndim - 1), value.shape[-1])))

    unknown = sorted(key for key, kind in wanted.items() if key not in samples or samples[key].dtype != kind)
    if unknown:
        raise BundleError(f"the graph of the joint layers takes {', '.join(unknown)}, not known or of another type; build the bundle again")
    first = Model(f"{name}-query", query, [tensor(key) for key in asked], [tensor("queries")], asked, instances=instances)
    given = {key: samples[key] for key in wanted}
    second = Model(
        f"{name}-model", joint, [tensor(key) for key in wanted], [Tensor("logits", "float32", (-1,))], given, instances=instances
    )
    return [first, second]


def _top(name: str, graph: bytes, logits: Tensor, instances: int) -> Model:
    outputs = [Tensor("relevance", "float32", (-1,)), Tensor("top_places", "int64", (-1,)), Tensor("top_scores", "float32", (-1,))]
    warm = np.zeros((WARM_ROWS, *logits.dims[1:]), np.float32)
    samples: dict[str, NDArray[Any]] = {"logits": warm, "top_k": np.array([WARM_ROWS], np.int64)}
    return Model(f"{name}-top", graph, [logits, Tensor("top_k", "int64", (1,))], outputs, samples, instances=instances)


def _first_row(root: Path, manifest: Manifest) -> Batch:
    """A real row, the first of the probe, without its padding."""
    batch = batch_from(read_arrays(read_file(root, manifest, PROBE), f"{root}: {PROBE}"), f"{root}: {PROBE}")
    if not batch.size:
        raise BundleError(f"{root}: {PROBE} has no row; build the bundle again")
    length = max(1, int(batch.attention_mask[0].sum()))
    tokens = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    ids, mask, types = (np.ascontiguousarray(values[:1, :length]) for values in tokens)
    return Batch(ids, mask, types, batch.feature_ids[:1], batch.feature_weights[:1])


def _files(model: Model, model_version: str) -> dict[str, bytes]:
    return {
        "config.pbtxt": pbtxt(model.config(model_version)).encode(),
        f"1/{MODEL_FILE}": model.graph,
        **{f"warmup/{key}": value.tobytes() for key, value in model.samples.items()},
    }


def _write(target: Path, files: Mapping[str, bytes]) -> None:
    """The folder appears by one rename: Triton, which may be polling the repository, never sees half of it."""
    staging = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        for name, data in files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        os.rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)

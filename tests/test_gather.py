"""Rows of item states and of tokens: the C twins against numpy, and the CUDA kernels, which share their code, through NVIDIA's compiler."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec import _core, _native
from edgerec.errors import InputError
from edgerec.states import PRECISIONS, StateSpec

ROOT = Path(__file__).resolve().parent.parent
PTX = ROOT / "edgerec" / "engine" / "gather.ptx"
TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
nvcc = pytest.mark.skipif(not shutil.which("nvcc") or not shutil.which("make"), reason="nvcc is not installed")


def number_of(bits: np.ndarray, number: str) -> np.ndarray:
    if number == "fp32":
        return bits
    return bits.view(np.float16).astype(np.float32) if number == "fp16" else (bits.astype(np.uint32) << 16).view(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    precision=st.sampled_from(sorted(PRECISIONS)),
    number=st.sampled_from(["fp32", "fp16", "bf16"]),
    groups=st.integers(1, 3),
    width=st.integers(1, 9),
    rows=st.integers(0, 9),
    tokens=st.integers(0, 7),
)
def test_rows_are_those_of_their_tables_widened(
    seed: int, precision: str, number: str, groups: int, width: int, rows: int, tokens: int
) -> None:
    rng, spec = np.random.default_rng(seed), StateSpec(groups, width, precision, "")
    tables = [spec.store(rng.normal(scale=4, size=(total, spec.numbers)).astype(np.float32)) for total in (20, 11)]
    exact = [spec.restore(*table) for table in tables]
    other, lengths = rng.random(rows) < 0.5, rng.integers(0, tokens + 1, rows).astype(np.int32)
    starts = np.array([rng.integers(0, len(exact[int(o)]) - n + 1) for o, n in zip(other, lengths, strict=True)], np.int64)
    flat = [(values.reshape(-1), scales.reshape(-1)) for values, scales in tables]
    found = _native.gather_states(flat, np.where(other, ~starts, starts), lengths, tokens=tokens, groups=groups, width=width, number=number)
    expected = np.zeros((rows, tokens, spec.numbers), np.float32)
    for row, (o, start, length) in enumerate(zip(other, starts, lengths, strict=True)):
        expected[row, :length] = exact[int(o)][start : start + length]
    assert found.shape == expected.shape
    if number == "bf16":
        np.testing.assert_allclose(number_of(found, number), expected, rtol=2**-8, atol=0)
    else:
        np.testing.assert_array_equal(number_of(found, number), expected.astype(np.float16 if number == "fp16" else np.float32))


WRONG: dict[str, dict[str, Any]] = {
    "a row outside": {"starts": np.array([10], np.int64)},
    "a row outside the other table": {"starts": np.array([~10], np.int64)},
    "a row too long": {"lengths": np.array([4], np.int32)},
    "other lengths": {"lengths": np.array([1, 1], np.int32)},
    "int32 starts": {"starts": np.array([0], np.int32)},
    "no such number": {"number": "fp8"},
    "no width": {"width": 0},
    "too wide": {"width": 1 << 16, "groups": 2},
    "values of another type": {"tables": [(np.zeros(40, np.float64), np.zeros(0, np.float32))] * 2},
    "no scales": {"tables": [(np.zeros(40, np.int8), np.zeros(0, np.float32))] * 2},
    "tables of two types": {"tables": [(np.zeros(40, kind), np.zeros(10, np.float32)) for kind in (np.int8, np.float16)]},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name: str) -> None:
    table = (np.zeros(40, np.float32), np.zeros(0, np.float32))
    given: dict[str, Any] = {
        "tables": [table, table],
        "starts": np.zeros(1, np.int64),
        "lengths": np.ones(1, np.int32),
        "tokens": 3,
        "groups": 1,
        "width": 4,
        "number": "fp16",
        **WRONG[name],
    }
    with pytest.raises(InputError):
        _native.gather_states(given.pop("tables"), given.pop("starts"), given.pop("lengths"), **given)


FRAME = st.tuples(st.lists(st.integers(0, 99), max_size=4), st.lists(st.integers(0, 99), max_size=2))


def framed(head: list[int], suffix: list[int]) -> np.ndarray:
    return np.array([len(head), len(suffix), 5, 6, 77, *head, *suffix], np.int32)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 20), frame=FRAME, rows=st.integers(0, 9), room=st.integers(1, 7))
def test_rows_of_tokens_are_those_that_packing_gives(seed: int, frame: tuple[list[int], list[int]], rows: int, room: int) -> None:
    head, suffix = frame
    rng, tokens = np.random.default_rng(seed), len(head) + room + len(suffix)
    tables = [rng.integers(100, 200, total).astype(np.int32) for total in (20, 11)]
    other, lengths = rng.random(rows) < 0.5, rng.integers(0, room + 1, rows).astype(np.int32)
    begins = np.array([rng.integers(0, len(tables[int(o)]) - n + 1) for o, n in zip(other, lengths, strict=True)], np.int64)
    items = [tables[int(o)][begin : begin + n] for o, begin, n in zip(other, begins, lengths, strict=True)]
    found = _native.gather_pairs(tables, np.where(other, ~begins, begins), lengths, framed(head, suffix), tokens=tokens)
    packer = _core.PairFrame(
        *(np.array(part, np.int32) for part in (head, [], suffix)), pad_id=77, query_type=5, item_type=6, max_tokens=tokens
    )
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    flat = np.concatenate([np.zeros(0, np.int32), *items])
    expected = packer.pack(np.zeros(0, np.int32), flat, offsets, np.arange(rows), tokens)
    if not head + suffix:  # a batch of padded rows may have an empty one, an engine's call may not
        expected[1][lengths == 0, 0] = 1
    for name, one, same in zip(("ids", "mask", "types"), found, expected, strict=True):
        np.testing.assert_array_equal(one, same, err_msg=name)


@pytest.mark.parametrize(
    ("name", "value"),
    {
        "starts": np.array([6], np.int64),
        "lengths": np.array([3], np.int32),
        "frame": framed([1, 2], [3])[:-1],
        "tables": [np.zeros(5, np.int64)] * 2,
        "tokens": 4,
    }.items(),
)
def test_pairs_that_do_not_fit_are_refused(name: str, value: Any) -> None:
    given = {"tables": [np.zeros(5, np.int32)] * 2, "starts": np.array([3], np.int64), "lengths": np.array([2], np.int32)}
    given |= {"frame": framed([1, 2], [3]), "tokens": 5}
    assert _native.gather_pairs(**given)[0].shape == (1, 5)
    with pytest.raises(InputError):
        _native.gather_pairs(**{**given, name: value})


KERNELS = {"edr_gather_rows": ["u64"] * 4 + ["u32"] * 5, "edr_gather_pairs": ["u64"] * 7 + ["u32"]}


def test_the_ptx_is_text_that_an_old_driver_reads_and_has_the_kernels() -> None:
    text = PTX.read_text(encoding="ascii")
    assert "\n.version 7.0\n.target sm_75\n" in text
    found = {name: re.findall(r"\.param \.(\w+)", given) for name, given in re.findall(r"\.visible \.entry (\w+)\(([^)]*)\)", text)}
    assert found == KERNELS


@nvcc
@pytest.mark.nvcc
def test_the_kernel_compiles_to_the_ptx_that_is_packed(tmp_path: Path) -> None:
    made = tmp_path / "gather.ptx"
    subprocess.run(["make", "-s", "ptx", f"PTX={made}"], cwd=ROOT, check=True)
    same = re.search(r"Cuda compilation tools, .*", made.read_text()), re.search(r"Cuda compilation tools, .*", PTX.read_text())
    if same[0] and same[1] and same[0][0] == same[1][0]:  # another compiler may choose other registers
        assert made.read_text() == PTX.read_text(), "csrc/gather.cu or gather.h has changed; run `make ptx`"


@nvcc
@pytest.mark.nvcc
@pytest.mark.parametrize("target", TARGETS)
def test_the_ptx_becomes_machine_code_of_every_target(tmp_path: Path, target: str) -> None:
    command = ["nvcc", "-cubin", f"-arch={target}", str(PTX), "-o", str(tmp_path / "gather.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "gather.cubin").stat().st_size > 1000

"""The TensorRT backend: a plan that fits this GPU, run through PyCUDA; else, and whenever the GPU fails, the CPU engine beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import monotonic_ns

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..bundle import Manifest, read_file, read_json
from ..errors import EngineError, InputError, MissingExtraError
from ..types import Batch, RaggedBatch
from . import Limits, RaggedEngine, check_range
from .machine import usable_cores
from .trt_device import FEATURES, TOKENS, Device, Slot
from .trt_fallback import Instead, fill_rows, open_fallback
from .trt_plans import PARTS, PLANS_FILE, Plans, choose, rebuild_command, this_runtime

LANES = 4
"""At most so many calls in flight by default: more only wait for each other on the GPU, and each costs memory there."""
_LAUNCH_TOKENS = 1024
"""What one more launch costs, in tokens scored meanwhile."""


def open_tensorrt(root: Path, manifest: Manifest, limits: Limits, *, threads: int | None, fallback: bool) -> RaggedEngine:
    """Open the plan that fits this machine, and the CPU engine to take over when the GPU fails; or that alone, when no plan fits.

    Parameters
    ----------
    threads : calls in flight on the GPU; threads of the CPU engine.
    fallback : whether the CPU engine may take over.

    Raises
    ------
    BundleError : the bundle is damaged.
    EngineError : no plan fits, and the CPU engine may not take over; says why, plan by plan, and the command to build one.
    MissingExtraError : a package is missing, and the CPU engine may not take over.
    """
    plans = read_plans(root, manifest)
    cpu = open_fallback(root, manifest, limits, plans.fallback, threads=threads) if fallback and plans.fallback else None
    here = this_runtime()
    plan, why = choose(plans.plans, here)
    if plan is None:
        command = rebuild_command(plans, manifest.precision, here)
        why = f"no TensorRT plan of {manifest.model_version} runs here: {why}; build one with: {command}"
        return _instead(cpu, EngineError(why))
    try:
        device = Device({PARTS[0]: read_file(root, manifest, plan.file)}, plan, plans, lanes=threads or min(LANES, usable_cores()))
    except (EngineError, MissingExtraError) as error:
        return _instead(cpu, error)
    return TensorRtEngine(device, plans, limits, manifest.precision, cpu)


def read_plans(root: Path, manifest: Manifest) -> Plans:
    """``plans.json`` of a bundle. Raises BundleError."""
    return Plans.from_json(read_json(root, manifest, PLANS_FILE), f"{root}: {PLANS_FILE}")


def _instead(cpu: RaggedEngine | None, error: EngineError | MissingExtraError) -> RaggedEngine:
    if cpu is None:
        raise error
    return Instead(cpu, f"the CPU engine ({cpu.backend} {cpu.precision}) scores instead of the GPU: {error}")


class TensorRtEngine:
    """Runs a plan. See `edgerec.engine.RaggedEngine`.

    Rows are sorted by length and shared out among the plan's buckets; a bucket always runs whole, rows that are not there are padding.

    Attributes
    ----------
    launches : how work reaches the GPU: ``CUDA graphs``, or ``plain launches`` and why.
    note : empty; or why the CPU engine has taken over, for good. Results repeat it.
    """

    backend = "tensorrt"

    def __init__(self, device: Device, plans: Plans, limits: Limits, precision: str, cpu: RaggedEngine | None) -> None:
        self.precision, self.note, self.launches = precision, "", device.launches
        self._device: Device | None = device
        self._plans, self._limits, self._cpu = plans, limits, cpu

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits, float32 [B]. Raises EngineError."""
        if self._device is None:
            raise EngineError("the engine is closed; open the bundle again")
        self._limits.check(batch)
        rows, width = batch.input_ids.shape
        if not rows:
            return np.zeros(0, np.float32)
        try:
            lengths = _native.row_lengths(np.ascontiguousarray(batch.attention_mask))
        except InputError as error:
            raise EngineError(f"batch: {error}") from error
        ids, types = (np.ascontiguousarray(array).reshape(-1) for array in (batch.input_ids, batch.token_type_ids))
        starts = np.arange(0, rows * width, width, dtype=np.int64)
        return self.run_ragged(RaggedBatch(ids, types, starts, lengths, batch.feature_ids, batch.feature_weights))

    def run_ragged(self, batch: RaggedBatch, *, deadline_ns: int = 0, done: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Logits, float32 [B], of the rows there was time for: the clock is looked at before each bucket. Raises EngineError."""
        device = self._device
        if device is None:
            raise EngineError("the engine is closed; open the bundle again")
        self._check(batch)
        if not self.note:
            try:
                return self._score(device, batch, deadline_ns, np.ones(batch.size, np.bool_) if done is None else done)
            except EngineError as error:
                if self._cpu is None or self._device is None:
                    raise
                self.note = f"the CPU engine ({self._cpu.backend} {self._cpu.precision}) has taken over from the GPU: {error}"
        assert self._cpu is not None  # a note is written only with one
        return self._cpu.run_ragged(batch, deadline_ns=deadline_ns, done=done)

    def close(self) -> None:
        """Release the GPU's memory and the CPU engine; runs in flight finish first."""
        device, self._device = self._device, None
        if device is not None:
            device.close()
            if self._cpu is not None:
                self._cpu.close()

    def _check(self, batch: RaggedBatch) -> None:
        """The GPU checks nothing: an id too large would read anywhere."""
        self._limits.check_ragged(batch)
        if batch.size and (batch.lengths.min() < 1 or batch.starts.min() < 0 or (batch.starts + batch.lengths).max() > len(batch.ids)):
            raise EngineError(f"batch: a row does not lie in the {len(batch.ids)} tokens given, or is empty")
        check_range("ids", batch.ids, self._limits.vocab)
        check_range("types", batch.types, self._limits.types)
        check_range("feature_ids", batch.feature_ids, self._limits.buckets)
        if batch.feature_ids.shape[1] > self._plans.slots:
            raise EngineError(f"batch: feature_ids has {batch.feature_ids.shape[1]} slots, the plan was built for {self._plans.slots}")

    def _score(self, device: Device, batch: RaggedBatch, deadline_ns: int, done: NDArray[np.bool_]) -> NDArray[np.float32]:
        logits = np.full(batch.size, np.nan, np.float32)
        done[:] = False
        order = np.argsort(-batch.lengths, kind="stable")
        with device.lane() as lane:
            for bucket, begin, end in share_out(batch.lengths[order], self._plans.buckets):
                if deadline_ns and monotonic_ns() >= deadline_ns:
                    break
                rows, slot = order[begin:end], lane[bucket]
                _fill(slot, batch, rows)
                slot.run()
                logits[rows] = slot.logits[: len(rows)]
                done[rows] = True
        return logits


def share_out(lengths: NDArray[np.int64], buckets: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Rows by descending length, int64 [B], as ``(bucket, begin, end)``, in order.

    Each step takes, of the buckets of the shortest sufficient length, the one that computes least for what it scores: a row is worth the
    shortest bucket it fits in, so that short rows fill up a long bucket only when it has room anyway.
    """
    sizes = np.array(sorted({tokens for _, tokens in buckets}))
    worth = sizes[np.searchsorted(sizes, lengths)]
    total = np.concatenate([[0], np.cumsum(worth)])
    found, begin = [], 0
    while begin < len(lengths):

        def waste(index: int, begin: int = begin) -> float:
            rows, tokens = buckets[index]
            return float((rows * tokens + _LAUNCH_TOKENS) / (total[min(begin + rows, len(lengths))] - total[begin]))

        best = min((i for i, (_, tokens) in enumerate(buckets) if tokens == worth[begin]), key=waste)
        end = min(begin + buckets[best][0], len(lengths))
        found.append((best, begin, end))
        begin = end
    return found


def _fill(slot: Slot, batch: RaggedBatch, rows: NDArray[np.intp]) -> None:
    views = slot.views
    fill_rows(batch, rows, *(views[name] for name in (TOKENS[0], TOKENS[1], TOKENS[2])))
    slots = batch.feature_ids.shape[1]
    for name in FEATURES if FEATURES[0] in views else ():
        views[name][: len(rows), :slots] = getattr(batch, name)[rows]
        # A weight of 0 is no feature; ids there do not matter, but must be valid.
        views[name][: len(rows), slots:] = 0
        views[name][len(rows) :] = 0

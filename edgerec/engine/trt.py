"""The TensorRT backend: a plan that fits this GPU, run through PyCUDA; else, and whenever the GPU fails, the CPU engine beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..bundle import Manifest, read_file, read_json
from ..errors import BundleError, EngineError, InputError, MissingExtraError
from ..text import TextSpec
from ..types import Batch, RaggedBatch, RaggedItemBatch, StoredTable
from . import Limits, RaggedEngine, check_range
from .machine import usable_cores
from .trt_buckets import fill_features, share_out
from .trt_device import TOKENS, Device, Lane
from .trt_fallback import Instead, fill_rows, open_fallback
from .trt_kept import along
from .trt_plans import PARTS, PLANS_FILE, Plans, choose, rebuild_command, this_runtime
from .trt_work import Work

LANES = 4
"""At most so many calls in flight by default: more only wait for each other on the GPU, and each costs memory there."""


def open_tensorrt(
    root: Path, manifest: Manifest, model: Mapping[str, Any], limits: Limits, *, threads: int | None, fallback: bool
) -> RaggedEngine:
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
    try:
        text = TextSpec.from_json(model["text"])
    except (InputError, KeyError, TypeError) as error:
        raise BundleError(f"{root}: the text part of model.json is not usable: {error}; build the bundle again") from error
    cpu = open_fallback(root, manifest, limits, plans.fallback, threads=threads) if fallback and plans.fallback else None
    here = this_runtime()
    plan, why = choose(plans.plans, here)
    if plan is None:
        command = rebuild_command(plans, manifest.precision, here)
        why = f"no TensorRT plan of {manifest.model_version} runs here: {why}; build one with: {command}"
        return _instead(cpu, EngineError(why))
    try:
        data = {PARTS[0]: read_file(root, manifest, plan.file)}
        device = Device(
            data, plan, plans, lanes=threads or min(LANES, usable_cores()), check=partial(check_range, "tokens", end=limits.vocab)
        )
    except (EngineError, MissingExtraError) as error:
        return _instead(cpu, error)
    return TensorRtEngine(device, plans, text, limits, manifest.precision, cpu)


def read_plans(root: Path, manifest: Manifest) -> Plans:
    """``plans.json`` of a bundle. Raises BundleError."""
    return Plans.from_json(read_json(root, manifest, PLANS_FILE), f"{root}: {PLANS_FILE}")


def _instead(cpu: RaggedEngine | None, error: EngineError | MissingExtraError) -> RaggedEngine:
    if cpu is None:
        raise error
    return Instead(cpu, f"the CPU engine ({cpu.backend} {cpu.precision}) scores instead of the GPU: {error}")


class TensorRtEngine:
    """Runs a plan. See `edgerec.engine.ItemEngine`.

    Rows are sorted by length and shared out among the plan's buckets; a bucket always runs whole, rows that are not there are padding.
    The query is joined with its items on the GPU; those of a catalogue come from a copy that stays there.

    Attributes
    ----------
    launches : how work reaches the GPU: ``CUDA graphs``, or ``plain launches`` and why.
    note : empty; or why the CPU engine has taken over, for good. Results repeat it.
    """

    backend, keeps = "tensorrt", "tokens"

    def __init__(self, device: Device, plans: Plans, text: TextSpec, limits: Limits, precision: str, cpu: RaggedEngine | None) -> None:
        self.precision, self.note, self.launches = precision, "", device.launches
        self._device: Device | None = device
        self._plans, self._limits, self._cpu = plans, limits, cpu
        self._suffix, self._kinds = np.array(text.suffix, np.int32), (text.query_type, text.item_type, text.pad_id)

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
        self._check(batch)
        scored = np.ones(batch.size, np.bool_) if done is None else done

        def on_gpu(device: Device) -> NDArray[np.float32]:
            with device.lane() as lane:
                return self._score(lane, batch.lengths, partial(_send_rows, lane, batch), deadline_ns, scored)

        return self._on_gpu(on_gpu, lambda cpu: cpu.run_ragged(batch, deadline_ns=deadline_ns, done=scored))

    def run_items(self, batch: RaggedItemBatch, *, deadline_ns: int = 0, done: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """See `edgerec.engine.ItemEngine`: the clock is looked at before each bucket. Raises EngineError."""
        device = self._device
        if device is None or self.note or device.kernel is None:
            return self.run_ragged(self._joined(batch), deadline_ns=deadline_ns, done=done)
        self._check_items(batch)
        scored, frame = np.ones(batch.size, np.bool_) if done is None else done, self._frame(batch)
        lengths = np.maximum(batch.lengths + len(batch.query_ids) + len(self._suffix), 1)

        with device.kept.use(batch.source, batch.lengths) as kept:
            sent, _ = along(batch.starts, batch.lengths, kept)
            check_range("tokens", batch.tokens[sent], self._limits.vocab)

            def on_gpu(device: Device) -> NDArray[np.float32]:
                with device.lane() as lane:
                    send = partial(self._send_items, device, lane, batch, frame, kept)
                    return self._score(lane, lengths, send, deadline_ns, scored)

            return self._on_gpu(on_gpu, lambda cpu: cpu.run_ragged(self._joined(batch), deadline_ns=deadline_ns, done=scored))

    def keep(self, tables: Sequence[StoredTable], *, wait: bool) -> None:
        """See `edgerec.engine.KeepingEngine`; `kept` says what came of it."""
        device = self._device
        if device is not None and not self.note and device.kernel is not None:
            device.kept.keep(tables, wait=wait)

    @property
    def kept(self) -> str:
        """How many tokens of items are on the GPU; or why no more come."""
        return str(self._device.kept) if self._device is not None else "0 tokens: the engine is closed"

    def close(self) -> None:
        """Release the GPU's memory and the CPU engine; runs in flight finish first."""
        device, self._device = self._device, None
        if device is not None:
            device.close()
            if self._cpu is not None:
                self._cpu.close()

    def _on_gpu(
        self, on_gpu: Callable[[Device], NDArray[np.float32]], on_cpu: Callable[[RaggedEngine], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """What the GPU gives, or, once it has failed, the CPU engine. Raises EngineError."""
        device = self._device
        if device is None:
            raise EngineError("the engine is closed; open the bundle again")
        if not self.note:
            try:
                return on_gpu(device)
            except EngineError as error:
                if self._cpu is None or self._device is None:
                    raise
                self.note = f"the CPU engine ({self._cpu.backend} {self._cpu.precision}) has taken over from the GPU: {error}"
        assert self._cpu is not None  # a note is written only with one
        return on_cpu(self._cpu)

    def _check(self, batch: RaggedBatch) -> None:
        """The GPU checks nothing: an id too large would read anywhere."""
        self._limits.check_ragged(batch)
        if batch.size and (batch.lengths.min() < 1 or batch.starts.min() < 0 or (batch.starts + batch.lengths).max() > len(batch.ids)):
            raise EngineError(f"batch: a row does not lie in the {len(batch.ids)} tokens given, or is empty")
        check_range("ids", batch.ids, self._limits.vocab)
        check_range("types", batch.types, self._limits.types)
        self._check_features(batch)

    def _check_items(self, batch: RaggedItemBatch) -> None:
        """The same; tokens of the table are looked at when they come along, or came to stay."""
        starts, lengths, tokens = batch.starts, batch.lengths, batch.tokens
        if any(array.dtype != np.int64 or array.shape != (batch.size,) for array in (starts, lengths)) or tokens.dtype != np.int32:
            raise EngineError("batch: starts and lengths must be int64 [rows], and tokens int32")
        self._limits.check_features(batch.feature_ids, batch.feature_weights, batch.size)
        if batch.size and (lengths.min() < 0 or starts.min() < 0 or lengths.max() > len(tokens) or (starts > len(tokens) - lengths).any()):
            raise EngineError(f"batch: an item does not lie in the {len(tokens)} tokens given")
        longest = len(batch.query_ids) + (int(lengths.max()) if batch.size else 0) + len(self._suffix)
        if longest > self._limits.tokens:
            raise EngineError(f"batch: a row has {longest} tokens, at most {self._limits.tokens} are taken; cut the text when packing")
        check_range("query_ids", batch.query_ids, self._limits.vocab)
        self._check_features(batch)

    def _check_features(self, batch: RaggedBatch | RaggedItemBatch) -> None:
        check_range("feature_ids", batch.feature_ids, self._limits.buckets)
        if batch.feature_ids.shape[1] > self._plans.slots:
            raise EngineError(f"batch: feature_ids has {batch.feature_ids.shape[1]} slots, the plan was built for {self._plans.slots}")

    def _score(
        self,
        lane: Lane,
        lengths: NDArray[np.int64],
        send: Callable[[int, NDArray[np.intp]], Work],
        deadline_ns: int,
        done: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Bucket by bucket: ``send`` puts rows where the work that it returns reads them."""
        logits = np.full(len(lengths), np.nan, np.float32)
        done[:] = False
        order = np.argsort(-lengths, kind="stable")
        for bucket, begin, end in share_out(lengths[order], self._plans.buckets):
            if deadline_ns and monotonic_ns() >= deadline_ns:
                break
            rows = order[begin:end]
            work = send(bucket, rows)
            work.run()
            logits[rows] = work.result[: len(rows)]
            done[rows] = True
        return logits

    def _send_items(
        self,
        device: Device,
        lane: Lane,
        batch: RaggedItemBatch,
        frame: NDArray[np.int32],
        kept: NDArray[np.int64],
        bucket: int,
        rows: NDArray[np.intp],
    ) -> Work:
        """Tokens that are not on the GPU go along, and where each row has its own; rows that are not there have length -1."""
        work, staged = lane.slots[bucket].items, lane.staged
        assert work is not None  # there is a kernel
        assert staged is not None
        views, count, address = work.inputs.views, len(rows), staged.addresses["tokens"]
        places, begins = along(batch.starts[rows], batch.lengths[rows], kept[rows])
        if len(places):
            sent = staged.views["tokens"][: len(places)]
            sent[:] = batch.tokens[places]
            device.cuda.memcpy_htod_async(address, sent, lane.stream)
        views["tables"][:] = (*device.kept.addresses, address)
        views["starts"][:count], views["starts"][count:] = begins, -1
        views["lengths"][:count], views["lengths"][count:] = batch.lengths[rows], -1
        views["frame"][: len(frame)] = frame
        fill_features(views, batch, rows)
        return work

    def _frame(self, batch: RaggedItemBatch) -> NDArray[np.int32]:
        """What csrc/gather.h says that rows have in common."""
        numbers = (len(batch.query_ids), len(self._suffix), *self._kinds)
        return np.concatenate([np.array(numbers, np.int32), batch.query_ids, self._suffix])

    def _joined(self, batch: RaggedItemBatch) -> RaggedBatch:
        """The same rows, joined here. Raises EngineError."""
        self._check_items(batch)
        width = max(1, len(batch.query_ids) + len(self._suffix) + (int(batch.lengths.max()) if batch.size else 0))
        tables, lengths = (batch.tokens, np.zeros(0, np.int32)), batch.lengths.astype(np.int32)
        ids, _, types = _native.gather_pairs(tables, batch.starts, lengths, self._frame(batch), tokens=width)
        starts = np.arange(0, batch.size * width, width, dtype=np.int64)
        whole = np.maximum(batch.lengths + len(batch.query_ids) + len(self._suffix), 1)
        return RaggedBatch(ids.reshape(-1), types.reshape(-1), starts, whole, batch.feature_ids, batch.feature_weights)


def _send_rows(lane: Lane, batch: RaggedBatch, bucket: int, rows: NDArray[np.intp]) -> Work:
    work = lane.slots[bucket].rows
    views = work.inputs.views
    fill_rows(batch, rows, *(views[name] for name in TOKENS))
    fill_features(views, batch, rows)
    return work

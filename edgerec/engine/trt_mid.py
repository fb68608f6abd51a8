"""The TensorRT backend for mid-fusion students: plans that fit this GPU; else, and whenever the GPU fails, the CPU engine beside them.

Shape letters: B rows, U items, Q queries, R query tokens, T tokens, G states of a token, W width of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic_ns
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest, read_file
from ..errors import EngineError, MissingExtraError
from ..states import PRECISIONS
from ..types import RaggedStateBatch, StateBatch, StoredTable
from . import Limits, MidEngine
from .machine import usable_cores
from .mid import Ints, MidRunner
from .trt import LANES, read_plans
from .trt_buckets import fill_features, share_out
from .trt_kept import along
from .trt_mid_device import MidDevice, MidLane
from .trt_mid_fallback import CpuMidEngine, open_mid_fallback
from .trt_plans import PARTS, Plans, choose, item_buckets, rebuild_command, this_runtime

Result = TypeVar("Result")


def open_mid_tensorrt(
    root: Path, manifest: Manifest, model: Mapping[str, Any], limits: Limits, *, threads: int | None, fallback: bool
) -> MidEngine:
    """Open the plans that fit this machine, and the CPU engine to take over. Parameters and errors as of `open_tensorrt`."""
    plans = read_plans(root, manifest)
    cpu = open_mid_fallback(root, manifest, model, limits, plans.fallback, threads=threads) if fallback and plans.fallback else None
    here = this_runtime()
    plan, why = choose(plans.plans, here)
    try:
        if plan is None:
            command = rebuild_command(plans, manifest.precision, here)
            raise EngineError(f"no TensorRT plan of {manifest.model_version} runs here: {why}; build one with: {command}")
        if not plans.asking:
            raise EngineError("plans.json has no lengths of a query, and the student is mid-fusion; build the bundle again")
        return TensorRtMidEngine(
            {name: read_file(root, manifest, plan.part(name)) for name in PARTS}, plan, plans, manifest, model, limits, cpu, threads
        )
    except (EngineError, MissingExtraError) as error:
        if cpu is None:
            raise
        cpu.note = f"the CPU engine ({cpu.backend} {cpu.precision}) scores instead of the GPU: {error}"
        return cpu


class TensorRtMidEngine(MidRunner):
    """Runs three plans. See `edgerec.engine.RaggedMidEngine`.

    The query's rows are computed once a call and stay on the GPU; stored states are widened there, those of a catalogue from a copy that
    stays. Rows are sorted by length and shared out among the plan's buckets.

    Attributes
    ----------
    launches : how work reaches the GPU: ``CUDA graphs``, or ``plain launches`` and why.
    note : empty; or why the CPU engine has taken over, for good. Results repeat it.
    """

    keeps = "states"

    def __init__(
        self,
        data: Mapping[str, bytes],
        plan: Any,
        plans: Plans,
        manifest: Manifest,
        model: Mapping[str, Any],
        limits: Limits,
        cpu: CpuMidEngine | None,
        threads: int | None,
    ) -> None:
        super().__init__(model, limits, None, self._rank, backend="tensorrt", precision=manifest.precision, close=self._release)
        lanes = threads or min(LANES, usable_cores())
        device = MidDevice(data, plan, plans, self._spec, self._hidden, manifest.precision, lanes=lanes)
        self.note, self.launches = "", device.launches
        self._device: MidDevice | None = device
        self._plans, self._cpu = plans, cpu

    def encode_items(self, ids: Ints, lengths: Ints) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """See `edgerec.engine.MidEngine`; rounded here, as everywhere. What lies behind an item's end is of no meaning."""
        self._check_tokens("item_ids", ids, lengths, self._layout.item_tokens)

        def on_gpu(device: MidDevice) -> tuple[NDArray[Any], NDArray[np.float32]]:
            with np.errstate(over="ignore"):
                return self._spec.store(self._encode_on(device, ids, lengths))

        return self._on_gpu(on_gpu, lambda cpu: cpu.encode_items(ids, lengths))

    def encode_queries(self, ids: Ints, lengths: Ints) -> NDArray[Any] | None:
        """See `edgerec.engine.QueryEngine`. For retrieval: `run_states` computes them itself."""
        self._check_tokens("query_ids", ids, lengths, self._layout.item_start)

        def on_gpu(device: MidDevice) -> NDArray[Any]:
            rows = np.zeros((*ids.shape, self._hidden), np.float32)
            with device.lane() as lane:
                for query, length in enumerate(lengths.tolist()):
                    self._ask_on(lane, ids[query, :length])
                    device.cuda.memcpy_dtoh_async(lane.rows, lane.queries, lane.stream)
                    lane.stream.synchronize()
                    rows[query, :length] = lane.rows[:length]
            return rows

        return self._on_gpu(on_gpu, lambda cpu: cpu.encode_queries(ids, lengths))

    def keep(self, tables: Sequence[StoredTable], *, wait: bool) -> None:
        """See `edgerec.engine.KeepingEngine`; `kept` says what came of it."""
        device = self._device
        if device is not None and not self.note:
            device.kept.keep(tables, wait=wait)

    @property
    def kept(self) -> str:
        """How many tokens' states are on the GPU; or why no more come."""
        return str(self._device.kept) if self._device is not None else "0 tokens: the engine is closed"

    def run_ragged_states(
        self, batch: RaggedStateBatch, *, deadline_ns: int = 0, done: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """See `edgerec.engine.RaggedMidEngine`: the clock is looked at before each bucket."""
        self._check_ragged(batch)
        scored = np.ones(batch.size, np.bool_) if done is None else done
        return self._on_gpu(
            lambda device: self._score(device, batch, deadline_ns, scored),
            lambda cpu: cpu.run_ragged_states(batch, deadline_ns=deadline_ns, done=scored),
        )

    def _on_gpu(self, on_gpu: Callable[[MidDevice], Result], on_cpu: Callable[[CpuMidEngine], Result]) -> Result:
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

    def _release(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            device.close()
            if self._cpu is not None:
                self._cpu.close()

    def _check_ragged(self, batch: RaggedStateBatch) -> None:
        """The GPU checks nothing: a row outside of its table would be read anywhere."""
        spec = self._spec
        self._check_tokens("query_ids", batch.query_ids[None], np.array([len(batch.query_ids)], np.int32), self._layout.item_start)
        self._limits.check_features(batch.feature_ids, batch.feature_weights, batch.size)
        if batch.feature_ids.shape[1] > self._plans.slots:
            raise EngineError(f"batch: feature_ids has {batch.feature_ids.shape[1]} slots, the plan was built for {self._plans.slots}")
        shapes = ((len(batch.states), spec.numbers), (len(batch.states), spec.scales))
        if batch.states.dtype != PRECISIONS[spec.precision] or (batch.states.shape, batch.scales.shape) != shapes:
            raise EngineError(
                f"batch: states are {batch.states.dtype} {list(batch.states.shape)}, expected {spec.precision} [total, {spec.numbers}]"
            )
        starts, lengths = batch.starts, batch.lengths
        if starts.dtype != np.int64 or lengths.dtype != np.int64 or starts.shape != lengths.shape:
            raise EngineError("batch: starts and lengths must be int64 [rows]")
        if batch.size and (
            not 0 <= int(lengths.min()) <= int(lengths.max()) <= self._layout.item_tokens
            or int(starts.min()) < 0
            or int(starts.max()) > len(batch.states)
            or int((starts + lengths).max()) > len(batch.states)
        ):
            raise EngineError(
                f"batch: an item does not lie in the {len(batch.states)} tokens given, or is longer than {self._layout.item_tokens}"
            )

    def _score(self, device: MidDevice, batch: RaggedStateBatch, deadline_ns: int, done: NDArray[np.bool_]) -> NDArray[np.float32]:
        logits = np.full(batch.size, np.nan, np.float32)
        done[:] = False
        order = np.argsort(-batch.lengths, kind="stable")
        asking = int(np.searchsorted(self._plans.asking, len(batch.query_ids)))
        asked = False
        with device.kept.use(batch.source, batch.lengths) as places, device.lane() as lane:
            sent = np.where(places < 0, batch.lengths, 0)
            for bucket, begin, end in share_out(batch.lengths[order], self._plans.buckets):
                for rows in _that_fit(order[begin:end], sent, lane.room):
                    if deadline_ns and monotonic_ns() >= deadline_ns:
                        return logits
                    work = lane.joint[asking][bucket]
                    self._fill(device, lane, work.inputs.views, batch, rows, places)
                    if not asked:
                        self._ask_on(lane, batch.query_ids)
                        asked = True
                    work.run()
                    logits[rows] = work.result[: len(rows)]
                    done[rows] = True
        return logits

    def _ask_on(self, lane: MidLane, ids: Ints) -> None:
        """Have the query's rows computed, without waiting."""
        work = lane.query[int(np.searchsorted(self._plans.asking, len(ids)))]
        views = work.inputs.views
        views["query_ids"][0, : len(ids)] = ids
        views["query_ids"][0, len(ids) :] = 0
        views["query_lengths"][0] = len(ids)
        work.start()

    def _fill(
        self,
        device: MidDevice,
        lane: MidLane,
        views: Mapping[str, Any],
        batch: RaggedStateBatch,
        rows: NDArray[np.intp],
        kept: NDArray[np.int64],
    ) -> None:
        """Stored states that are not on the GPU go along, and where each row has its own; rows that are not there are empty."""
        count, staged = len(rows), lane.staged
        places, begins = along(batch.starts[rows], batch.lengths[rows], kept[rows])
        total = len(places)
        staged.views["values"][:total], staged.views["scales"][:total] = batch.states[places], batch.scales[places]
        for name, address in staged.addresses.items():
            if staged.views[name].size and total:
                device.cuda.memcpy_htod_async(address, staged.views[name][:total], lane.stream)
        views["tables"][:] = (*device.kept.addresses, staged.addresses["values"], staged.addresses["scales"])
        views["starts"][:count], views["starts"][count:] = begins, -1
        views["item_lengths"][:count], views["item_lengths"][count:] = batch.lengths[rows], 0
        fill_features(views, batch, rows)

    def _passes(self, lengths: Ints) -> Iterator[NDArray[np.intp]]:
        """Those of one bucket: an item always runs in the same one, so its states do not depend on its company."""
        buckets = item_buckets(self._plans.buckets)
        places = np.searchsorted([tokens for _, tokens in buckets], lengths)
        for place, (rows, _) in enumerate(buckets):
            mine = np.flatnonzero(places == place)
            yield from (mine[begin : begin + rows] for begin in range(0, len(mine), rows))

    def _encode_on(self, device: MidDevice, ids: Ints, lengths: Ints) -> NDArray[np.float32]:
        states = np.zeros((*ids.shape, self._spec.numbers), np.float32)
        buckets, width = item_buckets(self._plans.buckets), ids.shape[1]
        place = next(i for i, (_, tokens) in enumerate(buckets) if tokens >= width) if len(ids) else 0
        with device.lane() as lane:
            work = lane.items[place]
            views = work.inputs.views
            for begin in range(0, len(ids), buckets[place][0]):
                part = ids[begin : begin + buckets[place][0]]
                for name, value in (("item_ids", part), ("item_lengths", lengths[begin : begin + len(part)])):
                    views[name][:] = 0
                    views[name][tuple(slice(side) for side in value.shape)] = value
                work.run()
                states[begin : begin + len(part)] = work.result[: len(part), :width]
        return states

    def _rank(self, batch: StateBatch) -> NDArray[np.float32]:
        """Padded rows of several queries: a call for each query that is another."""
        rows, width = batch.states.shape[:2]
        states = np.ascontiguousarray(batch.states).reshape(rows * width, self._spec.numbers)
        scales = np.ascontiguousarray(batch.scales).reshape(rows * width, self._spec.scales)
        starts, lengths = np.arange(rows, dtype=np.int64) * width, batch.item_lengths.astype(np.int64)
        asked = [np.ascontiguousarray(ids[:length]) for ids, length in zip(batch.query_ids, batch.query_lengths.tolist(), strict=True)]
        first: dict[bytes, int] = {}
        same = np.array([first.setdefault(ids.tobytes(), number) for number, ids in enumerate(asked)])[batch.query_index]
        logits = np.empty(rows, np.float32)
        for query in np.unique(same).tolist():
            chosen = np.flatnonzero(same == query)
            if not len(asked[query]):
                raise EngineError(f"batch: query {query} has no token")
            features = batch.feature_ids[chosen], batch.feature_weights[chosen]
            logits[chosen] = self.run_ragged_states(
                RaggedStateBatch(asked[query], states, scales, starts[chosen], lengths[chosen], *features)
            )
        return logits


def _that_fit(rows: NDArray[np.intp], lengths: NDArray[np.int64], room: int) -> Iterator[NDArray[np.intp]]:
    """The rows in parts whose tokens fit the room; a row alone always does."""
    ends = np.cumsum(lengths[rows])
    begin = 0
    while begin < len(rows):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + room, "right")))
        yield rows[begin:end]
        begin = end

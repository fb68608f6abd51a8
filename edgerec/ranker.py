"""The serve path, top to bottom: look up, encode, score, select, return. One `Ranker` serves any number of threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .bundle import BundleReader, content_id
from .catalog import Catalog
from .engine import Engine, ItemEngine, KeepingEngine, MidEngine, QueryEngine, RaggedEngine, RaggedMidEngine, open_engine
from .engine.machine import usable_cores
from .errors import BundleError, InputError
from .features import NO_FEATURES, FeatureEncoder, FeatureSpec, check_golden
from .manifest import COMPILED_TOKENIZER, Manifest
from .ranker_batches import Batcher, Table, keep_tables
from .ranker_candidates import Candidate, Candidates, at_least_one, sort_out
from .ranker_deadline import Deadline, Scored, score_items, score_ragged, score_ragged_states, score_rows, score_states
from .ranker_inline import INLINE_CACHE_BYTES, InlineStates, check_limit
from .ranker_lanes import Lanes
from .ranker_retrieve import FOUND, Retriever
from .ranker_states import StateBatcher
from .states import StateSpec
from .text import TextEncoder, TextSpec
from .types import RankedList, UserProfile
from .vectors import RetrievalHead, head_of_model


class Clock:
    """Microseconds by stage; `lap` books the time since the last lap."""

    __slots__ = ("_last", "_start", "us")

    def __init__(self) -> None:
        self.us = {"lookup": 0.0, "encode": 0.0, "score": 0.0, "select": 0.0, "total": 0.0}
        self._start = self._last = perf_counter_ns()

    def lap(self, stage: str) -> None:
        now = perf_counter_ns()
        self.us[stage] += (now - self._last) / 1000
        self.us["total"] = (now - self._start) / 1000
        self._last = now


class Ranker:
    """A model, opened and ready to rank. Made by `Ranker.open`; closed by `close` or at the end of a ``with`` block.

    Attributes
    ----------
    manifest : of the open bundle.
    catalog : the open catalogue, or None; the generation that the last request saw.
    head : what makes vectors, of a student that retrieves; else None.
    """

    def __init__(
        self,
        manifest: Manifest,
        text: TextEncoder,
        features: FeatureEncoder | None,
        engine: Engine,
        catalog: Catalog | None,
        lanes: int = 1,
        inline_cache_bytes: int = INLINE_CACHE_BYTES,
        head: RetrievalHead | None = None,
    ) -> None:
        self.manifest = manifest
        self.catalog, self.head = catalog, head
        self._text, self._features, self._engine = text, features, engine
        # Asked once: whether an object has a protocol's methods takes as long as encoding a query.
        rows, states = isinstance(engine, RaggedEngine), isinstance(engine, RaggedMidEngine)
        self._lanes = Lanes(1 if rows or states else lanes)
        self._inline: InlineStates | None = None
        if isinstance(engine, MidEngine):
            self._inline = InlineStates(engine, self._lanes, limit_bytes=inline_cache_bytes, together=states)
        self._ask: Callable[[NDArray[np.int32]], Any] = _as_it_is
        ask = engine.encode_queries if isinstance(engine, QueryEngine) else None
        batcher = StateBatcher(text.spec, features, lanes=lanes, ask=ask, keeps=isinstance(engine, KeepingEngine))
        self._retriever = Retriever(head, batcher.query, manifest.backend)
        self._batches: Callable[..., Iterator[list[tuple[NDArray[np.int64], Any]]]]
        self._run: Callable[..., Scored]
        if isinstance(engine, ItemEngine):
            self._batches, self._run = Batcher(text.spec, features).items, score_items
        elif rows:
            self._batches, self._run = Batcher(text.spec, features).ragged, score_ragged
        elif states:
            self._batches, self._run = batcher.ragged, score_ragged_states
        elif self._inline is not None:
            self._ask, self._batches, self._run = batcher.query, batcher.waves, score_states
        else:
            self._batches, self._run = Batcher(text.spec, features, lanes=lanes).waves, score_rows

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str],
        *,
        catalog: str | os.PathLike[str] | Catalog | None = None,
        threads: int | None = None,
        verify: bool = True,
        inline_cache_bytes: int = INLINE_CACHE_BYTES,
    ) -> Ranker:
        """Open a bundle, and the catalogue that was built for it.

        Parameters
        ----------
        bundle : the folder `edgerec build-engine` wrote.
        catalog : a catalogue folder, or one already open; without it every candidate must be a whole item.
        threads : that work on one request; None: the cores this process may use. A server that ranks many queries at once wants 1.
        verify : check the SHA-256 of every file of the bundle first.
        inline_cache_bytes : for a mid-fusion student: the most that the states of items given whole may take, so that an item that comes
            again is not encoded again; the least recently used go first. 0: none are kept.

        Raises
        ------
        InputError : a wrong argument.
        BundleError : the bundle or the catalogue is damaged, or the catalogue belongs to another bundle (both ids are named).
        FeatureError : the golden feature vectors of the model do not reproduce here.
        EngineError : the engine cannot be loaded on this machine.
        """
        check_limit(inline_cache_bytes)  # of any kind of student, and before anything is opened
        files = BundleReader(bundle)
        root, manifest = files.root, files.manifest
        mapped = manifest.engine_file if manifest.backend == "native" else None
        if mapped:
            files.begin(mapped)  # its hash takes as long as all that is read before the engine
        if verify:
            files.verify(but=mapped)
        model, spec = files.json("model.json"), files.json("features.json")
        try:
            text_spec = TextSpec.from_json(model["text"])
        except (InputError, KeyError, TypeError) as e:
            raise BundleError(f"{root}: the text part of model.json is not usable: {e}; build the bundle again") from e
        features = None
        if spec is not None:
            feature_spec = FeatureSpec.from_json(spec)
            check_golden(feature_spec)
            features = FeatureEncoder(feature_spec)
        opened = catalog if isinstance(catalog, Catalog) or catalog is None else Catalog.open(catalog)
        tokenizer = files.map("tokenizer.json")
        compiled = files.map(COMPILED_TOKENIZER) if COMPILED_TOKENIZER in manifest.files else None
        states = StateSpec.from_model(model, f"{root}: model.json")
        needed = manifest.content_id
        if opened is not None and opened.info.states and states is None:  # a mid-fusion student's has all a cross student reads, and more
            needed = content_id(tokenizer, spec, model["text"], opened.info.states.to_json())
        if opened is not None and opened.info.content_id != needed:
            raise BundleError(
                f"the catalogue was built for content_id {opened.info.content_id} (model {opened.info.model_version}), but {root} has "
                f"content_id {manifest.content_id} (model {manifest.model_version}); run `edgerec build-catalog` with this bundle"
            )
        if opened is not None and states is not None and opened.info.states != states:
            raise BundleError(f"the catalogue keeps the item states {opened.info.states}, not those of {root}; build it again")
        if opened is not None and opened.info.fields != (features.item_fields if features else ()):
            raise BundleError(f"the catalogue has columns for the fields {opened.info.fields}, not for those of {root}; build it again")
        vectors, head = head_of_model(model, states, files.read, f"{root}: ")
        if opened is not None and vectors is not None and opened.info.vectors not in (None, vectors):
            raise BundleError(f"the catalogue has the vectors of another retrieval head than {root}; build the catalogue again")
        # Several batches at once on one thread each: ONNX Runtime's own threads wait for each other at every operator.
        lanes, threads = (threads or usable_cores(), 1) if manifest.backend == "ort" else (1, threads)
        text = TextEncoder(root / "tokenizer.json", text_spec, compiled=compiled, content=tokenizer)
        engine = open_engine(files, threads=threads)
        keep_tables(engine, opened, wait=True)
        return cls(manifest, text, features, engine, opened, lanes, inline_cache_bytes, head)

    def rank(
        self,
        query: str,
        candidates: Iterable[Candidate],
        *,
        top_k: int = 10,
        user: UserProfile | None = None,
        context: Mapping[str, str] | None = None,
        deadline_ms: float | None = None,
    ) -> RankedList:
        """The best `top_k` of the candidates, best first. No argument is changed.

        Parameters
        ----------
        query : any text; only its first tokens count (`TextSpec.max_query_tokens`).
        candidates : ids of the catalogue, `Item` objects, or mappings with the keys of a line of `corpus.jsonl`; may be mixed.
            Their order decides ties. An id that is unknown, or that came before, is listed in `RankedList.skipped`.
        top_k : at least 1; more than there are candidates returns all.
        user, context : what else the feature spec may read.
        deadline_ms : milliseconds from now after which no further candidate is scored; None: all are. Those left out follow the scored
            ones in their own order, with NaN as score; `RankedList.degraded` and `RankedList.reason` say so. It is never an error.

        Raises
        ------
        InputError : an argument of another type or value, or an id without a catalogue.
        EngineError : the engine failed, or the ranker is closed.
        """
        clock, deadline = Clock(), Deadline.after(deadline_ms)
        wanted = at_least_one("top_k", top_k)
        found = sort_out(candidates, self.newest())
        clock.lap("lookup")
        return self._rank(query, found, wanted, user, context, clock, deadline)

    def _rank(
        self,
        query: str,
        found: Candidates,
        wanted: int,
        user: UserProfile | None,
        context: Mapping[str, str] | None,
        clock: Clock,
        deadline: Deadline,
    ) -> RankedList:
        top = _core.TopK(min(wanted, len(found.ids)))
        skipped = list(found.skipped)
        seen: list[NDArray[np.int64]] = []
        for positions, logits in self._score(query, found, user, context, clock, deadline):
            seen.append(positions)
            if top.push_at(logits, positions):
                skipped += [(i, "score is NaN") for i in positions[np.isnan(logits)].tolist()]
        places, scores = top.finish()
        late = found.left_out(seen) if deadline.ns else []
        unscored = late[: wanted - len(places)]
        note = self.note
        result = RankedList(
            ids=tuple(map(found.ids.__getitem__, [*places.tolist(), *unscored])),
            scores=np.concatenate([scores, np.full(len(unscored), np.nan, np.float32)]) if unscored else scores,
            skipped=tuple((found.ids[i], reason) for i, reason in sorted(skipped)) if skipped else (),
            timings_us=clock.us,
            model_version=self.manifest.model_version,
            degraded=bool(late or note),
            reason="; ".join(filter(None, (_too_late(late, found, deadline), note))),
        )
        clock.lap("select")
        return result

    def score(
        self,
        query: str,
        candidates: Iterable[Candidate],
        *,
        user: UserProfile | None = None,
        context: Mapping[str, str] | None = None,
    ) -> NDArray[np.float32]:
        """The score of every candidate, float32 [N], in the order given; NaN for an unknown id.

        An id that came before has the score of its first place. Parameters and errors as in `rank`.
        """
        found = sort_out(candidates, self.newest())
        scores, _ = self.score_found(query, found, user, context, Clock(), Deadline())
        for position, first in found.duplicates.items():
            scores[position] = scores[first]
        return scores

    def retrieve(
        self,
        query: str,
        *,
        top_k: int = 10,
        n: int = FOUND,
        user: UserProfile | None = None,
        context: Mapping[str, str] | None = None,
        deadline_ms: float | None = None,
    ) -> RankedList:
        """The best `top_k` items of the whole catalogue, without a first stage: the nearest by vector are found, and then ranked.

        Parameters
        ----------
        n : how many are found; at least `top_k` are.
        query, top_k, user, context, deadline_ms : as in `rank`; the items found are the candidates, nearest first. Finding them is not
            broken off.

        Returns
        -------
        As `rank`; ``timings_us`` has ``retrieve``, which ``total`` includes.

        Raises
        ------
        InputError : a wrong argument, or a student or catalogue without vectors. EngineError : as `rank`.
        """
        clock, deadline = Clock(), Deadline.after(deadline_ms)
        wanted = at_least_one("top_k", top_k)
        found, _ = self._nearest(query, max(wanted, at_least_one("n", n)))
        clock.us["retrieve"] = 0.0
        clock.lap("retrieve")
        return self._rank(query, found, wanted, user, context, clock, deadline)

    def nearest(self, query: str, n: int) -> tuple[list[str], NDArray[np.float32]]:
        """The ids of the `n` items whose vectors are nearest to the query's, and their scores, float32 [K], about cosines.

        Raises
        ------
        InputError : a wrong argument, or a student or catalogue without vectors. EngineError : as `rank`.
        """
        found, scores = self._nearest(query, at_least_one("n", n))
        return list(found.ids), scores

    def _nearest(self, query: str, n: int) -> tuple[Candidates, NDArray[np.float32]]:
        _check_request(query, None, None)
        return self._retriever.find(self._text.encode_query(query), n, self.newest())

    @property
    def note(self) -> str:
        """Why another engine than the bundle's scores, as where a GPU failed; else empty. Every result repeats it."""
        note: str = getattr(self._engine, "note", "")
        return note

    def score_found(
        self,
        query: str,
        found: Candidates,
        user: UserProfile | None,
        context: Mapping[str, str] | None,
        clock: Clock,
        deadline: Deadline,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """For each of the caller's places the score, float32 [N], NaN without one, and whether there was time for it, bool [N]."""
        scores, done = np.full(len(found.ids), np.nan, np.float32), np.zeros(len(found.ids), np.bool_)
        for positions, logits in self._score(query, found, user, context, clock, deadline):
            scores[positions], done[positions] = logits, True
        return scores, done

    def close(self) -> None:
        """Release the engine and its threads; ranking afterwards raises EngineError."""
        self._engine.close()
        self._lanes.close()

    def __enter__(self) -> Ranker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _score(
        self,
        query: str,
        found: Candidates,
        user: UserProfile | None,
        context: Mapping[str, str] | None,
        clock: Clock,
        deadline: Deadline,
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Encode and score, batch by batch, while there is time: yields places in the caller's list, int64 [B], and logits, float32 [B]."""
        _check_request(query, user, context)
        query_tokens = self._text.encode_query(query)
        query_features = self._features.encode_query(query, user, context) if self._features else None
        run = partial(self._run, self._engine, deadline)
        asked = None
        for table in self._tables(found, deadline):
            asked = self._ask(query_tokens) if asked is None else asked
            for wave in self._batches(asked, query_features, table):
                clock.lap("encode")
                results = self._lanes.map(run, [batch for _, batch in wave])
                clock.lap("score")
                for (positions, _), (logits, done) in zip(wave, results, strict=True):
                    yield (positions, logits) if done.all() else (positions[done], logits[done])
                clock.lap("select")
                if deadline.over:
                    return

    def newest(self) -> Catalog | None:
        """The catalogue as it is now; a request keeps to it from its first look-up to its end."""
        if self.catalog is None:
            return None
        before, newest = self.catalog, self.catalog.refresh()
        if newest is not before:
            keep_tables(self._engine, newest, wait=False)
        self.catalog = newest
        return newest  # not self.catalog: another request may just have put the one that it saw there

    def _tables(self, found: Candidates, deadline: Deadline) -> Iterator[Table]:
        if found.catalog is not None and len(found.rows) and not deadline.over:
            yield Table(found.row_positions, *found.catalog.take(found.rows))
        if found.items and not deadline.over:
            tokens, offsets = self._text.encode_items([self._text.item_text(item) for item in found.items])
            features = self._features.encode_items(found.items) if self._features else NO_FEATURES
            if self._inline is None:
                yield Table(found.item_positions, np.arange(len(found.items)), tokens, offsets, features)
                return
            states, done = self._inline.encode(tokens, offsets, deadline)
            if done.any():
                yield Table(found.item_positions[done], np.flatnonzero(done), tokens, offsets, features, states)


def _as_it_is(query_tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    return query_tokens


def _too_late(late: list[int], found: Candidates, deadline: Deadline) -> str:
    return f"{len(late)} of {found.count} candidates were not scored within {deadline.ms:g} ms" if late else ""


def _check_request(query: Any, user: Any, context: Any) -> None:
    if not isinstance(query, str):
        raise InputError(f"the query must be a str, got {type(query).__name__}")
    if user is not None and not isinstance(user, UserProfile):
        raise InputError(f"user must be a UserProfile, got {type(user).__name__}")
    if context is not None and not isinstance(context, Mapping):
        raise InputError(f"context must be a mapping of str to str, got {type(context).__name__}")

"""The serve path: what comes back for every kind of input, however it is batched and from however many threads."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fixtures_export import WORDS, make_export
from fixtures_ranker import IDS, ITEMS, SCORE_TOLERANCE, USER, make_shop
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec import Item, Ranker, UserProfile, ranker_batches
from edgerec.builder import build_engine
from edgerec.errors import InputError
from edgerec.types import Batch

BY_ID = {item.id: item for item in ITEMS}


@pytest.fixture(scope="module", params=["ort", "native"])
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, backend):
    return make_shop(tmp_path_factory.mktemp("ranker"), backend)


@pytest.fixture(scope="module")
def ranker(folder):
    with Ranker.open(folder / "bundle", catalog=folder / "catalog", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def featureless(tmp_path_factory):
    folder = tmp_path_factory.mktemp("featureless")
    make_export(folder / "export", features=False)
    build_engine(folder / "export", folder / "bundle")
    with Ranker.open(folder / "bundle", threads=1) as opened:
        yield opened


def order_of(scores, k):
    """Positions of the k best by the documented order: score descending, then candidate order; NaN never."""
    return sorted((i for i, s in enumerate(scores) if not math.isnan(s)), key=lambda i: (-scores[i], i))[:k]


def assert_same(a, b):
    assert a.ids == b.ids
    assert a.skipped == b.skipped
    np.testing.assert_array_equal(a.scores, b.scores)


# -------------------------------------------------------------------------------------------------------- the answer


@pytest.mark.parametrize("top_k", [1, 10, 299, 300, 301, 10**12])
def test_rank_is_score_in_the_documented_order(ranker, top_k):
    scores = ranker.score("red desk lamp", IDS)
    result = ranker.rank("red desk lamp", IDS, top_k=top_k)
    best = order_of(scores, top_k)
    assert result.ids == tuple(IDS[i] for i in best)
    np.testing.assert_array_equal(result.scores, scores[best])
    assert (scores.dtype, result.scores.dtype, scores.shape) == (np.float32, np.float32, (300,))
    assert result.skipped == ()
    assert not result.degraded
    assert len(set(scores.tolist())) > 250


def test_result_says_what_was_run_and_how_long_it_took(ranker):
    result = ranker.rank("red lamp", IDS)
    assert result.model_version == ranker.manifest.model_version
    assert list(result.timings_us) == ["lookup", "encode", "score", "select", "total"]
    stages = [result.timings_us[stage] for stage in ("lookup", "encode", "score", "select")]
    assert all(us > 0 for us in stages)
    assert sum(stages) == pytest.approx(result.timings_us["total"])


def test_scores_are_those_of_rows_made_without_the_serve_path(ranker):
    """Token rows and features put together here, one row a batch, straight into the engine."""
    query = "red desk lamp"
    text, features = ranker._text, ranker._features
    scores = ranker.score(query, IDS[:40], user=USER)
    for item, score in zip(ITEMS[:40], scores, strict=True):
        head = [2, *text.encode_query(query).tolist(), 3]
        item_tokens = text.encode_items([item.title])[0].tolist()[: text.spec.max_tokens - len(head) - 1]
        row = [*head, *item_tokens, 3]
        types = [0] * len(head) + [1] * (len(row) - len(head))
        ids, weights = features.encode_rows(features.encode_query(query, USER), features.encode_items([item]), np.zeros(1, np.int64))
        batch = Batch(np.array([row], np.int32), np.ones((1, len(row)), np.int32), np.array([types], np.int32), ids, weights)
        assert ranker._engine.run(batch)[0] == pytest.approx(score, abs=SCORE_TOLERANCE)


def test_whole_items_score_as_their_catalogue_rows(ranker):
    from_catalog = ranker.score("red desk lamp", IDS[:50], user=USER)
    np.testing.assert_allclose(ranker.score("red desk lamp", ITEMS[:50], user=USER), from_catalog, atol=SCORE_TOLERANCE)


@settings(max_examples=25)
@given(data=st.data())
def test_ids_items_and_mappings_may_be_mixed_in_any_order(ranker, data):
    chosen = data.draw(st.lists(st.sampled_from(IDS), max_size=40, unique=True))
    forms = [lambda i: i, BY_ID.get, lambda i: {"_id": i, "title": BY_ID[i].title, "brand": BY_ID[i].brand, "price": BY_ID[i].price}]
    mixed = [data.draw(st.sampled_from(forms))(i) for i in chosen]
    expected = ranker.score("red lamp", chosen)
    np.testing.assert_allclose(ranker.score("red lamp", mixed), expected, atol=SCORE_TOLERANCE)
    result = ranker.rank("red lamp", mixed, top_k=5)
    assert len(result) == min(5, len(chosen))
    np.testing.assert_allclose(result.scores, sorted(expected, reverse=True)[:5], atol=SCORE_TOLERANCE)


@pytest.mark.parametrize(("rows", "tokens"), [(1, 2048), (7, 2048), (1000, 10**6), (16, 40), (16, 1)])
def test_the_answer_does_not_depend_on_the_batches(ranker, monkeypatch, rows, tokens):
    expected = ranker.score("red desk lamp", IDS)
    monkeypatch.setattr(ranker_batches, "BATCH_ROWS", rows)
    monkeypatch.setattr(ranker_batches, "BATCH_TOKENS", tokens)
    np.testing.assert_allclose(ranker.score("red desk lamp", IDS), expected, atol=SCORE_TOLERANCE)


@pytest.mark.parametrize("backend", ["ort"], indirect=True, scope="module")  # native takes all rows in one call
def test_batches_keep_their_limits_and_put_like_lengths_together(ranker, monkeypatch):
    seen = []
    run = ranker._engine.run
    monkeypatch.setattr(type(ranker._engine), "run", lambda self, batch: (seen.append(batch.input_ids.shape), run(batch))[1])
    monkeypatch.setattr(ranker_batches, "BATCH_TOKENS", 200)
    ranker.score("red desk lamp", IDS)
    assert sum(rows for rows, _ in seen) == 300
    assert all(rows <= ranker_batches.BATCH_ROWS and rows * width <= 200 for rows, width in seen)
    widths = [width for _, width in seen]
    assert widths == sorted(widths, reverse=True)


def test_sixteen_threads_get_the_answers_of_one(ranker):
    def run(i):
        return ranker.rank(f"red lamp {WORDS[i % len(WORDS)]}", IDS[i : i + 60] + ITEMS[:5], user=USER)

    serial = [run(i) for i in range(96)]
    with ThreadPoolExecutor(16) as pool:
        for got, expected in zip(pool.map(run, range(96)), serial, strict=True):
            assert_same(got, expected)


def test_user_and_context_reach_the_features(ranker):
    acme = [item.id for item in ITEMS if item.brand == "acme"]
    with_user, without = ranker.score("red lamp", acme, user=USER), ranker.score("red lamp", acme)
    assert (with_user != without).all()
    np.testing.assert_array_equal(ranker.score("red lamp", acme, context={"device": "phone"}), without)  # no field reads it


def test_a_model_without_features_ranks_whole_items(featureless):
    result = featureless.rank("red lamp", ITEMS[:20], top_k=3, user=USER)
    assert len(result) == 3
    np.testing.assert_array_equal(featureless.score("red lamp", ITEMS[:20]), featureless.score("red lamp", ITEMS[:20], user=USER))


# ---------------------------------------------------------------------------------------------------- odd candidates


@pytest.mark.parametrize("empty", [[], (), iter(()), np.array([], str)])
def test_no_candidates_give_an_empty_list(ranker, empty):
    empty = tuple(empty)
    result = ranker.rank("red lamp", empty)
    assert (result.ids, result.skipped, len(result), result.scores.dtype) == ((), (), 0, np.float32)
    assert ranker.score("red lamp", empty).shape == (0,)


def test_one_candidate(ranker):
    result = ranker.rank("red lamp", ["i7"])
    assert result.ids == ("i7",)
    assert result.scores.tolist() == ranker.score("red lamp", ["i7"]).tolist()


def test_unknown_ids_are_skipped_and_score_nan(ranker):
    result = ranker.rank("red lamp", ["i1", "nowhere", "", "i2", "\ud800", "i1 "])
    assert set(result.ids) == {"i1", "i2"}
    assert result.skipped == (("nowhere", "unknown id"), ("", "unknown id"), ("\ud800", "unknown id"), ("i1 ", "unknown id"))
    assert np.isnan(ranker.score("red lamp", ["i1", "nowhere", "i2"])).tolist() == [False, True, False]
    assert ranker.rank("red lamp", ["nowhere"]).ids == ()


def test_of_duplicates_the_first_is_ranked_and_all_have_its_score(ranker):
    candidates = ["i1", "i2", "i1", "nowhere", "nowhere", Item("i2", "another title"), "i1"]
    result = ranker.rank("red lamp", candidates)
    assert sorted(result.ids) == ["i1", "i2"]
    assert result.skipped == (
        ("i1", "duplicate"),
        ("nowhere", "unknown id"),
        ("nowhere", "unknown id"),
        ("i2", "duplicate"),
        ("i1", "duplicate"),
    )
    scores = ranker.score("red lamp", candidates)
    expected = ranker.score("red lamp", ["i1", "i2"])
    np.testing.assert_array_equal(scores[[0, 1, 2, 5, 6]], expected[[0, 1, 0, 1, 0]])
    assert np.isnan(scores[3:5]).all()


def test_a_whole_item_may_follow_the_same_id_unknown_to_the_catalogue(ranker):
    result = ranker.rank("red lamp", ["new", Item("new", "red lamp")])
    assert result.ids == ("new",)
    assert result.skipped == (("new", "unknown id"),)


def test_a_whole_item_is_scored_by_its_own_content_not_by_the_catalogue(ranker):
    changed = Item("i1", "blue garden bench", brand="nordic")
    assert ranker.score("red lamp", [changed])[0] != ranker.score("red lamp", ["i1"])[0]


def test_equal_scores_keep_candidate_order(ranker):
    twins = [Item(f"twin {i}", "red lamp") for i in range(10)]
    assert ranker.rank("red lamp", twins).ids == tuple(twin.id for twin in twins)


def test_ten_thousand_candidates(ranker):
    many = [Item(f"x{i}", f"{WORDS[i % 40]} {WORDS[i // 40 % 40]}") for i in range(10_000 - 300)]
    result = ranker.rank("red lamp", [*many, *IDS], top_k=20)
    scores = ranker.score("red lamp", [*many, *IDS])
    np.testing.assert_array_equal(result.scores, np.sort(scores)[::-1][:20])


def test_any_iterable_is_read_once(ranker):
    assert_same(ranker.rank("red lamp", (i for i in IDS)), ranker.rank("red lamp", IDS))
    assert_same(ranker.rank("red lamp", np.array(IDS)), ranker.rank("red lamp", IDS))
    assert_same(ranker.rank("red lamp", dict.fromkeys(IDS).keys()), ranker.rank("red lamp", IDS))


def test_a_nan_from_the_engine_is_never_selected_and_is_reported(ranker, monkeypatch):
    def run(self, batch, **_):
        return np.full(batch.size, np.nan, np.float32)

    for name in ("run", "run_ragged"):
        monkeypatch.setattr(type(ranker._engine), name, run, raising=False)
    result = ranker.rank("red lamp", ["i1", "nowhere", "i2"])
    assert result.ids == ()
    assert result.skipped == (("i1", "score is NaN"), ("nowhere", "unknown id"), ("i2", "score is NaN"))


# --------------------------------------------------------------------------------------------------------- odd text

QUERIES = {
    "empty": "",
    "blank": " \t\n",
    "100 kB of words": "red lamp " * 11_000,
    "100 kB without a space": "x" * 100_000,
    "100 kB of emoji": "\U0001f6cb" * 25_000,
    "NUL": "red\x00lamp",
    "lone surrogates": "\ud800 red \udfff",
    "right to left": "\u202e\u05de\u05e0\u05d5\u05e8\u05d4",
    "combining": "e" + "\u0301" * 500,
}


@pytest.mark.parametrize("name", QUERIES)
def test_any_query_has_an_answer(ranker, name):
    result = ranker.rank(QUERIES[name], IDS[:30], top_k=30)
    assert sorted(result.ids) == sorted(IDS[:30])
    assert np.isfinite(result.scores).all()


@pytest.mark.parametrize("name", QUERIES)
def test_any_item_text_has_an_answer(ranker, name):
    scores = ranker.score("red lamp", [Item("odd", QUERIES[name], brand=QUERIES[name]), "i1"])
    assert np.isfinite(scores).all()


def test_nul_and_blank_have_the_documented_meaning(ranker):
    np.testing.assert_array_equal(ranker.score("red\x00lamp", IDS[:20]), ranker.score("red lamp", IDS[:20]))
    np.testing.assert_array_equal(ranker.score("  ", IDS[:20]), ranker.score("", IDS[:20]))


@settings(max_examples=40)
@given(query=st.text(st.characters(categories=None), max_size=200), title=st.text(st.characters(categories=None), max_size=200))
def test_any_text_gives_a_finite_score(ranker, query, title):
    assert np.isfinite(ranker.score(query, [Item("1", title), "i1"])).all()


# ------------------------------------------------------------------------------------------------------ wrong calls

WRONG = {
    "query None": ((None, IDS), {}, "the query must be a str"),
    "query bytes": ((b"red", IDS), {}, "the query must be a str"),
    "query int": ((3, []), {}, "the query must be a str"),
    "candidates str": (("red", "i1"), {}, "got one str; put it in a list"),
    "candidates bytes": (("red", b"i1"), {}, "got one bytes"),
    "candidates mapping": (("red", {"_id": "i1"}), {}, "got one dict"),
    "candidates None": (("red", None), {}, "got one NoneType"),
    "candidates int": (("red", 3), {}, "got one int"),
    "candidate None": (("red", ["i1", None]), {}, "candidate 1 is a NoneType"),
    "candidate int": (("red", [7]), {}, "candidate 0 is a int"),
    "candidate bytes": (("red", [b"i1"]), {}, "candidate 0 is a bytes"),
    "mapping without an id": (("red", [{"title": "lamp"}]), {}, "candidate 0: not an item"),
    "mapping with a title that is no text": (("red", [{"_id": "1", "title": 3}]), {}, "must be strings"),
    "item without a title": (("red", [Item("1", None)]), {}, "candidate 0: title is a NoneType"),
    "item with an id that is no text": (("red", [Item(1, "lamp")]), {}, "candidate 0: id is a int"),
    "item with a price that is no number": (("red", [Item("1", "lamp", price="cheap")]), {}, "price must be a number"),
    "item with wrong attributes": (("red", [Item("1", "lamp", attributes={"a": 1})]), {}, "attributes must map str to str"),
    "user": (("red", IDS), {"user": "u1"}, "user must be a UserProfile"),
    "user weights": (("red", IDS), {"user": UserProfile(brands={"acme": math.inf})}, "must be finite"),
    "context": (("red", IDS), {"context": [("a", "b")]}, "context must be a mapping"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_an_input_error_that_says_which(ranker, case):
    arguments, options, message = WRONG[case]
    for call in (ranker.rank, ranker.score):
        with pytest.raises(InputError, match=message):
            call(*arguments, **options)


@pytest.mark.parametrize(("top_k", "message"), [(0, "top_k is 0"), (-3, "top_k is -3"), (1.5, "must be an int"), ("5", "must be an int")])
def test_a_wrong_top_k_is_an_input_error(ranker, top_k, message):
    with pytest.raises(InputError, match=message):
        ranker.rank("red", IDS, top_k=top_k)


def test_ids_without_a_catalogue_are_an_input_error_that_says_what_to_do(featureless):
    with pytest.raises(InputError, match="open the ranker with catalog="):
        featureless.rank("red", [ITEMS[0], "i1"])


def test_arguments_are_not_changed(ranker):
    candidates = ["i1", Item("a", "lamp", attributes={"a": "b"}), {"_id": "b", "title": "red", "more": [1]}, "nowhere", "i1"]
    user, context = UserProfile("u", {"Acme": 0.5}), {"device": "phone"}
    before = copy.deepcopy((candidates, user, context))
    ranker.rank("red lamp", candidates, user=user, context=context)
    ranker.score("red lamp", candidates, user=user, context=context)
    assert (candidates, user, context) == before

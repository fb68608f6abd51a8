"""The mid-fusion student: it starts as the cross-encoder it comes from, with a mask; items are a function of themselves; it trains."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgerec.training.config import LossSettings, StudentSettings
from edgerec.training.data import load_dataset
from edgerec.training.distill import distill
from edgerec.training.loop import set_dropout
from edgerec.training.mid import MidShape, MidStudent, as_stored, view_left
from edgerec.training.mid_start import item_sample, mid_from_cross, reduced_rank
from edgerec.training.pairs import Pairs, TokenTable, judged_pairs
from edgerec.training.prune import prune
from edgerec.training.student import MASKED, Student, StudentScorer, student_from_encoder
from fixtures_tiny import tiny_recipe, write_base_model
from torch import Tensor

from edgerec.errors import InputError
from edgerec.features import FeatureEncoder, default_spec
from edgerec.text import TextEncoder, text_spec_from_tokenizer
from edgerec.types import Item

DISTILL = LossSettings(bce=0.3, mse=0.5, margin_mse=0.5)
MID = StudentSettings(interaction="mid", query_layers=2, buckets=256, slots=8, feature_dim=4, feature_hidden=4)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of four layers, with the GELU that is less usual: both sides must take it over."""
    return write_base_model(tmp_path_factory.mktemp("deep") / "bert", layers=4, gelu="gelu_new")


@pytest.fixture(scope="module")
def text(deep: Path) -> TextEncoder:
    path = deep / "tokenizer.json"
    return TextEncoder(path, text_spec_from_tokenizer(path, max_tokens=32, max_query_tokens=12, item_fields=["title"]))


@pytest.fixture(scope="module")
def cross(deep: Path) -> Student:
    torch.manual_seed(3)
    student = student_from_encoder(deep, buckets=256, feature_dim=4, feature_hidden=4)
    for name, parameter in student.named_parameters():  # a new encoder hardly looks at anything, and its biases are zero
        torch.nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.2)
    return student.eval()


@pytest.fixture(scope="module")
def pairs(shop: Path) -> Pairs:
    return judged_pairs([load_dataset(shop)], "train")


def mid_scorer(cross: Student, text: TextEncoder, pairs: Pairs, settings: StudentSettings) -> StudentScorer:
    student = mid_from_cross(cross, text.spec, settings, item_sample(pairs, text, seed=0))
    return StudentScorer(student, text, FeatureEncoder(default_spec(buckets=256, slots=8)))


def masked_cross(scorer: StudentScorer, cross: Student, query: str, item: Item, lower: int, closed: float = MASKED) -> float:
    """The cross student itself: item rows never see the query, query rows see the item from layer `lower` on.

    `closed` is what is added to the attention scores of what is not seen.
    """
    spec, tower = scorer.text.spec, cross.tower
    head = [*spec.prefix, *scorer.text.encode_query(query), *spec.middle]
    tail = [*scorer.text.encode_items([scorer.text.item_text(item)])[0], *spec.suffix]
    start = len(spec.prefix) + spec.max_query_tokens + len(spec.middle)
    ids = torch.tensor([[*head, *tail]])
    positions = torch.tensor([*range(len(head)), *range(start, start + len(tail))])
    types = torch.tensor([spec.query_type] * len(head) + [spec.item_type] * len(tail))
    x: Tensor = tower.embedding_norm(tower.word_embeddings(ids) + tower.position_embeddings(positions) + tower.type_embeddings(types))
    for number, layer in enumerate(tower.layers):
        mask = torch.zeros(1, 1, len(positions), len(positions))
        mask[:, :, len(head) :, : len(head)] = closed
        if number < lower:
            mask[:, :, : len(head), len(head) :] = closed
        x = layer(x, mask, first_row_only=False)
    assert tower.pooler is not None
    pooled = torch.tanh(tower.pooler(x[:, 0]))
    assert scorer.features is not None
    ids_and_weights = scorer.features.encode_rows(scorer.features.encode_query(query), scorer.features.encode_items([item]), np.array([0]))
    assert cross.features is not None
    hashed = cross.features(*(torch.from_numpy(part) for part in ids_and_weights))
    return float(cross.head(torch.cat([pooled, hashed], dim=1)))


@pytest.mark.parametrize("lower", [1, 2, 3])
@torch.no_grad()
def test_per_layer_states_of_full_width_are_the_cross_encoder_with_a_mask(
    cross: Student, text: TextEncoder, pairs: Pairs, lower: int
) -> None:
    scorer = mid_scorer(cross, text, pairs, replace(MID, query_layers=lower))
    items = list(pairs.items)
    for query in ("blue sofa", "", "red red red red lamp of a shelf, the chair of that table and a sofa in black"):
        expected = [masked_cross(scorer, cross, query, item, lower) for item in items]
        np.testing.assert_allclose(scorer.score(query, items), expected, atol=1e-5)
        assert np.std(expected) > 1e-3


@pytest.mark.parametrize("lower", [1, 2, 3])
@pytest.mark.parametrize("view", [1.0, 0.25, 1e-30])
@torch.no_grad()
def test_a_view_that_closes_goes_from_the_cross_encoder_to_the_mask(
    cross: Student, text: TextEncoder, pairs: Pairs, lower: int, view: float
) -> None:
    scorer = mid_scorer(cross, text, pairs, replace(MID, query_layers=lower))
    assert isinstance(scorer.student, MidStudent)
    scorer.student.train()
    set_dropout(scorer.student, 0.0)
    scorer.student.view = view
    places = np.arange(0, len(pairs), 5)
    seen = scorer.forward(TokenTable(pairs, text), scorer.hash(pairs), places).numpy()
    asked = [(pairs.query_texts[pairs.query[i]], pairs.items[pairs.item[i]]) for i in places]
    np.testing.assert_allclose(seen, [masked_cross(scorer, cross, q, i, lower, math.log(view)) for q, i in asked], atol=1e-5)
    closed = scorer.score_pairs(pairs, places)  # what is served sees nothing of it
    np.testing.assert_allclose(closed, [masked_cross(scorer, cross, q, i, lower) for q, i in asked], atol=1e-5)
    assert np.abs(seen - closed).max() > 1e-3 or view < 1e-20


@pytest.mark.parametrize("name", ["a shallow item encoder", "one, narrow, int8", "one, of all layers, fp16"])
@torch.no_grad()
def test_a_view_that_is_nearly_closed_is_the_student_that_is_served(cross: Student, text: TextEncoder, pairs: Pairs, name: str) -> None:
    scorer = mid_scorer(cross, text, pairs, replace(MID, **SHAPES[name]))
    assert isinstance(scorer.student, MidStudent)
    served = scorer.score_pairs(pairs)
    scorer.student.train()
    set_dropout(scorer.student, 0.0)
    scorer.student.view = 1e-30
    rows = scorer.forward(TokenTable(pairs, text), scorer.hash(pairs), np.arange(len(pairs))).numpy()
    np.testing.assert_allclose(rows, served, atol=1e-5)


def test_the_view_closes_over_its_share_of_the_steps() -> None:
    assert [view_left(progress, 0.5) for progress in (0.0, 0.125, 0.25, 0.5, 0.9)] == [1.0, 0.75, 0.5, 0.0, 0.0]
    assert [view_left(progress, 0.0) for progress in (0.0, 0.5)] == [0.0, 0.0]


@torch.no_grad()
def test_one_state_of_a_height_that_one_layer_reads_needs_no_fit(cross: Student, text: TextEncoder, pairs: Pairs) -> None:
    one, each = (mid_scorer(cross, text, pairs, replace(MID, query_layers=3, states=states)) for states in ("one", "per_layer"))
    np.testing.assert_array_equal(one.score("blue sofa", pairs.items), each.score("blue sofa", pairs.items))


SHAPES: dict[str, dict[str, Any]] = {
    "per layer": {},
    "per layer, narrow": {"state_width": 16, "state_precision": "int8"},
    "a shallow item encoder": {"item_layers": 1},
    "one, full width": {"states": "one"},
    "one, narrow, int8": {"states": "one", "state_width": 8, "state_precision": "int8", "query_layers": 1},
    "one, of all layers, fp16": {"states": "one", "item_layers": 4, "state_precision": "fp16"},
}


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_a_score_does_not_depend_on_the_other_pairs(cross: Student, text: TextEncoder, pairs: Pairs, name: str) -> None:
    settings = replace(MID, **SHAPES[name])
    scorer = mid_scorer(cross, text, pairs, settings)
    together = scorer.score_pairs(pairs)
    places = np.random.default_rng(0).permutation(len(pairs))[:12]
    alone = [float(scorer.score(pairs.query_texts[pairs.query[i]], [pairs.items[pairs.item[i]]])[0]) for i in places]
    # A float32's last place, which does depend on the company, may decide how a state is rounded: 2.6e-5 was seen of fp16.
    atol = {"fp32": 1e-5, "fp16": 1e-4, "int8": 1e-3}[settings.state_precision]
    np.testing.assert_allclose(together[places], alone, atol=atol)
    np.testing.assert_allclose(scorer.score_pairs(pairs, places), alone, atol=atol)
    assert np.isfinite(together).all()


@torch.no_grad()
def test_the_fit_of_narrow_states_comes_close_and_closer_with_width(cross: Student, text: TextEncoder, pairs: Pairs) -> None:
    whole = mid_scorer(cross, text, pairs, replace(MID, query_layers=3)).score_pairs(pairs)
    gaps = [
        float(np.abs(mid_scorer(cross, text, pairs, replace(MID, query_layers=3, state_width=width)).score_pairs(pairs) - whole).mean())
        for width in (4, 12, 31)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.05 * whole.std()


def test_reduced_rank_finds_what_a_linear_map_made() -> None:
    torch.manual_seed(0)
    x, hidden = torch.randn(400, 12, dtype=torch.float64) + 3, torch.randn(12, 3, dtype=torch.float64)
    blocks = [x @ hidden @ torch.randn(3, 5, dtype=torch.float64) * size + 7 for size in (1.0, 100.0)]
    narrow, maps = reduced_rank(x, blocks, 3)
    numbers = (x - x.mean(0)) @ narrow
    for block, (wide, offset) in zip(blocks, maps, strict=True):
        torch.testing.assert_close(numbers @ wide + offset, block)
    torch.testing.assert_close(numbers.T @ numbers / len(x), torch.eye(3, dtype=torch.float64))


def test_stored_states_are_rounded_and_let_gradients_through() -> None:
    torch.manual_seed(0)
    states = (torch.randn(3, 5, 8) * torch.tensor([1.0] * 4 + [100.0] * 4)).requires_grad_()
    assert as_stored(states, "fp32", 4) is states
    torch.testing.assert_close(as_stored(states, "fp16", 4), states, rtol=1e-3, atol=0)
    rounded = as_stored(states, "int8", 4)
    largest = states.detach().unflatten(2, (2, 4)).abs().amax(3)  # type: ignore[no-untyped-call]
    assert bool(((rounded - states).abs() <= largest.repeat_interleave(4, 2) / 254 * 1.001).all())
    assert float((rounded - states).detach().abs().max()) > 0
    rounded.sum().backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None
    assert bool((states.grad == 1).all())
    assert bool((as_stored(torch.zeros(1, 1, 4), "int8", 4) == 0).all())


@pytest.fixture(scope="module")
def trained(deep: Path, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgerec.training.teacher import train_teacher

    root = tmp_path_factory.mktemp("mid")
    train_teacher([shop], str(deep), tiny_recipe(), root / "teacher")
    settings = replace(MID, states="one", state_width=16, state_precision="int8")
    distill(root / "teacher", [shop], tiny_recipe(loss=DISTILL, student=settings), root / "student")
    return root / "student"


def test_a_mid_student_trains_and_opens_as_it_was(trained: Path, pairs: Pairs) -> None:
    info = json.loads((trained / "training.json").read_text())
    assert info["student"]["interaction"] == "mid"
    assert (info["student"]["state_width"], info["student"]["state_precision"], info["student"]["item_layers"]) == (16, "int8", 3)
    scorer = StudentScorer.load(trained)
    assert isinstance(scorer.student, MidStudent)
    assert dataclasses.asdict(scorer.student.shape) == {**info["student"], "layer_heads": (), "layer_intermediate": ()}
    assert np.isfinite(scorer.score_pairs(pairs)).all()


def test_a_cross_student_becomes_a_mid_student_and_that_one_learns_on_as_it_is(
    trained: Path, shop: Path, pairs: Pairs, tmp_path: Path
) -> None:
    teacher, still = trained.with_name("teacher"), tiny_recipe(loss=DISTILL)
    still = replace(still, fit=replace(still.fit, learning_rate=1e-12, feature_learning_rate=1e-12))
    cross = replace(still, student=replace(MID, interaction="cross"))
    distill(teacher, [shop], cross, tmp_path / "cross")
    settings = replace(MID, init=str(tmp_path / "cross"), states="one", state_width=16, state_precision="int8")
    distill(teacher, [shop], replace(still, student=settings), tmp_path / "mid")
    scorer, made = StudentScorer.load(tmp_path / "cross"), StudentScorer.load(tmp_path / "mid")
    assert isinstance(scorer.student, Student)
    student = mid_from_cross(scorer.student, scorer.text.spec, settings, item_sample(pairs, scorer.text, seed=0))
    expected = StudentScorer(student, scorer.text, scorer.features).score_pairs(pairs)
    assert np.abs(made.score_pairs(pairs) - expected).max() < 1e-4
    onward = replace(settings, init=str(tmp_path / "mid"))
    for number, same in enumerate((onward, StudentSettings(init=str(tmp_path / "mid")))):
        out = tmp_path / f"on-{number}"
        distill(teacher, [shop], replace(still, student=same), out)
        assert np.abs(StudentScorer.load(out).score_pairs(pairs) - expected).max() < 1e-4
    with pytest.raises(InputError, match="learns on as it is, with state_width = 16: ask"):
        distill(teacher, [shop], replace(still, student=replace(onward, state_width=8)), tmp_path / "other")
    assert not list(tmp_path.glob("other*"))


def test_a_view_that_closes_while_training_is_closed_in_the_end(trained: Path, shop: Path, pairs: Pairs, tmp_path: Path) -> None:
    settings = replace(MID, states="one", state_width=16, state_precision="int8", closing=0.5)
    seen: list[float] = []

    class Watched(MidStudent):
        def forward_rows(self, *args: Any, **options: Any) -> Tensor:
            if self.training:
                seen.append(self.view)
            return super().forward_rows(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgerec.training.mid_start.MidStudent", Watched)
        steps = distill(trained.with_name("teacher"), [shop], tiny_recipe(loss=DISTILL, student=settings), tmp_path / "student")["steps"]
    assert seen == [view_left(step / steps, 0.5) for step in range(steps)]
    assert seen[0] == 1.0
    assert seen[-1] == 0.0
    closed, never_open = (StudentScorer.load(path) for path in (tmp_path / "student", trained))
    assert np.abs(closed.score_pairs(pairs) - never_open.score_pairs(pairs)).max() > 1e-6


def test_every_weight_of_a_mid_student_learns(cross: Student, text: TextEncoder, pairs: Pairs) -> None:
    scorer = mid_scorer(cross, text, pairs, replace(MID, states="one", state_width=16, state_precision="int8"))
    scorer.forward(TokenTable(pairs, text), scorer.hash(pairs), np.arange(40)).square().sum().backward()  # type: ignore[no-untyped-call]
    still = [name for name, p in scorer.student.named_parameters() if p.grad is None or not bool(p.grad.any())]
    # A shift of all keys alike changes no softmax.
    assert [name for name in still if not name.endswith(".key.bias")] == []


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"query_layers": 4}, "query_layers"),
        ({"item_layers": 5}, "item_layers"),
        ({"state_width": 33}, "state_width"),
    ],
)
def test_a_mid_student_the_encoder_cannot_give_is_refused(
    cross: Student, text: TextEncoder, pairs: Pairs, wrong: dict[str, int], word: str
) -> None:
    with pytest.raises(InputError, match=word):
        mid_scorer(cross, text, pairs, replace(MID, **wrong))


def test_items_need_positions_after_the_longest_query(cross: Student, deep: Path) -> None:
    spec = text_spec_from_tokenizer(deep / "tokenizer.json", max_tokens=60, max_query_tokens=12, item_fields=["title"])
    with pytest.raises(InputError, match="positions"):
        mid_from_cross(cross, spec, MID, [])


def test_pruning_refuses_a_mid_student(trained: Path, shop: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(loss=DISTILL)
    with pytest.raises(InputError, match="mid-fusion"):
        prune(trained, [shop], replace(recipe, prune=replace(recipe.prune, flops=0.5)), tmp_path / "p")


def test_a_gradient_has_the_same_bits_every_time(cross: Student, text: TextEncoder, pairs: Pairs) -> None:
    """A query has many rows, and what they say of it must be summed in one order, however many threads there are."""
    tiny = mid_scorer(cross, text, pairs, MID).student.shape
    assert isinstance(tiny, MidShape)
    sizes = {"hidden": 256, "state_width": 256, "intermediate": 64, "buckets": 0, "feature_dim": 0, "feature_hidden": 0}
    torch.manual_seed(0)
    student = MidStudent(replace(tiny, **sizes)).eval()
    table, rows = TokenTable(pairs, text), np.arange(64)
    threads, found = torch.get_num_threads(), set()
    torch.set_num_threads(2)
    try:
        for _ in range(10):
            student.zero_grad()
            (student.forward_rows(table, None, rows) * torch.arange(1.0, 65.0)).sum().backward()
            found.add(student.embeddings.word_embeddings.weight.grad.numpy().tobytes())  # type: ignore[union-attr]
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1

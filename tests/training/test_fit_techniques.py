"""The switches of the fit: each changes the weights it should, and each run can be broken off and resumed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edgerec.training import attack
from edgerec.training import teacher as module
from edgerec.training.attack import perturbed
from edgerec.training.average import Average
from edgerec.training.config import AttackSettings, AugmentSettings, FitSettings, LoraSettings, LossSettings, Recipe
from edgerec.training.groups import depth, parameter_groups
from edgerec.training.teacher import train_teacher
from fixtures_tiny import tiny_recipe
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from edgerec.errors import MissingExtraError

FIT = tiny_recipe().fit
TECHNIQUES = {
    "plain": tiny_recipe(),
    "pairwise": tiny_recipe(loss=LossSettings(bce=0.0, pairwise=1.0, pairwise_by_margin=True)),
    "layer_decay": tiny_recipe(fit=replace(FIT, layer_decay=0.5)),
    "ema": tiny_recipe(fit=replace(FIT, ema=0.9)),
    "start_share": tiny_recipe(fit=replace(FIT, start_share=0.4)),
    "dropout": tiny_recipe(fit=replace(FIT, dropout=0.0)),
    "r_drop": tiny_recipe(loss=LossSettings(r_drop=1.0)),
    "fgm": tiny_recipe(fit=replace(FIT, attack=AttackSettings("fgm", epsilon=1.0))),
    "awp": tiny_recipe(fit=replace(FIT, attack=AttackSettings("awp", epsilon=0.05, start=0.3))),
    "lora": tiny_recipe(fit=replace(FIT, lora=LoraSettings(rank=4))),
    "augment": tiny_recipe(augment=AugmentSettings(typo=1.0, token_swap=0.5, token_drop=0.5)),
}


@pytest.fixture(scope="module")
def trained(base: str, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """The weights of an unbroken run of each technique."""
    found = {}
    for name, recipe in TECHNIQUES.items():
        out = tmp_path_factory.mktemp(name) / "t"
        train_teacher([shop], base, recipe, out)
        found[name] = load_file(out / "model.safetensors")
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_each_switch_changes_the_weights_and_a_killed_run_resumes_to_the_same_ones(
    base: str, shop: Path, trained: dict[str, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    others = [weights for other, weights in trained.items() if other != name]
    assert not any(same(trained[name], weights) for weights in others)
    whole = module._TeacherTask.losses
    calls = 0

    def dies(self: Any, rows: Any, epoch: int, progress: float) -> Any:
        nonlocal calls
        calls += 1
        if calls > 5:  # within step 3 to 5, whether a step asks once or twice
            raise KeyboardInterrupt
        return whole(self, rows, epoch, progress)

    monkeypatch.setattr(module._TeacherTask, "losses", dies)
    with pytest.raises(KeyboardInterrupt):
        train_teacher([shop], base, TECHNIQUES[name], tmp_path / "t")
    monkeypatch.setattr(module._TeacherTask, "losses", whole)
    assert (tmp_path / "t.run" / "checkpoint.pt").exists()
    train_teacher([shop], base, TECHNIQUES[name], tmp_path / "t", resume=True)
    assert same(load_file(tmp_path / "t" / "model.safetensors"), trained[name])


@pytest.fixture
def tiny(base: str) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)


def loss_of(model: nn.Module) -> Tensor:
    ids = torch.tensor([[2, 50, 51, 3], [2, 60, 61, 3]])
    return nn.functional.softplus(model.eval()(input_ids=ids).logits * torch.tensor([[1.0], [-1.0]])).mean()


@pytest.mark.parametrize(("kind", "attacked"), [("fgm", {"bert.embeddings.word_embeddings.weight"}), ("awp", None)])
def test_an_attack_raises_the_loss_moves_what_it_should_and_puts_it_back(tiny: nn.Module, kind: str, attacked: set[str] | None) -> None:
    before = {name: p.detach().clone() for name, p in tiny.named_parameters()}
    clean = loss_of(tiny)
    clean.backward()
    gradients = {name: p.grad.clone() for name, p in tiny.named_parameters() if p.grad is not None}
    settings = AttackSettings(kind, epsilon=0.01)
    with perturbed(tiny, settings):
        moved = {name for name, p in tiny.named_parameters() if not torch.equal(p, before[name])}
        worse = loss_of(tiny)
        worse.backward()
        length = {name: (p.detach() - before[name]).norm() for name, p in tiny.named_parameters() if name in moved}
    assert worse > clean
    assert moved == (attacked or {n for n, p in tiny.named_parameters() if p.ndim > 1 and "embedding" not in n and gradients[n].any()})
    for name in moved:
        torch.testing.assert_close(length[name], torch.tensor(0.01) * (1 if kind == "fgm" else before[name].norm()), rtol=1e-3, atol=1e-6)
    for name, p in tiny.named_parameters():
        assert torch.equal(p, before[name])
        if name in gradients:
            assert p.grad is not None
            assert not torch.equal(p.grad, gradients[name]) or not gradients[name].any()


def test_an_attack_that_fails_puts_the_weights_back(tiny: nn.Module) -> None:
    before = {name: p.detach().clone() for name, p in tiny.named_parameters()}
    loss_of(tiny).backward()
    with pytest.raises(KeyboardInterrupt), perturbed(tiny, AttackSettings("awp", epsilon=0.5)):
        raise KeyboardInterrupt
    assert all(torch.equal(p, before[name]) for name, p in tiny.named_parameters())


def test_attacks_begin_after_their_start(base: str, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[str] = []
    whole = attack._move
    monkeypatch.setattr(attack, "_move", lambda p, s: moves.append(s.kind) or whole(p, s))  # type: ignore[func-returns-value]
    train_teacher([shop], base, tiny_recipe(fit=replace(FIT, attack=AttackSettings("fgm", start=0.5))), tmp_path / "t")
    assert len(moves) == 3  # of six steps


def test_the_average_is_what_its_formula_says_and_gives_the_weights_back() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average, expected = Average(model, 0.5), 0.0
    for step, value in enumerate((1.0, 2.0, 3.0, 5.0)):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with average.in_place():
        torch.testing.assert_close(model.weight, torch.full((1, 2), expected))
    assert model.weight.tolist() == [[5.0, 5.0]]
    again = Average(model, 0.5)
    again.load_state_dict(average.state_dict())
    with again.in_place():
        torch.testing.assert_close(model.weight, torch.full((1, 2), expected))


def test_the_first_weights_have_their_share_of_what_a_run_leaves(base: str, shop: Path, tmp_path: Path) -> None:
    once = replace(FIT, eval_every=1000)
    for name, share in (("plain", 0.0), ("mixed", 0.25)):
        train_teacher([shop], base, tiny_recipe(fit=replace(once, start_share=share)), tmp_path / name)
    plain, mixed = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "mixed"))
    first = load_file(Path(base) / "model.safetensors")
    for name, value in first.items():
        torch.testing.assert_close(mixed["bert." + name], 0.25 * value + 0.75 * plain["bert." + name])


def test_layers_learn_more_slowly_the_deeper_they_lie(tiny: nn.Module) -> None:
    fit = FitSettings(learning_rate=1.0, layer_decay=0.5)
    rates = {id(p): group["lr"] for group in parameter_groups(tiny, fit) for p in group["params"]}
    plain = {id(p) for group in parameter_groups(tiny, fit) if group.get("weight_decay") == 0.0 for p in group["params"]}
    assert len(rates) == len(list(tiny.parameters()))
    expected = {"embeddings": 0.125, "layer.0": 0.25, "layer.1": 0.5, "pooler": 1.0, "classifier": 1.0}
    for name, p in tiny.named_parameters():
        assert rates[id(p)] == next(rate for part, rate in expected.items() if part in name), name
        assert (id(p) in plain) == (p.ndim <= 1), name
    assert len(parameter_groups(tiny, FitSettings())) == 2


def test_depth_knows_the_names_of_teachers_and_students() -> None:
    assert depth("mpnet.encoder.relative_attention_bias.weight", 12) == 0
    assert depth("mpnet.encoder.layer.11.attention.attn.q.weight", 12) == 12
    assert depth("tower.layers.2.query.weight", 3) == 3
    assert depth("tower.word_embeddings.weight", 3) == 0
    assert depth("head.weight", 3) == 4


def test_recipes_of_techniques_survive_json() -> None:
    from edgerec.training.config import recipe_from_json

    for recipe in TECHNIQUES.values():
        assert isinstance(recipe, Recipe)
        assert recipe_from_json(recipe.to_json(), "json") == recipe


def test_lora_leaves_the_base_model_and_learns_a_low_rank_correction(base: str, shop: Path, tmp_path: Path) -> None:
    recipe = replace(TECHNIQUES["lora"], fit=replace(TECHNIQUES["lora"].fit, lora=LoraSettings(rank=2)))
    info = train_teacher([shop], base, recipe, tmp_path / "t")
    before, after = load_file(Path(base) / "model.safetensors"), load_file(tmp_path / "t" / "model.safetensors")
    assert set(after) == {f"bert.{name}" for name in before} | {"classifier.weight", "classifier.bias"}  # a plain model again
    layer = "encoder.layer.0.attention.self.query.weight"
    change = after[f"bert.{layer}"] - before[layer]
    assert 0 < torch.linalg.matrix_rank(change, rtol=1e-3) <= 2
    for name in ("embeddings.word_embeddings.weight", "encoder.layer.1.output.LayerNorm.weight", layer.replace("weight", "bias")):
        assert torch.equal(after[f"bert.{name}"], before[name])
    width, inner, rank = 32, 64, 2
    adapters = 2 * (4 * 2 * width + 2 * (width + inner)) * rank + 2 * width * rank  # two layers, and the pooler
    assert info["parameters"]["trained"] == adapters + width + 1
    assert info["parameters"]["all"] > 10 * info["parameters"]["trained"]


def test_a_missing_peft_says_what_to_install(base: str, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"edgerec\[lora\]"):
        train_teacher([shop], base, TECHNIQUES["lora"], tmp_path / "t")

"""Recipe: everything a training run depends on besides the data, read from one TOML file."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgerec.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How query and item become tokens. Lengths in tokens, special tokens included in ``max_tokens``."""

    max_tokens: int = 64
    max_query_tokens: int = 24
    item_fields: tuple[str, ...] = ("title",)


@dataclass(frozen=True, slots=True)
class AttackSettings:
    """Adversarial steps, see `edgerec.training.attack`; each costs a second forward and backward pass.

    Attributes
    ----------
    kind : ``none``; ``fgm`` moves the word embeddings; ``awp`` the weight matrices.
    epsilon : for ``fgm`` the length of the move; for ``awp`` its share of the length of each matrix.
    start : the share of the run that is over before the first such step.
    """

    kind: str = "none"
    epsilon: float = 0.5
    start: float = 0.0


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Low-rank adaptation of a teacher, see `edgerec.training.lora`; of no effect on students.

    Attributes
    ----------
    rank : of the learnt corrections; 0 fine-tunes all weights.
    alpha : corrections are scaled by ``alpha / rank``.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.05


@dataclass(frozen=True, slots=True)
class FitSettings:
    """One optimisation run.

    Attributes
    ----------
    batch_size : pairs a step; they come in groups of one query's items, at most ``group_size`` each.
    passes : data set name -> passes over it in one epoch; 1 where absent.
    curriculum : data set names in the order in which an epoch shows them, one after the other; empty mixes all.
    eval_every : steps between evaluations on dev (and checkpoints); 0 means four times an epoch.
    dropout : chance that an activation is dropped, in every layer. What a teacher says is exact, so a student can do without, and its steps
        are cheaper then.
    precision : ``auto`` takes bf16 autocast where the processor is faster in it, else ``fp32``; ``bf16`` insists.
    layer_decay : each layer learns at this share of the rate of the one above it, see `edgerec.training.groups`; 1 is one rate for all.
    ema : decay of the moving average of the weights, which is evaluated and kept in their stead; 0 keeps the weights themselves.
    start_share : share of the weights that the run begins with in those that are evaluated and kept, for a model that ranked before.
    attack : adversarial steps.
    lora : low-rank adaptation; it wants a learning rate several times that of full fine-tuning.
    """

    epochs: int = 1
    batch_size: int = 64
    group_size: int = 8
    learning_rate: float = 5e-5
    feature_learning_rate: float = 2e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    eval_every: int = 0
    dropout: float = 0.1
    precision: str = "auto"
    max_steps: int = 0
    passes: Mapping[str, int] = field(default_factory=dict)
    curriculum: tuple[str, ...] = ()
    layer_decay: float = 1.0
    ema: float = 0.0
    start_share: float = 0.0
    attack: AttackSettings = field(default_factory=AttackSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Weights of the loss terms; a term of weight 0 is not computed.

    Attributes
    ----------
    bce : graded regression: binary cross-entropy of the logit against ``(g - min) / (max - min)``.
    classes : K > 1 replaces the one-logit head by K classes with expected gain as the score; 0 keeps one logit.
    listwise : softmax cross-entropy over a query's items against their normalised gains.
    pairwise : logistic loss of the score margin of every two items of a query that differ in grade; ``pairwise_by_margin`` weighs such a
        pair by how much they differ.
    margin_mse : distillation: squared error of all score margins within a query.
    listwise_kl : distillation: KL(teacher || student) of the softmax over a query's items at ``temperature``.
    mse : distillation: squared error of the logit itself.
    hidden : distillation: squared error of the vector that the head reads, beside the first teacher's; both must be of one width.
    r_drop : every step runs twice, under different dropout, and the two answers are drawn together by this weight.
    """

    bce: float = 1.0
    classes: int = 0
    listwise: float = 0.0
    pairwise: float = 0.0
    pairwise_by_margin: bool = False
    margin_mse: float = 0.0
    listwise_kl: float = 0.0
    mse: float = 0.0
    hidden: float = 0.0
    r_drop: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class AugmentSettings:
    """Changes to the text that training sees, see `edgerec.training.augment`; the chance of each for a row, from 0 to 1.

    Attributes
    ----------
    typo : one slip of the keyboard in a word of the query.
    token_drop, token_swap : a word of the query left out; two neighbours swapped.
    field_drop : all but the first of the item's fields, each by itself, left out.
    hook : the query goes through ``hook_function``, ``"module:name"``, a callable ``(text, seed) -> text``: back-translation, say.
    """

    typo: float = 0.0
    token_drop: float = 0.0
    token_swap: float = 0.0
    field_drop: float = 0.0
    hook: float = 0.0
    hook_function: str = ""


@dataclass(frozen=True, slots=True)
class WarmUpSettings:
    """What a teacher learns before it sees a judgement: weak labels, see `edgerec.training.weak`.

    Attributes
    ----------
    span_queries : queries made from titles, and at most as many of the training queries; 0 means no warm-up.
    cosine : the share of the embedder's cosine in a label; the rest is word coverage. Above 0 only for an encoder that was trained to
        embed sentences: `edgerec train --embedder`, or else the base model.
    """

    span_queries: int = 0
    cosine: float = 0.0


@dataclass(frozen=True, slots=True)
class StudentSettings:
    """The student's shape.

    Attributes
    ----------
    init : ``teacher``; the folder of a pretrained BERT-type encoder; or a student of `edgerec distill`, which learns on, in a new shop say;
        a cross student becomes a mid-fusion one where ``interaction`` asks for that.
    layers : which of its layers are kept, in order; empty keeps all.
    features : whether the hashed-feature half is there; ``buckets``, ``slots``, ``feature_dim``, ``feature_hidden`` are its sizes.
    unlabelled_per_query : first-stage candidates a training query gets beyond its judged ones, scored by the teacher.
    span_queries : queries made from titles, scored by the teacher too; see `edgerec.training.unjudged`.
    interaction : ``cross``: query and item go through all layers together; ``mid``: items are encoded without the query, see
        `edgerec.training.mid`. The keys below are for ``mid`` alone.
    query_layers : the lower layers, which see the query alone; the others are joint.
    item_layers : layers of the item encoder; 0: all but the last.
    states : ``per_layer``: each joint layer reads the item's state of its own height; ``one``: all read the item encoder's top.
    state_width : numbers of one state of one token; 0: as wide as the encoder.
    state_precision : ``fp32``, ``fp16`` or ``int8``, how states are kept; training sees them rounded so.
    closing : for what share of the steps the two sides still see each other where they must not in the end, less and less; 0: never.
    """

    init: str = "teacher"
    layers: tuple[int, ...] = ()
    features: bool = True
    buckets: int = 32768
    slots: int = 32
    feature_dim: int = 16
    feature_hidden: int = 16
    unlabelled_per_query: int = 0
    span_queries: int = 0
    interaction: str = "cross"
    query_layers: int = 2
    item_layers: int = 0
    states: str = "per_layer"
    state_width: int = 0
    state_precision: str = "fp32"
    closing: float = 0.0


@dataclass(frozen=True, slots=True)
class EnsembleSettings:
    """How several teachers become one, see `edgerec.training.targets`; of no effect with one teacher and no weak ranker.

    Attributes
    ----------
    calibration : ``platt`` (on the training judgements) or ``standardise`` (on all training pairs).
    weak : whether the weak ranker of `edgerec.training.weak` is a member; ``weak_cosine`` is the share of the cosine of the sentence
        embeddings of `edgerec distill --embedder` in it, the rest is word coverage.
    """

    calibration: str = "platt"
    weak: bool = False
    weak_cosine: float = 0.0


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """What `edgerec prune` takes away, see `edgerec.training.prune` and `edgerec.training.vocabulary`.

    Attributes
    ----------
    flops : share of the encoder's multiplications that stays; 1 keeps all heads and columns, and nothing is trained.
    batches : training steps whose gradients judge heads and columns.
    vocabulary : whether tokens that the data folders do not use are taken out; ``min_count`` is how often one must stand in items or
        training queries to stay.
    """

    flops: float = 1.0
    batches: int = 64
    vocabulary: bool = False
    min_count: int = 1


@dataclass(frozen=True, slots=True)
class GateSettings:
    """What `edgerec build-engine` accepts of this model, in place of the builder's own bounds; below 0: the builder's.

    Attributes
    ----------
    ndcg_drop : loss of nDCG@10; tau : least Kendall tau; nan_count : logits that may be NaN.
    top_overlap : least share of the top rows that stay on top.
    """

    ndcg_drop: float = -1.0
    top_overlap: float = -1.0
    tau: float = -1.0
    nan_count: int = -1

    def to_json(self) -> dict[str, float]:
        """The bounds that are set, as ``model.json`` carries them."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value >= 0}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A training recipe: a name, a seed and groups of settings."""

    name: str
    seed: int = 0
    text: TextSettings = field(default_factory=TextSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    warm_up: WarmUpSettings = field(default_factory=WarmUpSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    ensemble: EnsembleSettings = field(default_factory=EnsembleSettings)
    prune: PruneSettings = field(default_factory=PruneSettings)
    gate: GateSettings = field(default_factory=GateSettings)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as kept in ``training.json``."""
        return dataclasses.asdict(self)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe. Unknown keys, wrong types and senseless values are InputError."""
    path = Path(path)
    if not path.exists() and path.suffix == "" and (builtin := Path(__file__).parent / "recipes" / f"{path}.toml").exists():
        path = builtin
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        known = ", ".join(sorted(p.stem for p in (Path(__file__).parent / "recipes").glob("*.toml")))
        raise InputError(f"recipe {path}: {e}; expected a TOML file or one of: {known}") from e
    recipe = recipe_from_json(table, str(path))
    _check(recipe, str(path))
    return recipe


def recipe_from_json(table: Mapping[str, Any], place: str) -> Recipe:
    """A Recipe from plain values, as ``Recipe.to_json`` gives them."""
    return _build(Recipe, table, place)


def _build(cls: type[T], table: Mapping[str, Any], place: str) -> T:
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise InputError(f"{place}: unknown keys {unknown}; {cls.__name__} takes {sorted(hints)}")
    values = {key: _convert(hints[key], value, f"{place}: {key}") for key, value in table.items()}
    try:
        return cls(**values)
    except TypeError as e:
        raise InputError(f"{place}: {e}") from e


def _convert(hint: Any, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _build(typing.cast(type, hint), value, place)
    origin = typing.get_origin(hint)
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = typing.get_args(hint)[0]
        return tuple(_convert(inner, v, place) for v in value)
    if origin is not None and isinstance(value, Mapping):
        inner = typing.get_args(hint)[1]
        return {str(k): _convert(inner, v, f"{place}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise InputError(f"{place}: expected {getattr(hint, '__name__', hint)}, found {value!r}")


def _check(recipe: Recipe, place: str) -> None:
    fit, loss, text, warm_up, student, augment = recipe.fit, recipe.loss, recipe.text, recipe.warm_up, recipe.student, recipe.augment
    chances = (augment.typo, augment.token_drop, augment.token_swap, augment.field_drop, augment.hook)
    terms = (loss.bce, loss.listwise, loss.pairwise, loss.margin_mse, loss.listwise_kl, loss.mse)
    rules = [
        (fit.epochs >= 1 and fit.batch_size >= 1 and fit.group_size >= 1, "fit.epochs, batch_size and group_size must be at least 1"),
        (fit.learning_rate > 0 and fit.feature_learning_rate > 0, "learning rates must be above 0"),
        (0 <= fit.warmup < 1 and 0 <= fit.dropout < 1, "fit.warmup and fit.dropout are fractions in [0, 1)"),
        (fit.precision in ("auto", "fp32", "bf16"), "fit.precision is auto, fp32 or bf16"),
        (loss.classes != 1 and loss.classes >= 0, "loss.classes is 0 (one logit) or at least 2"),
        (loss.temperature > 0, "loss.temperature must be above 0"),
        (0 < fit.layer_decay <= 1 and 0 <= fit.ema < 1, "fit.layer_decay is in (0, 1], fit.ema in [0, 1)"),
        (0 <= fit.start_share < 1, "fit.start_share is in [0, 1)"),
        (not (fit.start_share and fit.lora.rank), "fit.start_share mixes whole weights, which fit.lora does not train"),
        (
            fit.attack.kind in ("none", "fgm", "awp") and fit.attack.epsilon > 0 and 0 <= fit.attack.start < 1,
            "fit.attack: kind is none, fgm or awp, epsilon above 0, start in [0, 1)",
        ),
        (
            fit.lora.rank >= 0 and fit.lora.alpha > 0 and 0 <= fit.lora.dropout < 1,
            "fit.lora: rank at least 0, alpha above 0, dropout in [0, 1)",
        ),
        (fit.dropout > 0 or not loss.r_drop, "loss.r_drop compares two passes that differ by dropout: fit.dropout must be above 0"),
        (not fit.lora.rank or fit.attack.kind != "fgm", "fit.lora freezes the word embeddings that fit.attack.kind = 'fgm' moves"),
        (
            sum(terms) > 0 and min(*terms, loss.r_drop) >= 0,
            "loss weights are at least 0, and at least one loss term needs one above 0",
        ),
        (all(0 <= chance <= 1 for chance in chances), "augment: every chance is in [0, 1]"),
        (not augment.hook or ":" in augment.hook_function, "augment.hook_function is 'module:name' where augment.hook is above 0"),
        (text.max_tokens > text.max_query_tokens + 4, "text.max_tokens must leave room for the item"),
        (
            set(text.item_fields) <= {"title", "text", "brand", "category"} and text.item_fields,
            "text.item_fields: title, text, brand, category",
        ),
        (warm_up.span_queries >= 0 and 0 <= warm_up.cosine <= 1, "warm_up: span_queries >= 0, cosine in [0, 1]"),
        (
            student.span_queries >= 0 and student.unlabelled_per_query >= 0,
            "student: span_queries and unlabelled_per_query must not be negative",
        ),
        (recipe.ensemble.calibration in ("platt", "standardise"), "ensemble.calibration is platt or standardise"),
        (0 <= recipe.ensemble.weak_cosine <= 1, "ensemble.weak_cosine is in [0, 1]"),
        (0 < recipe.prune.flops <= 1 and recipe.prune.batches >= 1, "prune.flops is in (0, 1], prune.batches at least 1"),
        (
            student.interaction in ("cross", "mid") and student.states in ("per_layer", "one"),
            "student.interaction is cross or mid, student.states per_layer or one",
        ),
        (
            student.query_layers >= 1 and student.item_layers >= 0 and student.state_width >= 0,
            "student: query_layers >= 1, item_layers and state_width >= 0",
        ),
        (student.state_precision in ("fp32", "fp16", "int8"), "student.state_precision is fp32, fp16 or int8"),
        (
            0 <= student.closing <= 1 and (student.interaction == "mid" or not student.closing),
            "student.closing is in [0, 1], and above 0 for interaction mid alone",
        ),
        (student.buckets >= 1 and 1 <= student.slots <= 256, "student.buckets >= 1, 1 <= slots <= 256"),
    ]
    broken = [message for holds, message in rules if not holds]
    if broken:
        raise InputError(f"{place}: " + "; ".join(broken))

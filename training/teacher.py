"""The teacher: any AutoModelForSequenceClassification, fine-tuned on graded judgements as a cross-encoder."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from edgerec.errors import InputError
from edgerec.text import TextEncoder, TextSpec, text_spec_from_tokenizer
from edgerec.types import Item

from . import losses, workers
from .augment import Augmenter, augmenter
from .config import LossSettings, Recipe, recipe_from_json
from .data import Dataset, load_dataset
from .dev import dev_metrics, first_stage_metrics
from .groups import parameter_groups
from .loop import autocast, device, few_shapes, fit, open_run, seed_everything, set_dropout
from .lora import count_parameters, merged, with_lora
from .objective import JUDGED, Answers, loss_terms
from .pairs import Pairs, Rows, TokenTable, epoch_batches, judged_pairs, query_pairs
from .provenance import base_identity, finish, provenance, read_training_json
from .weak import warm_up_dataset


class Teacher:
    """A fine-tuned cross-encoder folder: Hugging Face files plus ``training.json``.

    ``score`` returns what ranking sorts by: the logit, or the expected gain of a K-class head.
    """

    def __init__(self, model: nn.Module, encoder: TextEncoder, *, precision: str = "auto") -> None:
        self.model = model.to(device())
        self.encoder = encoder
        self._precision = precision
        self._takes_types = "token_type_ids" in inspect.signature(model.forward).parameters

    @classmethod
    def load(cls, folder: Path) -> Teacher:
        """Open what `edgerec train` wrote. Raises BundleError when it is not a teacher folder."""
        info = read_training_json(Path(folder), "teacher")
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        encoder = TextEncoder(Path(folder) / "tokenizer.json", TextSpec.from_json(info["text"]))
        return cls(model, encoder, precision=recipe_from_json(info["recipe"], str(folder)).fit.precision)

    def forward(self, table: TokenTable, rows: Rows) -> Tensor:
        """Raw outputs [P, 1 or K] of the rows, in their order, through forward passes packed by length."""
        parts, places = [], []
        for batch in table.forward_batches(rows, few_shapes=few_shapes()):
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            if self._takes_types:
                inputs["token_type_ids"] = batch.token_type_ids
            outputs = self.model(**{k: torch.from_numpy(v).to(device()) for k, v in inputs.items()}).logits
            parts.append(outputs[: len(batch.rows)].float())
            places.append(batch.rows)
        back = np.argsort(np.concatenate(places))
        return torch.cat(parts)[torch.from_numpy(back)]

    def scores(self, outputs: Tensor) -> Tensor:
        """Outputs [P, 1 or K] to scores [P]."""
        return outputs[:, 0] if outputs.shape[1] == 1 else losses.expected_gain(outputs)

    @torch.no_grad()
    def score_pairs(self, pairs: Pairs, rows: Rows | None = None, *, table: TokenTable | None = None) -> NDArray[np.float32]:
        """Scores, float32 [P], of all rows or of those given, in evaluation mode."""
        self.model.eval()
        table = table or TokenTable(pairs, self.encoder)
        rows = np.arange(len(pairs)) if rows is None else rows
        with autocast(self._precision):
            parts = [self.scores(self.forward(table, chunk)) for chunk in np.array_split(rows, max(1, len(rows) // 1024))]
        return torch.cat(parts).float().cpu().numpy()

    def score(self, query: str, items: Sequence[Item]) -> NDArray[np.float32]:
        """Scores, float32 [N], of one query's items, in order."""
        if not items:
            return np.empty(0, np.float32)
        return self.score_pairs(query_pairs(query, items))


class _TeacherTask:
    """Graded judgements in, loss out."""

    def __init__(self, teacher: Teacher, train: Pairs, dev: Pairs, settings: LossSettings, augment: Augmenter | None) -> None:
        self._teacher, self._train, self._dev, self._settings, self._augment = teacher, train, dev, settings, augment
        self._table = TokenTable(train, teacher.encoder)
        self._dev_table = TokenTable(dev, teacher.encoder)

    def losses(self, rows: Rows, epoch: int, progress: float) -> dict[str, Tensor]:
        table, places = self._table, rows
        if self._augment:
            table, places = TokenTable(self._augment.pairs(self._train, rows, epoch), self._teacher.encoder), np.arange(len(rows))
        labels, groups = torch.from_numpy(self._train.label[rows]), torch.from_numpy(self._train.query[rows])

        def answer() -> Answers:
            outputs = self._teacher.forward(table, places)
            return Answers(outputs, self._teacher.scores(outputs), labels.to(outputs.device), groups.to(outputs.device))

        return loss_terms(answer, self._settings)

    def queries(self, rows: Rows) -> Rows:
        return self._train.query[rows]

    def evaluate(self) -> dict[str, float]:
        return dev_metrics(self._dev, self._teacher.score_pairs(self._dev, table=self._dev_table))


@workers.joined()
def train_teacher(
    data: Sequence[Path],
    base_model: str,
    recipe: Recipe,
    out: Path,
    *,
    embedder: str = "",
    resume: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Fine-tune ``base_model`` (a folder or a hub name) on the train splits of all data folders; write the best checkpoint to ``out``.

    ``embedder`` gives the embeddings of the warm-up's weak labels; empty: the base model.

    Returns
    -------
    The ``training.json`` of the folder: recipe, provenance, dev metrics.

    Raises
    ------
    InputError : unusable data, recipe or base model. EdgerecError : training diverged.
    """
    if not any(getattr(recipe.loss, name) for name in JUDGED):
        raise InputError(f"a teacher learns from judgements: give one of loss.{', loss.'.join(JUDGED)} a weight above 0")
    out, embedder = Path(out), embedder or base_model
    datasets = train_datasets(data)
    dev, first_stage = judged_pairs(datasets, "dev"), first_stage_metrics(datasets)
    seed_everything(recipe.seed)  # the head is new: its weights come from the seed
    model = _load_base(base_model, max(1, recipe.loss.classes))
    set_dropout(model, recipe.fit.dropout)
    judged, warm = [d.name for d in datasets], workers.first(lambda: _warm_up_datasets(datasets, embedder, recipe, progress=progress))
    train = judged_pairs([*datasets, *warm], "train")
    run = open_run(out, resume=resume)  # last, so that bad input leaves no run folder behind
    encoder = TextEncoder(run / "tokenizer.json", workers.first(lambda: _tokenizer(base_model, run, recipe)))
    teacher = Teacher(model, encoder, precision=recipe.fit.precision)
    if recipe.fit.lora.rank:
        teacher.model = with_lora(teacher.model, recipe.fit.lora)
    parameters = count_parameters(teacher.model)
    facts = provenance(datasets, recipe, {"base_model": base_identity(base_model), "embedder": base_identity(embedder)})

    def batches(epoch: int, only: Sequence[str]) -> list[Rows]:
        return epoch_batches(train, recipe.fit, seed=recipe.seed, epoch=epoch, only=only)

    result = fit(
        teacher.model,
        parameter_groups(teacher.model, recipe.fit),
        lambda epoch: [*(batches(epoch, [d.name for d in warm]) if warm and epoch == 0 else []), *batches(epoch, judged)],
        _TeacherTask(teacher, train, dev, recipe.loss, augmenter(recipe.augment, item_fields=recipe.text.item_fields, seed=recipe.seed)),
        recipe.fit,
        run=run,
        identity=json.dumps(facts["identity"], sort_keys=True),
        seed=recipe.seed,
        progress=progress,
    )

    def write(folder: Path) -> None:
        (merged(teacher.model) if recipe.fit.lora.rank else model).save_pretrained(folder)
        AutoTokenizer.from_pretrained(base_model).save_pretrained(folder)
        shutil.copy(run / "tokenizer.json", folder / "tokenizer.json")

    info = {"kind": "teacher", "text": encoder.spec.to_json(), "recipe": recipe.to_json(), "parameters": parameters}
    return finish(out, run, {**info, "first_stage": first_stage, **facts, **result}, write)


def _warm_up_datasets(datasets: Sequence[Dataset], embedder: str, recipe: Recipe, *, progress: bool) -> list[Dataset]:
    if not recipe.warm_up.span_queries:
        return []
    options: dict[str, Any] = {"max_tokens": recipe.text.max_tokens, "precision": recipe.fit.precision, "seed": recipe.seed}
    return [warm_up_dataset(d, embedder, recipe.warm_up, progress=progress, **options) for d in datasets]


def _load_base(base_model: str, outputs: int) -> Any:
    try:
        config = AutoConfig.from_pretrained(base_model)
        config.num_labels = outputs
        config.problem_type = None
        # MPNet has eager attention only; BERT-type models train faster on the fused one.
        attention = "eager" if config.model_type == "mpnet" else "sdpa"
        return AutoModelForSequenceClassification.from_pretrained(base_model, config=config, attn_implementation=attention)
    except (OSError, ValueError, KeyError) as e:
        raise InputError(f"--base-model {base_model}: {e}; expected a Hugging Face folder or a hub name that can be reached") from e


def _tokenizer(base_model: str, run: Path, recipe: Recipe) -> TextSpec:
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    if not tokenizer.is_fast:
        raise InputError(f"--base-model {base_model}: has no tokenizer.json; edgerec needs a model with a fast tokenizer")
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(run / "tokenizer.json"))
    settings = recipe.text
    return text_spec_from_tokenizer(
        run / "tokenizer.json",
        max_tokens=settings.max_tokens,
        max_query_tokens=settings.max_query_tokens,
        item_fields=settings.item_fields,
    )


def train_datasets(folders: Sequence[Path]) -> list[Dataset]:
    """Load several data folders, refusing two of one name (``fit.passes`` and reports go by name)."""
    datasets = [load_dataset(Path(folder)) for folder in folders]
    names = [d.name for d in datasets]
    if len(set(names)) != len(names):
        raise InputError(f"data sets need different names in dataset.json, found {names}")
    return datasets

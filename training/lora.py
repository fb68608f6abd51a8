"""Low-rank adaptation: the base model stays as it is, and learns small corrections that are added to its weights at the end."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from edgerec.errors import MissingExtraError

from .config import LoraSettings


def with_lora(model: Any, settings: LoraSettings) -> Any:
    """The model with a trainable product of two thin matrices beside each linear layer of its encoder; all else but its head is frozen.

    Source: Hu et al., LoRA, arXiv 2106.09685; on all linear layers: Dettmers et al., QLoRA, arXiv 2305.14314.

    Raises
    ------
    MissingExtraError : peft is not installed.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as e:
        raise MissingExtraError("peft", "lora") from e
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,  # which leaves the head trainable
        r=settings.rank,
        lora_alpha=int(settings.alpha),
        lora_dropout=settings.dropout,
        target_modules="all-linear",
    )
    with warnings.catch_warnings():
        # peft asks transformers by a name that transformers 5 has renamed; both do what they should.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)


def merged(model: Any) -> Any:
    """The plain model again, with what was learnt added to its weights."""
    return model.merge_and_unload()


def count_parameters(model: nn.Module) -> dict[str, int]:
    """How many numbers the model has, and how many of them learn."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"all": sum(size for size, _ in sizes), "trained": sum(size for size, learns in sizes if learns)}

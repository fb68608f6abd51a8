"""The optimisation loop that teacher and student share: schedule, clipping, evaluation, checkpoints, exact resumption."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from edgerec.errors import EdgerecError, InputError

from . import workers
from .attack import perturbed
from .average import Average
from .config import FitSettings
from .pairs import Rows


class Task(Protocol):
    """What is learnt: a loss over rows, and a figure of merit on dev."""

    def losses(self, rows: Rows, epoch: int, progress: float) -> dict[str, Tensor]:
        """Loss terms by name, weighted; their sum is minimised. ``progress`` is the share of the run's steps before this one."""
        ...

    def queries(self, rows: Rows) -> Rows:
        """The query of each row: rows of one query stay together where a step is shared."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Dev metrics; ``objective`` (larger is better) chooses the checkpoint that is kept."""
        ...


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bf16(kind: str) -> bool:
    """Whether bf16 products are faster than fp32's there.

    oneDNN also says yes where it can only imitate them, at a quarter of the speed. Intel's AVX-512 instruction for them has half the speed
    of fp32's: what is fast there is AMX, which a hypervisor may hide.
    """
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    found = torch.cpu.get_capabilities()
    if found["architecture"] == "x86_64":
        return bool(found["amx_bf16"] or (found["avx512_bf16"] and not found.get("cpu_name", "").startswith("Intel")))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(precision: str) -> AbstractContextManager[Any]:
    """bf16 autocast where asked for, or where ``auto`` finds hardware that is faster in it."""
    kind = device().type
    if precision == "fp32" or (precision == "auto" and not has_fast_bf16(kind)):
        return nullcontext()
    return torch.autocast(kind, dtype=torch.bfloat16)


def few_shapes() -> bool:
    """Whether forward passes should come in few shapes: under autocast, whose kernels are compiled for each."""
    return bool(torch.is_autocast_enabled(device().type))


def seed_everything(seed: int) -> None:
    """Seed torch and numpy; same seed, thread count and machine give the same weights."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def set_dropout(model: nn.Module, chance: float) -> None:
    """Give all dropout of a model one probability."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = chance


def run_folder(out: Path) -> Path:
    """Where an unfinished run keeps its checkpoint: ``OUT.run`` beside ``OUT``."""
    return out.with_name(out.name + ".run")


def open_run(out: Path, *, resume: bool) -> Path:
    """Create or reopen the run folder. Raises InputError if OUT exists, or an unfinished run does and ``resume`` is false."""
    run = run_folder(out)

    def make() -> None:
        if out.exists():
            raise InputError(f"{out} exists already; choose another --out or delete it")
        if run.exists() and not resume:
            raise InputError(f"{run} holds an unfinished run; pass --resume to go on with it, or delete it")
        run.mkdir(parents=True, exist_ok=True)

    workers.first(make)
    return run


def discard_run(run: Path) -> None:
    """Remove a run folder, unless it holds a checkpoint: of a run that cannot begin."""
    workers.first(lambda: None if (run / "checkpoint.pt").exists() else shutil.rmtree(run))


def fit(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    epoch_batches: Callable[[int], list[Rows]],
    task: Task,
    settings: FitSettings,
    *,
    run: Path,
    identity: str,
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    """Minimise ``task``'s losses; leave the best weights in ``model``, averaged where ``settings.ema`` or ``settings.start_share`` say so.

    Parameters
    ----------
    groups : parameter groups, each with its peak ``lr``.
    epoch_batches : the row numbers of each step of an epoch; must be a pure function of the epoch.
    identity : whatever the run depends on; a checkpoint of another identity is refused.

    Returns
    -------
    dict with ``steps``, ``best_step``, ``dev`` (metrics of the kept weights) and ``history``.

    Raises
    ------
    EdgerecError : a loss is not finite (the last good checkpoint stays in the run folder).
    InputError : the checkpoint in the run folder belongs to another recipe or other data.
    """
    schedule = [(epoch, rows) for epoch in range(settings.epochs) for rows in epoch_batches(epoch)]
    if settings.max_steps:
        schedule = schedule[: settings.max_steps]
    total = len(schedule)
    every = settings.eval_every or max(1, math.ceil(total / settings.epochs / 4))
    optimizer = torch.optim.AdamW(list(groups), weight_decay=settings.weight_decay, fused=True)
    warm = max(1, round(total * settings.warmup))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / warm, max(0.0, (total - s) / max(1, total - warm))))
    average = Average(model, settings.ema, settings.start_share) if settings.ema or settings.start_share else None
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler} | ({"average": average} if average else {})
    state = _Checkpoint(run / "checkpoint.pt", identity, parts)
    start, best, history = state.load()
    if start == 0:
        seed_everything(seed + workers.rank())
    chief = workers.rank() == 0
    with (
        SummaryWriter(str(run / "tensorboard")) if chief else nullcontext() as writer,
        tqdm(total=total, initial=start, disable=not (progress and chief), unit="step") as bar,
    ):

        def log(name: str, value: float) -> None:
            if writer is not None:
                writer.add_scalar(name, value, step)

        for step in range(start, total):
            model.train()
            optimizer.zero_grad(set_to_none=True)
            terms, loss = _backward(model, task, *schedule[step], step / total, settings.precision)
            if not math.isfinite(loss):
                raise EdgerecError(
                    f"the loss became {loss} at step {step} of {total}; the last good checkpoint is in {run}. "
                    "Start anew with a lower fit.learning_rate or fit.precision = 'fp32'; a changed recipe cannot resume this run"
                )
            if settings.attack.kind != "none" and step >= settings.attack.start * total:
                with perturbed(model, settings.attack):
                    _backward(model, task, *schedule[step], step / total, settings.precision)
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            scheduler.step()
            if average:
                average.update()
            for name, value in terms.items():
                log(f"loss/{name}", value)
            log("gradient_norm", float(norm))
            log("learning_rate", optimizer.param_groups[0]["lr"])
            bar.update()
            if (step + 1) % every == 0 or step + 1 == total:
                with average.in_place() if average else nullcontext():
                    metrics = workers.first(task.evaluate)
                    if metrics["objective"] > best["objective"]:
                        best = {"step": step + 1, **metrics}
                        workers.first(lambda: _save_atomically(model.state_dict(), run / "best.pt"))
                for name, figure in metrics.items():
                    log(f"dev/{name}", figure)
                history.append({"step": step + 1, "loss": loss, **metrics})
                bar.set_postfix(loss=f"{loss:.4f}", objective=f"{metrics['objective']:.4f}")
                saved = (step + 1, best, history)
                workers.first(lambda saved=saved: state.save(*saved))  # type: ignore[misc]
    if best["step"] == 0:
        raise EdgerecError("dev metrics were never finite; is the dev split empty or of one grade only?")
    model.load_state_dict(torch.load(run / "best.pt", weights_only=True))
    dev = {k: v for k, v in best.items() if k != "step"}
    return {"steps": total, "best_step": int(best["step"]), "dev": dev, "history": history}


def _backward(model: nn.Module, task: Task, epoch: int, rows: Rows, progress: float, precision: str) -> tuple[dict[str, float], float]:
    """Add the gradients of one step; its loss terms, and their sum. Of several processes each does its share."""
    held = [p.grad for p in model.parameters()] if workers.count() > 1 else []
    if held:
        model.zero_grad(set_to_none=True)  # what other processes hold already must not be added twice
    mine = workers.share(rows, task.queries(rows))
    part, found = len(mine) / len(rows), {}
    if len(mine):
        with autocast(precision):
            terms = task.losses(mine, epoch, progress)
        loss = torch.stack(list(terms.values())).sum() * part
        loss.backward()  # type: ignore[no-untyped-call]
        found = {name: term.item() * part for name, term in terms.items()}
    workers.sum_gradients(model)
    for parameter, gradient in zip(model.parameters(), held, strict=False):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    found = workers.sum_terms(found)
    return found, sum(found.values())


@dataclasses.dataclass(frozen=True, slots=True)
class _Checkpoint:
    """All that a broken-off run needs to go on as if nothing had happened; ``parts`` have ``state_dict`` and ``load_state_dict``."""

    path: Path
    identity: str
    parts: Mapping[str, Any]

    def save(self, step: int, best: dict[str, float], history: list[dict[str, float]]) -> None:
        state = {
            "identity": self.identity,
            "step": step,
            "best": best,
            "history": json.dumps(history),
            **{name: part.state_dict() for name, part in self.parts.items()},
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        _save_atomically(state, self.path)

    def load(self) -> tuple[int, dict[str, float], list[dict[str, float]]]:
        if not self.path.exists():
            return 0, {"step": 0, "objective": -math.inf}, []
        try:
            state = torch.load(self.path, weights_only=True)
        except Exception as e:  # torch raises whatever the damaged zip or pickle made it stumble over
            raise InputError(f"{self.path}: the checkpoint is damaged ({e}); delete {self.path.parent} to start anew") from e
        if state["identity"] != self.identity:
            raise InputError(
                f"{self.path} belongs to another recipe, other data or another base model; delete {self.path.parent} to start anew"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        return int(state["step"]), dict(state["best"]), json.loads(state["history"])


def _save_atomically(value: Any, path: Path) -> None:
    staging = path.with_name(path.name + ".partial")
    try:
        with open(staging, "wb") as f:
            torch.save(value, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(staging, path)
    except (OSError, RuntimeError) as e:  # torch wraps a failed write
        staging.unlink(missing_ok=True)
        raise EdgerecError(f"{path} cannot be written ({e}); the one before is kept: make room on the disk and go on with --resume") from e

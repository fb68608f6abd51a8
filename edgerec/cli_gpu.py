"""Options of ``edgerec build-engine`` that only TensorRT has, what ``verify`` says of its bundles, and ``edgerec export-triton``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_output import EXISTING_FOLDER, NEW_FILE, NEW_FOLDER, as_json, show
from .errors import InputError

if TYPE_CHECKING:
    from .builder import GpuOptions
    from .bundle import Manifest

OPTIONS = (
    click.option("--buckets", metavar="32x16,128x64", help="TensorRT: shapes, ROWSxTOKENS.  [default: by the calibration rows' lengths]"),
    click.option("--target", "targets", metavar="sm_89,...", help="TensorRT for RTX: GPUs to build for ahead.  [default: the one here]"),
    click.option("--timing-cache", type=NEW_FILE, help="TensorRT: file of measured kernel times, read and written."),
    click.option(
        "--hardware-compat", type=click.Choice(["none", "ampere_plus", "same_cc"]), help="TensorRT: other GPUs that run the plan."
    ),
    click.option("--version-compatible", is_flag=True, help="TensorRT: newer versions of the same major version run the plan."),
    click.option(
        "--fallback", type=click.Choice(["fp32", "bf16", "int8", "none"]), help="TensorRT: CPU engine beside it.  [default: fp32]"
    ),
)


def gpu_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as keywords."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def read_gpu(
    backend: str | None,
    *,
    buckets: str | None,
    targets: str | None,
    timing_cache: Path | None,
    hardware_compat: str | None,
    version_compatible: bool,
    fallback: str | None,
) -> GpuOptions | None:
    """The options as the builder takes them; None for another backend.

    Raises
    ------
    InputError : an option was given that the backend does not have. BuildError : buckets that are none.
    """
    known = ("--buckets", "--target", "--timing-cache", "--hardware-compat", "--version-compatible", "--fallback")
    given = [
        name
        for name, value in zip(known, (buckets, targets, timing_cache, hardware_compat, version_compatible, fallback), strict=True)
        if value
    ]
    if backend != "tensorrt":
        if given:
            raise InputError(f"{', '.join(given)}: for --backend tensorrt only")
        return None
    from .builder import GpuOptions
    from .builder.trt_shapes import parse_buckets

    return GpuOptions(
        buckets=parse_buckets(buckets) if buckets else (),
        targets=tuple(part.strip() for part in targets.split(",")) if targets else (),
        timing_cache=timing_cache,
        hardware_compat=hardware_compat or "none",
        version_compatible=version_compatible,
        fallback=fallback or "fp32",
    )


def explain_plans(bundle: Path, manifest: Manifest) -> dict[str, Any]:
    """Which plan of a TensorRT bundle runs here; or why none does, what scores instead, and the command that builds one."""
    from .bundle import read_json
    from .engine.trt_plans import PLANS_FILE, Plans, choose, rebuild_command, this_runtime

    plans = Plans.from_json(read_json(bundle, manifest, PLANS_FILE), f"{bundle}: {PLANS_FILE}")
    here = this_runtime()
    plan, why = choose(plans.plans, here)
    if plan is not None:
        return {"plan": plan.file}
    command = rebuild_command(plans, manifest.precision, here)
    return {"plan": "none", "why": why, "instead": " ".join(plans.fallback) or "nothing", "rebuild": command}


@click.command("export-triton")
@click.argument("bundle", type=EXISTING_FOLDER)
@click.argument("repository", type=NEW_FOLDER)
@click.option("--name", default="", help="Name of the ensemble in Triton.  [default: the student's]")
@click.option(
    "--max-batch", default=128, show_default=True, type=click.IntRange(1, 4096), help="Rows in one execution, and candidates in a request."
)
@click.option("--instances", default=1, show_default=True, type=click.IntRange(1, 64), help="Executions at once.")
@click.option(
    "--queue-delay-us", default=500, show_default=True, type=click.IntRange(1, 10**6), help="How long a request may wait for others."
)
@as_json
def export_triton(bundle: Path, repository: Path, name: str, max_batch: int, instances: int, queue_delay_us: int, as_json: bool) -> None:
    """Add the model of a BUNDLE (built for ort or tensorrt) to a Triton model REPOSITORY, as an ensemble without Python.

    A request is a query's candidates and top_k; the answer has logits, relevance and the best places. Triton gets token ids, not text:
    tokenizer and layout lie beside the ensemble, in NAME/edgerec. NAME-model takes rows of any requests.

    \b
    Example:
      edgerec export-triton bundle triton-models --name ranker
    """
    from .triton import export_triton as run

    folder = run(bundle, repository, name=name, max_batch=max_batch, instances=instances, queue_delay_us=queue_delay_us)
    show({"model": folder.name, "folder": str(folder)}, as_json=as_json)

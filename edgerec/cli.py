"""The ``edgerec`` command. Each command imports its half of the package when it runs, so that ``edgerec --help`` is instant.

Exit codes: 0 done; 1 a gate failed, or the data, the bundle or the installation is at fault; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import os
from typing import IO, Any

import click

from . import __version__
from .cli_data import data
from .cli_gpu import export_triton
from .cli_output import as_json, show
from .cli_score import score
from .cli_serve import bench, build_catalog, build_engine, inspect, rank, verify
from .cli_train import add_retrieval, distill, evaluate, export, prune, train
from .errors import EdgerecError


class Failure(click.ClickException):
    """An error the user can act on: one line on stderr, exit code 1."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        """Print ``error: ...``."""
        click.echo(f"error: {self.format_message()}", file=file, err=file is None)


class Commands(click.Group):
    """A group that gives every command the same error lines and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it raises on purpose becomes one line, unless ``--debug`` asks for the traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            raise  # click ends quietly when the reader of stdout went away
        except (EdgerecError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            raise Failure(" ".join(str(error).split())) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Train, build and run search rankers that live inside the search server.

    \b
    Example, from judgements to a ranked list:
      edgerec data simulate shop --items 2000 --queries 300 --users 50 --events 5000 --seed 1
      edgerec train --data shop --base-model minilm --recipe demo-teacher --out teacher
      edgerec distill --teacher teacher --data shop --student demo-student --out student
      edgerec export student student-export --data shop
      edgerec build-engine student-export bundle --precision int8
      edgerec build-catalog shop/corpus.jsonl bundle catalog
      edgerec rank bundle --catalog catalog --query "red lamp"
    """


@cli.command()
@as_json
def version(as_json: bool) -> None:
    """Print the versions of edgerec and of what it runs on.

    \b
    Example:
      edgerec version --json
    """
    import platform
    from importlib import metadata

    def installed(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    versions: dict[str, Any] = {"edgerec": __version__, "python": platform.python_version(), "machine": platform.machine()}
    if not as_json:
        click.echo(f"edgerec {__version__}")
        return
    from ._core import isa

    versions["isa"] = isa()
    versions |= {name: installed(name) for name in ("numpy", "onnxruntime", "tokenizers", "onnx", "torch", "transformers", "tensorrt")}
    show(versions, as_json=True)


COMMANDS = (
    data,
    train,
    distill,
    prune,
    add_retrieval,
    export,
    build_engine,
    build_catalog,
    rank,
    score,
    evaluate,
    bench,
    inspect,
    verify,
    export_triton,
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """The console script."""
    # Set before the libraries are imported: their progress bars do not look whether stderr is a terminal, and their advice is not for
    # the user of this command. Whoever wants it sets these variables.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_LOGS", "-onnx")
    cli(prog_name="edgerec")

"""The interpreter of TensorRT 8.6 as a rehearsal has it, with the stand-ins importable.

``launch.py SCRIPT ARGUMENTS``, or ``launch.py -c CODE``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "standin"), str(ROOT)]
sys.modules["tensorrt_dispatch"] = __import__("tensorrt")  # the same plan, another module


def main(script: str, *arguments: str) -> int:
    names: dict[str, Any] = {"__name__": "script", "__file__": script}
    if script == "-c":
        exec(arguments[0], names)
        return 0
    exec(compile(Path(script).read_text(encoding="utf-8"), script, "exec"), names)
    names["ask_driver"] = lambda: None  # there is none, and nothing that could crash
    return int(names["main"](list(arguments)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

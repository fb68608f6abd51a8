"""Builds the extension modules: csrc/*.c, each with the binding it belongs to. Everything else is in pyproject.toml.

EDGEREC_SANITIZE=1 adds AddressSanitizer and UBSan; EDGEREC_DEBUG=1 turns optimisation off.
"""

import os
import sys
from glob import glob

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

# No fused multiply-add: a feature row must be the same float32 bits on every machine.
flags = ["-std=c11", "-ffp-contract=off"] if sys.platform != "win32" else ["/std:c11"]
link: list[str] = []
if sys.platform != "win32":
    flags += ["-O0", "-g"] if os.environ.get("EDGEREC_DEBUG") else ["-O3"]
    flags += ["-pthread"]
    link += ["-pthread"]
if os.environ.get("EDGEREC_SANITIZE"):
    flags += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    link += ["-fsanitize=address,undefined"]

# The native engine is a module of its own, so that no binding is longer than one can read.
ENGINE = {f"csrc/{name}.c" for name in ("encoder", "engine", "engine_kernels", "gather", "items", "layers", "mid", "model", "pool")}
# So is the tokenizer.
WORDPIECE = {"csrc/wordpiece.c"}
SHARED = {"csrc/isa.c", "csrc/status.c"}


def extension(name: str, binding: str, sources: set[str]) -> Extension:
    """One module: its binding and the C sources it needs."""
    return Extension(
        name,
        sources=[binding, *sorted(sources)],
        include_dirs=["csrc", numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION")],
        depends=[*glob("csrc/*.h"), *glob("csrc/*.pxd"), *glob("edgerec/*.pxi")],
        extra_compile_args=flags,
        extra_link_args=link,
    )


core = extension("edgerec._core", "edgerec/_core.pyx", set(glob("csrc/*.c")) - ENGINE - WORDPIECE)
native = extension("edgerec._native", "edgerec/_native.pyx", ENGINE | SHARED)
wordpiece = extension("edgerec._wordpiece", "edgerec/_wordpiece.pyx", WORDPIECE | {"csrc/status.c"})
setup(ext_modules=cythonize([core, native, wordpiece], include_path=["csrc"], language_level=3))

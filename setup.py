"""Builds the one extension module, edgerec._core, from csrc/*.c and edgerec/_core.pyx. Everything else is in pyproject.toml.

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
if os.environ.get("EDGEREC_SANITIZE"):
    flags += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    link += ["-fsanitize=address,undefined"]

core = Extension(
    "edgerec._core",
    sources=["edgerec/_core.pyx", *sorted(glob("csrc/*.c"))],
    include_dirs=["csrc", numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION")],
    depends=[*glob("csrc/*.h"), *glob("csrc/*.pxd"), *glob("edgerec/*.pxi")],
    extra_compile_args=flags,
    extra_link_args=link,
)
setup(ext_modules=cythonize([core], include_path=["csrc"], language_level=3))

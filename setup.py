"""Builds the one extension module, edgerec._core, from csrc/*.c and edgerec/_core.pyx. Everything else is in pyproject.toml.

EDGEREC_SANITIZE=1 adds AddressSanitizer and UBSan; EDGEREC_DEBUG=1 turns optimisation off.
"""

import os
import sys
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

flags = ["-std=c11"] if sys.platform != "win32" else ["/std:c11"]
link: list[str] = []
if sys.platform != "win32":
    flags += ["-O0", "-g"] if os.environ.get("EDGEREC_DEBUG") else ["-O3"]
if os.environ.get("EDGEREC_SANITIZE"):
    flags += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    link += ["-fsanitize=address,undefined"]

core = Extension(
    "edgerec._core",
    sources=["edgerec/_core.pyx", *sorted(glob("csrc/*.c"))],
    include_dirs=["csrc"],
    depends=glob("csrc/*.h"),
    extra_compile_args=flags,
    extra_link_args=link,
)
setup(ext_modules=cythonize([core], language_level=3))

"""The native kernels: an optional extension, so that a machine without a C++ compiler installs all the rest."""

from __future__ import annotations

import os
from glob import glob

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

# No contraction of a * b + c: every float32 operation is rounded by itself, as NumPy rounds it. The other two let the
# compiler use vectors where errno and floating-point traps would forbid it; they change no result.
FLAGS = ["-O3", "-Wall", "-Wextra", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
LINK = ["-pthread"]
# A build that ends the process where it leaves its memory or relies on what C++ does not define; see the Makefile.
if os.environ.get("HALFBYTE_SANITIZE"):
    SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    FLAGS += [*SANITIZE, "-O1", "-g1", "-fno-wrapv", "-fno-omit-frame-pointer", "-UNDEBUG"]
    LINK += SANITIZE

native = Pybind11Extension(
    "halfbyte.runtime._native",
    sorted(glob("src/halfbyte/runtime/native/*.cpp")),
    depends=sorted(glob("src/halfbyte/runtime/native/*.h") + glob("src/halfbyte/runtime/native/*.inl")),
    cxx_std=17,
    extra_compile_args=FLAGS,
    extra_link_args=LINK,
    optional=not os.environ.get("HALFBYTE_SANITIZE"),
)

setup(ext_modules=[native])

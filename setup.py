"""The native kernels: an optional extension, so that a machine without a C++ compiler installs all the rest."""

from __future__ import annotations

from glob import glob

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

# No contraction of a * b + c: every float32 operation is rounded by itself, as NumPy rounds it. The other two let the
# compiler use vectors where errno and floating-point traps would forbid it; they change no result.
FLAGS = ["-O3", "-Wall", "-Wextra", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

native = Pybind11Extension(
    "halfbyte.runtime._native",
    sorted(glob("src/halfbyte/runtime/native/*.cpp")),
    depends=sorted(glob("src/halfbyte/runtime/native/*.h") + glob("src/halfbyte/runtime/native/*.inl")),
    cxx_std=17,
    extra_compile_args=FLAGS,
    extra_link_args=["-pthread"],
    optional=True,
)

setup(ext_modules=[native])

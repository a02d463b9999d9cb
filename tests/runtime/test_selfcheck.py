"""The kernels without Python (native_selfcheck.cpp): with every instruction set here, and for 64-bit ARM emulated."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from halfbyte.runtime import native

ROOT = Path(__file__).parents[2]
SOURCES = [
    *(path for path in sorted((ROOT / "src/halfbyte/runtime/native").glob("*.cpp"))
      if not path.name.startswith("bind_") and path.name != "module.cpp"),
    Path(__file__).with_name("native_selfcheck.cpp"),
]  # fmt: skip
HOST, ARM = os.environ.get("CXX", "g++"), "aarch64-linux-gnu-g++"
# A processor with products of bytes, and one without.
PROCESSORS = {"max": ["portable", "neon"], "cortex-a53": ["portable"]}
EMULATOR = "qemu-aarch64"
# A sanitizer that is put before Python has nothing to do here.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}

pytestmark = pytest.mark.slow


def _flags() -> list[str]:
    """Those with which the kernels are built."""
    parts = ast.parse((ROOT / "setup.py").read_text()).body
    values = {part.targets[0].id: part.value for part in parts if isinstance(part, ast.Assign)}
    flags: list[str] = ast.literal_eval(values["FLAGS"])
    return flags


def _built(compiler: str, folder: Path, *others: str) -> Path:
    made = folder / f"selfcheck-{compiler}"
    folders = [f"-I{SOURCES[0].parent}", "-std=c++17"]
    command = [compiler, *_flags(), *folders, *map(str, SOURCES), *others, "-pthread", "-o", str(made)]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    return made


def _digests(*command: str) -> dict[str, str]:
    """What it prints: a digest by instruction set."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> dict[str, str]:
    if shutil.which(HOST) is None:
        pytest.skip("there is no C++ compiler")
    return _digests(str(_built(HOST, tmp_path_factory.mktemp("host"))))


@pytest.fixture(scope="module")
def for_arm(tmp_path_factory) -> Path:
    if shutil.which(ARM) is None or shutil.which(EMULATOR) is None:
        pytest.skip(f"needs {ARM} and {EMULATOR} (Debian: g++-aarch64-linux-gnu, qemu-user)")
    return _built(ARM, tmp_path_factory.mktemp("arm"), "-static")


def test_every_instruction_set_of_this_processor_is_right_and_gives_the_same_bits(here):
    assert len(set(here.values())) == 1
    if native.available():
        assert list(here) == native.kernels().isas()


@pytest.mark.parametrize("processor", PROCESSORS)
def test_so_is_arm(here, for_arm, processor):
    found = _digests(EMULATOR, "-cpu", processor, str(for_arm))
    assert list(found) == PROCESSORS[processor]
    assert set(found.values()) == set(here.values())

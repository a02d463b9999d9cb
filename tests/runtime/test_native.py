"""The extension is light, optional and told about where it is missing; its instruction set can be chosen."""

import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from halfbyte.errors import HalfbyteError
from halfbyte.runtime import native

needs_extension = pytest.mark.skipif(not native.available(), reason="the native kernels were not built")


def run(code: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    ).stdout.strip()


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="there is no C++ compiler")
def test_an_installation_with_a_compiler_has_them() -> None:
    native.kernels()


def test_it_needs_neither_torch_nor_timm() -> None:
    blocked = "import sys; sys.modules['torch'] = sys.modules['timm'] = None\n"
    assert run(blocked + "from halfbyte.runtime import native; print(native.available())") in ("True", "False")


def test_without_the_extension_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_EXTENSION", "halfbyte.runtime._absent")
    with pytest.raises(HalfbyteError, match="install a C\\+\\+17 compiler") as raised:
        native.kernels()
    assert "\n" not in str(raised.value)
    assert not native.available()


@needs_extension
def test_the_environment_chooses_the_instruction_set() -> None:
    code = "from halfbyte.runtime import native; print(native.isa())"
    for name in native.kernels().isas():
        assert run(code, HALFBYTE_ISA=name) == name


@needs_extension
def test_an_unknown_instruction_set_is_told() -> None:
    code = "from halfbyte.runtime import native\ntry: native.kernels()\nexcept Exception as error: print(error)"
    assert "no instruction set 'mmx'" in run(code, HALFBYTE_ISA="mmx")


@needs_extension
def test_calls_from_several_threads_at_once() -> None:
    kernels = native.kernels()
    generator = np.random.default_rng(0)
    a = generator.integers(0, 16, (197, 192)).astype(np.uint8)
    packed = kernels.pack_weight(generator.integers(0, 16, (192, 192)).astype(np.uint8), 4, 8, 4)
    expected = kernels.linear(a, packed, 7)
    wrong: list[object] = []

    def work() -> None:
        results = (kernels.linear(a, packed, 7, threads=2) for _ in range(50))
        wrong.extend(result for result in results if not np.array_equal(result, expected))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@needs_extension
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    code = """
import os, numpy as np
from halfbyte.runtime import native
k = native.kernels()
a = np.ones((100, 64), np.uint8); p = k.pack_weight(a, 4, 8, 4)
one = k.linear(a, p, 0, threads=2)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(k.linear(a, p, 0, threads=2), one) else 1)
print(os.waitpid(child, 0)[1])
"""
    assert run(code) == "0"

"""ONNX Runtime and OpenVINO as they run on a processor with AVX2 and nothing newer, on one that has more.

    python benchmarks/avx2_only.py build/avx2_only
    python benchmarks/engine_speed.py --avx2-peers build/avx2_only --settings avx2 --out ...

Both choose their kernels by what the instruction CPUID says, and have no switch for it. This copies the two installed
packages into a folder and replaces, in the copies, each CPUID by UD2, an instruction that traps; a library that is
loaded first (avx2_only.c) catches that, asks the processor, and leaves AVX-512, VNNI and AMX out of the answer. Nothing
else in them is changed. Linux on x86-64; needs a C compiler and objdump.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

# What decides in each package.
LIBRARIES = {
    "onnxruntime": ("capi/onnxruntime_pybind11_state*.so",),
    "openvino": ("libs/libopenvino.so.*", "libs/libopenvino_intel_cpu_plugin.so"),
}
CPUID, UD2 = b"\x0f\xa2", b"\x0f\x0b"


def places_of_cpuid(library: Path) -> list[int]:
    """The offsets in the file of all its CPUID instructions, by disassembly of what is code."""
    sections = subprocess.run(["objdump", "-h", library], check=True, capture_output=True, text=True).stdout
    shift: dict[str, int] = {}  # of a section's addresses to offsets in the file
    for name, address, offset in re.findall(r"^ *\d+ (\S+) +\w+ +(\w+) +\w+ +(\w+)", sections, re.MULTILINE):
        shift[name] = int(offset, 16) - int(address, 16)
    found, section = [], ""
    with subprocess.Popen(["objdump", "-d", library], stdout=subprocess.PIPE, text=True) as listing:
        assert listing.stdout is not None
        for line in listing.stdout:
            if line.startswith("Disassembly of section "):
                section = line.split()[-1].rstrip(":")
            elif line.endswith("cpuid\n"):
                found.append(int(line.split(":")[0], 16) + shift[section])
    return found


def patch(library: Path) -> int:
    """Replace each CPUID of a file by UD2; returns how many there were."""
    content, places = bytearray(library.read_bytes()), places_of_cpuid(library)
    for place in places:
        if content[place : place + 2] != CPUID:
            raise SystemExit(f"{library} has no CPUID at {place:#x}, where its disassembly has one")
        content[place : place + 2] = UD2
    library.write_bytes(content)
    return len(places)


def environment_of(folder: Path) -> dict[str, str]:
    """What a process needs to take the packages of `folder`."""
    path = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": str(folder.resolve()) + (os.pathsep + path if path else ""),
        "LD_PRELOAD": str((folder / "avx2_only.so").resolve()),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    source, library = Path(__file__).with_suffix(".c"), folder / "avx2_only.so"
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    for package, names in LIBRARIES.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{package} is not installed")
        copy = folder / package
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(Path(spec.origin).parent, copy)
        for name in names:
            for library in copy.glob(name):
                print(f"{package} {library.name}: {patch(library)} CPUID instructions")


if __name__ == "__main__":
    main()

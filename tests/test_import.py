"""What must stay light: the import of the package, and its help."""

import subprocess
import sys
import time


def loaded_by(code: str) -> set[str]:
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return {name.partition(".")[0] for name in printed.split()}


def test_importing_the_package_loads_neither_torch_nor_timm() -> None:
    assert not loaded_by("import halfbyte, halfbyte.cli") & {"torch", "timm", "torchvision", "numpy"}


def test_what_the_package_offers_is_there() -> None:
    import halfbyte

    for name in halfbyte.__all__:
        assert getattr(halfbyte, name) is not None


def test_help_is_quick() -> None:
    """Loads nothing heavy, so the fastest of five calls is far below what importing torch alone would take."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        printed = subprocess.run(
            [sys.executable, "-m", "halfbyte", "--help"], check=True, capture_output=True, text=True
        )
        times.append(time.perf_counter() - start)
    assert "quantize" in printed.stdout
    assert min(times) < 2.0

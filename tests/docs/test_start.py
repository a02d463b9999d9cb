"""The page for newcomers, followed to the letter on the real DeiT-Tiny and its images."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
INPUTS = {
    "deit_tiny_patch16_224.safetensors": DATA / "weights" / "deit_tiny_patch16_224.safetensors",
    "imagenet_calib": DATA / "imagenet_calib",
    "imagenet_val": DATA / "imagenet_val",
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared weights and images")
def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path) -> None:
    for name, path in INPUTS.items():
        (tmp_path / name).symlink_to(path)
    page = (ROOT / "docs" / "start.md").read_text()
    install, *blocks = [block.strip() for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)]
    assert "pip install" in install
    serve, ask = blocks[-2:]
    assert serve.startswith("halfbyte serve ")
    assert ask.startswith("curl ")
    binaries = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}

    def run(command: str) -> str:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    printed = {block.split()[1]: run(block) for block in blocks[:-2]}
    assert list(printed) == ["quantize", "inspect", "eval", "export", "bench"]
    metrics = json.loads((tmp_path / "runs" / "deit" / "metrics.json").read_text())
    # A few-bit network scatters by a point from one processor to another.
    assert metrics["quantized"]["top1"] == pytest.approx(68.8, abs=2.5)
    assert "100.00 % of the multiply-accumulates are in sites" in printed["inspect"]
    assert "native" in printed["bench"]
    assert (tmp_path / "deit_w4a4.onnx").stat().st_size < 7e6

    server = subprocess.Popen(serve.split(), cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        assert server.stderr.readline().startswith("serving deit_tiny_patch16_224")
        deadline = time.monotonic() + 60
        while subprocess.run(f"{ask} -s -o /dev/null", shell=True, cwd=tmp_path).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert json.loads(run(f"{ask} -s"))["top"][0]["label"] == "tench, Tinca tinca"
    finally:
        server.terminate()
        server.wait(30)

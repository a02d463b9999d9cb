"""Eight clients at once ask `halfbyte serve` for a minute: requests, errors, and percentiles of the time to answer.

    python benchmarks/serve_load.py --out benchmarks/results/serve_load.json                   # embedded fashion_vit
    python benchmarks/serve_load.py --artifact runs/deit --images imagenet_val --out ...       # and another artifact

The clients are those of `wrk` where it is installed, else threads of this process (which cost the server more of what
they share). Server and clients share the cores of this process; the machine's load average before tells what else
was there, which the processor time of the server for one request does not depend on. Each client sends another image
when it has its answer; anything but status 200 is an error, and so is an image that has another answer afterwards.
Results are added to those that --out already holds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import halfbyte
from halfbyte.bench import processor
from halfbyte.facts import environment

IMAGES = 32
PERCENTILES = (50, 90, 99)
# What wrk runs: bodies in turn, and in the end everything that it counted, as JSON.
SCRIPT = """
local bodies, at = {}, 0
function init(arguments)
  for _, name in ipairs(arguments) do
    local file = io.open(name, "rb")
    bodies[#bodies + 1] = wrk.format("POST", "/predict", {["Content-Type"] = "image/*"}, file:read("*a"))
    file:close()
  end
end
function request()
  at = at % #bodies + 1
  return bodies[at]
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.stderr:write(string.format(
    '{"requests": %d, "seconds": %f, "errors": %d, "p50": %f, "p90": %f, "p99": %f, "longest": %f}',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
"""


def by_wrk(port: int, files: list[Path], clients: int, seconds: int, folder: Path) -> dict[str, Any]:
    """What wrk counts."""
    script = folder / "post.lua"
    script.write_text(SCRIPT)
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script)]
    command += [f"http://127.0.0.1:{port}", "--", *map(str, files)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"client": "wrk", **json.loads(done.stderr)}


def by_threads(port: int, files: list[Path], clients: int, seconds: int) -> dict[str, Any]:
    """The same from Python."""
    bodies = [path.read_bytes() for path in files]
    taken: list[float] = []
    errors: list[object] = []
    start = time.perf_counter()

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while (begun := time.perf_counter()) < start + seconds:
            number += 1
            try:
                connection.request("POST", "/predict", bodies[number % len(bodies)])
                response = connection.getresponse()
                response.read()
                taken.append(time.perf_counter() - begun)
                if response.status != 200:
                    errors.append(response.status)
            except OSError as error:
                errors.append(error)
                connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cuts = statistics.quantiles(taken, n=100)
    found = {f"p{share}": 1000 * cuts[share - 1] for share in PERCENTILES}
    elapsed = time.perf_counter() - start
    return {
        "client": "Python", "requests": len(taken), "seconds": elapsed, "errors": len(errors), **found,
        "longest": 1000 * max(taken),
    }  # fmt: skip


def image_files(where: Path | None, folder: Path) -> list[Path]:
    """Files of images: some of a folder's, else embedded ones."""
    if where is not None:
        found = sorted(path for path in where.rglob("*") if path.is_file())
        return found[:: max(1, len(found) // IMAGES)][:IMAGES]
    with resources.as_file(resources.files("halfbyte") / "assets" / "fashion_test.npz") as path, np.load(path) as data:
        pixels = data["x"][:IMAGES]
    files = [folder / f"{number}.png" for number in range(len(pixels))]
    for file, picture in zip(files, pixels, strict=True):
        Image.fromarray(picture).save(file)
    return files


def top(port: int, content: bytes) -> Any:
    """The classes that the server answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/predict", content)
    return json.loads(connection.getresponse().read())["top"]


def processor_seconds(process: int) -> float:
    """That a process has used so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(options: argparse.Namespace, artifact: Path, folder: Path) -> dict[str, Any]:
    """One artifact's row."""
    files, busy = image_files(options.images, folder), os.getloadavg()[0]
    command = [sys.executable, "-m", "halfbyte", "serve", str(artifact), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = server.stderr.readline()
        port = int(re.search(r":(\d+)$", line)[1])
        before = [top(port, path.read_bytes()) for path in files]
        wrk = shutil.which("wrk") is not None and not options.python_clients
        load = by_wrk if wrk else by_threads
        used = processor_seconds(server.pid)
        found = load(port, files, options.clients, options.seconds, *((folder,) if wrk else ()))
        used = processor_seconds(server.pid) - used
        # Whatever was asked in between, the same image has the same answer.
        changed = sum(top(port, path.read_bytes()) != was for path, was in zip(files, before, strict=True))
        resident = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    average = statistics.mean(path.stat().st_size for path in files)
    return {
        "model": re.match(r"serving (.*) on", line)[1], "clients": options.clients,
        "cores": len(os.sched_getaffinity(0)),
        "images": len(files), "bytes_per_image": round(average), "client": found["client"],
        "requests": found["requests"], "errors": found["errors"] + changed, "seconds": round(found["seconds"], 1),
        "requests_per_second": round(found["requests"] / found["seconds"], 1),
        "milliseconds": {key: round(found[key], 2) for key in ("p50", "p90", "p99", "longest")},
        "processor_milliseconds_per_request": round(1000 * used / found["requests"], 2),
        "megabytes_of_server": round(resident / 1e6, 1), "exit_code": code, "load_average_before": round(busy, 1),
    }  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="without it, embedded fashion_vit by repq")
    parser.add_argument("--images", type=Path, help="a folder with images; without it, embedded ones")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--python-clients", action="store_true", help="also where wrk is installed")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    known = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        artifact = options.artifact or folder / "fashion_vit"
        if options.artifact is None:
            halfbyte.quantize(model="fashion_vit", recipe="repq", calib_images=32, limit=1, workers=0, out=artifact)
        row = measure(options, artifact, folder)
    print(json.dumps(row, indent=1))
    key = ("model", "clients", "client")
    rows = [one for one in known["rows"] if [one[part] for part in key] != [row[part] for part in key]] + [row]
    facts = {"cpu": processor(), "environment": environment(torch.device("cpu")), "rows": rows}
    options.out.write_text(json.dumps(facts, indent=1) + "\n")
    if row["errors"] or row["exit_code"]:
        sys.exit(f"{row['errors']} errors, exit code {row['exit_code']}")


if __name__ == "__main__":
    main()

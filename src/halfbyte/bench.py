"""How fast an artifact runs: the native engine beside others that run the same architecture in float or int8.

Every round lets each engine run in turn, one call that is not timed and then some that are, so that a busy machine
disturbs all alike; what counts is the median over all rounds.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from halfbyte.artifact import load_artifact
from halfbyte.facts import environment
from halfbyte.files import temporary_folder
from halfbyte.inputs import check_at_least
from halfbyte.peers import Call, Work, chosen, float_model, peers
from halfbyte.progress import Progress
from halfbyte.runtime import Engine
from halfbyte.runtime.engine import checked_threads
from halfbyte.runtime.native import isa

NATIVE = "native"
_TIMED_CALLS = 3


def bench(
    target: str | Path,
    *,
    against: str | None = None,
    threads: int | None = None,
    batch_size: int = 1,
    rounds: int = 15,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time the artifact in the folder `target` by the native engine and by its peers, on random images.

    `against`: a list with commas of torch, onnxruntime and openvino (None: those that are installed). `threads`: for
    every engine alike (None: all cores that the process may use). Returns the facts of `bench --json`: in "rows"
    milliseconds a batch (the median) and images a second of each engine. Raises `HalfbyteError` for unknown engines,
    missing packages, numbers that cannot be, and an artifact that is damaged or has no program.
    """
    progress = progress or Progress()
    names = chosen(against)
    check_at_least(1, threads=threads, batch_size=batch_size, rounds=rounds)
    count = checked_threads(threads)
    engine = Engine(target, threads=count)
    artifact = load_artifact(target)
    images = torch.randn(batch_size, *engine.input_shape, generator=torch.Generator().manual_seed(0))
    with temporary_folder() as folder, torch_threads(count), torch.inference_mode():
        work = Work(float_model(artifact.model), images, count, folder, progress)
        calls = gathered(names, work)
        pixels = images.numpy()
        calls[NATIVE] = lambda: engine(pixels)
        milliseconds = interleaved(calls, rounds, progress)
        return {
            "schema": 1, "model": artifact.facts["source"]["architecture"], "isa": isa(), "cpu": processor(),
            "rounds": rounds, "rows": [row(name, count, batch_size, taken) for name, taken in milliseconds.items()],
            "environment": environment(torch.device("cpu")),
        }  # fmt: skip


def gathered(names: tuple[str, ...], work: Work) -> dict[str, Call]:
    """The calls of all peers in `names`, by engine."""
    calls: dict[str, Call] = {}
    for name in work.progress.track(names, "preparing", len(names)):
        calls |= peers(name, work)
    return calls


def interleaved(calls: dict[str, Call], rounds: int, progress: Progress) -> dict[str, float]:
    """Median milliseconds of each call."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in progress.track(range(rounds), "timing", rounds):
        for name, call in calls.items():
            # Caches are filled again, and threads of the engine before have gone to sleep when this one is timed.
            call()
            for _ in range(_TIMED_CALLS):
                start = time.perf_counter()
                call()
                taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in taken.items()}


def row(engine: str, threads: int, batch_size: int, milliseconds: float) -> dict[str, Any]:
    """One engine's row in the facts."""
    return {
        "engine": engine, "threads": threads, "batch_size": batch_size, "milliseconds": round(milliseconds, 3),
        "images_per_second": round(1000 * batch_size / milliseconds, 2),
    }  # fmt: skip


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch with so many threads for the length of a with-block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""Independent jobs side by side, each with arithmetic on one thread.

Searches are made of many small operations, which several threads share badly. One job a core uses the cores fully, and
no result depends on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

Job = Callable[[], None]


def side_by_side(jobs: Sequence[Job], device: torch.device) -> None:
    """Run all jobs without gradients: on the CPU as many at a time as torch may use threads, else one after the other.

    The first exception of a job is raised once those that run have ended; no more are begun then.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu":
        for job in jobs:
            _without_gradients(job)
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(_without_gradients, job) for job in jobs]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)


def _without_gradients(job: Job) -> None:
    # Gradients are switched off a thread at a time.
    with torch.no_grad():
        job()

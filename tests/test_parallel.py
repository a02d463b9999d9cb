"""Jobs side by side."""

import threading

import pytest
import torch

from halfbyte.parallel import side_by_side

CPU = torch.device("cpu")


def test_jobs_run_at_the_same_time_with_one_thread_each_and_no_gradients():
    before = torch.get_num_threads()
    together = threading.Barrier(min(2, before), timeout=30)
    seen = []

    def job():
        together.wait()
        seen.append((torch.get_num_threads(), torch.is_grad_enabled()))

    side_by_side([job] * 2 * min(2, before), CPU)
    assert seen == [(1, False)] * 2 * min(2, before)
    assert torch.get_num_threads() == before
    assert torch.is_grad_enabled()


def test_the_first_failure_ends_it():
    before, ran = torch.get_num_threads(), []

    def fail():
        raise ValueError("this one")

    with pytest.raises(ValueError, match="this one"):
        side_by_side([fail, *[lambda: ran.append(1)] * 1000], CPU)
    assert torch.get_num_threads() == before

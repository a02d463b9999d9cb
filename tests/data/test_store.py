"""Batches kept in memory and, where they grow large, on disk."""

from __future__ import annotations

import os
import sys
import tempfile

import pytest
import torch

from halfbyte.data.store import BatchStore
from halfbyte.errors import HalfbyteError


def batches(count: int = 6, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape or (4, 3, 5), generator=generator) for _ in range(count)]


def filled(limit: int) -> tuple[BatchStore, list[torch.Tensor]]:
    store, given = BatchStore(limit), batches()
    for batch in given:
        store.append(batch)
    return store, given


# Nothing on disk; all but two; everything.
LIMITS = (10**6, 500, 0)


@pytest.mark.parametrize("limit", LIMITS)
def test_values_and_order(limit: int) -> None:
    store, given = filled(limit)
    assert len(store) == len(given)
    for number, batch in enumerate(given):
        assert store[number].dtype == torch.float32
        assert torch.equal(store[number], batch)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_batch_is_overwritten_in_place(limit: int) -> None:
    store, given = filled(limit)
    places = [store[number].data_ptr() for number in range(6)]
    size = store.bytes
    for number in (0, 5):
        store[number] = given[number] * 2
    for number, batch in enumerate(given):
        assert torch.equal(store[number], batch * 2 if number in (0, 5) else batch)
    assert [store[number].data_ptr() for number in range(6)] == places
    assert store.bytes == size


@pytest.mark.parametrize("limit", LIMITS)
def test_a_batch_can_become_one_of_another_shape(limit: int) -> None:
    store, given = filled(limit)
    store[2] = torch.ones(2, 7)
    assert torch.equal(store[2], torch.ones(2, 7))
    assert torch.equal(store[3], given[3])


@pytest.mark.parametrize("limit", LIMITS)
def test_what_was_given_is_not_kept_itself(limit: int) -> None:
    store, given = filled(limit)
    kept = store[1].clone()
    given[1].zero_()
    assert torch.equal(store[1], kept)


@pytest.mark.parametrize("limit", LIMITS)
def test_other_types_become_float32_without_a_graph(limit: int) -> None:
    store = BatchStore(limit)
    whole = torch.arange(6).view(2, 3).double().requires_grad_()
    store.append(whole.mT)
    assert store[0].dtype == torch.float32
    assert not store[0].requires_grad
    assert torch.equal(store[0], torch.arange(6.0).view(2, 3).T)


def test_large_stores_lie_on_disk_and_leave_no_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = []
    named = tempfile.NamedTemporaryFile

    def counted(**options):
        file = named(**options)
        made.append(file.name)
        return file

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", counted)
    store, given = filled(500)
    assert len(made) == 4
    assert os.listdir(tmp_path) == []
    assert all(os.path.dirname(name) == str(tmp_path) for name in made)
    assert torch.equal(torch.stack([store[number] for number in range(6)]), torch.stack(given))


def test_an_empty_batch_is_kept() -> None:
    for limit in LIMITS:
        store = BatchStore(limit)
        store.append(torch.zeros(0, 4))
        assert store[0].shape == (0, 4)


@pytest.mark.skipif(sys.platform == "win32" or not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_disk_without_room_is_told_before_it_is_written() -> None:
    """A mapped file for which there is no room would end the process."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = BatchStore(0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(HalfbyteError, match=r"no room for temporary inputs of a block, 1 MB, .*set TMPDIR"):
            store.append(torch.zeros(2**18))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

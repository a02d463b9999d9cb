"""Calibration images, limits and batches: choices that are the same each time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from halfbyte.data.images import batches, calibration_subset, limit, open_images
from halfbyte.errors import HalfbyteError


@pytest.fixture(scope="module")
def hundred(tmp_path_factory, archive, grey):
    """100 images sorted by class: 60 of class 0, 30 of class 1, 10 of class 2."""
    path = tmp_path_factory.mktemp("data") / "sorted.npz"
    x = np.repeat(np.arange(100, dtype=np.uint8), 16 * 16).reshape(100, 16, 16)
    return open_images(archive(path, x, np.repeat([0, 1, 2], [60, 30, 10])), grey, num_classes=3)


def test_calibration_images_are_spread_over_the_classes(hundred):
    chosen = calibration_subset(hundred, 30, seed=0)
    assert [chosen.labels.count(label) for label in range(3)] == [10, 10, 10]
    assert len(set(chosen.names)) == 30
    for count in (3, 9, 18):
        assert [chosen.labels[:count].count(label) for label in range(3)] == [count // 3] * 3
    larger = calibration_subset(hundred, 100, seed=0)
    assert sorted(larger.names) == sorted(hundred.names)
    assert larger.names[:30] == chosen.names


def test_the_seed_alone_decides(hundred):
    first = calibration_subset(hundred, 20, seed=1)
    state = torch.random.get_rng_state()
    np.random.seed(5)
    assert calibration_subset(hundred, 20, seed=1).names == first.names
    assert torch.equal(torch.random.get_rng_state(), state)
    assert calibration_subset(hundred, 20, seed=2).names != first.names
    assert first.names != sorted(first.names)


@pytest.mark.parametrize("count", [0, -1, 101])
def test_an_impossible_number_of_calibration_images_names_both_numbers(hundred, count):
    with pytest.raises(HalfbyteError, match=f"{count} calibration images .* there are 100"):
        calibration_subset(hundred, count, seed=0)


def test_a_limit_keeps_each_classs_share_and_the_order(hundred):
    chosen = limit(hundred, 20)
    assert [chosen.labels.count(label) for label in range(3)] == [12, 6, 2]
    positions = [hundred.names.index(name) for name in chosen.names]
    assert positions == sorted(set(positions))
    assert limit(hundred, 20).names == chosen.names
    assert limit(hundred, 100).names == hundred.names
    assert len(limit(hundred, 5000)) == 100
    assert all(len(limit(hundred, count)) == count for count in range(1, 101))
    with pytest.raises(HalfbyteError, match="--limit 0"):
        limit(hundred, 0)


def test_subsets_of_subsets(hundred):
    part = hundred.subset([70, 5, 95]).subset([2, 0])
    assert part.labels == [2, 1]
    assert part.names == ["sorted.npz[95]", "sorted.npz[70]"]
    assert torch.equal(part[0][0], hundred[95][0])


# Batches


def test_batches_come_in_order_and_draw_nothing_at_random(hundred):
    state = torch.random.get_rng_state()
    plain = list(batches(hundred, 32))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [len(y) for _, y in plain] == [32, 32, 32, 4]
    assert plain[0][0].shape == (32, 1, 16, 16)
    assert plain[0][1].dtype == torch.int64
    assert torch.equal(torch.cat([y for _, y in plain]), torch.tensor(hundred.labels))
    assert torch.equal(plain[2][0][6], hundred[70][0])


def test_batches_are_the_same_with_any_number_of_workers(tmp_path, folder, rgb):
    images = open_images(folder(tmp_path, {"a": 5, "b": 8}), rgb, num_classes=2)
    plain = list(batches(images, 4))
    assert [len(y) for _, y in plain] == [4, 4, 4, 1]
    for (x, y), (x2, y2) in zip(plain, batches(images, 4, workers=2), strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


@pytest.mark.parametrize(("batch_size", "workers"), [(0, 0), (4, -1)])
def test_impossible_batches_are_refused(hundred, batch_size, workers):
    with pytest.raises(HalfbyteError, match="at least 1 and 0"):
        list(batches(hundred, batch_size, workers))

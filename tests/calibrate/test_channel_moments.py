"""Moments of channels: those of all values at once, however the stream is cut."""

from __future__ import annotations

import torch

from halfbyte.calibrate.channel_moments import ChannelMoments


def test_batches_together_are_the_whole_stream():
    x = torch.randn(9, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1000
    merged = ChannelMoments.of(x[:2]).merged(ChannelMoments.of(x[2:3])).merged(ChannelMoments.of(x[3:]))
    rows = x.double().transpose(0, 1).flatten(1)
    for found in (merged, ChannelMoments.of(x)):
        assert found.number == 9 * 30
        torch.testing.assert_close(found.mean, rows.mean(1), rtol=1e-14, atol=0)
        torch.testing.assert_close(found.variance, rows.var(1), rtol=1e-12, atol=0)


def test_one_value_has_no_variance():
    found = ChannelMoments.of(torch.ones(1, 2, 1, 1))
    assert found.variance.tolist() == [0, 0]

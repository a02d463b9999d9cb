"""Steps for groups of channels, and ranges around a centre."""

from __future__ import annotations

import pytest
import torch

from halfbyte.errors import HalfbyteError
from halfbyte.quantizers.groupwise import CentredQuantizer, GroupwiseQuantizer
from halfbyte.quantizers.kinds import build_quantizer

RANGES, GROUP = torch.tensor([0.5, 1.0, 3.7]), torch.tensor([0, 2, 1, 1, 0])


def grouped(bits: int, **options: object) -> GroupwiseQuantizer:
    quantizer = build_quantizer({"kind": "groupwise", "bits": bits, "groups": 3, **options})
    assert isinstance(quantizer, GroupwiseQuantizer)
    quantizer.set_ranges(RANGES, GROUP)
    return quantizer


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_each_channel_has_the_levels_of_its_group(bits, signed):
    x = torch.linspace(-5, 5, 2001)[:, None].expand(-1, 5)
    quantizer = grouped(bits, signed=signed)
    assert int(quantizer.quantize(x).max()) < 2**bits
    for channel, number in enumerate(GROUP):
        reach = float(RANGES[number])
        alone = build_quantizer({"kind": "groupwise", "bits": bits, "signed": signed})
        alone.set_ranges(torch.tensor([reach]))
        torch.testing.assert_close(quantizer(x)[:, channel], alone(x[:, channel]))
        assert float(quantizer(x)[:, channel].max()) == pytest.approx(reach)
        assert float(quantizer(x)[:, channel].min()) == pytest.approx(-reach if signed else 0)
    # Codes without a common factor are no integers that could be summed.
    assert not quantizer.exact_integers
    torch.testing.assert_close(quantizer.centred(x) * quantizer.factor, quantizer(x))


def test_divided_by_shares_all_channels_have_one_step():
    x, quantizer = torch.randn(100, 5) * 2, grouped(4)
    one, shares = quantizer.merged(), quantizer.shares
    assert one.exact_integers
    torch.testing.assert_close(one(x / shares) * shares, quantizer(x))


def test_gradients_of_what_is_clipped():
    for clips, expected in ((True, 0.0), (False, 1.0)):
        x = torch.tensor([[0.1, 9.0, -9, 0.2, 7]], requires_grad=True)
        grouped(3, clips_gradient=clips)(x).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [[1, expected, expected, 1, expected]]


@pytest.mark.parametrize("bits", range(2, 8))
def test_released_levels_are_one_bit_more(bits):
    x = torch.linspace(-9, 9, 20001)
    for kind, ranges in (("groupwise", [torch.tensor([2.0])]), ("centred", [torch.tensor(0.0), torch.tensor(2.0)])):
        for levels, count in (("paper", 2**bits - 1), ("released", 2 ** (bits + 1) - 1)):
            quantizer = build_quantizer({"kind": kind, "bits": bits, "levels": levels})
            getattr(quantizer, "set_ranges" if kind == "groupwise" else "set_range")(*ranges)
            assert len(quantizer(x).unique()) == count
            assert quantizer.exact_integers == (levels == "paper")


@pytest.mark.parametrize("middle", [-3.3, 0.01, 0.5, 40.0])
def test_a_range_around_a_centre_holds_what_lies_in_it(middle):
    for bits in range(2, 9):
        quantizer = CentredQuantizer(bits)
        quantizer.set_range(torch.tensor(middle), torch.tensor(0.7))
        x = torch.linspace(middle - 0.7, middle + 0.7, 999)
        assert float((quantizer(x) - x).abs().max()) <= float(quantizer.factor) * 0.5001
        assert len(quantizer(torch.linspace(middle - 3, middle + 3, 9999)).unique()) <= 2**bits


def test_what_does_not_fit_is_told():
    with pytest.raises(HalfbyteError, match="at most 7 bits"):
        GroupwiseQuantizer(8, levels="released")
    with pytest.raises(HalfbyteError, match="must be one of paper, released"):
        CentredQuantizer(4, levels="printed")
    with pytest.raises(HalfbyteError, match="groups must be from 1 to 64"):
        GroupwiseQuantizer(4, 0)
    for ranges, group in ((torch.ones(2), GROUP), (-RANGES, GROUP), (RANGES, GROUP + 1), (RANGES, None)):
        with pytest.raises(ValueError, match=r"ranges are needed|needs a group"):
            GroupwiseQuantizer(4, 3).set_ranges(ranges, group)
    with pytest.raises(ValueError, match="half-width"):
        CentredQuantizer(4).set_range(torch.tensor(0.0), torch.tensor(0.0))


def test_the_last_code_is_the_largest_in_use():
    for kind in ("groupwise", "lsq"):
        quantizer = build_quantizer({"kind": kind, "bits": 3})
        quantizer.scale = torch.tensor(1.0)
        assert int(quantizer.quantize(torch.tensor([99.0])).max()) == quantizer.last_code

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from halfbyte.errors import HalfbyteError
from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.groupwise import CentredQuantizer, GroupwiseQuantizer
from halfbyte.quantizers.kinds import KINDS, build_quantizer
from halfbyte.quantizers.log import AdaLogQuantizer, Log2Quantizer, LogSqrt2Quantizer
from halfbyte.quantizers.lsq import LsqQuantizer, least_squares_step
from halfbyte.quantizers.packing import pack, packed_size, unpack
from halfbyte.quantizers.twin import TwinUniformQuantizer
from halfbyte.quantizers.uniform import UniformQuantizer

VALUES = arrays(np.float32, (3, 5), elements=st.floats(-1e4, 1e4, width=32))


def fitted(kind: str, bits: int, low: float, high: float, **options: object) -> Quantizer:
    quantizer = build_quantizer({"kind": kind, "bits": bits, **options})
    if isinstance(quantizer, UniformQuantizer):
        quantizer.set_range(torch.tensor(low), torch.tensor(high))
    elif isinstance(quantizer, TwinUniformQuantizer):
        quantizer.set_scales(torch.tensor(abs(high) / 64 + 1e-3), torch.tensor(abs(high) / 4 + 16e-3))
    elif isinstance(quantizer, LsqQuantizer):
        quantizer.set_step(torch.tensor((high - low) / quantizer.levels + 1e-3))
    elif isinstance(quantizer, GroupwiseQuantizer):
        quantizer.set_ranges(torch.tensor([abs(high) + 1e-3]))
    elif isinstance(quantizer, CentredQuantizer):
        quantizer.set_range(torch.tensor((low + high) / 2), torch.tensor((high - low) / 2 + 1e-3))
    else:
        quantizer.set_scale(torch.tensor(abs(high) + 1e-3))
    return quantizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", range(2, 9))
@settings(max_examples=30, deadline=None)
@given(x=VALUES, low=st.floats(-100, 100, width=32), width=st.floats(0, 200, width=32))
def test_forward_is_dequantize_of_quantize(kind: str, bits: int, x: np.ndarray, low: float, width: float) -> None:
    quantizer, values = fitted(kind, bits, low, low + width), torch.from_numpy(x)
    codes = quantizer.quantize(values)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) < 2**bits
    assert torch.equal(quantizer(values), quantizer.dequantize(codes))
    centred = quantizer.centred(values)
    assert torch.equal(centred, quantizer.centre(codes))
    assert torch.equal(centred, centred.round())
    assert float(centred.abs().max()) <= quantizer.largest
    assert torch.equal(centred * quantizer.factor, quantizer(values))


@pytest.mark.parametrize("bits", range(2, 9))
@settings(max_examples=50, deadline=None)
@given(low=st.floats(-100, 100, width=32), width=st.floats(2**-10, 200, width=32))
def test_uniform_error_is_at_most_half_a_step_inside_the_range(bits: int, low: float, width: float) -> None:
    quantizer = fitted("uniform", bits, low, low + width)
    x = torch.linspace(low, low + width, 257)
    assert float((quantizer(x) - x).abs().max()) <= float(quantizer.scale) * 1.001 + 1e-5 * abs(low)
    inner = x[8:-8]
    # The zero point is rounded, so the two ends may lie up to half a step outside the codes.
    assert float((quantizer(inner) - inner).abs().median()) <= float(quantizer.scale) * 0.5001 + 1e-5 * abs(low)


@pytest.mark.parametrize("value", [0.0, 3.7, -2.5, 1e-30, -1e30])
@pytest.mark.parametrize("options", [{}, {"covers_zero": True}, {"symmetric": True}])
def test_a_constant_tensor_stays_what_it_is(value: float, options: dict[str, bool]) -> None:
    quantizer = fitted("uniform", 4, value, value, **options)
    assert float(quantizer(torch.tensor(value))) == pytest.approx(value, rel=1e-6)


def test_zero_is_a_code_where_the_range_must_cover_it() -> None:
    quantizer = fitted("uniform", 4, 2.0, 5.0, covers_zero=True)
    assert float(quantizer(torch.tensor(0.0))) == 0.0
    assert 0 <= int(quantizer.zero_point) <= 15


def test_zero_points_may_lie_outside_the_codes() -> None:
    quantizer = fitted("uniform", 4, 2.0, 5.0)
    assert int(quantizer.zero_point) == -10
    assert quantizer.zero_point.dtype == torch.int32
    assert float(quantizer(torch.tensor(3.0))) == pytest.approx(3.0)


def test_a_scale_a_head_or_channel() -> None:
    quantizer = UniformQuantizer(8, axis=1)
    x = torch.randn(2, 3, 4, 5) * torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    low, high = (getattr(x, edge)(dim=(0, 2, 3), keepdim=True) for edge in ("amin", "amax"))
    quantizer.set_range(low, high)
    assert quantizer.scale.shape == (1, 3, 1, 1)
    assert bool(((quantizer(x) - x).abs() <= quantizer.scale * 1.001).all())


def test_gradient_passes_where_nothing_is_clipped() -> None:
    quantizer = fitted("uniform", 3, -1.0, 1.0)
    x = torch.tensor([-5.0, -0.4, 0.3, 5.0], requires_grad=True)
    (quantizer(x) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 0.0]


@pytest.mark.parametrize("kind", [Log2Quantizer, LogSqrt2Quantizer])
@pytest.mark.parametrize("bits", range(2, 9))
def test_log_codes_are_monotone_and_their_levels_whole(kind: type, bits: int) -> None:
    quantizer = kind(bits)
    quantizer.set_scale(torch.tensor(0.9))
    x = torch.logspace(-12, 0.2, 4001)
    codes = quantizer.quantize(x).int()
    assert bool((codes.diff() <= 0).all())
    assert int(quantizer.quantize(torch.tensor(0.0))) == 2**bits - 1
    assert int(quantizer.quantize(torch.tensor(-0.5))) == 2**bits - 1
    assert float(quantizer(torch.tensor(0.0))) == 0.0
    assert int(quantizer.quantize(torch.tensor(7.0))) == 0
    levels = quantizer.level_table()
    assert np.array_equal(levels, np.rint(levels))
    assert len(levels) == 2**bits


@pytest.mark.parametrize("kind", [Log2Quantizer, LogSqrt2Quantizer, AdaLogQuantizer])
def test_log_thresholds_decide_to_the_bit(kind: type) -> None:
    quantizer = kind(4)
    quantizer.set_scale(torch.tensor(0.7))
    thresholds = quantizer.thresholds()
    above = np.nextafter(thresholds, np.float32(2))
    assert quantizer.quantize(torch.from_numpy(thresholds)).tolist() == list(range(1, 16))
    assert quantizer.quantize(torch.from_numpy(above)).tolist() == list(range(15))
    exact = 0.7 * 2.0 ** (-(np.arange(15) + 0.5) / kind.steps_per_octave(np.array(quantizer.base)))
    assert np.abs(thresholds / exact - 1).max() < 0.004


@pytest.mark.parametrize("kind", [Log2Quantizer, LogSqrt2Quantizer])
def test_more_bits_are_never_worse(kind: type) -> None:
    x = torch.rand(20000, generator=torch.Generator().manual_seed(0)) ** 6
    errors = []
    for bits in range(2, 9):
        quantizer = kind(bits)
        quantizer.set_scale(torch.tensor(1.0))
        errors.append(float((quantizer(x) - x).square().mean()))
    assert errors == sorted(errors, reverse=True)


@given(bits=st.integers(2, 8), count=st.integers(0, 50), seed=st.integers(0, 2**31))
def test_packing_is_dense_and_exact(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (count, 3), dtype=np.uint8)
    stream = pack(codes, bits)
    assert stream.nbytes == packed_size(3 * count, bits) == -(-3 * count * bits // 8)
    assert np.array_equal(unpack(stream, bits, (count, 3)), codes)


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pack(np.array([16]), 4)
    with pytest.raises(ValueError, match="take 2 bytes"):
        unpack(np.zeros(3, np.uint8), 4, (4,))


@pytest.mark.parametrize("bits", [1, 9, 0, -3, "4", 4.0, None, True])
def test_bits_outside_2_to_8_are_refused(bits: object) -> None:
    with pytest.raises(HalfbyteError, match="from 2 to 8"):
        build_quantizer({"kind": "uniform", "bits": bits})


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(HalfbyteError, match="log_sqrt2"):
        build_quantizer({"kind": "log_sqrt", "bits": 4})


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_scale_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        UniformQuantizer(4).set_parameters(torch.tensor(scale), torch.tensor(0))


def test_an_unfitted_quantizer_says_so() -> None:
    with pytest.raises(HalfbyteError, match="before it was calibrated"):
        UniformQuantizer(4)(torch.ones(3))


def attention() -> torch.Tensor:
    """Probabilities as attention maps have them: many small ones, a few near 1."""
    return torch.randn(64, 197, generator=torch.Generator().manual_seed(0)).mul(2.5).softmax(-1)


def test_with_the_best_base_more_bits_are_never_worse_for_adalog() -> None:
    x, errors = attention(), []
    for bits in range(2, 9):
        least = float("inf")
        for base in AdaLogQuantizer.bases(bits):
            quantizer = AdaLogQuantizer(bits, base=base)
            quantizer.set_scale(x.max())
            least = min(least, float((quantizer(x) - x).square().sum()))
        errors.append(least)
    assert all(more < fewer for fewer, more in pairwise(errors))
    # The paper's code loses its maps at 8 bits (relative error 0.33 with three shifts).
    assert (errors[-1] / float(x.square().sum())) ** 0.5 < 0.012


def test_without_a_zero_the_last_code_is_the_smallest_level() -> None:
    kept, dropped = AdaLogQuantizer(4, base=25), AdaLogQuantizer(4, base=25, zero=False)
    for quantizer in (kept, dropped):
        quantizer.set_scale(torch.tensor(1.0))
    x = torch.tensor([0.0, 1e-6, 1e-3, 0.5])
    assert torch.equal(kept.quantize(x), dropped.quantize(x))
    assert float(kept(x)[0]) == 0.0
    assert float(dropped(x)[0]) == pytest.approx(2 ** (-15 * 25 / 37), rel=0.02)
    assert build_quantizer(dropped.spec()).spec() == dropped.spec()


def test_levels_of_few_bits_are_the_nearest_whole_numbers() -> None:
    usual, few = AdaLogQuantizer(4, base=17, shift=0.17), AdaLogQuantizer(4, base=17, shift=0.17, level_bits=8)
    for quantizer in (usual, few):
        quantizer.set_scale(torch.tensor(3.0))
    x = torch.linspace(-0.17, 3, 1000)
    assert torch.equal(usual.quantize(x), few.quantize(x))
    assert few.level_table()[0] == 255
    # Half a 255th of the scale, but for what the levels of 15 bits are wrong by.
    assert float((usual(x) - few(x)).abs().max()) <= 3.0 / 255 / 2 * 1.01
    assert build_quantizer(few.spec()).spec() == few.spec() != usual.spec()
    assert "level_bits" not in usual.spec()


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": 0}, {"base": 256}, {"base": 1.5}, {"base": True}, {"shift": -1}, {"shift": "a"}, {"level_bits": 3},
        {"level_bits": 16}, {"level_bits": 8.0}, {"level_bits": True},
    ],
)  # fmt: skip
def test_an_impossible_adalog_quantizer_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(HalfbyteError, match=next(iter(wrong))):
        build_quantizer({"kind": "adalog", "bits": 4, **wrong})


@pytest.mark.parametrize("signed", [True, False])
def test_a_twin_quantizer_has_a_fine_and_a_coarse_step(signed: bool) -> None:
    quantizer = TwinUniformQuantizer(4, signed=signed)
    quantizer.set_scales(torch.tensor(0.01), torch.tensor(0.16))
    x = torch.tensor([-0.044, 0.0, 0.044, 0.5, 9.0])
    expected = [-0.04, 0.0, 0.0, 0.48, 1.12] if signed else [0.0, 0.0, 0.04, 0.48, 1.12]
    assert torch.allclose(quantizer(x), torch.tensor(expected), atol=1e-6)
    assert quantizer.exact_integers
    quantizer.set_scales(torch.tensor(0.01), torch.tensor(0.155))
    assert not quantizer.exact_integers


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("signed", "axis"), [(True, None), (False, None), (True, 0)])
def test_learned_steps_with_and_without_an_offset(bits: int, signed: bool, axis: int | None) -> None:
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(bits))
    step = least_squares_step(x, bits, signed, axis)
    assert step.shape == (() if axis is None else (6, 1))
    plain = LsqQuantizer(bits, axis, signed=signed)
    plain.set_step(step)
    codes = plain.quantize(x)
    assert int(codes.max()) < 2**bits
    assert torch.equal(plain(x), plain.dequantize(codes))
    # The step fits its own levels.
    levels = plain.centred(x)
    others = (0, 1) if axis is None else (1,)
    again = (x * levels).sum(others, keepdim=True) / levels.square().sum(others, keepdim=True)
    torch.testing.assert_close(again.view_as(step), step, rtol=2e-4, atol=0)
    shifted = build_quantizer({"kind": "lsq", "bits": bits, "axis": None, "signed": signed, "with_offset": True})
    assert isinstance(shifted, LsqQuantizer)
    shifted.set_step(torch.tensor(0.1), torch.tensor(-0.17))
    assert torch.equal(shifted(x), shifted.dequantize(shifted.quantize(x)))
    assert torch.equal(shifted(x), shifted.centred(x) * shifted.factor + shifted.offset)
    assert shifted.offset == pytest.approx(-0.17)


def test_steps_of_zeros_and_wrong_steps() -> None:
    assert float(least_squares_step(torch.zeros(4), 4)) == 1
    quantizer = LsqQuantizer(4, with_offset=True)
    for step, beta in ((0.0, 0.0), (float("nan"), 0.0), (0.1, float("inf"))):
        with pytest.raises(ValueError, match=r"must be (positive and )?finite"):
            quantizer.set_step(torch.tensor(step), torch.tensor(beta))

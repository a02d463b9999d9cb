"""Results that depend neither on the batch nor on the threads, and agree with the float model's arithmetic."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from halfbyte.errors import HalfbyteError
from halfbyte.layers.activation import exact_gelu
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.matmul import QuantMatMul
from halfbyte.layers.norm import ExactBatchNorm, ExactFloat64, ExactLayerNorm
from halfbyte.layers.site import SiteModule, exact_dtype
from halfbyte.quantizers.log import LogSqrt2Quantizer
from halfbyte.quantizers.uniform import UniformQuantizer


def uniform(bits: int, x: torch.Tensor, axis: int | None = None, **options: bool) -> UniformQuantizer:
    quantizer = UniformQuantizer(bits, axis, **options)
    if axis is None:
        quantizer.set_range(x.min(), x.max())
    else:
        others = tuple(range(1, x.ndim))
        quantizer.set_range(x.amin(others, keepdim=True), x.amax(others, keepdim=True))
    return quantizer


def weighted(site: SiteModule, bits: int, x: torch.Tensor) -> SiteModule:
    site.set_quantizer("input", uniform(bits, x, covers_zero=True))
    site.set_quantizer("weight", uniform(bits, site.weight.detach(), axis=0))
    site.state = "quantized"
    return site


def test_gelu_is_accurate_everywhere() -> None:
    x = torch.cat((torch.linspace(-12, 12, 400001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30])))
    exact = F.gelu(x.double())
    assert float((exact_gelu(x).double() - exact).abs().max() / exact.abs().clamp(min=1).max()) < 1e-6
    small = x.abs() < 12
    assert float((exact_gelu(x).double() - exact)[small].abs().max()) < 2e-6


def test_gelu_does_not_depend_on_where_an_element_stands() -> None:
    x = torch.randn(200003)
    alone = torch.cat([exact_gelu(piece) for piece in x.split(77)])
    assert torch.equal(exact_gelu(x), alone)
    strided = torch.randn(7, 33, 5).transpose(0, 2)
    assert torch.equal(exact_gelu(strided), exact_gelu(strided.contiguous()))


@pytest.mark.parametrize("bits", range(2, 9))
@torch.no_grad()
def test_linear_is_the_exact_sum_of_codes(bits: int) -> None:
    torch.manual_seed(bits)
    x = torch.randn(9, 13, 384) + 0.3
    site = weighted(QuantLinear(nn.Linear(384, 40)), bits, x)
    a, w = site.quantizer("input"), site.quantizer("weight")
    sums = a.centred(x).long() @ w.centre(site.codes()).long().T
    scale = (a.factor.double() * w.factor.double().flatten()).float()
    assert torch.equal(site(x), sums.float() * scale + site.bias)
    simulated = F.linear(a(x).double(), w(site.weight).double(), site.bias.double())
    assert float((site(x) - simulated).abs().max()) < 1e-5 * float(simulated.abs().max())


@pytest.mark.parametrize(("groups", "same"), [(1, False), (8, False), (1, True)])
@pytest.mark.parametrize("bits", [3, 8])
@torch.no_grad()
def test_convolution_is_the_exact_sum_of_codes(bits: int, groups: int, same: bool) -> None:
    torch.manual_seed(bits)
    x = torch.randn(3, 16, 15, 14)
    conv = nn.Conv2d(16, 24, 3, stride=2, padding=0 if same else 1, groups=groups)
    site = weighted(QuantConv2d(conv, same_padding=same), bits, x)
    a, w = site.quantizer("input"), site.quantizer("weight")
    simulated = site._convolve(a(x).double(), w(site.weight).double(), site.bias.double())
    assert site(x).shape == simulated.shape == (3, 24, 8, 7)
    assert float((site(x) - simulated).abs().max()) < 1e-5 * float(simulated.abs().max())
    assert torch.equal(site(x), torch.cat([site(image[None]) for image in x]))


@torch.no_grad()
def test_same_padding_is_tensorflows() -> None:
    from timm.layers import Conv2dSame

    for size, kernel, stride in ((15, 3, 2), (14, 5, 2), (16, 3, 1), (7, 3, 4)):
        conv = Conv2dSame(4, 6, kernel, stride=stride)
        x = torch.randn(2, 4, size, size + 1)
        assert torch.equal(QuantConv2d(conv, same_padding=True)(x), conv(x))


@pytest.mark.parametrize("bits", range(2, 9))
@torch.no_grad()
def test_product_of_activations_with_log_codes(bits: int) -> None:
    torch.manual_seed(bits)
    p, v = torch.randn(2, 3, 50, 50).softmax(-1), torch.randn(2, 3, 50, 16)
    site = QuantMatMul()
    left = LogSqrt2Quantizer(bits)
    left.set_scale(p.max())
    site.set_quantizer("left", left)
    site.set_quantizer("right", uniform(bits, v))
    site.state = "quantized"
    expected = left(p).double() @ site.quantizer("right")(v).double()
    assert float((site(p, v) - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert torch.equal(site(p, v), torch.cat([site(p[i : i + 1], v[i : i + 1]) for i in range(2)]))


@torch.no_grad()
def test_weights_are_quantized_once_and_again_after_a_change() -> None:
    x = torch.randn(4, 8)
    site = weighted(QuantLinear(nn.Linear(8, 8)), 4, x)
    first, kept = site(x), site.integer_form().weight
    assert site.integer_form().weight is kept
    site.weight.mul_(-0.5)
    assert site.integer_form().weight is not kept
    assert not torch.equal(site(x), first)


def test_sums_are_exact_in_the_narrowest_type() -> None:
    assert exact_dtype(2**24 - 1) is torch.float32
    assert exact_dtype(2**24) is torch.float64
    assert exact_dtype(10, whole_numbers=False) is torch.float64
    with pytest.raises(HalfbyteError, match="2\\*\\*53"):
        exact_dtype(2.0**53)


@torch.no_grad()
def test_norms_agree_with_torch() -> None:
    x = torch.randn(5, 7, 32) * 3 + 1
    norm = nn.LayerNorm(32)
    nn.init.normal_(norm.weight)
    exact = ExactLayerNorm(norm)
    exact.state = "quantized"
    assert torch.allclose(exact(x), norm(x), atol=1e-5)
    images, batch_norm = torch.randn(3, 6, 5, 5), nn.BatchNorm2d(6).eval()
    for tensor in (batch_norm.weight, batch_norm.bias, batch_norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(batch_norm.running_var, 0.1, 4)
    for wrapper, module in (
        (ExactBatchNorm(batch_norm), batch_norm),
        (ExactFloat64(nn.GroupNorm(2, 6)), nn.GroupNorm(2, 6)),
    ):
        wrapper.state = "quantized"
        assert torch.allclose(wrapper(images), module(images), atol=1e-5)
        assert wrapper(images).dtype == torch.float32

"""Adapters add exactly nothing at first and can all be trained, in the form in which they are deployed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from halfbyte.errors import HalfbyteError
from halfbyte.layers.adapters import KINDS, Adapter, adapter
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.site import WeightedSite
from halfbyte.prepare import model_state
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.train.fake_quantization import FakeQuantization

SHAPES = {"stage": (2, 8, 6, 6), "map": (2, 3, 4, 8), "tokens": (2, 3 + 3 * 4, 8)}
CASES = [(kind, shape) for kind in KINDS for shape in (("stage",) if kind == "stage" else ("map", "tokens"))]


def made(kind: str, shape: str) -> Adapter:
    """An adapter of 8 channels, with quantizers that have no range yet."""
    if kind == "stage":
        options = {"inputs": 8, "outputs": 16, "kernel": 3, "stride": 2, "groups": 2}
    elif kind in ("separable", "depthwise"):
        on_grid = shape == "tokens"
        options = {"channels": 8, "rank": 4 if kind == "separable" else 0, "prefix": 3 if on_grid else 0,
                   "grid": [3, 4] if on_grid else [], "shared_gate": False}  # fmt: skip
    else:
        options = {"channels": 8} | ({} if kind == "affine" else {"rank": 4})
    result = adapter(kind, form="int8", **options)
    for site in result.modules():
        if isinstance(site, WeightedSite):
            site.set_quantizer("input", UniformQuantizer(8, covers_zero=isinstance(site, QuantConv2d)))
            site.set_quantizer("weight", UniformQuantizer(8, axis=0, symmetric=True))
    result.start(torch.Generator().manual_seed(0))
    return result


def trained(kind: str, shape: str, steps: int = 3) -> tuple[Adapter, FakeQuantization, torch.Tensor]:
    """An adapter after some steps towards a random target, its quantizers those of the last step."""
    branch = made(kind, shape)
    sites = [site for site in branch.modules() if isinstance(site, WeightedSite)]
    observer = FakeQuantization(sites, sites, torch.device("cpu"))
    torch.manual_seed(0)
    x = torch.randn(SHAPES[shape])
    optimizer = torch.optim.AdamW(branch.parameters(), 1e-2)
    with model_state(branch, "observe", observer):
        branch(x)
        observer.advance(1.0)
        target = torch.randn_like(branch(x))
        for _ in range(steps):
            optimizer.zero_grad()
            (branch(x) - target).square().mean().backward()
            optimizer.step()
            observer.advance()
    for site in sites:
        observer.fit_weight(site)
    return branch, observer, x


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_it_adds_exactly_nothing_at_first(kind: str, shape: str) -> None:
    branch, _, x = trained(kind, shape, steps=0)
    with torch.no_grad(), model_state(branch, "quantized"):
        assert not branch(x).any()


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_every_parameter_moves(kind: str, shape: str) -> None:
    branch, _, _ = trained(kind, shape)
    for name, parameter in branch.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_integers_give_what_was_trained(kind: str, shape: str) -> None:
    branch, observer, x = trained(kind, shape)
    with model_state(branch, "observe", observer):
        expected = branch(x)
    with torch.no_grad(), model_state(branch, "quantized"):
        got = branch(x)
        folded = copy.deepcopy(branch)
        folded.fold()
        for site in folded.modules():
            if isinstance(site, WeightedSite):
                observer.fit_weight(site)
        again = folded(x)
    # GELU differs in the last bits, and a code may flip by it.
    step = max([float(site.quantizer("input").scale) for site in branch.modules() if isinstance(site, WeightedSite)],
               default=1e-6)  # fmt: skip
    assert torch.allclose(got, expected, atol=0.1 * step + 1e-5)
    assert torch.allclose(again, got, atol=0.1 * step + 1e-5)


@torch.no_grad()
def test_tokens_before_the_grid_pass_a_gate_of_their_own() -> None:
    branch = made("separable", "tokens")
    x = torch.randn(SHAPES["tokens"])
    branch.prefix_gate.fill_(0.5)
    with model_state(branch, "observe"):
        out = branch(x)
    assert torch.equal(out[:, :3], 0.5 * x[:, :3])
    assert not out[:, 3:].any()


@torch.no_grad()
def test_the_grid_is_read_row_by_row() -> None:
    branch = made("depthwise", "tokens")
    branch.dw.weight[:, 0, 1, 2] = 1.0  # what stands to the right
    x = torch.randn(SHAPES["tokens"])
    with model_state(branch, "observe"):
        out = branch(x)[:, 3:].unflatten(1, (3, 4)) / branch.alpha
    right = nn.functional.pad(x[:, 3:].unflatten(1, (3, 4))[:, :, 1:], (0, 0, 0, 1))
    assert torch.allclose(out, nn.functional.gelu(right), atol=1e-6)


def test_another_number_of_tokens_is_refused() -> None:
    with pytest.raises(HalfbyteError, match="grid"):
        made("separable", "tokens")(torch.zeros(1, 10, 8))


@pytest.mark.parametrize(("kind", "form"), [("wide", "int8"), ("affine", "int4"), ("affine", None)])
def test_unknown_kinds_and_forms_are_refused(kind: str, form: str | None) -> None:
    with pytest.raises(ValueError, match="no adapter"):
        adapter(kind, channels=8, form=form)

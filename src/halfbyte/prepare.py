"""Swap a Layout's sites for quantized modules, and set the state in which they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from halfbyte.errors import HalfbyteError
from halfbyte.families.arithmetic import fixed_weight, is_same_padded
from halfbyte.families.layout import Layout, Site
from halfbyte.families.leftovers import replacement
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.matmul import QuantMatMul
from halfbyte.layers.site import Observer, SiteModule, State, Stateful, WeightedSite
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.recipe import BitPlan


def prepare(model: nn.Module, layout: Layout, plan: BitPlan | None = None) -> Layout:
    """Rewrite `model` in place: attentions un-fused, sites and leftovers replaced; the function stays the same.

    Returns the layout with its sites in the order in which they run and with their multiply-accumulates for one image.
    Linears and convolutions that the forward pass never calls as modules become what they were: they stay in float.
    With `plan`, every operand gets a uniform quantizer of the planned width, not yet fitted.
    """
    originals = dict(model.named_modules())
    for path, adapter in layout.adapters.items():
        replace_module(model, path, adapter(originals[path]))
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            cast(Any, module).fused_attn = False
    swapped = {site.name: _swap(model, site) for site in layout.sites if site.role not in ("qk", "pv")}
    for path, module in list(model.named_modules()):
        if path in dict(model.named_modules()) and (new := replacement(module)) is not None:
            replace_module(model, path, new)
    called = _probe(model, layout, "float")
    for name, original in swapped.items():
        if name not in called:
            replace_module(model, name, original)
    layout = _in_order(layout, called)
    if plan is not None:
        _check_plan(plan, layout)
        for site in layout.sites:
            set_default_quantizers(site_module(model, site.name), *plan.of(site))
    return layout


def settle(model: nn.Module, layout: Layout) -> Layout:
    """The layout of a model to which edits have added sites: in the order in which they run, multiply-accumulates
    counted."""
    if all(site.macs for site in layout.sites):
        return layout
    return _in_order(layout, _probe(model, layout, "observe"))


def site_module(model: nn.Module, name: str) -> SiteModule:
    """The module of a site in a prepared model."""
    module = model.get_submodule(name)
    if not isinstance(module, SiteModule):
        raise HalfbyteError(f"{name} is not a prepared site of the model")
    return module


def set_default_quantizers(module: SiteModule, weight_bits: int, activation_bits: int) -> None:
    """Affine quantizers: one scale an output channel for a weight, one for the tensor for an activation."""
    for operand in module.operands:
        if operand == "weight":
            module.set_quantizer(operand, UniformQuantizer(weight_bits, axis=0))
        else:
            covers_zero = isinstance(module, QuantConv2d)
            module.set_quantizer(operand, UniformQuantizer(activation_bits, covers_zero=covers_zero))


def set_state(model: nn.Module, state: State, observer: Observer | None = None) -> None:
    """Put every module of a prepared model into `state`."""
    for module in model.modules():
        if isinstance(module, Stateful):
            module.state = state
        if isinstance(module, SiteModule):
            module.observer = observer


@contextmanager
def model_state(model: nn.Module, state: State, observer: Observer | None = None) -> Iterator[nn.Module]:
    """The model in `state` for the length of a with-block; afterwards each module is as it was."""
    before = [(module, module.state, getattr(module, "observer", None))
              for module in model.modules() if isinstance(module, Stateful)]  # fmt: skip
    set_state(model, state, observer)
    try:
        yield model
    finally:
        for module, old_state, old_observer in before:
            module.state = old_state
            if isinstance(module, SiteModule):
                module.observer = old_observer


def example_input(model: nn.Module, images: int = 1) -> Tensor:
    """Zeros `[images, C, H, W]` of the size for which the model was made."""
    config = cast("dict[str, Any]", getattr(model, "pretrained_cfg", None) or {})
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    return torch.zeros(images, *config.get("input_size", (3, 224, 224)), device=device)


def _swap(model: nn.Module, site: Site) -> nn.Module:
    """Replace one linear or convolution by its quantized module; returns what was there."""
    original = model.get_submodule(site.name)
    if isinstance(original, nn.Linear):
        replace_module(model, site.name, QuantLinear(original))
    else:
        assert isinstance(original, nn.Conv2d)
        convolution = QuantConv2d(original, same_padding=is_same_padded(original))
        if (weight := fixed_weight(original)) is not None:
            convolution.weight = nn.Parameter(weight)
        replace_module(model, site.name, convolution)
    return original


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` wherever the module at `path` stands: some models hold one module in several places."""
    old = model.get_submodule(path)
    module.train(model.training)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, module)


def _in_order(layout: Layout, called: dict[str, int]) -> Layout:
    sites = [replace(site, macs=called[site.name]) for site in layout.sites if site.name in called]
    sites.sort(key=lambda site: list(called).index(site.name))
    return Layout.of(sites, layout.adapters, {block.name: block.end for block in layout.blocks})


def _probe(model: nn.Module, layout: Layout, state: State) -> dict[str, int]:
    """Run one image: the sites that are called, in order, with the multiply-accumulates of all their calls."""
    called: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            called[name] = called.get(name, 0) + _macs(module, inputs, output)

        return hook

    modules = dict(model.named_modules())
    hooks = [modules[site.name].register_forward_hook(count(site.name)) for site in layout.sites]
    # A model in training takes other ways, moves its running statistics and refuses a batch of one.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), model_state(model, state):
            model(example_input(model))
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    return called


def _macs(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    if isinstance(module, QuantMatMul):
        return output.numel() * inputs[0].shape[-1]
    weight = module.weight if module.weight is not None else cast(WeightedSite, module).codes()
    return output.numel() * cast(Tensor, weight)[0].numel()


def _check_plan(plan: BitPlan, layout: Layout) -> None:
    unmatched = plan.unmatched(layout.sites)
    if unmatched:
        raise HalfbyteError(
            f"bits.sites: no site of the model matches {unmatched[0]!r}; `halfbyte inspect MODEL` lists them"
        )

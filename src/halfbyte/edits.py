"""Changes of a prepared model's structure, by name and with plain arguments, so that a file can repeat them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from halfbyte import rotation
from halfbyte.errors import HalfbyteError
from halfbyte.families.layout import Layout, Site
from halfbyte.layers.activation import ExactGELU
from halfbyte.layers.adapters import adapter
from halfbyte.layers.attention import AttentionAdapter
from halfbyte.layers.branch import Branch, Side
from halfbyte.layers.compensation import Shape, compensation
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.norm import ExactBatchNorm, ExactLayerNorm
from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.prepare import replace_module, site_module
from halfbyte.registry import Registry

EditFunction = Callable[..., Layout]
EDITS: Registry[EditFunction] = Registry("edit")
# Behind these the tensors between modules mean something else than in the trained model.
CHANGES_BASIS = ("rotate_stream",)
# Behind these the model holds tensors that were learned in place of trained ones, and what they are.
LEARNS_ANEW = {"learn_norm": "norms", "replace_gelu": "MLPs", "train_model": "weights"}


@dataclass(frozen=True)
class Edit:
    """One structural change: the registered name and its arguments, all plain values."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def apply(self, model: nn.Module, layout: Layout) -> Layout:
        """Make the change; returns the layout with the sites that it added.

        Raises `HalfbyteError` for an unknown name or arguments that do not fit.
        """
        function = EDITS.get(self.name)
        try:
            return function(model, layout, **self.arguments)
        except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
            raise HalfbyteError(f"the edit {self.name} does not fit the model: {error}") from None


@EDITS.register("add_bias")
def add_bias(model: nn.Module, layout: Layout, site: str) -> Layout:
    """Give a site without a bias one of zeros `[O]`."""
    module, weight = _weighted(model, site)
    if module.bias is None:
        del module.bias
        module.bias = nn.Parameter(torch.zeros(weight.shape[0], device=weight.device))
    return layout


@EDITS.register("add_norm_affine")
def add_norm_affine(model: nn.Module, layout: Layout, norm: str) -> Layout:
    """Give a norm without weight or bias those of the identity `[C]`."""
    module = model.get_submodule(norm)
    if not isinstance(module, ExactLayerNorm):
        raise HalfbyteError(f"{norm} is not a LayerNorm over one dimension")
    (channels,) = module.normalized_shape
    device = next(model.parameters()).device
    for name, fill in (("weight", 1.0), ("bias", 0.0)):
        if getattr(module, name) is None:
            delattr(module, name)
            setattr(module, name, nn.Parameter(torch.full((channels,), fill, device=device)))
    return layout


@EDITS.register("fold_norm")
def fold_norm(model: nn.Module, layout: Layout, site: str, norm: str) -> Layout:
    """Make a BatchNorm part of the weight and the bias of the convolution whose output it reads; of the norm stays the
    activation that it held. Computed here, so that `--from` folds the trained weights as the artifact's run did."""
    module, behind = site_module(model, site), model.get_submodule(norm)
    if not isinstance(module, QuantConv2d) or not isinstance(behind, ExactBatchNorm) or module.weight is None:
        raise HalfbyteError(f"{site} and {norm} are not a convolution and the BatchNorm behind it")
    layout = add_bias(model, layout, site)
    assert module.bias is not None
    with torch.no_grad():
        scale, shift = behind.unrounded_scale_and_shift()
        module.weight.copy_(module.weight.double() * scale.view(-1, 1, 1, 1))
        module.bias.copy_(module.bias.double() * scale + shift)
    replace_module(model, norm, behind.act)
    return layout


@EDITS.register("rotate_stream")
def rotate_stream(
    model: nn.Module,
    layout: Layout,
    writers: list[str],
    scales: dict[str, str],
    tokens: list[str],
    readers: dict[str, list[str]],
    seed: int | None,
) -> Layout:
    """Turn the residual stream by `hadamard.rotation`; its norms need no mean and have no weight and bias any more.
    The arguments are those of `families.stream.Stream`."""
    for site in sorted({site for sites in readers.values() for site in sites}):
        layout = add_bias(model, layout, site)
    rotation.rotate_stream(model, writers, scales, tokens, readers, seed)
    return layout


@EDITS.register("rotate_heads")
def rotate_heads(
    model: nn.Module, layout: Layout, attention: str, scores: bool, values: bool, seed: int | None
) -> Layout:
    """Turn q and k of every head of an attention alike, or v with what reads it, by `hadamard.rotation`."""
    rotation.rotate_heads(model, attention, scores, values, seed)
    return layout


@EDITS.register("learn_norm")
def learn_norm(model: nn.Module, layout: Layout, norm: str) -> Layout:
    """Say that the weight and the bias of a LayerNorm are not the trained ones any more; these no artifact keeps."""
    if not isinstance(model.get_submodule(norm), ExactLayerNorm):
        raise HalfbyteError(f"{norm} is not a LayerNorm over one dimension")
    return layout


@EDITS.register("train_model")
def train_model(model: nn.Module, layout: Layout) -> Layout:
    """Say that the weights and all else are not those that the model was loaded with."""
    return layout


@EDITS.register("replace_gelu")
def replace_gelu(model: nn.Module, layout: Layout, activation: str) -> Layout:
    """Put a ReLU in the place of a GELU; the linears around it have learned to give what they gave."""
    if not isinstance(model.get_submodule(activation), ExactGELU):
        raise HalfbyteError(f"{activation} is not a GELU")
    replace_module(model, activation, nn.ReLU())
    return layout


@EDITS.register("split_qkv")
def split_qkv(model: nn.Module, layout: Layout, attention: str) -> Layout:
    """Make the packed projection of an attention three sites, each with the rows, the quantizers and the codes that it
    had as a part: the function stays what it was, in every state."""
    module = model.get_submodule(attention)
    if not isinstance(module, AttentionAdapter) or not isinstance(getattr(module, "qkv", None), QuantLinear):
        raise HalfbyteError(f"{attention} has no packed projection of q, k and v")
    parts = cast(QuantLinear, module.qkv).split(3)
    module.qkv = cast(nn.Module, None)
    names = ("q_proj", "k_proj", "v_proj")
    for name, part in zip(names, parts, strict=True):
        module.add_module(name, part)
    return layout.with_parts(f"{attention}.qkv", (f"{attention}.{name}" for name in names))


@EDITS.register("track_scale")
def track_scale(model: nn.Module, layout: Layout, site: str) -> Layout:
    """Let a site remember what its weight's input channels were multiplied by (`WeightedSite.folded_scale` `[I]`)."""
    module, weight = _weighted(model, site)
    if module.folded_scale is None:
        module.folded_scale = torch.ones(weight.shape[1], device=weight.device)
    return layout


@EDITS.register("scale_input")
def scale_input(model: nn.Module, layout: Layout, site: str) -> Layout:
    """Let a linear multiply its input channels by numbers of its own (`WeightedSite.input_scale` `[I]`), at first 1."""
    module, weight = _weighted(model, site)
    if not isinstance(module, QuantLinear):
        raise HalfbyteError(f"{site} is not a linear")
    if module.input_scale is None:
        module.input_scale = torch.ones(weight.shape[1], device=weight.device)
    return layout


@EDITS.register("add_compensation")
def add_compensation(
    model: nn.Module,
    layout: Layout,
    block: str,
    at: str,
    child: str,
    form: str,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    groups: int,
    rank: int,
) -> Layout:
    """Add a linear map of a block's input to the output of `at`, a module in it; zeros until it is filled."""
    branch = compensation(form, Shape(inputs, outputs, kernel, stride, groups), rank)
    branch.attach(child, model.get_submodule(at), model.get_submodule(block), "input")
    return _with_branch(model, layout, block, f"{at}.{child}", branch)


@EDITS.register("add_adapter")
def add_adapter(
    model: nn.Module,
    layout: Layout,
    block: str,
    at: str,
    source: str,
    side: str,
    child: str,
    kind: str,
    options: dict[str, Any],
) -> Layout:
    """Add a trained function of the input or output (`side`) of `source` to the output of `at`, both in `block` or, of
    a stage of blocks, before it; zeros until it is filled. `kind` and `options` are those of `layers.adapters`."""
    if side not in ("input", "output"):
        raise ValueError(f"a module has no {side!r}")
    branch = adapter(kind, **options)
    branch.attach(child, model.get_submodule(at), model.get_submodule(source), cast(Side, side))
    return _with_branch(model, layout, block, f"{at}.{child}", branch)


def _with_branch(model: nn.Module, layout: Layout, block: str, path: str, branch: Branch) -> Layout:
    """The layout with the sites of a branch that was attached at `path`."""
    branch.to(next(model.parameters()).device).train(model.training)
    inside = [name for name, module in branch.named_modules() if isinstance(module, SiteModule)]
    return layout.with_sites(Site(f"{path}.{name}", "side", block) for name in inside)


def _weighted(model: nn.Module, site: str) -> tuple[WeightedSite, Tensor]:
    """A site that has a weight, and this as float."""
    module = site_module(model, site)
    if not isinstance(module, WeightedSite):
        raise HalfbyteError(f"the site {site} is a product of activations and has no weight")
    return module, module.float_weight()

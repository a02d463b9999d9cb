"""Norms, activations and pools that stay in float, and what computes them the same way for every batch."""

from __future__ import annotations

from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.norm import LayerNorm
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from halfbyte.layers.activation import ExactElementwise, ExactGELU
from halfbyte.layers.norm import ExactBatchNorm, ExactFloat64, ExactLayerNorm
from halfbyte.layers.site import SiteModule

_SMOOTH_ACTIVATIONS = (
    "CELU", "ELU", "GELU", "GELUTanh", "GeluTanh", "HardMish", "HardSigmoid", "HardSwish", "Hardsigmoid", "Hardswish",
    "Mish", "QuickGELU", "QuickGELUTanh", "SELU", "SiLU", "Sigmoid", "Softplus", "Swish", "Tanh",
)  # fmt: skip
_POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, SelectAdaptivePool2d)


def replacement(module: nn.Module) -> nn.Module | None:
    """A module with the same function whose result does not depend on the batch, or None where none is needed.

    ReLU, ReLU6, max pools and the like are exact as they are.
    """
    plain = type(module)
    if isinstance(module, nn.LayerNorm) and plain in (nn.LayerNorm, LayerNorm) and len(module.normalized_shape) == 1:
        return ExactLayerNorm(module)
    if isinstance(module, nn.BatchNorm2d) and plain in (nn.BatchNorm2d, BatchNormAct2d) and module.track_running_stats:
        return ExactBatchNorm(module)
    name = plain.__name__
    if name == "GELU" and getattr(module, "approximate", "none") == "none":
        return ExactGELU()
    if name in _SMOOTH_ACTIVATIONS and not list(module.parameters()):
        return ExactElementwise(module)
    has_arithmetic_inside = any(isinstance(inner, (nn.Linear, nn.Conv2d, SiteModule)) for inner in module.modules())
    if isinstance(module, _POOLS) or ("Norm" in name and not has_arithmetic_inside):
        return ExactFloat64(module)
    return None

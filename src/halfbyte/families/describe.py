"""From a timm model to its Layout."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

# Importing the families enters their handlers.
from halfbyte.families import positions, resnet, sret, swin, vit  # noqa: F401
from halfbyte.families.arithmetic import is_convolution, is_linear
from halfbyte.families.generic import block_of, role_of
from halfbyte.families.layout import Layout, Site
from halfbyte.families.sketch import HANDLERS, Sketch


def describe(model: nn.Module) -> Layout:
    """Find the sites of a float model without changing it.

    Handlers are chosen by exact class, so one model may mix families; every other linear and 2-d convolution becomes a
    site by the generic rules.
    """
    sketch = Sketch(model)
    for path, module in model.named_modules():
        handler = HANDLERS.get(type(module))
        if handler is not None:
            handler(path, module, sketch)
    stems, heads = _ends(model)
    sites: list[Site] = []
    for path, module in model.named_modules():
        if (is_linear(module) or is_convolution(module)) and not sketch.is_constant(path):
            role = "stem" if path in stems else "head" if path in heads else None
            sites.append(_site(path, role or sketch.roles.get(path) or role_of(path, module), sketch))
        if path in sketch.adapters:
            sites += [_site(f"{path}.{product}", product, sketch) for product in ("qk", "pv")]
    return Layout.of(sites, sketch.adapters, sketch.ends)


def _site(path: str, role: str, sketch: Sketch) -> Site:
    return Site(path, role, block_of(path, sketch.blocks), sketch.norms.get(path), sketch.activations.get(path))


def _ends(model: nn.Module) -> tuple[set[str], set[str]]:
    """The paths of the first convolutions and of the classifiers, as timm's configuration of the model names them."""
    config = cast("dict[str, Any]", getattr(model, "pretrained_cfg", None) or {})
    modules = dict(model.named_modules())
    return _named(config.get("first_conv"), modules), _named(config.get("classifier"), modules)


def _named(entry: Any, modules: dict[str, nn.Module]) -> set[str]:
    names = entry if isinstance(entry, (tuple, list)) else (entry,)
    return {name for name in names if name in modules}

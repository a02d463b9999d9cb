"""Which multiply-accumulates of a model run outside its Sites, that is in float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from halfbyte.families.layout import Layout
from halfbyte.prepare import example_input, model_state

_ATEN = torch.ops.aten


def _matmul(args: Any, output: Any) -> int:
    return int(output.numel() * args[-2].shape[-1])


def _convolution(args: Any, output: Any) -> int:
    return int(output.numel() * args[1][0].numel())


def _attention(args: Any, output: Any) -> int:
    q, k, v = args[:3]
    return int(q.numel() * k.shape[-2] + q.shape[:-1].numel() * k.shape[-2] * v.shape[-1])


_COUNTED: dict[Any, Callable[[Any, Any], int]] = {
    _ATEN.mm.default: _matmul,
    _ATEN.bmm.default: _matmul,
    _ATEN.addmm.default: _matmul,
    _ATEN.baddbmm.default: _matmul,
    _ATEN.convolution.default: _convolution,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    _ATEN._scaled_dot_product_flash_attention.default: _attention,
    _ATEN._scaled_dot_product_efficient_attention.default: _attention,
    _ATEN._scaled_dot_product_cudnn_attention.default: _attention,
    _ATEN.scaled_dot_product_attention.default: _attention,
}


def coverage(model: nn.Module, layout: Layout) -> dict[str, Any]:
    """Run one image of zeros and list every matrix product, convolution and fused attention outside the Sites.

    Returns `{"macs", "quantized_macs_percent", "float": [{"operation", "where", "macs"}]}`, where `where` is the path
    of the innermost module that runs the operation.
    """
    tracker = _Tracker({site.name for site in layout.sites})
    with torch.no_grad(), model_state(model, "observe"), tracker.following(model), tracker:
        model(example_input(model))
    outside = sum(entry["macs"] for entry in tracker.found)
    inside = sum(site.macs for site in layout.sites)
    share = round(100.0 * inside / (inside + outside), 4) if inside + outside else 0.0
    return {"macs": inside + outside, "quantized_macs_percent": share, "float": tracker.found}


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows at each operation in which modules it runs."""

    def __init__(self, sites: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sites = sites
        self.path: list[str] = []
        self.found: list[dict[str, Any]] = []

    def following(self, model: nn.Module) -> _Hooks:
        return _Hooks(model, self.path)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in _COUNTED and not any(name in self.sites for name in self.path):
            first: Tensor = output[0] if isinstance(output, tuple) else output
            entry = {"operation": str(function).rpartition(".")[0], "where": self.path[-1] if self.path else "",
                     "macs": _COUNTED[function](args, first)}  # fmt: skip
            self.found.append(entry)
        return output


class _Hooks:
    """Keeps the stack of module paths while a with-block runs."""

    def __init__(self, model: nn.Module, path: list[str]) -> None:
        self.model, self.path = model, path
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        for name, module in self.model.named_modules():
            self.handles.append(module.register_forward_pre_hook(self._enter(name)))
            self.handles.append(module.register_forward_hook(self._leave))

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _enter(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            self.path.append(name)

        return hook

    def _leave(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        self.path.pop()

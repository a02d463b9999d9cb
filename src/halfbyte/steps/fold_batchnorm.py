"""Batch-norm folding: a norm behind a convolution becomes part of its weight and bias, which are quantized then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from halfbyte.errors import HalfbyteError
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.norm import ExactBatchNorm
from halfbyte.prepare import model_state
from halfbyte.session import Session
from halfbyte.steps.same_function import SameFunction


@dataclass(frozen=True)
class FoldBatchNorm:
    """Folds each BatchNorm whose input is the output of a convolution, which nothing else reads (Jacob et al., CVPR
    2018, section 3.2): w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta.

    The activation that a norm may hold stays in its place. Norms behind anything else (a sum, a concatenation) stay.
    """

    prepares: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False

    def run(self, session: Session) -> dict[str, Any]:
        """Fold, then check that the float model gives what it gave; raises `HalfbyteError` where it does not, and for
        a model without a norm to fold."""
        function = SameFunction(session)
        pairs = foldable(session.model, function.images[:1])
        if not pairs:
            raise HalfbyteError("no BatchNorm of the model follows a convolution; leave fold_batchnorm out")
        for site, norm in pairs:
            session.edit("fold_norm", site=site, norm=norm)
        function.check(f"folding {len(pairs)} BatchNorms ({pairs[0][1]} to {pairs[-1][1]})", "fold_batchnorm")
        left = sum(isinstance(module, ExactBatchNorm) for module in session.model.modules())
        return {"folded": len(pairs), "left": left}


@torch.no_grad()
def foldable(model: nn.Module, image: Tensor) -> list[tuple[str, str]]:
    """The pairs (site, norm) of a prepared model that can be one, in the order in which they run.

    Both run once in a forward pass, the norm's input is the site's output itself, and no other operation reads that.
    """
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, QuantConv2d)}
    norms = {name: module for name, module in model.named_modules() if isinstance(module, ExactBatchNorm)}
    readers = _Readers()
    inputs: dict[str, list[Tensor]] = {name: [] for name in norms}
    handles = [module.register_forward_hook(readers.note(name)) for name, module in convolutions.items()]
    handles += [
        module.register_forward_pre_hook(lambda _module, args, name=name: inputs[name].append(args[0]))
        for name, module in norms.items()
    ]
    try:
        with model_state(model, "float"), readers:
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    by_output = {
        id(outputs[0]): name
        for name, outputs in readers.outputs.items()
        if len(outputs) == 1 and readers.count[id(outputs[0])] == 1
    }
    once = {norm: id(seen[0]) for norm, seen in inputs.items() if len(seen) == 1}
    pairs = {by_output[read]: norm for norm, read in once.items() if read in by_output}
    return [(site, pairs[site]) for site in readers.outputs if site in pairs]


class _Readers(TorchDispatchMode):
    """Counts the operations that read each of the tensors that it was told of."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The tensors are kept, so that no id is used twice.
        self.outputs: dict[str, list[Tensor]] = {}
        self.count: dict[int, int] = {}

    def note(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.outputs.setdefault(name, []).append(output)
            self.count[id(output)] = 0

        return hook

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self.count:
                self.count[id(leaf)] += 1
        return function(*args, **(kwargs or {}))

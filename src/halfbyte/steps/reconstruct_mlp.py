"""MLP reconstruction: GELU becomes ReLU, and both linears around it learn to give what the MLP gave (APHQ-ViT, Wu et
al., CVPR 2025; here the plain squared error). ReLU leaves no thin negative side: a uniform range from zero on does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from halfbyte.block_stream import BlockStream, Unit, watched
from halfbyte.data.store import BatchStore
from halfbyte.errors import HalfbyteError, InapplicableError
from halfbyte.families.layout import Site
from halfbyte.layers.activation import ExactGELU
from halfbyte.layers.linear import QuantLinear
from halfbyte.prepare import model_state, replace_module
from halfbyte.session import Session


@dataclass(frozen=True)
class ReconstructMlp:
    """Train each MLP with a ReLU towards what it gives with its GELU, before anything is calibrated.

    images: an eighth of them decides. iterations: steps of Adam an MLP, each of one batch of images, at the rate `lr`,
    which falls to 0. most: an MLP whose squared error on the deciding images stays above this share of its output's
    variance keeps its GELU.
    """

    prepares: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False
    images: int = 256
    iterations: int = 300
    lr: float = 1e-3
    most: float = 0.05

    def __post_init__(self) -> None:
        if self.images < 8 or self.iterations < 1:
            raise ValueError("images must be at least 8, iterations at least 1")
        if not 0 < self.lr < 1 or not 0 < self.most <= 1:
            raise ValueError("lr must be above 0 and below 1, most above 0 and at most 1")

    def check(self, session: Session) -> None:
        """Raises `HalfbyteError` under torchrun, since one process trains an MLP, and for a recipe that rotates later,
        since targets would come from the new MLPs."""
        names = [call.name for call in session.recipe.steps]
        if "rotate" in names[names.index("reconstruct_mlp") :]:
            raise HalfbyteError(f"{session.recipe.source}: reconstruct_mlp comes before rotate; put it behind")
        if session.world.size > 1:
            raise HalfbyteError("reconstruct_mlp runs in one process; start it without torchrun")

    def run(self, session: Session) -> dict[str, Any]:
        """Train one MLP after the other; the figures tell which ones have a ReLU now.

        Raises `HalfbyteError` for a model without an MLP of two linears and a GELU.
        """
        stream = BlockStream(session, self.images, state="float")
        mlps = [_mlp(unit, site) for unit in stream.units for site in unit.block.sites if _is_second(session, site)]
        if not mlps:
            raise InapplicableError(
                "reconstruct_mlp: the model has no MLP of two linears with GELU; leave the step out"
            )
        for mlp in session.parts(mlps, "reconstructing MLPs"):
            for unit in stream.visit([mlp.unit]):
                session.notes.append({"mlp": mlp.path, **self._reconstruct(session, stream, unit, mlp)})
        return {"mlps": session.notes}

    def _reconstruct(self, session: Session, stream: BlockStream, unit: Unit, mlp: _Mlp) -> dict[str, Any]:
        module = session.model.get_submodule(mlp.path)
        inputs, targets = BatchStore(), BatchStore()
        for number in stream.numbers():
            with watched(module) as seen:
                stream.run(unit, stream.inputs[number])
            ((x, y),) = seen
            inputs.append(x)
            targets.append(y)
        trained = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
        gelu = session.model.get_submodule(mlp.activation)
        replace_module(session.model, mlp.activation, nn.ReLU())
        fits = [number for number in stream.numbers() if not stream.held_out(number)]
        decides = [number for number in stream.numbers() if stream.held_out(number)] or fits
        before = _left(module, inputs, targets, decides)
        self._train(session, module, inputs, targets, fits)
        after = _left(module, inputs, targets, decides)
        replace_module(session.model, mlp.activation, gelu)
        if after <= self.most:
            session.edit("replace_gelu", activation=mlp.activation)
        else:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(trained[name])
        return {"relu": after <= self.most, "error_before": round(before, 5), "error": round(after, 5)}

    def _train(
        self, session: Session, module: nn.Module, inputs: BatchStore, targets: BatchStore, fits: list[int]
    ) -> None:
        parameters = list(module.parameters())
        flags = [parameter.requires_grad for parameter in parameters]
        module.requires_grad_(True)
        optimizer = torch.optim.Adam(parameters, self.lr)
        for done in range(self.iterations):
            number = fits[int(torch.randint(len(fits), (), generator=session.generator))]
            optimizer.param_groups[0]["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * done / self.iterations))
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad(), model_state(module, "float"):
                loss = F.mse_loss(module(inputs[number]), targets[number])
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if not math.isfinite(float(loss.detach())):
            raise HalfbyteError("reconstruct_mlp: the loss is not finite; lower reconstruct_mlp.lr")
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = None


class _Mlp(NamedTuple):
    """Two linears with an activation between them: the module at `path` of a unit."""

    unit: Unit
    path: str
    activation: str


def _mlp(unit: Unit, second: Site) -> _Mlp:
    assert second.activation is not None
    return _Mlp(unit, second.name.rpartition(".")[0], second.activation)


def _is_second(session: Session, site: Site) -> bool:
    """Whether a site is the second linear of a module in which nothing learns but it and a first one, with a GELU."""
    if site.role != "fc2" or site.activation is None:
        return False
    # A run that goes on finds those that it has replaced.
    replaced = [edit.arguments["activation"] for edit in session.edits if edit.name == "replace_gelu"]
    gelu = isinstance(session.model.get_submodule(site.activation), ExactGELU) or site.activation in replaced
    path = site.name.rpartition(".")[0]
    inside = session.model.get_submodule(path)
    linears = [module for module in inside.modules() if isinstance(module, QuantLinear)]
    own = sum(parameter.numel() for linear in linears for parameter in linear.parameters())
    return (
        gelu and site.activation.startswith(f"{path}.") and len(linears) == 2
        and own == sum(parameter.numel() for parameter in inside.parameters())
    )  # fmt: skip


@torch.no_grad()
def _left(module: nn.Module, inputs: BatchStore, targets: BatchStore, numbers: list[int]) -> float:
    """The squared error of the module on these batches, as a share of its target's variance."""
    with model_state(module, "float"):
        error = sum(float((module(inputs[number]) - targets[number]).double().square().sum()) for number in numbers)
    rows = torch.cat([targets[number].flatten(0, -2) for number in numbers]).double()
    spread = float((rows - rows.mean(0)).square().sum())
    return error / spread if spread else 0.0

"""What the reconstruction of a block minimises: how its output differs from the float one's (BRECQ and after).

Every loss is given the block's output, its target, and what it prepared for the images of the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from halfbyte.registry import Registry


class BlockLoss(ABC):
    """needs_gradient: `gradient` in the calls is that of KL(float model || model with the quantized block), by the
    block's output. needs_features: the calls get the features before the classifier."""

    needs_gradient: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, output: Tensor, target: Tensor, extra: Extra) -> Tensor:
        """The loss of a batch, a scalar."""

    def look(self, output: Tensor, target: Tensor, extra: Extra) -> None:  # noqa: B027 - most losses need none
        """See a batch of the quantized block before any training: the statistics that a loss may start from."""


@dataclass(frozen=True)
class Extra:
    """Of a batch, besides outputs and targets: the gradient by the output, and the features (made, wanted).

    channels: the dimension of the output that holds its channels.
    """

    gradient: Tensor | None = None
    features: tuple[Tensor, Tensor] | None = None
    channels: int = -1


LOSSES: Registry[type[BlockLoss]] = Registry("loss")


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """The sum over dimension 1 (channels of a convolution, tokens of a ViT) of the squared error, mean over the rest
    (BRECQ, eq. 10 without weights). AdaLog's code divides it by 10."""
    return (output - target).square().sum(1).mean()


@LOSSES.register("mse")
class SquaredError(BlockLoss):
    """`squared_error`."""

    def __call__(self, output: Tensor, target: Tensor, extra: Extra) -> Tensor:
        return squared_error(output, target)


@LOSSES.register("kl")
class Divergence(BlockLoss):
    """KL(softmax(target) || softmax(output)), mean over the images: for classifiers."""

    def __call__(self, output: Tensor, target: Tensor, extra: Extra) -> Tensor:
        return F.kl_div(output.log_softmax(-1), target.softmax(-1), reduction="batchmean")


@LOSSES.register("fisher_diag")
class FisherDiagonal(BlockLoss):
    """Squared error weighted by the squared gradient, |g| + 1 (BRECQ, eq. 10)."""

    needs_gradient = True

    def __call__(self, output: Tensor, target: Tensor, extra: Extra) -> Tensor:
        assert extra.gradient is not None
        weight = extra.gradient.abs() + 1
        return ((output - target).square() * weight.square()).sum(1).mean()


@LOSSES.register("fisher_full")
class FisherFull(BlockLoss):
    """Mean of <|e|, g> |e| g over 100, with g = |gradient| + 1 and the product taken of each image."""

    needs_gradient = True

    def __call__(self, output: Tensor, target: Tensor, extra: Extra) -> Tensor:
        assert extra.gradient is not None
        weighted = (output - target).abs() * (extra.gradient.abs() + 1)
        return (weighted.flatten(1).sum(1).view(-1, *[1] * (output.ndim - 1)) * weighted).mean() / 100


@LOSSES.register("ls")
class LayerSensitive(BlockLoss):
    """Curvature from one backward pass: where the first quantized output lies at d from the target with the gradient g,
    a diagonal H with H d = g on average, sum E[g d] / E[d^2] e^2, and the matrix of rank one with H d = g for each
    image, (g e)^2 / (g d) (LS-ViT, CVPR 2026; the rank-one form also of FIMA-Q, CVPR 2025)."""

    needs_gradient = True

    def __init__(self) -> None:
        self._product: Tensor | None = None
        self._square: Tensor | None = None
        self._along = 0.0

    def look(self, output: Tensor, target: Tensor, extra: Extra) -> None:
        assert extra.gradient is not None
        moved = (output - target).double()
        product = extra.gradient.double() * moved
        axes = [axis for axis in range(moved.ndim) if axis != extra.channels % moved.ndim]
        product_sum, square_sum = product.sum(axes), moved.square().sum(axes)
        self._product = product_sum if self._product is None else self._product + product_sum
        self._square = square_sum if self._square is None else self._square + square_sum
        self._along += float(product.sum().abs())

    def __call__(self, output: Tensor, target: Tensor, extra: Extra) -> Tensor:
        assert extra.gradient is not None
        assert self._product is not None
        assert self._square is not None
        moved = output - target
        curvature = self._product.abs() / self._square.clamp(min=torch.finfo(torch.float64).tiny)
        shape = [-1 if axis == extra.channels % moved.ndim else 1 for axis in range(moved.ndim)]
        # The mean keeps channels alive whose product happened to cancel.
        weight = (0.5 * (curvature + curvature.mean())).view(shape).to(moved.dtype)
        images = len(moved)
        diagonal = (moved.square() * weight).sum() / images
        along = (extra.gradient * moved).flatten(1).sum(1)
        return diagonal + along.square().sum() / images / max(self._along, 1e-12)


@LOSSES.register("glf")
class GlobalAndLocal(BlockLoss):
    """The error of the features before the classifier, behind the float rest of the model, and `LOCAL` times that of
    the block's output, each in units of its first batch (GLF-Q, 2026)."""

    needs_features = True
    LOCAL: ClassVar[float] = 2.0

    def __init__(self) -> None:
        self._units: tuple[float, float] | None = None

    def look(self, output: Tensor, target: Tensor, extra: Extra) -> None:
        if self._units is None:
            self._units = tuple(max(float(part), 1e-12) for part in self._parts(output, target, extra))  # type: ignore[assignment]

    def __call__(self, output: Tensor, target: Tensor, extra: Extra) -> Tensor:
        far, near = self._parts(output, target, extra)
        assert self._units is not None
        return far / self._units[0] + self.LOCAL * near / self._units[1]

    @staticmethod
    def _parts(output: Tensor, target: Tensor, extra: Extra) -> tuple[Tensor, Tensor]:
        assert extra.features is not None
        return F.mse_loss(*extra.features), F.mse_loss(output, target)

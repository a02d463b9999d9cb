"""What a quantized student is trained by: the labels, the float teacher's logits, and its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softened predictions, mean over the rows of logits `[B, classes]`."""
    target = (teacher / temperature).softmax(-1)
    predicted = (student / temperature).log_softmax(-1)
    return F.kl_div(predicted, target, reduction="batchmean") * temperature**2


def soft_cross_entropy(student: Tensor, ids: Tensor, probabilities: Tensor) -> Tensor:
    """Mean over the rows of -sum_c P_c log softmax(student)_c, for logits `[B, classes]`, without a dense P.

    P has `probabilities` `[B, K]` at the classes `ids` `[B, K]`, and what these lack of 1 spread evenly over all others
    (FKD's marginal smoothing); probabilities of more than 1 in all leave nothing for the others.
    """
    predicted = student.float().log_softmax(-1)
    named = predicted.gather(1, ids)
    others = max(student.shape[1] - ids.shape[1], 1)
    tail = (1 - probabilities.sum(1)).clamp(min=0) / others if student.shape[1] > ids.shape[1] else 0.0
    return -((probabilities * named).sum(1) + tail * (predicted.sum(1) - named.sum(1))).mean()


@dataclass(frozen=True)
class LossWeights:
    """ce: of the cross entropy. kd: of the distillation at `temperature`. feature: of the sum, over the blocks, of the
    mean squared error of their outputs."""

    ce: float
    kd: float
    temperature: float
    feature: float = 0.0

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        features: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Tensor:
        """The mean over a batch: logits `[B, classes]`, labels `[B]` (None: distillation alone), pairs of features
        (student, teacher)."""
        loss = torch.zeros((), device=student.device)
        if labels is not None and self.ce:
            loss = loss + self.ce * F.cross_entropy(student, labels)
        if self.kd:
            loss = loss + self.kd * distillation(student, teacher, self.temperature)
        for mine, wanted in features if self.feature else ():
            loss = loss + self.feature * F.mse_loss(mine.float(), wanted.float())
        return loss

"""Whether a change of structure left the float model's function as it was."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.errors import HalfbyteError
from halfbyte.prepare import model_state
from halfbyte.session import Session

# Of the largest logit: what float32 rounding may move in a deep network.
TOLERANCE = 1e-3
IMAGES = 2


class SameFunction:
    """The float model's logits for a few images, before a step changes it and after."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.images = next(session.images(IMAGES))
        self.before = self._logits()

    def check(self, change: str, step: str) -> float:
        """By how much of the largest logit they moved; raises `HalfbyteError` that names the change where it is more
        than rounding."""
        moved = float((self._logits() - self.before).abs().max() / self.before.abs().max())
        if not moved <= TOLERANCE:
            raise HalfbyteError(
                f"{change} changed the float model's logits by {moved:.2g} of the largest; leave {step} out"
            )
        return moved

    @torch.no_grad()
    def _logits(self) -> Tensor:
        with model_state(self.session.model, "float"):
            logits: Tensor = self.session.model(self.images)
        return logits

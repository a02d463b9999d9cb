"""Rotations by Hadamard matrices that leave the function as it is and spread outliers over all channels (QuaRot,
Ashkboos et al., 2024; for ViTs GLF-Q, 2026)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from halfbyte.errors import InapplicableError
from halfbyte.families.stream import free_heads, residual_stream
from halfbyte.session import Session
from halfbyte.steps.same_function import SameFunction


@dataclass(frozen=True)
class Rotate:
    """Turn the residual stream of a ViT, and of every attention q with k and v with what reads it.

    residual: the stream, where the model has one of one width; LayerNorms become RMSNorms without weight and bias,
    LayerScales part of the layers before them. scores, values: the heads, also of Swin. signs: draw random signs for
    the matrices.
    """

    prepares: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False
    residual: bool = True
    scores: bool = True
    values: bool = True
    signs: bool = True

    def __post_init__(self) -> None:
        if not (self.residual or self.scores or self.values):
            raise ValueError("residual, scores and values are all false: nothing is left to rotate")

    def run(self, session: Session) -> dict[str, Any]:
        """Rotate, then check that the float model gives what it gave.

        Raises `HalfbyteError` where it does not, and for a model in which nothing can be rotated.
        """
        function = SameFunction(session)
        stream = residual_stream(session.model) if self.residual else "it was not asked for"
        if not isinstance(stream, str):
            session.edit("rotate_stream", **_plain(asdict(stream)), seed=self._seed(session))
        turned = 0
        for heads in free_heads(session.model):
            scores, values = heads.scores and self.scores, heads.values and self.values
            if scores or values:
                session.edit("rotate_heads", attention=heads.name, scores=scores, values=values,
                             seed=self._seed(session))  # fmt: skip
                turned += 1
        if isinstance(stream, str) and not turned:
            raise InapplicableError(f"rotate: nothing in the model can be rotated ({stream}); leave the step out")
        changed = function.check("rotating", "rotate")
        return {"stream": stream if isinstance(stream, str) else "rotated", "attentions": turned, "changed": changed}

    def _seed(self, session: Session) -> int | None:
        return int(torch.randint(2**31, (), generator=session.generator)) if self.signs else None


def _plain(value: Any) -> Any:
    """Tuples as lists, as a file would give them back."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value

"""Reconstruction: block after block, the rounding of weights and the scales are learned from the float block's output
(BRECQ, Li et al., ICLR 2021; AdaLog, Wu et al., ECCV 2024, section 3.5)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from halfbyte.block_stream import TARGETS, BlockStream
from halfbyte.errors import HalfbyteError
from halfbyte.session import Session
from halfbyte.steps.block_training import PieceTraining
from halfbyte.steps.piece import Piece
from halfbyte.train.block_losses import LOSSES
from halfbyte.train.soft_quantization import ROUNDINGS

INPUTS, UNITS = ("float", "quantized", "qdrop"), ("block", "layer")
# Of a piece's steps there are so many parts, behind each of which a killed run can continue.
PARTS = 10


class _Part(NamedTuple):
    """One of the `PARTS` parts of a piece's steps, numbered from 0; `ends_unit`: the piece is the last of its unit."""

    piece: Piece
    number: int
    ends_unit: bool

    @property
    def share(self) -> float:
        """Of the piece's steps, or of its time, those up to the end of this part."""
        return (self.number + 1) / PARTS


@dataclass(frozen=True)
class Reconstruct:
    """Learn each piece of the model towards what it gives in float, the ones before it quantized already.

    images: an eighth of them decides, with `guard`, whether a piece keeps what it learned. iterations: steps a piece,
    of `batch_size` images; minutes: with a number above 0 they end earlier, so that all pieces together take so long.
    patience: end a piece when its held-out loss did not fall over so many tenths of its steps (0: never).

    rounding: of weights, `adaround`, `ste` (the weight itself, straight through) or `nearest` (as it is). inputs: what
    pieces see, of the `float` model, of the `quantized` one, or `qdrop`: each element of one of the two, activations
    inside left in float with the probability `drop`. target: what the float model gives there (`stream`), so that a
    piece also makes good for those before it, or what the trained piece gives for the same input (`local`). loss:
    `mse`, `fisher_diag`, `fisher_full`, `ls`, `glf`, divided by `loss_divisor`; head_loss: of the classifier. units: a
    `block` at once or each `layer`; ends: stem and head too.
    weight_scales, activation_scales, biases, norms: what else is learned.

    lr: of the rounding, with `cosine` falling to 0; lr_scale, lr_bias: of scales, and of biases and norms, falling too.
    round_weight, warmup: AdaRound's second loss, and the share of the steps without it.
    """

    calibrates: ClassVar[bool] = False
    images: int = 1000
    iterations: int = 3000
    minutes: float = 0.0
    batch_size: int = 32
    patience: int = 0
    rounding: str = "ste"
    inputs: str = "qdrop"
    drop: float = 0.5
    target: str = "stream"
    loss: str = "mse"
    loss_divisor: float = 1.0
    head_loss: str = "kl"
    units: str = "block"
    ends: bool = False
    guard: bool = True
    weight_scales: bool = True
    activation_scales: bool = True
    biases: bool = True
    norms: bool = False
    lr: float = 2e-5
    lr_scale: float = 2e-4
    lr_bias: float = 2e-4
    cosine: bool = True
    round_weight: float = 0.01
    warmup: float = 0.2

    def __post_init__(self) -> None:
        choices: dict[str, Collection[str]] = {
            "rounding": ROUNDINGS,
            "inputs": INPUTS,
            "units": UNITS,
            "target": TARGETS,
            "loss": tuple(LOSSES),
            "head_loss": ("kl", "mse"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}")
        for name, least in (("images", 8), ("iterations", 1), ("batch_size", 1), ("patience", 0), ("minutes", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}")
        for name in ("lr", "lr_scale", "lr_bias", "drop", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to less than 1")
        if self.loss_divisor <= 0 or self.round_weight < 0:
            raise ValueError("loss_divisor must be above 0, round_weight not below")
        learned = (self.rounding != "nearest", self.activation_scales, self.biases, self.norms)
        if not any(learned):
            raise ValueError("rounding is nearest, and neither scales nor biases nor norms are learned: nothing is")
        if self.units == "layer" and self.loss != "mse":
            raise ValueError("units: layer goes with the loss mse alone")
        if self.target == "local" and self.loss in ("ls", "glf"):
            raise ValueError(f"target: local goes with the losses that look at the piece alone, not {self.loss}")
        if self.loss == "kl":
            raise ValueError("kl is a loss for the classifier: head_loss")

    def check(self, session: Session) -> None:
        """Raises `HalfbyteError` under torchrun: a piece is trained by one process."""
        if session.world.size > 1:
            raise HalfbyteError("reconstruct runs in one process; start it without torchrun")

    def run(self, session: Session) -> dict[str, Any]:
        """Train piece by piece; the figures tell what was left of each one's held-out error."""
        stream = BlockStream(session, self.images, both=True, ends=self.ends)
        pieces = self._pieces(stream)
        parts = [_Part(piece, number, last) for piece, last in pieces for number in range(PARTS)]
        training: PieceTraining | None = None
        for part in session.parts(parts, "reconstructing"):
            for unit in stream.visit([part.piece.unit]):
                if training is None:
                    training = PieceTraining(self, session, stream, part.piece)
                    if session.kept:
                        training.restore(session.kept)
                try:
                    training.run(part.share, 60 * self.minutes / len(pieces))
                except FloatingPointError as error:
                    raise HalfbyteError(f"reconstruction failed: {error}; lower reconstruct.lr and lr_scale") from None
                session.kept = training.tensors()
                if part.number + 1 == PARTS:
                    session.notes.append(training.finish())
                    session.kept = {}
                    if part.ends_unit:
                        stream.advance(float_outputs=training.data.targets if training.module is unit.module else None)
                    training = None
        return {"pieces": session.notes}

    def _pieces(self, stream: BlockStream) -> list[tuple[Piece, bool]]:
        """Every piece in order, and whether it is the last of its unit."""
        pieces: list[tuple[Piece, bool]] = []
        for unit in stream.units:
            if self.units == "block":
                pieces.append((Piece(unit), True))
                continue
            paths = [site.name.removeprefix(unit.block.name).removeprefix(".") for site in unit.block.sites
                     if site.role not in ("qk", "pv", "side")]  # fmt: skip
            pieces += [(Piece(unit, path), path == paths[-1]) for path in paths]
        return pieces

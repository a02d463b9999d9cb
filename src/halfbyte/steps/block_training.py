"""The training of one piece of a model, a block or a layer, towards its float output."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from halfbyte.block_stream import BlockStream
from halfbyte.errors import HalfbyteError
from halfbyte.layers.norm import ExactLayerNorm
from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.prepare import model_state
from halfbyte.quantizers.rounding import power_at
from halfbyte.session import Session
from halfbyte.steps.piece import Piece, PieceData
from halfbyte.train.loop import optimizer_tensors, restore_optimizer
from halfbyte.train.soft_quantization import SoftQuantization

# A held-out loss that falls by less than this share is flat.
FLAT = 1e-3

if TYPE_CHECKING:
    from halfbyte.steps.reconstruct import Reconstruct


class PieceTraining:
    """A piece, what it is trained on, and what is learned of it; `tensors` and `restore` carry it over a kill."""

    def __init__(self, step: Reconstruct, session: Session, stream: BlockStream, piece: Piece) -> None:
        self.step, self.session, self.piece = step, session, piece
        self.data = PieceData(step, session, stream, piece)
        self.module = self.data.module
        self.before = self._measured()
        self._make_learned()
        self.untrained = self._snapshot()
        self.done, self.elapsed, self.flat = 0, 0.0, 0
        self.lowest = math.inf
        self.losses: list[float] = []

    # The way of a training

    def run(self, share: float, seconds: float) -> None:
        """Go on to a share of all steps, or of `seconds`, if these are not 0 and come first."""
        start, earlier = time.perf_counter(), self.elapsed
        steps = self.step.iterations
        flags = [(parameter, parameter.requires_grad) for parameter in self.module.parameters()]
        self.module.requires_grad_(False)
        try:
            while not self._is_flat():
                progress = max(self.done / steps, self.elapsed / seconds if seconds else 0.0)
                if self.done >= round(share * steps) or progress >= share:
                    break
                self.losses.append(self._step(progress))
                self.done += 1
                self.elapsed = earlier + time.perf_counter() - start
            self._check_flat()
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            # A killed run must find the quantizers as they were; what is learned has its own tensors.
            self._undo()

    @torch.no_grad()
    def finish(self) -> dict[str, Any]:
        """Take what was learned into the integer model, if the held-out images agree; figures of it."""
        biases = {name: parameter.detach() for name, parameter in self.overrides.items()}
        for site, codes in self.soft.settle().items():
            name = self._names[site]
            bias = biases.get(f"{name}.bias" if name else "bias", site.bias)
            if bias is None:
                site.weight_codes = codes
            elif not torch.equal(codes, site.codes()) or bias is not site.bias:
                site.refit(codes, bias.clone())
        for path, norm in self._norms():
            norm.restate(biases[f"{path}.weight"], biases[f"{path}.bias"])
        after = self._measured()
        kept = not self.data.deciding or after < self.before
        if kept:
            for path, _ in self._norms():
                self.session.edit("learn_norm", norm=f"{self.piece.name}.{path}")
        else:
            self._undo()
        left = after / self.before if self.data.deciding and self.before else 1.0
        return {"piece": self.piece.name, "steps": self.done, "error_left": round(left, 5), "kept": kept,
                "loss": [round(value, 6) for value in (self.losses[:1] + self.losses[-1:])]}  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """All that a continuation needs."""
        state = {f"learned.{name}": parameter.detach() for name, parameter in self._learned().items()}
        figures = [self.done, self.elapsed, self.flat, self.lowest, self.before]
        return state | optimizer_tensors(self.optimizer) | {"figures": torch.tensor(figures, dtype=torch.float64),
                        "losses": torch.tensor(self.losses, dtype=torch.float64)}  # fmt: skip

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        for name, parameter in self._learned().items():
            parameter.copy_(state[f"learned.{name}"])
        restore_optimizer(self.optimizer, state)
        done, self.elapsed, flat, self.lowest, self.before = state["figures"].tolist()
        self.done, self.flat = int(done), int(flat)
        self.losses = state["losses"].tolist()

    # One step

    def _step(self, progress: float) -> float:
        order = torch.randperm(len(self.data.rows), generator=self.session.generator)[: self.step.batch_size]
        rows = [self.data.rows[number] for number in order.tolist()]
        for group in self.optimizer.param_groups:
            falling = 0.5 * (1 + math.cos(math.pi * progress))
            group["lr"] = group["first"] * (falling if group["cosine"] else 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            x = self.data.batch(rows)
            output = self._output(x)
            loss = self.data.loss(output, rows, x) / self.step.loss_divisor
            # The published count of steps begins with 1.
            counted = max(progress, (self.done + 1) / self.step.iterations)
            if self.step.rounding == "adaround" and counted >= self.step.warmup:
                loss = loss + self.step.round_weight * self.soft.undecided(power_at(counted, self.step.warmup))
            loss.backward()  # type: ignore[no-untyped-call]
        reached = float(loss.detach())
        if not math.isfinite(reached):
            raise FloatingPointError(f"the loss of {self.piece.name} is not finite")
        self.optimizer.step()
        self.soft.keep_positive()
        return reached

    def _output(self, x: Tensor) -> Tensor:
        args, keywords = self.piece.unit.extra if not self.piece.path else ((), {})
        with model_state(self.module, "observe", self.soft):
            output: Tensor = functional_call(self.module, dict(self.overrides), (x, *args), keywords)
        return output

    def _measured(self) -> float:
        """The mean loss of the integer model on the held-out images."""
        return self.data.held_out_loss(self.data.quantized)

    # What is learned

    def _make_learned(self) -> None:
        """The parameters that are learned, and their optimizer."""
        step = self.step
        sites = {name: module for name, module in self.module.named_modules() if isinstance(module, SiteModule)}
        full = {f"{self.piece.name}.{name}" if name else self.piece.name: name for name in sites}
        own = {site.name for site in self.piece.unit.block.sites if site.role != "side"}
        sites = {name: sites[name] for path, name in full.items() if path in own}
        self._names = {module: name for name, module in sites.items()}
        self.soft = SoftQuantization(
            sites, rounding=step.rounding, weight_scales=step.weight_scales, activation_scales=step.activation_scales,
            drop=step.drop if step.inputs == "qdrop" else 0.0, generator=self.session.generator,
        )  # fmt: skip
        overrides: dict[str, Tensor] = {}
        if step.biases:
            for name, site in sites.items():
                if isinstance(site, WeightedSite) and site.bias is not None:
                    overrides[f"{name}.bias" if name else "bias"] = site.bias
        for path, norm in self._norms():
            overrides |= {f"{path}.weight": cast(Tensor, norm.weight), f"{path}.bias": cast(Tensor, norm.bias)}
        self.overrides = {name: nn.Parameter(tensor.detach().clone()) for name, tensor in overrides.items()}
        rounding = [value for name, value in self.soft.parameters.items() if name.endswith(("/alpha", "/weight"))]
        scales = [value for name, value in self.soft.parameters.items() if not name.endswith(("/alpha", "/weight"))]
        groups = [
            {"params": rounding, "first": step.lr, "cosine": step.cosine},
            {"params": scales, "first": step.lr_scale, "cosine": True},
            {"params": list(self.overrides.values()), "first": step.lr_bias, "cosine": True},
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise HalfbyteError(
                f"reconstruct: {self.piece.name} has nothing of what is to be learned; learn more of it"
            )
        self.optimizer = torch.optim.Adam(groups, lr=step.lr)

    def _learned(self) -> dict[str, nn.Parameter]:
        return {**self.soft.parameters, **{f"{name}/leftover": value for name, value in self.overrides.items()}}

    def _norms(self) -> Iterator[tuple[str, ExactLayerNorm]]:
        """The norms in the piece whose weight and bias are learned."""
        for path, norm in self.module.named_modules() if self.step.norms else ():
            if isinstance(norm, ExactLayerNorm) and norm.weight is not None and norm.bias is not None:
                yield path, norm

    # The end

    def _is_flat(self) -> bool:
        return bool(self.step.patience) and self.flat >= self.step.patience

    @torch.no_grad()
    def _check_flat(self) -> None:
        """Count how often in a row the held-out loss did not fall."""
        if not self.step.patience or not self.data.deciding or self.done >= self.step.iterations:
            return
        drop, self.soft.drop = self.soft.drop, 0.0
        found = self.data.held_out_loss(lambda number: self._output(self.data.inputs[number]))
        self.soft.drop = drop
        self.flat = 0 if found < self.lowest * (1 - FLAT) else self.flat + 1
        self.lowest = min(self.lowest, found)

    @torch.no_grad()
    def _undo(self) -> None:
        for restore in self.untrained:
            restore()

    def _snapshot(self) -> list[Callable[[], None]]:
        """What undoes all that training changes."""
        undo: list[Callable[[], None]] = []
        for site in self._names:
            undo += [_resetting(site.quantizer(operand), "scale") for operand in site.operands]
            if isinstance(site, WeightedSite):
                undo += [_resetting(site, name) for name in ("weight_codes", "trained_bias")]
                if site.bias is not None:
                    undo.append(_copying(site.bias))
        for _, norm in self._norms():
            undo += [_resetting(norm, name) for name in ("trained_weight", "trained_bias")]
            undo += [_copying(cast(Tensor, norm.weight)), _copying(cast(Tensor, norm.bias))]
        return undo


def _resetting(owner: nn.Module, name: str) -> Callable[[], None]:
    value = getattr(owner, name)
    return lambda: setattr(owner, name, value)


def _copying(tensor: Tensor) -> Callable[[], None]:
    value = tensor.detach().clone()
    return lambda: cast(None, tensor.copy_(value))

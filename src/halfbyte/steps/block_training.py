"""The training of one piece of a model, a block or a layer, towards its float output."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from halfbyte.block_stream import BlockStream, Unit, watched
from halfbyte.data.store import BatchStore
from halfbyte.errors import HalfbyteError
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.norm import ExactLayerNorm
from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.prepare import model_state
from halfbyte.quantizers.rounding import power_at
from halfbyte.session import Session
from halfbyte.steps.suffix import Suffix
from halfbyte.train.block_losses import LOSSES, BlockLoss, Extra
from halfbyte.train.loop import optimizer_tensors, restore_optimizer
from halfbyte.train.soft_quantization import SoftQuantization

# A held-out loss that falls by less than this share is flat.
FLAT = 1e-3

if TYPE_CHECKING:
    from halfbyte.steps.reconstruct import Reconstruct


@dataclass(frozen=True)
class Piece:
    """What is trained at once: a unit, or the module at `path` in it ("": the unit itself)."""

    unit: Unit
    path: str = ""

    @property
    def name(self) -> str:
        """The module path in the model."""
        return f"{self.unit.block.name}.{self.path}" if self.path else self.unit.block.name


class PieceTraining:
    """A piece with its quantized and float inputs, its targets, and what is learned of it.

    Every eighth batch is held out where the step has a guard. `tensors` and `restore` carry it over a kill.
    """

    def __init__(self, step: Reconstruct, session: Session, stream: BlockStream, piece: Piece) -> None:
        self.step, self.session, self.stream, self.piece = step, session, stream, piece
        unit = piece.unit
        self.module = unit.module.get_submodule(piece.path) if piece.path else unit.module
        self.inputs, self.exact, self.targets = self._collected()
        decides = [number for number in stream.numbers() if step.guard and stream.held_out(number)]
        self.deciding = decides if len(decides) < len(self.inputs) else []
        self.rows = [(number, row) for number in stream.numbers() if number not in self.deciding
                     for row in range(len(self.inputs[number]))]  # fmt: skip
        role = unit.block.sites[0].role
        name = step.head_loss if role == "head" else "mse" if role == "stem" or piece.path else step.loss
        self.loss: BlockLoss = LOSSES.get(name)()
        self.gradients, self.features = BatchStore(), BatchStore()
        self.suffix = self._suffix()
        self._look()
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
        kept = not self.deciding or after < self.before
        if kept:
            for path, _ in self._norms():
                self.session.edit("learn_norm", norm=f"{self.piece.name}.{path}")
        else:
            self._undo()
        left = after / self.before if self.deciding and self.before else 1.0
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
        order = torch.randperm(len(self.rows), generator=self.session.generator)[: self.step.batch_size]
        rows = [self.rows[number] for number in order.tolist()]
        for group in self.optimizer.param_groups:
            falling = 0.5 * (1 + math.cos(math.pi * progress))
            group["lr"] = group["first"] * (falling if group["cosine"] else 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            output = self._output(self._mixed(rows))
            target, extra = _gather(self.targets, rows), self._extra(rows, output)
            loss = self.loss(output, target, extra) / self.step.loss_divisor
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

    def _mixed(self, rows: list[tuple[int, int]]) -> Tensor:
        """The piece's inputs: of the quantized model, of the float one, or (QDrop) each element of one of them."""
        if self.step.inputs == "quantized":
            return _gather(self.inputs, rows)
        exact = _gather(self.exact, rows)
        if self.step.inputs == "float":
            return exact
        dropped = torch.rand(exact.shape, generator=self.session.generator).to(exact.device) < self.step.drop
        return torch.where(dropped, exact, _gather(self.inputs, rows))

    def _output(self, x: Tensor) -> Tensor:
        args, keywords = self.piece.unit.extra if not self.piece.path else ((), {})
        with model_state(self.module, "observe", self.soft):
            output: Tensor = functional_call(self.module, dict(self.overrides), (x, *args), keywords)
        return output

    def _extra(self, rows: list[tuple[int, int]], output: Tensor) -> Extra:
        gradient = _gather(self.gradients, rows) if self.loss.needs_gradient else None
        features = None
        if self.loss.needs_features:
            assert self.suffix is not None
            features = (self.suffix(output)[0], _gather(self.features, rows))
        return Extra(gradient, features, self._channels())

    # Before the first step

    def _collected(self) -> tuple[BatchStore, BatchStore, BatchStore]:
        """Quantized inputs, float inputs and float outputs of the piece."""
        stream, unit = self.stream, self.piece.unit
        targets = BatchStore()
        if not self.piece.path:
            for number in stream.numbers():
                targets.append(stream.run_float(unit, stream.float_inputs[number]))
            return stream.inputs, stream.float_inputs, targets
        inputs, exact = BatchStore(), BatchStore()
        for number in stream.numbers():
            with watched(self.module) as seen:
                stream.run(unit, stream.inputs[number])
            inputs.append(seen[0][0])
            with watched(self.module) as seen:
                stream.run(unit, stream.float_inputs[number], "float")
            exact.append(seen[0][0])
            targets.append(seen[0][1])
        return inputs, exact, targets

    def _suffix(self) -> Suffix | None:
        if not (self.loss.needs_gradient or self.loss.needs_features):
            return None
        return Suffix(self.session, self.stream, self.piece.unit)

    def _look(self) -> None:
        """One pass over all images for what the loss prepares."""
        if self.suffix is None:
            return
        first = next(self.session.own_images(len(self.targets[0]), len(self.targets[0])))
        self.suffix.check(first, self.targets[0])
        for number in self.stream.numbers():
            output, target = self._quantized(number), self.targets[number]
            with torch.no_grad():
                features, logits = self.suffix(target)
            if self.loss.needs_gradient:
                self.gradients.append(self.suffix.gradient(output, logits))
            if self.loss.needs_features:
                self.features.append(features)
            if number not in self.deciding:
                with torch.no_grad():
                    self.loss.look(output, target, self._extra(_all_rows(number, output), output))

    @torch.no_grad()
    def _measured(self) -> float:
        """The mean loss of the integer model on the held-out images; 0 where none are."""
        total = images = 0.0
        for number in self.deciding:
            output = self._quantized(number)
            rows = _all_rows(number, output)
            total += float(self.loss(output, self.targets[number], self._extra(rows, output))) * len(rows)
            images += len(rows)
        return total / images if images else 0.0

    def _quantized(self, number: int) -> Tensor:
        x = self.inputs[number]
        if not self.piece.path:
            return self.stream.run(self.piece.unit, x)
        with torch.no_grad(), model_state(self.module, "quantized"):
            output: Tensor = self.module(x)
        return output

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

    def _channels(self) -> int:
        """Maps of convolutions have their channels second, all else last."""
        return 1 if any(isinstance(module, QuantConv2d) for module in self.module.modules()) else -1

    # The end

    def _is_flat(self) -> bool:
        return bool(self.step.patience) and self.flat >= self.step.patience

    @torch.no_grad()
    def _check_flat(self) -> None:
        """Count how often in a row the held-out loss did not fall."""
        if not self.step.patience or not self.deciding or self.done >= self.step.iterations:
            return
        total = 0.0
        drop, self.soft.drop = self.soft.drop, 0.0
        for number in self.deciding:
            output = self._output(self.inputs[number])
            rows = _all_rows(number, output)
            total += float(self.loss(output, self.targets[number], self._extra(rows, output)))
        self.soft.drop = drop
        self.flat = 0 if total < self.lowest * (1 - FLAT) else self.flat + 1
        self.lowest = min(self.lowest, total)

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


def _all_rows(number: int, output: Tensor) -> list[tuple[int, int]]:
    return [(number, row) for row in range(len(output))]


def _gather(store: BatchStore, rows: list[tuple[int, int]]) -> Tensor:
    """The named rows of the batches, in that order."""
    return torch.stack([store[number][row] for number, row in rows])

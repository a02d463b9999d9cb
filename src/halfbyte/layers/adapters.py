"""Small trained functions beside attentions, MLPs and stages (QLA: Mohammadi et al., CVPR-W 2026), as Branches.

What is published starts with two zero layers in a row, of which neither ever learns. Here only the last layer
starts at zero: an adapter adds exactly nothing at first, and every parameter moves from the second step on.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from halfbyte.errors import HalfbyteError
from halfbyte.layers.activation import ExactGELU
from halfbyte.layers.branch import Branch
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.norm import ExactFloat64

FORMS = ("int8", "float32")
KINDS = ("separable", "depthwise", "affine", "lowrank", "bottleneck", "stage")
# Where every published gate starts.
GATE = 0.1


class Adapter(Branch):
    """A Branch that is trained. `form`: its layers are sites with 8-bit codes, or, as published, float32 layers."""

    form: str

    @property
    def reads_codes(self) -> tuple[nn.Module, ...]:
        """The sites that read the codes of another site's input, so that their range is not theirs to choose."""
        return ()

    def start(self, generator: torch.Generator, dead: bool = False) -> None:
        """Set the parameters from which training starts; `dead` restores the published ones."""
        raise NotImplementedError

    def fold(self) -> None:
        """Multiply the gate into the last layer, so that nothing is left to do for it."""

    def _layer(self, made: nn.Linear | nn.Conv2d) -> nn.Module:
        """Zeros, as a site or, in float32, such that the sums are rounded once."""
        for parameter in made.parameters():
            nn.init.zeros_(parameter)
        if self.form == "float32":
            return ExactFloat64(made)
        return QuantLinear(made) if isinstance(made, nn.Linear) else QuantConv2d(made)


class GatedAdapter(Adapter):
    """An adapter whose result is multiplied by one trained number, `alpha`."""

    last: nn.Module | None = None

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.alpha = nn.Parameter(torch.tensor(GATE))

    @torch.no_grad()
    def fold(self) -> None:
        if self.form == "int8" and (tensors := self._gated()):
            for tensor in tensors:
                tensor.mul_(self.alpha)
            self.alpha.fill_(1.0)

    def _gated(self) -> tuple[Tensor, ...]:
        """The parameters that the gate may be multiplied into; none where it has other uses."""
        return ()


class SeparableAdapter(GatedAdapter):
    """Beside an attention: depthwise 3 x 3, GELU, 1 x 1 to `rank` channels, GELU, 1 x 1 back; times the gate.

    Takes maps `[B, H, W, C]`, or tokens `[B, N, C]` of which the first `prefix` (class, distillation, registers) lie on
    no grid and the others on one of `grid` = [h, w], row by row. rank 0: the depthwise convolution and GELU alone. The
    published function hands the class token on as it is, times the gate (`shared_gate`); here prefix tokens have a
    gate of their own, which starts at 0.
    """

    def __init__(self, channels: int, rank: int, prefix: int, grid: list[int], shared_gate: bool, form: str) -> None:
        super().__init__(form)
        self.prefix, self.grid = prefix, (int(grid[0]), int(grid[1])) if grid else None
        self.dw = self._layer(nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
        self.act = ExactGELU()
        self.pw1 = self._layer(nn.Conv2d(channels, rank, 1)) if rank else None
        self.pw2 = self._layer(nn.Conv2d(rank, channels, 1)) if rank else None
        self.prefix_gate = nn.Parameter(torch.zeros(())) if prefix and not shared_gate else None

    def start(self, generator: torch.Generator, dead: bool = False) -> None:
        # Behind GELU(0) = 0 nothing learns, but GELU has a slope there: the form of one layer may start at zero.
        if self.pw1 is None:
            return
        if not dead:
            _weight(self.dw)[:, 0, 1, 1] = 1.0
        _kaiming(self.pw1, generator)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return self._mixed(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        tokens = x[:, self.prefix :]
        if self.grid is None or tokens.shape[1] != self.grid[0] * self.grid[1]:
            raise HalfbyteError(f"an adapter was made for a grid of {self.grid}, not for {tokens.shape[1]} tokens")
        mixed = self._mixed(tokens.transpose(1, 2).reshape(len(x), -1, *self.grid)).flatten(2).transpose(1, 2)
        if not self.prefix:
            return mixed
        gate = self.alpha if self.prefix_gate is None else self.prefix_gate
        return torch.cat((x[:, : self.prefix] * gate, mixed), dim=1)

    def _mixed(self, x: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to the same."""
        x = self.act(self.dw(x))
        if self.pw1 is not None and self.pw2 is not None:
            x = self.pw2(self.act(self.pw1(x)))
        return x * self.alpha

    def _gated(self) -> tuple[Tensor, ...]:
        shared = self.prefix > 0 and self.prefix_gate is None
        return () if self.pw2 is None or shared else (_weight(self.pw2), _bias(self.pw2))


class AffineAdapter(GatedAdapter):
    """Beside an MLP: x * scale + bias, `[C]` each, times the gate, for x `[..., C]`; three float operations a value."""

    def __init__(self, channels: int, form: str) -> None:
        super().__init__(form)
        self.scale, self.bias = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def start(self, generator: torch.Generator, dead: bool = False) -> None:
        with torch.no_grad():
            self.scale.fill_(1.0 if dead else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale + self.bias) * self.alpha

    def _gated(self) -> tuple[Tensor, ...]:
        return self.scale, self.bias


class LowRankAdapter(GatedAdapter):
    """Beside an MLP: two linears with `rank` channels between them, times the gate, for x `[..., C]`.

    `shared_input`: the first one reads the codes that the MLP's own first layer reads.
    """

    def __init__(self, channels: int, rank: int, form: str, shared_input: bool = False) -> None:
        super().__init__(form)
        self.shared_input = shared_input
        self.low1 = self._layer(nn.Linear(channels, rank))
        self.low2 = self._layer(nn.Linear(rank, channels))

    def start(self, generator: torch.Generator, dead: bool = False) -> None:
        _kaiming(self.low1, generator)

    @property
    def reads_codes(self) -> tuple[nn.Module, ...]:
        return (self.low1,) if self.shared_input else ()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.low2(self.low1(x))
        return y * self.alpha

    def _gated(self) -> tuple[Tensor, ...]:
        return _weight(self.low2), _bias(self.low2)


class BottleneckAdapter(LowRankAdapter):
    """The same with GELU, a linear of `rank` channels and GELU between the two."""

    def __init__(self, channels: int, rank: int, form: str) -> None:
        super().__init__(channels, rank, form)
        self.act = ExactGELU()
        self.mid = self._layer(nn.Linear(rank, rank))

    def start(self, generator: torch.Generator, dead: bool = False) -> None:
        super().start(generator)
        if not dead:
            _kaiming(self.mid, generator)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.low2(self.act(self.mid(self.act(self.low1(x)))))
        return y * self.alpha


class StageAdapter(Adapter):
    """Beside a stage of convolutions: one grouped convolution of its input `[B, I, H, W]`, added to its output.

    A convolution is linear, so it may start at zero.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, form: str) -> None:
        super().__init__()
        self.form = form
        self.conv = self._layer(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups))

    def start(self, generator: torch.Generator, dead: bool = False) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def adapter(kind: str, **options: Any) -> Adapter:
    """An adapter of one of `KINDS` from plain values; raises `ValueError` for another kind or form."""
    if kind not in KINDS or options.get("form") not in FORMS:
        raise ValueError(f"no adapter is called {kind!r} in the form {options.get('form')!r}")
    if kind in ("separable", "depthwise"):
        return SeparableAdapter(**options)
    made = {"affine": AffineAdapter, "lowrank": LowRankAdapter, "bottleneck": BottleneckAdapter, "stage": StageAdapter}
    return cast(Adapter, made[kind](**options))


def _weight(layer: nn.Module) -> Tensor:
    """The weight of a site or of a float layer, outside the graph."""
    return cast(Tensor, getattr(layer, "inner", layer).weight).detach()


def _bias(layer: nn.Module) -> Tensor:
    return cast(Tensor, getattr(layer, "inner", layer).bias).detach()


def _kaiming(layer: nn.Module, generator: torch.Generator) -> None:
    """torch's own start of a linear or a convolution's weight; drawn on the CPU, so that it is the same everywhere."""
    weight = _weight(layer)
    drawn = torch.empty(weight.shape)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
    weight.copy_(drawn)

"""SReT, the sliced recursive transformer (Shen et al., ECCV 2022): blocks that run twice, each time with another
projection behind them, and attention inside slices of the tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from halfbyte.errors import HalfbyteError
from halfbyte.layers.slicing import join_tokens, slice_tokens, slicing

SIDE = 224
# Pixels to a token of the first stage, on each side.
STRIDE = 8
# How often a block runs.
REPETITIONS = 2
DEPTHS, GROUPS = (2, 5, 3), ((8, 2), (4, 1), (1, 1))
EPSILON = 1e-6

_PREPROCESSING: dict[str, Any] = {
    "input_size": (3, SIDE, SIDE),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "first_conv": ("patch_embed.conv1", "patch_embed.conv2", "patch_embed.conv3"),
    "classifier": "head",
}


@dataclass(frozen=True)
class Size:
    """heads: of the first stage; channels: a head's. Both other stages double the heads. Ratios: of hidden channels."""

    channels: int
    heads: int
    mlp_ratio: float
    projection_ratio: float
    drop_path: float


SIZES = {
    "sret_t": Size(32, 2, 3.6, 1.0, 0.1),
    "sret_lt": Size(32, 2, 4.0, 1.0, 0.1),
    "sret_s": Size(42, 3, 3.0, 2.0, 0.2),
}
SRET_MODELS = tuple(SIZES)


class SlicedAttention(nn.Module):
    """Attention inside groups of tokens, of which a block's two runs have different numbers.

    Where the second run has groups, their tokens are drawn: anew while training, and by one fixed permutation at
    evaluation (the published code draws there too, so that its accuracy is not a number).
    """

    permutation: Tensor

    def __init__(self, channels: int, heads: int, tokens: int, groups: tuple[int, int], seed: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.scale = (channels // heads) ** -0.5
        self.groups = groups
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        drawn = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("permutation", drawn, persistent=False)

    def forward(self, x: Tensor, repetition: int) -> Tensor:
        groups, order = slicing(self, x, repetition)
        sliced = slice_tokens(x, groups, order)
        packed = self.qkv(sliced).reshape(*sliced.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = packed.unbind(0)
        mixed = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v
        return cast(Tensor, self.proj(join_tokens(mixed.transpose(1, 2).flatten(2), groups, order)))


class Mlp(nn.Module):
    """fc1, GELU, fc2, for tokens `[B, N, C]`."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(self.act(self.fc1(x))))


class Block(nn.Module):
    """Attention and MLP; both terms of each residual sum have a learned factor."""

    def __init__(self, attention: SlicedAttention, channels: int, hidden: int, drop_path: float) -> None:
        from timm.layers.drop import DropPath

        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=EPSILON)
        self.attn = attention
        self.norm2 = nn.LayerNorm(channels, eps=EPSILON)
        self.mlp = Mlp(channels, hidden)
        self.drop_path = DropPath(drop_path)
        for number in range(1, 5):
            self.register_parameter(f"coefficient{number}", nn.Parameter(torch.ones(1)))

    def forward(self, x: Tensor, repetition: int) -> Tensor:
        one, two, three, four = (cast(Tensor, getattr(self, f"coefficient{number}")) for number in range(1, 5))
        x = one * x + two * self.drop_path(self.attn(self.norm1(x), repetition))
        return cast(Tensor, three * x + four * self.drop_path(self.mlp(self.norm2(x))))


class Projection(nn.Module):
    """The MLP that stands behind one run of a block."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=EPSILON)
        self.mlp = Mlp(channels, hidden)
        self.coefficient1 = nn.Parameter(torch.ones(1))
        self.coefficient2 = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.coefficient1 * x + self.coefficient2 * self.mlp(self.norm1(x)))


class Stage(nn.Module):
    """Blocks, each run twice; `projections` in the order in which they run: maps `[B, C, H, W]` to the same shape."""

    def __init__(self, blocks: list[Block], projections: list[Projection]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.projections = nn.ModuleList(projections)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        for number, projection in enumerate(self.projections):
            index, repetition = divmod(number, REPETITIONS)
            tokens = projection(self.blocks[index](tokens, repetition))
        return tokens.transpose(1, 2).reshape(x.shape)


class Stem(nn.Module):
    """Three convolutions of stride 2: images `[B, 3, H, W]` to `[B, C, H / 8, W / 8]`."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        widths = (inputs, channels // 2, channels, channels)
        for number in range(1, 4):
            before, behind = widths[number - 1 : number + 1]
            self.add_module(f"conv{number}", nn.Conv2d(before, behind, 3, stride=2, padding=1))
            self.add_module(f"bn{number}", nn.BatchNorm2d(behind))
            self.add_module(f"relu{number}", nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


class SReT(nn.Module):
    """Images `[B, 3, 224, 224]` to logits `[B, num_classes]`."""

    pretrained_cfg: dict[str, Any]

    def __init__(self, size: Size, num_classes: int = 1000) -> None:
        super().__init__()
        self.num_classes = num_classes
        channels, side = size.channels * size.heads, SIDE // STRIDE
        self.patch_embed = Stem(3, channels)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, channels, side, side))
        self.stages, self.pools = nn.ModuleList(), nn.ModuleList()
        runs = REPETITIONS * sum(DEPTHS)
        first = 0
        for number, (depth, groups) in enumerate(zip(DEPTHS, GROUPS, strict=True)):
            heads = size.heads << number
            width, tokens = size.channels * heads, (side >> number) ** 2
            blocks = [
                Block(SlicedAttention(width, heads, tokens, groups, seed=10 * number + index), width,
                      int(size.mlp_ratio * width), size.drop_path * (first + index) / runs)
                for index in range(depth)
            ]  # fmt: skip
            hidden = int(size.projection_ratio * width)
            projections = [Projection(width, hidden) for _ in range(REPETITIONS * depth)]
            self.stages.append(Stage(blocks, projections))
            if number + 1 < len(DEPTHS):
                self.pools.append(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, groups=width))
            first += REPETITIONS * depth
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number < len(self.pools):
                x = self.pools[number](x)
        return cast(Tensor, self.head(self.norm(self.pool(x).flatten(1))))


def create_sret(name: str, num_classes: int = 1000) -> SReT:
    """Build one of `SRET_MODELS` with random weights; another name raises `KeyError`."""
    model = SReT(SIZES[name], num_classes)
    model.pretrained_cfg = dict(_PREPROCESSING, architecture=name, num_classes=num_classes)
    return model


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published checkpoint under our names; others come back as they are.

    There blocks and projections stand in one list in the order in which they run, so that each block has two names, and
    q, k and v may be separate. Raises `HalfbyteError` where the two copies of a block differ.
    """
    if not any(name.startswith("transformers.") for name in state):
        return state
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = _our_name(name)
        if ours in renamed and not torch.equal(renamed[ours], tensor):
            raise HalfbyteError(f"the two copies of {ours} differ, though a block has one set of weights; wrong file?")
        renamed[ours] = tensor
    for name in [name for name in renamed if ".attn.proj_q." in name]:
        parts = [name.replace("proj_q", f"proj_{part}") for part in "qkv"]
        if all(part in renamed for part in parts):
            renamed[name.replace("proj_q", "qkv")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def _our_name(name: str) -> str:
    name = re.sub(r"(coefficient\d)\.bias$", r"\1", name)
    name = re.sub(r"^pools\.(\d+)\.conv\.", r"pools.\1.", name)
    found = re.match(r"transformers\.(\d+)\.blocks\.(\d+)\.(.*)", name)
    if found is None:
        return name
    stage, place, rest = int(found[1]), int(found[2]), found[3]
    run, behind = divmod(place, 2)
    part = f"projections.{run}" if behind else f"blocks.{run // REPETITIONS}"
    return f"stages.{stage}.{part}.{rest}"

"""A model's arithmetic as data: Blocks, each a list of Sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from halfbyte.errors import HalfbyteError, did_you_mean

ROLES = (
    "stem", "qkv", "proj", "fc1", "fc2", "gate", "reduction", "conv", "depthwise", "qk", "pv", "head", "side",
)  # fmt: skip

Adapter = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Site:
    """One place where arithmetic is quantized.

    `name` is the module path in the prepared model; `norm` and `activation` are the paths of the norm and of the
    nonlinearity whose output is this site's input, where there is one; `block` is the path of its block. `macs` are the
    multiply-accumulates for one image, known once the model was prepared.
    """

    name: str
    role: str
    block: str
    norm: str | None = None
    activation: str | None = None
    macs: int = 0

    @property
    def operands(self) -> tuple[str, str]:
        """The names of the two operands that have quantizers."""
        return ("left", "right") if self.role in ("qk", "pv") else ("input", "weight")


@dataclass(frozen=True)
class Block:
    """A part of the model that methods treat as a unit, with its sites in the order in which they run.

    `end` is the path of the module whose output is added to the shortcut, where a nonlinearity follows the sum.
    """

    name: str
    sites: tuple[Site, ...]
    end: str | None = None


@dataclass(frozen=True)
class Layout:
    """All blocks in the order in which they run, and how to rewrite the attentions (module path -> adapter)."""

    blocks: tuple[Block, ...]
    adapters: dict[str, Adapter] = field(default_factory=dict, compare=False)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site, in order."""
        return tuple(site for block in self.blocks for site in block.sites)

    def site(self, name: str) -> Site:
        """The site of that name; raises `HalfbyteError` with the nearest names."""
        for site in self.sites:
            if site.name == name:
                return site
        raise HalfbyteError(f"unknown site {name!r}{did_you_mean(name, [site.name for site in self.sites])}")

    def with_sites(self, added: Iterable[Site]) -> Layout:
        """The layout with further sites behind the others of the blocks that they name."""
        return Layout.of([*self.sites, *added], self.adapters, {block.name: block.end for block in self.blocks})

    def with_parts(self, name: str, parts: Iterable[str]) -> Layout:
        """The layout with a site replaced by equal parts of it, which have the same norm, nonlinearity and block."""
        whole, names = self.site(name), list(parts)
        made = [replace(whole, name=part, macs=whole.macs // len(names)) for part in names]
        sites = [new for site in self.sites for new in (made if site is whole else [site])]
        return Layout.of(sites, self.adapters, {block.name: block.end for block in self.blocks})

    @staticmethod
    def of(sites: list[Site], adapters: dict[str, Adapter], ends: Mapping[str, str | None] | None = None) -> Layout:
        """Group sites, given in order, into the blocks that they name; `ends` by block."""
        blocks: dict[str, list[Site]] = {}
        for site in sites:
            blocks.setdefault(site.block, []).append(site)
        made = (Block(name, tuple(members), (ends or {}).get(name)) for name, members in blocks.items())
        return Layout(tuple(made), adapters)

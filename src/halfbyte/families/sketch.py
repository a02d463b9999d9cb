"""What the families tell of a model while `describe` walks it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import nn

from halfbyte.families.layout import Adapter


@dataclass
class Sketch:
    """Collects blocks, their ends, roles, links and adapters by module path, and the modules that no image reaches."""

    model: nn.Module
    blocks: set[str] = field(default_factory=set)
    ends: dict[str, str | None] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    activations: dict[str, str] = field(default_factory=dict)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)

    def is_constant(self, path: str) -> bool:
        """Whether `path` is, or lies in, a module that computes the same for every image."""
        parts = path.split(".")
        return any(".".join(parts[:end]) in self.constants for end in range(1, len(parts) + 1))

    def norm_feeds(self, block: str, norm: str, sites: Iterable[str]) -> None:
        """Say that the output of `norm` is the input of those of `sites` that exist, and of nothing else."""
        self._link(self.norms, block, norm, sites)

    def activation_feeds(self, block: str, activation: str, sites: Iterable[str]) -> None:
        """Say that the output of the module `activation` is the input of those of `sites` that exist."""
        self._link(self.activations, block, activation, sites)

    def _link(self, table: dict[str, str], block: str, source: str, sites: Iterable[str]) -> None:
        modules = dict(self.model.named_modules())
        origin = modules.get(f"{block}.{source}")
        if origin is None or isinstance(origin, nn.Identity):
            return
        for site in sites:
            if f"{block}.{site}" in modules:
                table[f"{block}.{site}"] = f"{block}.{source}"


Handler = Callable[[str, nn.Module, Sketch], None]
HANDLERS: dict[type[nn.Module], Handler] = {}


def handles(*classes: type[nn.Module]) -> Callable[[Handler], Handler]:
    """Decorator: enter a handler for exactly these classes (a subclass may compute something else)."""

    def enter(handler: Handler) -> Handler:
        for cls in classes:
            HANDLERS[cls] = handler
        return handler

    return enter

"""The operands of one block's sites in the float model, for as many images as a step wants."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.families.layout import Block
from halfbyte.layers.site import SiteModule
from halfbyte.prepare import model_state, site_module
from halfbyte.session import Session


class _BlockIsDoneError(Exception):
    """Ends a forward pass of which nothing more is needed."""


class BlockCapture:
    """Streams images through the float model and keeps what reaches the sites of one block.

    A pass ends with the block, so that no block costs more than what lies before it; memory holds one
    block's operands.
    """

    def __init__(self, session: Session, images: int) -> None:
        self.session, self.images = session, images
        self._names = {site_module(session.model, site.name): site.name for site in session.layout.sites}
        self._calls: list[str] | None = None

    def operands(self, block: Block) -> dict[str, dict[str, Tensor]]:
        """For each site of `block` the operands that are activations, `[images, ...]` each.

        A site that runs several times in a forward pass has the operands of all its calls behind each other.
        """
        calls = self._order()
        wanted = {site.name for site in block.sites}
        last = max(number for number, name in enumerate(calls) if name in wanted)
        kept: dict[str, dict[str, list[Tensor]]] = {site.name: {} for site in block.sites}
        done = 0

        def keep(module: SiteModule, operand: str, x: Tensor) -> Tensor:
            nonlocal done
            name = self._names[module]
            if name in wanted and operand != "weight":
                kept[name].setdefault(operand, []).append(x.detach().clone())
            if operand == module.operands[-1]:
                done += 1
                if done > last:
                    raise _BlockIsDoneError
            return x

        session = self.session
        with torch.no_grad(), model_state(session.model, "observe", keep):
            for batch in session.images(self.images):
                done = 0
                try:
                    session.model(batch)
                except _BlockIsDoneError:
                    continue
        return {name: {operand: _joined(found[operand]) for operand in list(found)} for name, found in kept.items()}

    def _order(self) -> list[str]:
        """The sites in the order of their calls, with repetitions."""
        if self._calls is None:
            calls: list[str] = []

            def note(module: SiteModule, operand: str, x: Tensor) -> Tensor:
                if operand == module.operands[-1]:
                    calls.append(self._names[module])
                return x

            with torch.no_grad(), model_state(self.session.model, "observe", note):
                self.session.model(next(self.session.images(1)))
            self._calls = calls
        return self._calls


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts behind each other; they are given up, or both would be held until the last operand is joined."""
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    parts.clear()
    return whole

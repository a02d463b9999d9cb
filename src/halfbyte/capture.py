"""The operands of one block's sites in the float model, for as many images as a step wants."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.families.layout import Block
from halfbyte.layers.site import SiteModule
from halfbyte.prepare import model_state, site_module
from halfbyte.session import Session

# The activations that one call of a site, or several calls of one shape, took in.
Operands = dict[str, Tensor]


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

    def operands(self, block: Block) -> dict[str, list[Operands]]:
        """For each site of `block` the operands that are activations, `[images, ...]` each.

        A site that runs several times in a forward pass has the operands of all its calls behind each other, where
        they are of one shape but for the images; calls of another shape have operands of their own.
        """
        calls = self._order()
        wanted = {site.name for site in block.sites}
        last = max(number for number, name in enumerate(calls) if name in wanted)
        kept: dict[str, list[Operands]] = {site.name: [] for site in block.sites}
        done = 0

        def keep(module: SiteModule, operand: str, x: Tensor) -> Tensor:
            nonlocal done
            name = self._names[module]
            if name in wanted and operand != "weight":
                if operand == _first(module):
                    kept[name].append({})
                kept[name][-1][operand] = x.detach().clone()
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
        return {name: _joined(calls) for name, calls in kept.items()}

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


def channel_rows(calls: list[Operands], operand: str) -> Tensor:
    """What one operand holds in all calls, channels last: of several shapes as `[rows, channels]`.

    Attention maps have no channels: of several sizes, they become one column.
    """
    if len(calls) == 1:
        return calls[0][operand]
    alike = len({call[operand].shape[-1] for call in calls}) == 1
    return torch.cat([call[operand].flatten(0, -2) if alike else call[operand].flatten()[:, None] for call in calls])


def _first(module: SiteModule) -> str:
    """The operand that a call begins with; the weight is no activation."""
    return next(operand for operand in module.operands if operand != "weight")


def _joined(calls: list[Operands]) -> list[Operands]:
    """Calls of one shape behind each other. What is joined is given up, or both would be held until the last one is."""
    alike: dict[tuple[torch.Size, ...], list[Operands]] = {}
    for call in calls:
        alike.setdefault(tuple(x.shape[1:] for x in call.values()), []).append(call)
    calls.clear()
    return [{operand: _whole(group, operand) for operand in list(group[0])} for group in alike.values()]


def _whole(group: list[Operands], operand: str) -> Tensor:
    return group[0].pop(operand) if len(group) == 1 else torch.cat([call.pop(operand) for call in group])

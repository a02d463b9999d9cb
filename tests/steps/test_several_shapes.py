"""Sites that one forward pass calls with several shapes: SReT's blocks, which run in groups of two sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from halfbyte.capture import BlockCapture
from halfbyte.families.describe import describe
from halfbyte.layers.matmul import QuantMatMul
from halfbyte.models import sret
from halfbyte.prepare import model_state, prepare, site_module
from halfbyte.progress import Progress
from halfbyte.recipe import BitPlan, load_recipe
from halfbyte.session import Session
from halfbyte.steps.adalog import AdaLog
from halfbyte.steps.groupwise import Groupwise

IMAGES = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(1))


class _FixedImages(Session):
    def images(self, count: int, batch_size: int | None = None) -> Iterator[Tensor]:
        yield IMAGES[:count]


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sret, "DEPTHS", (1, 1, 1))


def small_sret() -> Session:
    """A small SReT whose first two blocks run in groups of one size, then of another; always the same."""
    torch.manual_seed(0)
    model = sret.SReT(sret.Size(8, 2, 2.0, 1.0, 0.0), 10).eval()
    model.pretrained_cfg = {"input_size": (3, 224, 224), "first_conv": "patch_embed.conv1", "classifier": "head"}
    recipe = load_recipe("adalog")
    layout = prepare(model, describe(model), BitPlan(4, 4))
    return _FixedImages(
        model, model, layout, recipe, None, torch.device("cpu"), torch.Generator().manual_seed(0), Progress(quiet=True)
    )


def _products(session: Session) -> list[str]:
    return [site.name for site in session.layout.sites if site.role in ("qk", "pv")]


@torch.no_grad()
@pytest.mark.parametrize("step", [AdaLog(images=2, rounds=1), AdaLog(images=2, rounds=1, race=False), Groupwise()])
def test_a_step_runs_on_several_shapes(step: AdaLog | Groupwise) -> None:
    session = small_sret()
    step.run(session)
    exact = session.model(IMAGES)
    with model_state(session.model, "quantized"):
        assert float((session.model(IMAGES) - exact).square().mean()) < 0.1 * float(exact.square().mean())


@torch.no_grad()
def test_no_call_is_left_out_of_a_search() -> None:
    """Found for both calls, quantizers make less error in all than what either call alone would have chosen."""
    session = small_sret()
    block = next(block for block in session.layout.blocks if any(site.role == "qk" for site in block.sites))
    calls = {
        name: found for name, found in BlockCapture(session, 4).operands(block).items() if name in _products(session)
    }
    assert all(len(found) == 2 for found in calls.values())
    AdaLog(images=4, rounds=1).run(session)
    together = {name: _error(site_module(session.model, name), found) for name, found in calls.items()}
    for place in (0, -1):
        other = small_sret()
        with _only(place):
            AdaLog(images=4, rounds=1).run(other)
        for name, found in calls.items():
            assert together[name] < 0.95 * _error(site_module(other.model, name), found)


@contextmanager
def _only(place: int) -> Iterator[None]:
    """Steps see one call of each site."""
    operands = BlockCapture.operands
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            BlockCapture,
            "operands",
            lambda capture, block: {name: [calls[place]] for name, calls in operands(capture, block).items()},
        )
        yield


def _error(module: QuantMatMul, calls: list[dict[str, Tensor]]) -> float:
    total = 0.0
    for call in calls:
        exact = call["left"] @ call["right"]
        quantized = module.quantizer("left")(call["left"]) @ module.quantizer("right")(call["right"])
        total += float((quantized - exact).double().square().sum())
    return total

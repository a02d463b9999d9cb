"""The exact best scale in a window, against a dense scan of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from halfbyte.calibrate.grids import Candidates
from halfbyte.calibrate.output_error import OutputError, WeightError
from halfbyte.calibrate.trials import LogTrial, UniformTrial
from halfbyte.quantizers.log import GELU_SHIFT, AdaLogQuantizer, LogSqrt2Quantizer


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_best(error, candidate: Candidates, spacing: Tensor, share: float) -> None:
    """Nothing in a scan of the inner part of the window is better than what was found there."""
    found = error.polished(candidate, spacing)
    steps = torch.linspace(1 - share, 1 + share, 401)[:, None]
    scan = error(Candidates(candidate.scale * steps, candidate.other.expand(401, -1)))
    got = error(found)[0]
    assert bool((got <= scan.min(0).values * (1 + 1e-6)).all()), got / scan.min(0).values


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("columns", [6, 40])
def test_uniform_scales_of_heads(bits: int, columns: int) -> None:
    x, other = noise(2, 3, 20, 8), noise(2, 3, 8, columns, seed=1)
    change = 0.05 * noise(2, 3, 8, columns, seed=2)
    error = OutputError([UniformTrial(head, bits) for head in x], other + change, x @ change)
    scale = torch.tensor([[5.2, 4.4]]) / 2**bits
    candidate = Candidates(scale, torch.full((1, 2), 2.0 ** (bits - 1)))
    assert_best(error, candidate, 0.2 * scale[0], 0.4 / 2**bits)


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_scales_of_weight_rows(bits: int) -> None:
    weight, x = noise(2, 5, 12), noise(2, 100, 12, seed=1) @ noise(12, 12, seed=2)
    cross = 0.1 * noise(2, 5, 12, seed=3)
    error = WeightError(weight, bits, x.transpose(1, 2) @ x, cross, torch.full((10,), 10.0))
    scale = weight.abs().amax(2).flatten()[None] * 2 / 2**bits
    candidate = Candidates(scale, torch.full((1, 10), 2.0 ** (bits - 1)))
    assert_best(error, candidate, 0.2 * scale[0], 0.4 / 2**bits)


LIKES = {
    "adalog": AdaLogQuantizer(4),
    "paper": AdaLogQuantizer(4, paper_exact=True),
    "shifted": AdaLogQuantizer(3, shift=GELU_SHIFT),
    "log-sqrt2": LogSqrt2Quantizer(4),
}


@pytest.mark.parametrize(
    ("name", "sign"), [*((name, 1) for name in LIKES), *((name, -1) for name in LIKES if name != "paper")]
)
def test_log_scales(name: str, sign: int) -> None:
    """With a zero, and without one, which the paper's code always has."""
    like = LIKES[name]
    x = torch.nn.functional.gelu(2 * noise(1, 60, 16)) if like.shift else noise(1, 60, 16).mul(3).softmax(-1)
    other, change = noise(1, 1, 16, 6, seed=1), 0.02 * noise(1, 1, 16, 6, seed=2)
    error = OutputError([LogTrial(x, like)], other + change, x[None] @ change)
    base = 40.0 if like.kind == "adalog" else 1.0
    scale = torch.tensor([[float(x.max()) * 0.8 + like.shift]])
    # The paper's table of mantissas differs from the exact powers by which levels are compared.
    assert_best(error, Candidates(scale, torch.tensor([[sign * base]])), 0.05 * scale[0], 0.01)

"""QwT's reference implementation's own numbers: regressions, the branch's two arithmetics, counts; and the mathematics
beyond it in float64."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from halfbyte.block_stream import Unit
from halfbyte.calibrate.moments import Moments
from halfbyte.calibrate.side_fit import fit_full, fit_half, fit_low_rank, fit_published, least_rank
from halfbyte.distributed import World
from halfbyte.families.layout import Block, Site
from halfbyte.layers.compensation import HalfBranch, Shape
from halfbyte.layers.conv import QuantConv2d
from halfbyte.layers.site import State
from halfbyte.session import Session
from halfbyte.steps.qwt import PUBLISHED_RIDGE, QwT, shape_of

GOLDEN = json.loads((Path(__file__).parent / "qwt.json").read_text())
REGRESSIONS = {case["name"]: case for case in GOLDEN["linear_regression"]}
# Without a unique answer there is none to compare with.
SOLVED = [name for name, case in REGRESSIONS.items() if "W" in case]
CONVOLUTIONS = GOLDEN["group_conv_regression"]


def exact(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def single(value: object) -> Tensor:
    """What the file holds as float32, in as few digits as tell one float32 from another."""
    return torch.tensor(value, dtype=torch.float32)


def assert_near(got: Tensor, expected: object, absolute: float, relative: float = 0.0) -> None:
    wanted = exact(expected)
    assert got.shape == wanted.shape
    assert bool(((got.double() - wanted).abs() <= absolute + relative * wanted.abs()).all())


def rows(value: object) -> Tensor:
    tensor = single(value).double()
    return tensor.reshape(1, -1, tensor.shape[-1])


def streamed(x: Tensor, y: Tensor, size: int = 5) -> Moments:
    """Rows `[g, N, K]` and `[g, N, O]` in small batches."""
    moments = Moments()
    for part_x, part_y in zip(x.split(size, 1), y.split(size, 1), strict=True):
        moments.add(part_x, part_y)
    return moments


def r2(moments: Moments, weight: Tensor, bias: Tensor | None = None) -> float:
    return 1 - moments.error(weight, bias) / float(moments.yy.sum())


# Regressions over tokens


@pytest.mark.parametrize("name", SOLVED)
def test_linear_regression(name: str) -> None:
    case = REGRESSIONS[name]
    moments = streamed(rows(case["X"]), rows(case["Y"]))
    weight = moments.solve(0.0)
    # The columns differ by 1e-4 of their size: the normal equations leave half of the digits.
    tolerance = 1e-4 if "unreliable" in name else 1e-9
    assert_near(weight[0], case["W_float64_exact"], tolerance, tolerance)
    assert_near(moments.intercept(weight)[0], case["b_float64_exact"], tolerance, tolerance)
    assert r2(moments, weight) == pytest.approx(case["r2_float64"], abs=1e-9)
    if "unreliable" not in name:
        assert_near(weight[0], case["W"], 3e-3)


def test_more_unknowns_than_rows_are_fitted_by_the_least_map() -> None:
    case = REGRESSIONS["underdetermined_3rows_6unknowns_reference_unreliable"]
    x, y = rows(case["X"]), rows(case["Y"])
    moments = streamed(x, y, 2)
    centred_x, centred_y = ((part - part.mean(1, keepdim=True))[0].numpy() for part in (x, y))
    least = np.linalg.lstsq(centred_x, centred_y, rcond=1e-9)[0]
    weight = moments.solve(0.0)
    assert_near(weight[0], least, 1e-8)
    assert r2(moments, weight) == pytest.approx(1.0)


def test_a_regressor_of_zeros_gets_no_weight() -> None:
    moments = streamed(torch.zeros(1, 20, 4), torch.randn(1, 20, 3))
    for ridge in (0.0, 1e-4):
        assert torch.equal(moments.solve(ridge), torch.zeros(1, 4, 3, dtype=torch.float64))


def test_features_of_a_patch_embedding_have_a_lower_rank_than_their_number() -> None:
    case = GOLDEN["rank_deficient_patch_embed"]
    ridged, moments = case["ridge_1e6_absolute_float64"], streamed(rows(case["X"]), rows(case["Y"]))
    for weight in (moments.solve_shrunk(1e-6)[0], moments.solve(0.0)):
        assert r2(moments, weight) == pytest.approx(ridged["r2"], abs=1e-6)
        assert float(weight.abs().max()) < 2 * float(exact(ridged["W"]).abs().max())
    spectrum = torch.linalg.eigvalsh(moments.xx[0])
    assert int((spectrum > 1e-8 * spectrum[-1]).sum()) == case["numerical_rank_1e8"]
    for fit in (fit_half(moments, weight), fit_full(moments, weight, 8)):
        assert r2(moments, fit.dense) > ridged["r2"] - 1e-2


# Mathematics beyond the reference, in float64


def test_moments_and_solution() -> None:
    case, derived = REGRESSIONS["well_conditioned"], GOLDEN["derived_own_math_float64"]
    moments = streamed(rows(case["X"]), rows(case["Y"]))
    assert_near(moments.mean_x[0, 0], derived["mean_x"], 1e-12)
    assert_near(moments.mean_y[0, 0], derived["mean_y"], 1e-12)
    assert_near(moments.xx[0], derived["Sxx"], 1e-11)
    assert_near(moments.xy[0], derived["Sxy"], 1e-11)
    assert float(moments.yy) == pytest.approx(derived["trace_Syy"], rel=1e-12)
    weight = moments.solve(0.0)
    assert_near(weight[0], derived["W"], 1e-11)
    assert_near(moments.intercept(weight)[0], derived["b"], 1e-11)


@pytest.mark.parametrize("rank", [int(rank) for rank in GOLDEN["derived_own_math_float64"]["rrr"]])
def test_reduced_rank(rank: int) -> None:
    case, derived = REGRESSIONS["well_conditioned"], GOLDEN["derived_own_math_float64"]
    wanted = derived["rrr"][str(rank)]
    moments = streamed(rows(case["X"]), rows(case["Y"]))
    weight = moments.solve(0.0)
    strongest = moments.principal(weight)[..., :rank]
    reduced = weight @ strongest @ strongest.mT
    assert_near(reduced[0], wanted["W"], 1e-9)
    assert_near(moments.intercept(reduced)[0], wanted["b"], 1e-9)
    for expected in (wanted["ss_res"], wanted["ss_res_direct"]):
        assert moments.error(reduced) == pytest.approx(expected, rel=1e-9)
    # Behind the best first factor the best second one is the one that goes with it.
    assert_near((weight @ strongest @ moments.refit(weight @ strongest))[0], wanted["W"], 1e-9)
    # With 8-bit factors next to nothing is lost.
    x = rows(case["X"])[0]
    fit = fit_low_rank(moments, weight, rank, (8, 8), lambda down: (x @ down).abs().amax(0))
    assert moments.error(fit.dense, fit.bias[None]) == pytest.approx(wanted["ss_res"], rel=5e-3)


def test_principal_directions_are_sorted_by_what_they_explain() -> None:
    case, derived = REGRESSIONS["well_conditioned"], GOLDEN["derived_own_math_float64"]
    moments = streamed(rows(case["X"]), rows(case["Y"]))
    weight = moments.solve(0.0)
    predicted = weight[0] @ moments.principal(weight)[0]
    gains = (predicted * (moments.xx[0] @ predicted)).sum(0)
    assert_near(gains.sort().values, sorted(derived["eig"]), 1e-9)
    assert torch.equal(gains, gains.sort(descending=True).values)
    shares = gains.cumsum(0) / gains.sum()
    for enough in (0.5, 0.9, 0.99):
        assert least_rank(moments, weight, 5, enough) == int((shares < enough).sum()) + 1


# Regressions over the places of a map


def convolution(case: dict) -> QuantConv2d:
    made = Shape(len(case["X"][0]), len(case["Y"][0]), case["kernel_size"], case["stride"], case["groups"])
    layer = made.module(made.inputs, made.outputs)
    assert isinstance(layer, nn.Conv2d)
    return QuantConv2d(layer)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: f"k{case['kernel_size']}g{case['groups']}")
def test_group_convolution_regression(case: dict) -> None:
    x, y, layer = single(case["X"]).double(), single(case["Y"]).double(), convolution(case)
    targets = y.reshape(len(y), case["groups"], -1, y[0, 0].numel()).permute(1, 0, 3, 2).flatten(1, 2)
    moments = streamed(layer.patches(x), targets, 7)
    weight, bias = moments.solve_shrunk(PUBLISHED_RIDGE)
    fit = fit_published(moments, PUBLISHED_RIDGE)
    assert_near(fit.weights[0].view(layer.weight.shape), case["W"], 5e-4)
    assert_near(fit.bias, case["b"], 5e-4)
    assert_near(fit.dense, weight.tolist(), 0.0)
    per_channel = 1 - moments.error(weight, bias) / float(moments.yy.sum())
    assert per_channel == pytest.approx(case["r2_if_per_channel_mean_were_used"], abs=1e-4)
    per_place = float((y - y.mean(0)).square().sum())
    assert 1 - moments.error(weight, bias) / per_place == pytest.approx(case["r2_reference"], abs=1e-4)


# The branch


def half_branch(shape: Shape, weight: object, bias: object, state: State) -> HalfBranch:
    branch = HalfBranch(shape)
    branch.state = state
    with torch.no_grad():
        branch.weight.copy_(single(weight))
        branch.bias.copy_(single(bias))
    return branch


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: f"k{case['kernel_size']}g{case['groups']}")
@torch.no_grad()
def test_convolution_branch(case: dict) -> None:
    shape = Shape(len(case["X"][0]), len(case["Y"][0]), case["kernel_size"], case["stride"], case["groups"])
    for state, key, tolerance in (("observe", "comp_only_train", 2e-5), ("quantized", "comp_only_eval_fp16", 5e-3)):
        branch = half_branch(shape, case["W"], case["b"], state)
        assert_near(branch(single(case["X"])), case[key], tolerance)


@pytest.mark.parametrize("case", GOLDEN["compensation_block_linear"]["cases"], ids=lambda case: case["name"])
@torch.no_grad()
def test_linear_branch(case: dict) -> None:
    block = GOLDEN["compensation_block_linear"]
    x, accepted = single(block["x"]), case["linear_init"] and float(case["r2"]) > 0
    for state, key, tolerance in (("observe", "out_train_fp32", 5e-5), ("quantized", "out_eval_fp16", 6.3e-2)):
        inner = nn.Identity()
        if accepted:
            branch = half_branch(Shape(4, 4), exact(block["W"]).mT.tolist(), block["b"], state)
            branch.attach("qwt", inner, inner, "input")
        assert_near(inner(x), case[key], tolerance)
    assert accepted is (case["name"] == "accepted")


# Counts


@pytest.mark.parametrize("case", GOLDEN["groups_rule"], ids=lambda case: f"{case['Cin']}-{case['factor']}")
def test_groups_of_a_convolution(case: dict) -> None:
    channels = case["Cin"]
    conv = nn.Conv2d(channels, channels, 1)
    block = Block("block", (Site("conv", "conv", "block"),))
    map_shape = torch.Size((1, channels, 4, 4))
    session = SimpleNamespace(model=nn.ModuleDict({"conv": QuantConv2d(conv)}))
    unit = Unit(block, conv, ((), {}), False, map_shape, map_shape)
    shape = shape_of(QwT(factor=case["factor"]), session, unit)
    assert shape == Shape(channels, channels, 1, 1, case["groups"])


@pytest.mark.parametrize("case", GOLDEN["sample_counts"], ids=lambda case: f"{case['batch_size']}x{case['world_size']}")
def test_the_processes_see_512_images_together(case: dict) -> None:
    """As the reference does where its batches and processes divide 512; for us always."""
    images, size = Numbers(range(600)), case["world_size"]
    seen = []
    for rank in range(size):
        session = SimpleNamespace(calibration=images, workers=0, device="cpu", world=World(rank, size))
        own = list(Session.own_images(session, 512, case["batch_size"]))
        assert len(own) <= math.ceil(512 / case["batch_size"] / size)
        seen += [int(number) for batch in own for number in batch]
    assert len(seen) == case["images_total"]
    assert sorted(seen) == list(range(512))


class Numbers:
    """Images that are their own numbers."""

    def __init__(self, numbers) -> None:
        self.numbers = list(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int):
        return torch.tensor(self.numbers[index]), 0

    def subset(self, indices):
        return Numbers(self.numbers[index] for index in indices)

    def useful_workers(self) -> int:
        return 0

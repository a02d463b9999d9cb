"""What is added beside a module: copies, states, names, and what cannot be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from halfbyte.edits import Edit
from halfbyte.errors import HalfbyteError
from halfbyte.families.layout import Layout
from halfbyte.layers.branch import Branch
from halfbyte.layers.compensation import FORMS, HalfBranch, Shape, compensation
from halfbyte.layers.site import SiteModule
from halfbyte.prepare import model_state, set_state


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def add(model: Model, at: str = "block", form: str = "float16") -> Layout:
    arguments = {"block": "block", "at": at, "child": "qwt", "form": form, "inputs": 4, "outputs": 4, "kernel": 0,
                 "stride": 1, "groups": 1, "rank": 2}  # fmt: skip
    return Edit("add_compensation", arguments).apply(model, Layout(()))


def fill(branch: Branch, bias: float) -> None:
    with torch.no_grad():
        branch.weight.copy_(torch.eye(4))
        branch.bias.fill_(bias)


@torch.no_grad()
def test_the_input_is_added_to_the_output(model: Model) -> None:
    before = model(X)
    add(model)
    fill(model.block.qwt, 0.5)
    with model_state(model, "observe"):
        assert torch.allclose(model(X), before + X + 0.5)
    with model_state(model, "quantized"):
        assert torch.equal(model(X), before + (X.half().float() + 0.5))


@torch.no_grad()
def test_it_may_be_added_in_the_middle(model: Model) -> None:
    first, second = model.block.first, model.block.second
    wanted = second(first(X) + X)
    add(model, "block.first")
    fill(first.qwt, 0.0)
    with model_state(model, "observe"):
        assert torch.allclose(model(X), wanted)


@pytest.mark.parametrize("side", ["input", "output"])
@torch.no_grad()
def test_it_may_read_the_input_or_the_output_of_a_module(model: Model, side: str) -> None:
    block, branch = model.block, HalfBranch(Shape(4, 4))
    read = X if side == "input" else block.first(X)
    wanted = model(X) + read
    branch.attach("beside", block, block.first, side)
    fill(branch, 0.0)
    set_state(model, "observe")
    assert torch.allclose(model(X), wanted)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_float_model_is_the_trained_one(model: Model, form: str) -> None:
    before = model(X)
    add(model, form=form)
    for parameter in model.block.qwt.parameters():
        parameter.fill_(1.0)
    set_state(model, "float")
    assert torch.equal(model(X), before)
    set_state(model, "observe")
    assert not torch.allclose(model(X), before)


@torch.no_grad()
def test_a_copy_has_its_own_branches(model: Model) -> None:
    add(model)
    fill(model.block.qwt, 0.0)
    set_state(model, "observe")
    other = copy.deepcopy(model)
    wanted = model(X)
    other.block.qwt.bias.fill_(2.0)
    assert torch.allclose(other(X), wanted + 2)
    assert torch.equal(model(X), wanted)
    # A copy of the copy, also after the first is gone.
    third = copy.deepcopy(other)
    del other
    third.block.qwt.bias.fill_(-1.0)
    assert torch.allclose(third(X), wanted - 1)


@torch.no_grad()
def test_a_copy_made_in_the_middle_of_a_pass_holds_no_activations(model: Model) -> None:
    add(model)
    model(X)
    assert model.block.qwt._seen is None


def test_names_in_the_state_dict(model: Model) -> None:
    own = set(model.state_dict())
    names = {
        "float16": {"weight", "bias"},
        "int8": {"inverse_scale", "full.weight", "full.bias"},
        "lowrank": {"inverse_scale", "down.weight", "up.weight", "up.bias"},
    }
    for form, inside in names.items():
        other = copy.deepcopy(model)
        layout = add(other, form=form)
        assert set(other.state_dict()) == own | {f"block.qwt.{name}" for name in inside}
        sites = [(site.name, site.role, site.block) for site in layout.sites]
        wanted = [name for name, module in other.named_modules() if isinstance(module, SiteModule)]
        assert sites == [(name, "side", "block") for name in wanted]


def test_the_modules_keep_their_places(model: Model) -> None:
    before = dict(model.named_modules())
    add(model)
    after = dict(model.named_modules())
    assert all(after[name] is module for name, module in before.items())
    assert set(after) - set(before) == {"block.qwt"}


def test_twice_is_refused(model: Model) -> None:
    add(model)
    with pytest.raises(HalfbyteError, match="there is a qwt already"):
        add(model)
    add(model, "block.second")


def test_an_attribute_of_that_name_is_refused(model: Model) -> None:
    with pytest.raises(HalfbyteError, match="there is a first already"):
        HalfBranch(Shape(4, 4)).attach("first", model.block, model.block, "input")


def test_a_sequential_would_run_it(model: Model) -> None:
    model.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(HalfbyteError, match="last part"):
        add(model)
    add(model, "block.1")
    assert model(X).shape == X.shape


def test_an_unknown_form_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="int9"):
        compensation("int9", Shape(4, 4), 0)
    with pytest.raises(HalfbyteError, match="add_compensation does not fit"):
        add(model, form="int9")


# Arithmetic


@pytest.mark.parametrize("kernel", [0, 1, 3])
@torch.no_grad()
def test_half_products_do_not_depend_on_the_batch(kernel: int) -> None:
    generator = torch.Generator().manual_seed(1)
    branch = HalfBranch(Shape(32, 24, kernel, 1, 1 if not kernel else 4))
    for parameter in branch.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(*((9, 7, 32) if not kernel else (9, 32, 6, 6)), generator=generator)
    branch.state = "quantized"
    whole = branch(x)
    assert torch.equal(torch.cat([branch(part) for part in x.split(2)]), whole)
    branch.state = "observe"
    assert torch.allclose(branch(x), whole, rtol=5e-3, atol=5e-2)

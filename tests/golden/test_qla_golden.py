"""QLA's reference implementation's own numbers: adapters, where they are added, their dead start, losses, steps."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from halfbyte.layers.adapters import Adapter, StageAdapter, adapter
from halfbyte.steps.qla import PUBLISHED
from halfbyte.train.loop import Plan
from halfbyte.train.losses import LossWeights

GOLDEN = json.loads((Path(__file__).parent / "qla.json").read_text())
FORMS = ("int8", "float32")
MLPS = {case["kind"]: case for case in GOLDEN["mlp_adapter"]}


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def assert_near(got: Tensor, expected: object, absolute: float = 2e-5) -> None:
    wanted = tensor(expected)
    assert got.shape == wanted.shape
    assert bool(((got - wanted).abs() <= absolute + 1e-4 * wanted.abs()).all())


@torch.no_grad()
def filled(made: Adapter, parameters: dict[str, object], prefix: str = "") -> Adapter:
    """An adapter in the state `observe` with the reference's parameters."""
    own = dict(made.named_parameters())
    for name, value in parameters.items():
        if not name.startswith(prefix):
            continue
        name = name.removeprefix(prefix).replace("gate.", "")
        if made.form == "float32" and name not in own:
            layer, _, kind = name.rpartition(".")
            name = f"{layer}.inner.{kind}"
        own.pop(name).copy_(tensor(value))
    assert not own
    for module in made.modules():
        if hasattr(module, "state"):
            module.state = "observe"
    return made


def attention_adapter(channels: int, rank: int, form: str, prefix: int = 1, side: int = 3) -> Adapter:
    grid = [side, side] if prefix else []
    return adapter("separable", channels=channels, rank=rank, prefix=prefix, grid=grid, shared_gate=True, form=form)


def mlp_adapter(kind: str, channels: int, rank: int, form: str) -> Adapter:
    return adapter(kind, channels=channels, form=form, **({} if kind == "affine" else {"rank": rank}))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", GOLDEN["attn_adapter_vit"]["cases"], ids=lambda case: f"use_pw={case['use_pw']}")
def test_attention_adapter_of_a_vit(case: dict, form: str) -> None:
    made = filled(attention_adapter(4, 2 if case["use_pw"] else 0, form), case["params"])
    assert_near(made(tensor(case["x"])), case["out"])


@pytest.mark.parametrize("form", FORMS)
def test_attention_adapter_of_a_swin(form: str) -> None:
    case = GOLDEN["attn_adapter_swin"]
    made = filled(attention_adapter(4, 2, form, prefix=0), case["params"])
    x, grid = tensor(case["x"]), (case["H"], case["W"])
    assert_near(made(x.unflatten(1, grid)).flatten(1, 2), case["out"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MLPS)
def test_mlp_adapter(kind: str, form: str) -> None:
    case = MLPS[kind]
    made = filled(mlp_adapter(kind, 4, case["r"], form), case["params"])
    assert_near(made(tensor(case["x"])), case["out"])
    if "n_params" in case:
        assert sum(parameter.numel() for parameter in made.parameters()) == case["n_params"]


@pytest.mark.parametrize("form", FORMS)
def test_the_published_start_of_the_attention_adapter_is_dead(form: str) -> None:
    case = GOLDEN["attn_adapter_at_init"]
    made = attention_adapter(4, 2, form)
    made.start(torch.Generator().manual_seed(0), dead=True)
    filled(made, {name: parameter.tolist() for name, parameter in names_of(made).items()})
    out = made(tensor(case["x"]))
    assert_near(out[:, 0], case["out_cls"])
    assert float(out[:, 1:].detach().abs().max()) == case["patch_out_abs_max"]
    out.sum().backward()
    for name, parameter in names_of(made).items():
        assert (float(parameter.grad.abs().max()) == 0.0) == (case["grad_abs_max"][name] == 0.0), name


@pytest.mark.parametrize("kind", MLPS)
def test_the_published_start_of_an_mlp_adapter(kind: str) -> None:
    case = MLPS[kind]
    made = mlp_adapter(kind, 4, case["r"], "float32")
    made.start(torch.Generator().manual_seed(0), dead=True)
    filled(made, {name: parameter.tolist() for name, parameter in names_of(made).items()})
    out = made(tensor(case["x"]))
    assert float(out.detach().abs().max()) == pytest.approx(case["init_out_abs_max"], rel=1e-6)
    out.sum().backward()
    for name, parameter in names_of(made).items():
        assert (float(parameter.grad.abs().max()) == 0.0) == (case["init_grad_abs_max"][name] == 0.0), name


def names_of(made: Adapter) -> dict[str, nn.Parameter]:
    """The parameters under the reference's names."""
    return {
        "gate.alpha" if name == "alpha" else name.replace(".inner", ""): parameter
        for name, parameter in made.named_parameters()
    }


class ToyBlock(nn.Module):
    """The reference's stand-in for a block: linears for attention and MLP."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn, self.mlp = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.drop_path1, self.drop_path2 = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_added_in_a_block(form: str) -> None:
    case = GOLDEN["wrapped_vit_block"]
    parameters = case["params"]
    block = ToyBlock(4)
    own = {name.removeprefix("block."): tensor(value) for name, value in parameters.items() if name[:6] == "block."}
    block.load_state_dict(own)
    beside_attention = filled(attention_adapter(4, 2, form, side=2), parameters, "attn_adapter.")
    beside_mlp = filled(mlp_adapter("lowrank", 4, 2, form), parameters, "mlp_adapter.")
    beside_attention.attach("qla", block.drop_path1, block.norm1, "output")
    beside_mlp.attach("qla", block.drop_path2, block.norm2, "output")
    assert_near(block(tensor(case["x"])), case["out"], 5e-5)


@pytest.mark.parametrize("form", FORMS)
def test_adapters_of_a_resnet(form: str) -> None:
    case = GOLDEN["resnet_adapters"]
    parameters = case["params"]
    x = tensor(case["x"])
    x = nn.functional.conv2d(
        x, tensor(parameters["backbone.conv1.weight"]), tensor(parameters["backbone.conv1.bias"]), 2, 1
    )
    for number, facts in enumerate(case["adapters"], start=1):
        weight = tensor(parameters[f"backbone.layer{number}.weight"])
        stage = nn.Conv2d(weight.shape[1], weight.shape[0], 3, facts["stride"], 1)
        with torch.no_grad():
            stage.weight.copy_(weight)
            stage.bias.copy_(tensor(parameters[f"backbone.layer{number}.bias"]))
        groups = max(1, weight.shape[1] // case["factor"])
        assert groups == facts["groups"]
        made = StageAdapter(weight.shape[1], weight.shape[0], case["k"], facts["stride"][0], groups, form)
        prefix = f"ad{number}."
        filled(made, {f"conv.{name[len(prefix) :]}": v for name, v in parameters.items() if name.startswith(prefix)})
        made.attach("qla", stage, stage, "input")
        x = stage(x)
    assert_near(x, case["o4"], 1e-3)
    logits = x.mean((2, 3)) @ tensor(parameters["backbone.fc.weight"]).T + tensor(parameters["backbone.fc.bias"])
    assert_near(logits, case["logits"], 1e-3)


@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
def test_losses(family: str) -> None:
    case = GOLDEN["loss_vit"]
    pairs = [(tensor(mine), tensor(wanted)) for mine, wanted in zip(case["feats_s"], case["feats_t"], strict=True)]
    weights = PUBLISHED[family].weights
    loss = weights(tensor(case["logits_s"]), tensor(case["logits_t"]), torch.tensor(case["labels"]), pairs)
    assert float(loss) == pytest.approx(GOLDEN[f"loss_{family}"]["total"], rel=1e-5)


def test_parts_of_the_loss() -> None:
    case = GOLDEN["loss_vit"]
    student, teacher, labels = tensor(case["logits_s"]), tensor(case["logits_t"]), torch.tensor(case["labels"])
    pairs = [(tensor(mine), tensor(wanted)) for mine, wanted in zip(case["feats_s"], case["feats_t"], strict=True)]
    assert float(LossWeights(1, 0, 1)(student, teacher, labels)) == pytest.approx(case["ce"], rel=1e-5)
    assert float(LossWeights(1, 1, 2)(student, teacher, None)) == pytest.approx(case["kd"], rel=1e-5)
    assert float(LossWeights(0, 0, 1, 1)(student, teacher, None, pairs)) == pytest.approx(case["fm"], rel=1e-5)


def test_an_epoch_sees_every_image_once_where_the_published_one_counts_one_step_too_many() -> None:
    for case in GOLDEN["steps"]:
        steps = Plan(1, case["batch_size"], 1e-3).steps(case["num_images"])
        assert steps == -(-case["num_images"] // case["batch_size"])
        assert case["steps"] in (steps, steps + 1)

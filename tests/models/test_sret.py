"""SReT: its size, what is fixed in it at evaluation, and checkpoints in the published layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from halfbyte.errors import HalfbyteError
from halfbyte.families.describe import describe
from halfbyte.layers.attention import SlicedAttentionAdapter
from halfbyte.layers.linear import QuantLinear
from halfbyte.layers.slicing import join_tokens, slice_tokens
from halfbyte.models.load import create_architecture, load_model
from halfbyte.models.sret import Block, SlicedAttention, create_sret
from halfbyte.prepare import model_state, prepare
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.recipe import BitPlan

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "sret_attention.json").read_text())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_sret("sret_t").eval()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sret_t", 4_755_979),
        ("sret_lt", 4_988_024),
        ("sret_s", 20_899_692),
        ("deit_tiny_patch16_224", 5_717_416),
        ("deit_small_patch16_224", 22_050_664),
        ("deit_base_patch16_224", 86_567_656),
        ("swin_tiny_patch4_window7_224", 28_288_354),
    ],
)
def test_as_many_parameters_as_published(name, count):
    with torch.device("meta"):
        model = create_sret(name) if name.startswith("sret") else timm.create_model(name, pretrained=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_evaluation_is_a_function(model):
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
    twin = create_sret("sret_t").eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(images), model(images))


def test_training_draws_the_order_of_the_tokens():
    attention = SlicedAttention(8, 2, 16, (4, 2), seed=0)
    x = torch.randn(1, 16, 8)
    with torch.no_grad():
        drawn = [attention.train()(x, 1) for _ in range(4)]
        assert any(not torch.equal(drawn[0], other) for other in drawn[1:])
        # The first run has groups of neighbours: nothing to draw.
        assert torch.equal(attention(x, 0), attention(x, 0))


def test_slices_come_back_in_order():
    x = torch.arange(48.0).reshape(2, 12, 2)
    order = torch.randperm(12)
    for order in (None, torch.randperm(12)):
        sliced = slice_tokens(x, 3, order)
        assert sliced.shape == (6, 4, 2)
        assert torch.equal(join_tokens(sliced, 3, order), x)
    assert torch.equal(slice_tokens(x, 3, None)[1], x[0, 4:8])


def published(model) -> dict[str, torch.Tensor]:
    """The model's tensors in the published layout: one list of blocks and projections, q, k and v apart."""
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "pools":
            state[".".join([*parts[:2], "conv", *parts[2:]])] = tensor
        elif parts[0] != "stages":
            state[name] = tensor
        else:
            number, rest = int(parts[3]), ".".join(parts[4:])
            rest = f"{rest}.bias" if rest.startswith("coefficient") else rest
            places = [4 * number, 4 * number + 2] if parts[2] == "blocks" else [2 * number + 1]
            for place in places:
                path = f"transformers.{parts[1]}.blocks.{place}"
                if ".qkv." in f".{rest}":
                    for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                        state[f"{path}.{rest.replace('qkv', f'proj_{part}')}"] = rows.clone()
                else:
                    state[f"{path}.{rest}"] = tensor.clone()
    return state


def test_a_published_checkpoint_loads(model, tmp_path):
    torch.save({"model": published(model)}, tmp_path / "sret.pth")
    loaded = load_model("sret_t", tmp_path / "sret.pth").model
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_copies_of_a_block_that_differ_are_told(model, tmp_path):
    state = published(model)
    state["transformers.1.blocks.2.mlp.fc1.weight"] += 1
    torch.save(state, tmp_path / "sret.pth")
    with pytest.raises(HalfbyteError, match=r"two copies of stages.1.blocks.0.mlp.fc1.weight differ"):
        load_model("sret_t", tmp_path / "sret.pth")


@pytest.mark.parametrize("missing", ["transformers.0.blocks.0.attn.proj_k.weight", "head.weight"])
def test_a_checkpoint_that_lacks_something_is_told(model, tmp_path, missing):
    state = published(model)
    del state[missing]
    state.pop("transformers.0.blocks.2.attn.proj_k.weight", None) if "proj_k" in missing else None
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "sret.safetensors")
    with pytest.raises(HalfbyteError, match=r"does not fit sret_t: .* missing"):
        load_model("sret_t", tmp_path / "sret.safetensors")


def test_it_comes_without_weights():
    with pytest.raises(HalfbyteError, match="sret_s comes without weights; give --weights FILE"):
        load_model("sret_s")


def test_every_layer_is_a_site():
    model = create_architecture("sret_t").eval()
    layout = prepare(model, describe(model), BitPlan())
    roles = [site.role for site in layout.sites]
    assert {role: roles.count(role) for role in set(roles)} == {
        "stem": 3, "depthwise": 2, "qkv": 10, "qk": 10, "pv": 10, "proj": 10, "fc1": 30, "fc2": 30, "head": 1
    }  # fmt: skip
    assert all((site.norm is not None) == (site.role in ("qkv", "fc1")) for site in layout.sites)
    assert all((site.activation is not None) == (site.role == "fc2") for site in layout.sites)


@pytest.mark.parametrize(("repetition", "expected"), [(0, "y_groups1"), (1, "y_groups2_perm")])
def test_quantized_it_gives_what_the_reference_gives(repetition, expected):
    """Three weights of q, k and v with a step each are one with a step for each of its rows."""
    case, bits = GOLDEN, GOLDEN["bits"]
    steps = {name.removesuffix(".alpha"): torch.tensor(value) for name, value in case["scales"].items()}
    state = {name: torch.tensor(values) for name, values in case["params"].items()}
    plain = SlicedAttention(case["dim"], case["heads"], 8, (case["groups1"], case["groups2"]), seed=0).eval()
    with torch.no_grad():
        for part in ("weight", "bias"):
            getattr(plain.qkv, part).copy_(torch.cat([state[f"proj_{name}.{part}"] for name in "qkv"]))
            getattr(plain.proj, part).copy_(state[f"proj.{part}"])
        plain.permutation.copy_(torch.tensor(case["perm"]))
    attention = SlicedAttentionAdapter(plain).eval()
    attention.qkv, attention.proj = QuantLinear(plain.qkv), QuantLinear(plain.proj)

    def quantizer(step: torch.Tensor, axis: int | None = None, unsigned: bool = False) -> UniformQuantizer:
        made = UniformQuantizer(bits, axis)
        made.set_parameters(step, torch.full_like(step, 0 if unsigned else 2 ** (bits - 1)))
        return made

    rows = torch.stack([steps[f"proj_{name}"] for name in "qkv"]).repeat_interleave(case["dim"])[:, None]
    attention.qkv.set_quantizer("weight", quantizer(rows, axis=0))
    attention.proj.set_quantizer("weight", quantizer(steps["proj"]))
    attention.qkv.set_quantizer("input", quantizer(steps["quant_input"]))
    attention.proj.set_quantizer("input", quantizer(steps["quant_output"]))
    attention.qk.set_quantizer("left", quantizer(steps["quant_q"]))
    attention.qk.set_quantizer("right", quantizer(steps["quant_k"]))
    attention.pv.set_quantizer("left", quantizer(steps["quant_attn"], unsigned=True))
    attention.pv.set_quantizer("right", quantizer(steps["quant_v"]))
    with torch.no_grad(), model_state(attention, "quantized"):
        found = attention(torch.tensor(case["x"]), repetition)
    torch.testing.assert_close(found, torch.tensor(case[expected]), atol=2e-5, rtol=2e-4)


def test_coefficients_weigh_both_terms():
    block = Block(SlicedAttention(8, 2, 4, (1, 1), seed=0), 8, 16, 0.0).eval()
    x = torch.randn(1, 4, 8)
    with torch.no_grad():
        for number in (2, 4):
            getattr(block, f"coefficient{number}").zero_()
        block.coefficient1.fill_(2.0)
        block.coefficient3.fill_(3.0)
        assert torch.allclose(block(x, 0), 6 * x)

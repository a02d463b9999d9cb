"""Reconstruction: what each part learns, that the guard holds, and that a killed run goes on within a block."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from halfbyte import api
from halfbyte.block_stream import BlockStream
from halfbyte.data.images import EMBEDDED_CALIBRATION, open_images
from halfbyte.errors import HalfbyteError
from halfbyte.families.describe import describe
from halfbyte.layers.norm import ExactLayerNorm
from halfbyte.layers.site import WeightedSite
from halfbyte.models.builtin import create_builtin
from halfbyte.models.cifar_resnet import create_cifar_resnet
from halfbyte.prepare import model_state, prepare, site_module
from halfbyte.progress import Progress
from halfbyte.quantizers.log import AdaLogQuantizer
from halfbyte.quantizers.uniform import UniformQuantizer
from halfbyte.recipe import parse_recipe
from halfbyte.session import Session
from halfbyte.steps.block_training import PieceTraining
from halfbyte.steps.catalog import resolve
from halfbyte.steps.piece import Piece, PieceData
from halfbyte.steps.qwt import QwT
from halfbyte.steps.reconstruct import Reconstruct
from halfbyte.steps.suffix import Suffix
from halfbyte.train.soft_quantization import with_learned_scale

FAST = Reconstruct(images=32, iterations=20, batch_size=8, lr=1e-3, lr_scale=1e-3, lr_bias=1e-3)
CPU = torch.device("cpu")


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=24, depth=2, num_heads=2
    )  # fmt: skip
    config = create_builtin("fashion_vit").pretrained_cfg
    model.pretrained_cfg = {**config, "first_conv": "patch_embed.proj", "classifier": "head"}
    return model.eval()


def session_of(model: nn.Module | None = None, calibrate: str = "repq: {images: 8}", bits: int = 3) -> Session:
    """A session of a small ViT that has run a calibration."""
    model = model or tiny_vit()
    config = create_builtin("fashion_vit").pretrained_cfg
    images = open_images(EMBEDDED_CALIBRATION, config, num_classes=None).subset(range(32))
    recipe = parse_recipe(f"name: r\nbits: {{weight: {bits}, activation: {bits}}}\nsteps: [{calibrate}]", "test")
    teacher = copy.deepcopy(model)
    layout = prepare(model, describe(model), recipe.bits)
    generator = torch.Generator().manual_seed(0)
    session = Session(model, teacher, layout, recipe, images, CPU, generator, Progress(quiet=True), 8)
    session.run(*resolve(recipe)[0])
    return session


def few(session: Session) -> Tensor:
    return torch.stack([session.calibration[i][0] for i in range(8)])


def outputs(session: Session, state: str) -> Tensor:
    with torch.no_grad(), model_state(session.model, state):
        return session.model(few(session))


def errors_left(session: Session, **settings: object) -> list[float]:
    figures = session.run("reconstruct", dataclasses.replace(FAST, **settings)).figures
    assert all(piece["kept"] == (piece["error_left"] < 1) for piece in figures["pieces"])
    return [piece["error_left"] if piece["kept"] else 1.0 for piece in figures["pieces"]]


# What is learned


@pytest.mark.parametrize(
    "settings",
    [
        {"rounding": "ste"},
        {"rounding": "ste", "weight_scales": False, "activation_scales": False, "biases": False, "inputs": "quantized"},
        {"rounding": "adaround", "lr": 0.02, "inputs": "float"},
        {"rounding": "nearest", "lr_scale": 0.003, "biases": False},
        {"rounding": "nearest", "activation_scales": False, "lr_bias": 0.01},
        {"rounding": "nearest", "activation_scales": False, "biases": False, "norms": True, "lr_bias": 0.01},
        {"target": "local"},
        {"target": "local", "inputs": "float"},
        {"loss": "fisher_diag"},
        {"loss": "fisher_full"},
        {"loss": "ls"},
        {"loss": "glf"},
    ],
    ids=lambda settings: ",".join(f"{key}={value}" for key, value in settings.items()),
)
def test_every_part_lowers_the_held_out_error(settings):
    session = session_of()
    before, exact = outputs(session, "quantized"), outputs(session, "float")
    left = errors_left(session, **settings)
    assert min(left) < 0.99
    assert not torch.equal(outputs(session, "quantized"), before)
    assert torch.equal(outputs(session, "float"), exact)


def test_nothing_but_what_was_asked_for_changes():
    session = session_of()
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    errors_left(session, rounding="nearest", activation_scales=False, biases=False, norms=True)
    changed = {name for name, tensor in session.model.state_dict().items() if name in before
               and not torch.equal(tensor, before[name])}  # fmt: skip
    assert changed
    assert all(".norm" in name and name.endswith((".weight", ".bias")) for name in changed)
    norm = session.model.get_submodule("blocks.0.norm1")
    assert isinstance(norm, ExactLayerNorm)
    assert torch.equal(norm.trained_weight, before["blocks.0.norm1.weight"])


@pytest.mark.parametrize("target", ["stream", "local"])
def test_layers_one_by_one_and_the_ends(target):
    session = session_of()
    step = dataclasses.replace(FAST, units="layer", ends=True, guard=False, target=target)
    figures = session.run("reconstruct", step).figures
    names = [piece["piece"] for piece in figures["pieces"]]
    inside = [f"blocks.{block}.{site}" for block in (0, 1) for site in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert names == ["patch_embed.proj", *inside, "head"]
    assert all(piece["kept"] and piece["steps"] == 20 for piece in figures["pieces"])


def test_convolutions_too():
    torch.manual_seed(0)
    model = create_cifar_resnet("cifar_resnet20").eval()
    config = create_builtin("fashion_vit").pretrained_cfg
    model.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    model.pretrained_cfg = {**config, "first_conv": "conv1", "classifier": model.pretrained_cfg["classifier"]}
    session = session_of(model, "mse: {images: 8}")
    assert min(errors_left(session, iterations=5, loss="ls")) < 1


def test_a_piece_that_became_worse_is_what_it_was(monkeypatch):
    session = session_of()
    before, tensors = outputs(session, "quantized"), {k: v.clone() for k, v in session.model.state_dict().items()}
    measured = iter([1.0, 2.0] * 2)
    monkeypatch.setattr(PieceTraining, "_measured", lambda self: next(measured))
    figures = session.run("reconstruct", dataclasses.replace(FAST, norms=True)).figures
    assert [piece["kept"] for piece in figures["pieces"]] == [False, False]
    assert torch.equal(outputs(session, "quantized"), before)
    assert {
        name for name, tensor in tensors.items() if not torch.equal(session.model.state_dict()[name], tensor)
    } == set()
    assert site_module(session.model, "blocks.0.attn.qkv").trained_bias is None


def test_weights_that_an_earlier_step_moved_start_from_its_codes():
    session = session_of()
    site = site_module(session.model, "blocks.0.mlp.fc1")
    assert isinstance(site, WeightedSite)
    with torch.no_grad():
        moved = (site.codes().int() + torch.randint(-1, 2, site.codes().shape)).clamp(0, 7).to(torch.uint8)
        site.refit(moved, site.bias.clone())
    for rounding in ("ste", "adaround"):
        stream = BlockStream(session, 32, both=True)
        for unit in stream.visit(stream.units[:1]):
            training = PieceTraining(dataclasses.replace(FAST, rounding=rounding), session, stream, Piece(unit))
            codes = training.soft.settle()[site]
        # AdaRound of a code below the weight rounds down at first, that is to the code itself.
        assert (codes == moved).float().mean() > 0.99


def test_what_stands_beside_a_block_computes_with_the_codes_that_it_has():
    session = session_of(calibrate="repq: {images: 8}")
    session.run("qwt", QwT(images=32))
    sides = {site.name for site in session.layout.sites if site.role == "side"}
    stream = BlockStream(session, 32, both=True)
    seen = {}
    for unit in stream.visit(stream.units[:1]):
        training = PieceTraining(FAST, session, stream, Piece(unit))
        for name in sides:
            side = session.model.get_submodule(name)
            # One step away from the nearest code, as a fit may leave it.
            with torch.no_grad():
                side.weight_codes = side.codes() ^ 1
            seen[name] = training.soft(side, "weight", side.float_weight())
            assert torch.equal(seen[name], side.quantizer("weight").dequantize(side.weight_codes))
    assert seen


# How it ends


def test_minutes_end_it_and_patience_too():
    session = session_of()
    figures = session.run("reconstruct", dataclasses.replace(FAST, iterations=100_000, minutes=0.02)).figures
    assert all(0 < piece["steps"] < 10_000 for piece in figures["pieces"])
    session = session_of()
    figures = session.run("reconstruct", dataclasses.replace(FAST, iterations=200, lr=0.0, lr_scale=0.0, lr_bias=0.0,
                                                             patience=2)).figures  # fmt: skip
    assert [piece["steps"] for piece in figures["pieces"]] == [60, 60]


def test_a_loss_that_is_not_finite_is_told(monkeypatch):
    monkeypatch.setattr(PieceData, "batch", lambda self, rows: torch.full((8, 17, 24), torch.nan))
    with pytest.raises(HalfbyteError, match=r"reconstruction failed: the loss of blocks.0 is not finite; lower"):
        session_of().run("reconstruct", FAST)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"rounding": "adaround", "units": "layer"}, marks=pytest.mark.slow),
        pytest.param({"loss": "glf", "norms": True}, marks=pytest.mark.slow),
    ],
)
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(settings, tmp_path, monkeypatch, survives_stops):
    plain = dataclasses.asdict(dataclasses.replace(FAST, iterations=10, **settings))
    chosen = ", ".join(f"{key}: {str(value).lower()}" for key, value in plain.items())
    (tmp_path / "r.yaml").write_text(
        f"name: r\nbits: {{weight: 3, activation: 3}}\nsteps: [repq: {{images: 8}}, reconstruct: {{{chosen}}}]"
    )

    def run(name, resume):
        return api.quantize(model="fashion_vit", recipe=tmp_path / "r.yaml", out=tmp_path / name, calib_images=32,
                            limit=4, workers=0, batch_size=8, resume=resume)  # fmt: skip

    init = BlockStream.__init__

    def two_units(stream, *arguments, **keywords):
        init(stream, *arguments, **keywords)
        stream.units = stream.units[:2] if settings.get("loss") != "glf" else stream.units

    monkeypatch.setattr(BlockStream, "__init__", two_units)
    survives_stops(run, at=(5, 14))


# What does not fit


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rounding": "up"}, "rounding must be one of adaround, ste, nearest"),
        ({"inputs": "both"}, "inputs must be one of"),
        ({"loss": "l1"}, "loss must be one of"),
        ({"loss": "kl"}, "head_loss"),
        ({"units": "model"}, "units must be one of"),
        ({"units": "layer", "loss": "ls"}, "goes with the loss mse"),
        ({"target": "far"}, "target must be one of local, stream"),
        ({"target": "local", "loss": "glf"}, "not glf"),
        ({"images": 4}, "images must be at least 8"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"minutes": -1.0}, "minutes must be at least 0"),
        ({"lr": 1.0}, "lr must be from 0 to less than 1"),
        ({"drop": 1.5}, "drop must be"),
        ({"rounding": "nearest", "activation_scales": False, "biases": False}, "nothing is"),
        ({"loss_divisor": 0.0}, "loss_divisor must be above 0"),
    ],
)
def test_wrong_parameters_are_told(wrong, told):
    with pytest.raises(ValueError, match=told):
        Reconstruct(**wrong)


def test_learned_norms_are_saved_but_not_continued(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "name: r\nsteps: [percentile: {images: 16},"
        " reconstruct: {images: 16, iterations: 10, batch_size: 8, norms: true, lr_bias: 0.001}]\n"
    )
    options = {"calib_images": 16, "limit": 4, "workers": 0, "recipe": tmp_path / "r.yaml"}
    result = api.quantize(model="fashion_vit", out=tmp_path / "out", **options)
    images = torch.randn(4, 1, 28, 28)
    with torch.no_grad(), model_state(result.model, "quantized"):
        expected = result.model(images)
    with torch.inference_mode():
        assert torch.equal(api.load(result.folder)(images), expected)
    (tmp_path / "r.yaml").write_text("name: m\nsteps: [refit: {images: 16}]\n")
    with pytest.raises(HalfbyteError, match="its norms were learned"):
        api.quantize(start=result.folder, out=tmp_path / "more", **options)


def test_a_piece_without_anything_to_learn_is_told():
    session = session_of()
    only_biases = dataclasses.replace(FAST, rounding="nearest", activation_scales=False, units="layer")
    site_module(session.model, "blocks.0.attn.proj").bias = None
    with pytest.raises(HalfbyteError, match=r"blocks.0.attn.proj has nothing of what is to be learned"):
        session.run("reconstruct", only_biases)


def test_the_rest_of_a_model_is_the_model():
    session = session_of()
    images = few(session)
    stream = BlockStream(session, 32, both=True)
    for unit in stream.visit(stream.units):
        suffix = Suffix(session, stream, unit)
        target = stream.run_float(unit, stream.float_inputs[0])[:8]
        suffix.check(images[: len(target)], target)
        features, logits = suffix(target)
        assert features.shape == (len(target), 24)
        with torch.no_grad():
            assert torch.allclose(logits, session.teacher(images[: len(target)]), atol=1e-5)
        gradient = suffix.gradient(target + 0.01, logits)
        assert gradient.shape == target.shape
        assert gradient.abs().sum() > 0
        with pytest.raises(HalfbyteError, match="use the loss mse"):
            suffix.check(images[: len(target)], -target)
    assert "forward" not in session.teacher.blocks[0].__dict__


# Gradients


@pytest.mark.parametrize("kind", ["uniform", "rows", "adalog"])
def test_the_gradient_of_a_scale_is_what_the_values_move_by(kind):
    """Against autograd through s q(x / s), whose rounding alone is passed straight through."""
    x = torch.linspace(-1, 2, 60).reshape(3, 20)
    if kind == "adalog":
        quantizer = AdaLogQuantizer(3, shift=0.17)
        quantizer.set_scale(torch.tensor(1.0))
        bounds = (-torch.inf, torch.inf)
    else:
        quantizer = UniformQuantizer(3, axis=0 if kind == "rows" else None)
        scale = torch.tensor([[0.2], [0.3], [0.4]]) if kind == "rows" else torch.tensor(0.25)
        quantizer.set_parameters(scale, torch.full_like(scale, 2))
        bounds = (-2.5, 5.5)
    scale = quantizer.scale.clone().requires_grad_(True)
    x.requires_grad_(True)
    y = with_learned_scale(quantizer, x, scale)
    assert torch.equal(y, quantizer(x.detach()))
    slopes = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    (y * slopes).sum().backward()
    again, other = x.detach().clone().requires_grad_(True), quantizer.scale.clone().requires_grad_(True)
    steps = (again - quantizer.offset) / other
    levels = ((y - quantizer.offset) / scale).detach()
    lowest, highest = bounds
    clipped = steps.clamp(lowest, highest)
    # Where it is clipped, `levels` is the bound, and `clipped` has no gradient.
    straight = other * (clipped + (levels - clipped).detach()) + quantizer.offset
    (straight * slopes).sum().backward()
    assert torch.allclose(x.grad, again.grad)
    assert torch.allclose(scale.grad, other.grad, rtol=1e-4, atol=1e-4)

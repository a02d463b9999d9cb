"""QLA on small models: where adapters go, that they help, and that what was trained is what is kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from halfbyte import api
from halfbyte.data.images import EMBEDDED_CALIBRATION, open_images
from halfbyte.errors import HalfbyteError
from halfbyte.families.describe import describe
from halfbyte.families.places import places
from halfbyte.layers.adapters import Adapter, SeparableAdapter
from halfbyte.layers.site import WeightedSite
from halfbyte.models.builtin import create_builtin
from halfbyte.models.cifar_resnet import create_cifar_resnet
from halfbyte.prepare import model_state, prepare
from halfbyte.progress import Progress
from halfbyte.recipe import parse_recipe
from halfbyte.session import Session
from halfbyte.steps import adapter_training
from halfbyte.steps.catalog import resolve
from halfbyte.steps.qla import QLA, chosen
from halfbyte.train import loop

QUIET = Progress(quiet=True)
SMALL = "qla: {images: 16, epochs: 1, batch_size: 8"


def recipe(qla: str, calibrate: str = "percentile: {images: 8}", exact: bool = False) -> str:
    return (
        f"name: q\nbits: {{weight: 3, activation: 3}}\npaper_exact: {str(exact).lower()}\nsteps: [{calibrate}, {qla}]"
    )


def session_of(model: torch.nn.Module, text: str, count: int = 16) -> Session:
    """A session of a model for Fashion-MNIST that has run its recipe's first step."""
    config = create_builtin("fashion_vit").pretrained_cfg
    model.eval().pretrained_cfg = {**config, "first_conv": "patch_embed.proj", "classifier": "head"}
    images = open_images(EMBEDDED_CALIBRATION, config, num_classes=None).subset(range(count))
    plan = parse_recipe(text, "test")
    teacher = copy.deepcopy(model)
    layout = prepare(model, describe(model), plan.bits)
    generator = torch.Generator().manual_seed(0)
    session = Session(model, teacher, layout, plan, images, torch.device("cpu"), generator, QUIET, 8)
    session.run(*resolve(plan)[0])
    return session


def run_qla(session: Session) -> dict:
    return session.run(*resolve(session.recipe)[1]).figures


def quantized(session: Session, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), model_state(session.model, "quantized"):
        return session.model(images)


def tiny_vit(**options) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=24, depth=2, num_heads=2, **options
    )


# Blocks


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ((), range(6)),
        (("0-3", "5"), (0, 1, 2, 3, 5)),
        (("1:0",), (2,)),
        (("1:0-3", "2"), (2, 3, 4, 5)),
        (("0:1",), (1,)),
    ],
)
def test_blocks_by_number_range_and_stage(blocks, expected):
    found = places(create_builtin("fashion_swin"))
    assert chosen(found, blocks) == [found[number] for number in expected]


@pytest.mark.parametrize("blocks", ["6", "0-6", "3-2", "1:4", "2:0", "0:2"])
def test_blocks_that_do_not_exist_are_told(blocks):
    with pytest.raises(HalfbyteError, match=r"no blocks.*0-5, 0:0-1, 1:0-3"):
        chosen(places(create_builtin("fashion_swin")), (blocks,))


def test_a_model_without_stages_has_no_blocks_in_one():
    with pytest.raises(HalfbyteError, match=r"no blocks '0:1'; it has 0-5"):
        chosen(places(create_builtin("fashion_vit")), ("0:1",))


@pytest.mark.parametrize(
    "wrong",
    [
        "blocks: [a]", "blocks: ['1-']", "blocks: ['1:2:3']", "attn_kind: wide", "mlp_kind: wide", "start: dead",
        "images: 4", "mlp_r: 0", "kernel_size: 2", "lr: 2.0", "epochs: 0", "accumulate: 0", "blocks: [1]",
        "attn_kind: none, mlp_kind: none",
    ],
)  # fmt: skip
def test_wrong_parameters_are_told(wrong):
    with pytest.raises(HalfbyteError, match="qla"):
        resolve(parse_recipe(recipe(f"qla: {{{wrong}}}"), "test"))


def test_stages_of_resnets():
    assert [place.name for place in places(create_builtin("fashion_resnet"))] == [
        "layer1",
        "layer2",
        "layer3",
        "layer4",
    ]
    cifar = places(create_cifar_resnet("cifar_resnet20"))
    assert [place.block for place in cifar] == ["layer1.2", "layer2.2", "layer3.2"]
    assert cifar[1].links[0].source == "layer2.0"


def test_models_of_other_families_are_refused():
    model = timm.create_model("test_byobnet", in_chans=1, num_classes=10)
    with pytest.raises(HalfbyteError, match="ViT, a Swin or a ResNet"):
        QLA().run(Session(model, model, None, parse_recipe(recipe(SMALL + "}"), "test"), None, None, None, QUIET))


# Models


@pytest.mark.parametrize("reg_tokens", [0, 3])
def test_tokens_before_the_grid_are_told_from_it(reg_tokens, monkeypatch):
    losses = iter((2.0, 1.0))
    monkeypatch.setattr(adapter_training.AdapterTraining, "_held_out_loss", lambda _: next(losses))
    session = session_of(tiny_vit(reg_tokens=reg_tokens), recipe(SMALL + "}"))
    images = torch.stack([session.calibration[i][0] for i in range(4)])
    before = quantized(session, images)
    assert run_qla(session)["adapters"] == 4
    options = [edit.arguments["options"] for edit in session.edits if edit.name == "add_adapter"]
    grids = {(entry["prefix"], tuple(entry["grid"])) for entry in options if "grid" in entry}
    assert grids == {(1 + reg_tokens, (4, 4))}
    assert not torch.equal(quantized(session, images), before)
    gates = [module.prefix_gate for module in session.model.modules() if hasattr(module, "prefix_gate")]
    assert all(float(gate.detach()) != 0 for gate in gates)


@pytest.mark.parametrize("mlp_kind", ["lowrank", "bottleneck", "affine", "none"])
def test_attached_adapters_change_nothing(mlp_kind, monkeypatch):
    # Only the first part of the work: attached, not yet trained.
    monkeypatch.setattr(adapter_training.AdapterTraining, "run", lambda *_: None)
    session = session_of(tiny_vit(), recipe(SMALL + f", mlp_kind: {mlp_kind}}}"))
    images = torch.stack([session.calibration[i][0] for i in range(4)])
    before = quantized(session, images)
    figures = run_qla(session)
    assert figures["chosen_epoch"] == 0
    assert torch.equal(quantized(session, images), before)
    shared = [module for module in session.model.modules() if getattr(module, "shared_input", False)]
    assert len(shared) == (2 if mlp_kind == "lowrank" else 0)
    fc1 = session.model.get_submodule("blocks.0.mlp.fc1").quantizer("input")
    for module in shared[:1]:
        assert torch.equal(module.low1.quantizer("input").scale, fc1.scale)
        assert module.low1.quantizer("input").bits == fc1.bits == 3
        assert module.low1.quantizer("weight").bits == 8


def test_published_layers_start_with_the_class_token_alone(monkeypatch):
    monkeypatch.setattr(adapter_training.AdapterTraining, "run", lambda *_: None)
    session = session_of(tiny_vit(), recipe(SMALL + "}", exact=True))
    run_qla(session)
    adapters = [module for module in session.model.modules() if isinstance(module, Adapter)]
    assert not [site for adapter in adapters for site in adapter.modules() if isinstance(site, WeightedSite)]
    with model_state(session.model, "quantized"):
        out = adapters[0](torch.ones(1, 17, 24))
    assert torch.equal(out[:, :1], torch.full((1, 1, 24), 0.1))
    assert not out[:, 1:].any()


@pytest.mark.parametrize("start", ["alive", "published"])
def test_from_the_published_start_the_attention_adapters_layers_never_learn(start, monkeypatch):
    # What training reached, also where the held-out images would choose the start.
    monkeypatch.setattr(loop.Trainer, "restore_best", lambda _: None)
    session = session_of(tiny_vit(), recipe(SMALL.replace("epochs: 1", "epochs: 3") + f", lr: 0.01, start: {start}}}"))
    run_qla(session)
    layers = [module.dw for module in session.model.modules() if isinstance(module, SeparableAdapter)]
    started = torch.zeros(24, 1, 3, 3)
    if start == "alive":
        started[:, 0, 1, 1] = 1.0
    assert [torch.equal(layer.weight, started) for layer in layers] == [start == "published"] * 2


@pytest.mark.parametrize("name", [pytest.param("fashion_swin", marks=pytest.mark.slow), "fashion_resnet"])
def test_swins_and_resnets(name, tmp_path):
    settings = ("qla.blocks=['0','1:1']",) if name == "fashion_swin" else ("qla.kernel_size=3", "qla.factor=16")
    (tmp_path / "r.yaml").write_text(recipe(SMALL + "}"))
    result = api.quantize(
        model=name, recipe=tmp_path / "r.yaml", settings=settings, out=tmp_path / "out", calib_images=16, limit=8,
        workers=0,
    )  # fmt: skip
    sides = [site["name"] for site in result.metrics["sites"] if site["role"] == "side"]
    if name == "fashion_swin":
        assert {side.partition(".drop_path")[0] for side in sides} == {"layers.0.blocks.0", "layers.1.blocks.1"}
        assert len(sides) == 2 * 5
    else:
        assert sides == [f"layer{stage}.0.qla.conv" for stage in range(1, 5)]
    assert result.metrics["coverage"]["float"] == []
    images = torch.randn(4, 1, 28, 28)
    with torch.no_grad(), model_state(result.model, "quantized"):
        expected = result.model(images)
    with torch.inference_mode():
        assert torch.equal(api.load(result.folder)(images), expected)


def test_published_layers_run_in_float(tmp_path):
    settings = ("qla.images=16", "repq.images=8", "qla.blocks='1-2'")
    result = api.quantize(
        model="fashion_vit", recipe="qla-paper", settings=settings, out=tmp_path / "out", calib_images=16, limit=8,
        workers=0,
    )  # fmt: skip
    assert len(result.metrics["coverage"]["float"]) == 2 * 5
    images = torch.randn(4, 1, 28, 28)
    with torch.no_grad(), model_state(result.model, "quantized"):
        expected = result.model(images)
    with torch.inference_mode():
        assert torch.equal(api.load(result.folder)(images), expected)


def test_without_fitting_labels_the_teacher_alone_trains(monkeypatch):
    session = session_of(tiny_vit(), recipe(SMALL + "}"))
    session.model.num_classes = 5
    assert run_qla(session)["labels"] is False
    session = session_of(tiny_vit(), recipe(SMALL + ", labels: false, kd: 0.0, feature: 0.0}"))
    with pytest.raises(HalfbyteError, match="nothing to train by"):
        run_qla(session)


def test_rate_parts_and_bfloat16(monkeypatch):
    session = session_of(tiny_vit(), recipe(SMALL + ", autocast: true, accumulate: 2, cosine: true}"))
    figures = run_qla(session)
    assert len(figures["training_loss"]) == 1
    assert figures["training_loss"][0] < 10


def test_a_training_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(
        adapter_training.AdapterTraining, "_loss", lambda *_: torch.tensor(float("nan")).requires_grad_()
    )
    session = session_of(tiny_vit(), recipe(SMALL + "}"))
    with pytest.raises(HalfbyteError, match=r"not finite; lower qla\.lr"):
        run_qla(session)


def test_it_stands_beside_a_model_once(monkeypatch):
    session = session_of(tiny_vit(), recipe(SMALL + "}"))
    run_qla(session)
    with pytest.raises(HalfbyteError, match="name the step once"):
        run_qla(session)


# Whole runs


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A short training of the embedded ViT at three bits."""
    folder = tmp_path_factory.mktemp("qla") / "run"
    settings = ("qla.images=256", "qla.epochs=1", "qla.batch_size=8", "qla.lr=0.01", "qla.cosine=true")
    return api.quantize(
        model="fashion_vit", recipe="qla", w_bits=3, a_bits=3, settings=settings, calib_images=256, limit=300,
        workers=0, out=folder,
    )  # fmt: skip


def test_it_helps(learned):
    entries = [json.loads(line) for line in (learned.folder / "log.jsonl").read_text().splitlines()]
    (figures,) = (entry for entry in entries if entry.get("step") == "qla")
    first, *later = figures["held_out_loss"]
    assert min(later) < 0.95 * first
    assert figures["chosen_epoch"] == 1
    # repq alone has 82.4 on the first 500 test images, this 88.2.
    assert learned.metrics["quantized"]["top1"] >= 85


def test_the_artifact_gives_the_same_logits(learned):
    images = torch.randn(8, 1, 28, 28)
    with torch.no_grad(), model_state(learned.model, "quantized"):
        expected = learned.model(images)
    with torch.inference_mode():
        loaded = api.load(learned.folder)
        assert torch.equal(loaded(images), expected)
        assert torch.equal(torch.cat([loaded(image[None]) for image in images]), expected)


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHUNK", 1)
    (tmp_path / "r.yaml").write_text(recipe("qla: {images: 24, epochs: 2, batch_size: 11, cosine: true, lr: 0.01}"))

    def run(out: Path, **options):
        return api.quantize(
            model="fashion_vit", recipe=tmp_path / "r.yaml", out=out, calib_images=24, limit=2, workers=0, **options
        )

    run(tmp_path / "whole")
    saves = 0
    save = Session._save

    def save_and_stop(session: Session) -> None:
        nonlocal saves
        save(session)
        saves += 1
        # 1 is the calibration, 2 the start, 3 to 6 are steps.
        if saves in (2, 5):
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "_save", save_and_stop)
    stops = 0
    while True:
        try:
            run(tmp_path / "parts", resume=stops > 0)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == 2
    for name in ("model.safetensors", "quantization.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("qla: {images: 16, blocks: ['9']}", "no blocks '9'"),
        ("mixed: {images: 8}, percentile: {images: 8}", "fix the widths"),
    ],
)
def test_what_does_not_fit_the_model_is_told_before_there_is_a_folder(step, told, tmp_path):
    calibrate = "" if step.startswith("mixed") else "percentile: {images: 8}, "
    (tmp_path / "r.yaml").write_text(f'name: q\nbits: {{sites: {{"*": 4}}}}\nsteps: [{calibrate}{step}]\n')
    with pytest.raises(HalfbyteError, match=told):
        api.quantize(model="fashion_vit", recipe=tmp_path / "r.yaml", out=tmp_path / "out", calib_images=16, workers=0)
    assert not (tmp_path / "out").exists()

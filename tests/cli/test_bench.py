"""What `bench` measures and tells; how fast anything is cannot be tested on a machine that others use."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from tests.cli.conftest import Command

from halfbyte import api
from halfbyte.artifact import load_artifact
from halfbyte.bench import bench, interleaved
from halfbyte.errors import HalfbyteError
from halfbyte.families.describe import describe
from halfbyte.peers import chosen, float_model
from halfbyte.prepare import model_state, prepare
from halfbyte.progress import Progress
from halfbyte.recipe import BitPlan
from halfbyte.runtime import native

needs_extension = pytest.mark.skipif(not native.available(), reason="the native kernels were not built")
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "vit"
    api.quantize(
        model="fashion_vit", recipe="repq", calib_images=32, limit=4, workers=0, out=folder, progress=QUIET
    )  # fmt: skip
    return folder


@pytest.fixture
def no_compiler(monkeypatch) -> None:
    def fail(*_, **__):
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)


@needs_extension
def test_the_command_prints_a_table_and_writes_the_facts(halfbyte: Command, artifact, no_compiler, tmp_path) -> None:
    out, threads = tmp_path / "bench.json", torch.get_num_threads()
    outcome = halfbyte(
        "bench", artifact, "--against", "torch", "--threads", 1, "--batch-size", 2, "--rounds", 2, "--json", out
    )
    assert outcome.code == 0, outcome.err
    assert "torch eager" in outcome.out
    assert "1.00" in outcome.out
    assert "torch compiled is left out, as torch.compile fails here: no C++ compiler\n" in outcome.err
    facts = json.loads(out.read_text())
    assert [row["engine"] for row in facts["rows"]] == ["torch eager", "native"]
    for row in facts["rows"]:
        assert (row["threads"], row["batch_size"]) == (1, 2)
        assert row["images_per_second"] == pytest.approx(2000 / row["milliseconds"], rel=0.05)
    assert facts["model"] == "fashion_vit"
    assert facts["cpu"]
    assert torch.get_num_threads() == threads
    assert json.loads((artifact / "bench.json").read_text()) == facts
    assert "torch eager" in (artifact / "report.html").read_text()


@needs_extension
def test_times_that_cannot_be_kept_are_still_told(halfbyte: Command, artifact, no_compiler, tmp_path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(artifact, damaged)
    (damaged / "metrics.json").write_text("{")
    outcome = halfbyte("bench", damaged, "--against", "torch", "--threads", 1, "--rounds", 1)
    assert outcome.code == 0, outcome.err
    assert "native" in outcome.out
    assert "the times are not kept with the run: " in outcome.err
    assert "metrics.json is damaged" in outcome.err


@needs_extension
def test_onnxruntime_and_openvino(artifact, no_compiler) -> None:
    facts = bench(artifact, against="onnxruntime,openvino", threads=1, rounds=2, progress=QUIET)
    assert [row["engine"] for row in facts["rows"]] == [
        "onnxruntime float", "onnxruntime int8 static", "onnxruntime int8 dynamic", "openvino float", "native"
    ]  # fmt: skip


def test_what_peers_run_is_the_model_with_dequantized_weights(artifact) -> None:
    model = load_artifact(artifact).model
    site = model.get_submodule("blocks.0.attn.qkv")
    plain = float_model(model)
    weight = plain.get_submodule("blocks.0.attn.qkv").weight
    assert torch.equal(weight, site.quantizer("weight").dequantize(site.codes()))
    assert len(weight[0].unique()) <= 16
    images = torch.randn(2, 1, 28, 28)
    close = torch.nn.functional.cosine_similarity(plain(images), model(images))
    assert (close > 0.8).all()


def test_float_models_are_as_timm_s() -> None:
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    reference = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2).eval()
    prepare(model, describe(model), BitPlan(8, 8))

    def weights_only(site, operand, x):
        quantizer = site.quantizer(operand)
        if quantizer.axis == 0:
            rows, shape = x.flatten(1), (-1,) + (1,) * (x.ndim - 1)
            quantizer.set_range(rows.amin(1).view(shape), rows.amax(1).view(shape))
        return x

    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), model_state(model, "observe", weights_only):
        model(images)
    plain = float_model(model)
    missing = reference.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == []
    torch.testing.assert_close(plain(images), reference(images).detach())


def test_every_engine_has_its_turn_in_every_round() -> None:
    turns: list[str] = []
    calls = {name: lambda name=name: turns.append(name) for name in "ab"}
    assert set(interleaved(calls, 2, QUIET)) == {"a", "b"}
    assert "".join(turns) == "aaaabbbb" * 2


def test_peers_that_cannot_be(monkeypatch) -> None:
    with pytest.raises(HalfbyteError, match="--against 'onnx' is not available; did you mean onnxruntime"):
        chosen("torch,onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert chosen(None) == ("torch",)
    with pytest.raises(HalfbyteError, match=r"needs openvino; pip install 'halfbyte\[openvino\]'"):
        chosen("openvino")


@needs_extension
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--threads", 0), ("--threads", "at least 1")),
        (("--threads", 1000), ("threads", "1 to 256")),
        (("--batch-size", 0), ("--batch-size", "at least 1")),
        (("--rounds", 0), ("--rounds", "at least 1")),
        (("--against", "tensorflow"), ("tensorflow", "known: onnxruntime, openvino, torch")),
        (("--json", "/no/such/folder/file"), ("--json",)),
    ],
)
def test_wrong_options_end_in_one_line(halfbyte: Command, artifact, options, parts) -> None:
    halfbyte("bench", artifact, *options).refused(*parts)


def test_what_is_no_artifact_ends_in_one_line(halfbyte: Command, tmp_path) -> None:
    halfbyte("bench", tmp_path / "nothing").refused("nothing")
    halfbyte("bench", tmp_path).refused(str(tmp_path))


def test_an_artifact_without_a_program_ends_in_one_line(halfbyte: Command, artifact, monkeypatch) -> None:
    def none(_):
        raise HalfbyteError("it has no program: paper_exact")

    monkeypatch.setattr("halfbyte.runtime.engine.load_program", none)
    halfbyte("bench", artifact).refused("no program")

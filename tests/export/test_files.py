"""The command and the files: what they hold, what is refused, what is told."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors import safe_open
from tests.cli.conftest import halfbyte  # noqa: F401
from tests.export.conftest import Case

from halfbyte import api
from halfbyte.errors import HalfbyteError
from halfbyte.export.onnx import OnnxForm, to_onnx, unsafe_sites
from halfbyte.program.load import load_program
from halfbyte.progress import Progress
from halfbyte.verification import verification_images


@pytest.fixture
def folder(artifact):
    return artifact("fashion_vit", "repq", 4)


def test_an_export_says_what_it_is_and_is_the_same_again(folder, tmp_path):
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    for path in (one, two):
        assert api.export(folder, "onnx", path).files == [path]
    assert one.read_bytes() == two.read_bytes()
    said = {entry.key: entry.value for entry in onnx.load(one).metadata_props}
    assert said["architecture"] == "fashion_vit"
    assert json.loads(said["preprocessing"])["mean"] == [0.286]
    assert json.loads(said["recipe"])["name"] == "repq"
    assert json.loads(said["labels"])[9] == "Ankle boot"
    assert said["halfbyte"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.onnx", "two.onnx"]


def test_the_command_verifies(halfbyte, folder, tmp_path):  # noqa: F811
    facts = tmp_path / "facts.json"
    done = halfbyte("export", folder, "--to", "onnx", "--out", tmp_path / "m.onnx", "--verify", "--json", facts)
    assert done.code == 0, done
    for part in ("m.onnx", "MatMulIntegerToFloat", "FullyConnected", "codes are equal", "8-bit weights"):
        assert part in done.out
    engines = json.loads(facts.read_text())["engines"]
    assert [entry["engine"].split()[0] for entry in engines] == ["onnxruntime", "openvino"]
    assert engines[0]["codes"] == 100
    assert engines[0]["images"] == 32


def test_without_out_the_file_lies_in_the_artifact_and_is_protected(halfbyte, folder):  # noqa: F811
    assert halfbyte("export", folder).code == 0
    written = (folder / "model.onnx").read_bytes()
    halfbyte("export", folder).refused("model.onnx exists", "--force")
    assert halfbyte("export", folder, "--force").code == 0
    assert (folder / "model.onnx").read_bytes() == written
    (folder / "model.onnx").unlink()


def test_images_to_verify_with(folder, tmp_path, monkeypatch, capsys):
    assert verification_images(folder, None, Progress()).shape == (32, 1, 28, 28)
    path = tmp_path / "images.npz"
    np.savez(path, x=np.random.default_rng(0).integers(0, 256, (8, 28, 28), np.uint8), y=np.arange(8))
    assert verification_images(folder, path, Progress()).shape == (8, 1, 28, 28)
    capsys.readouterr()
    # A model that is not embedded, without images.
    monkeypatch.setattr("halfbyte.verification.embedded_images", lambda *_: None)
    assert verification_images(folder, None, Progress()).shape == (32, 1, 28, 28)
    told = capsys.readouterr()
    assert "--val" in told.out + told.err


def test_openvino_and_torchao(folder, tmp_path):
    found = api.export(folder, "openvino", tmp_path / "m.xml")
    assert [path.name for path in found.files] == ["m.xml", "m.bin"]
    scales = tmp_path / "m.safetensors"
    api.export(folder, "torchao", scales)
    program = load_program(folder)
    linears = [op for op in program.ops if op.kind == "linear"]
    with safe_open(scales, "np") as file:
        assert json.loads(file.metadata()["torchao"])["config"] == "Int8StaticActivationInt8WeightConfig"
        names = set(file.keys())
        site = linears[0].output
        quantizer = next(op for op in program.ops if op.output == linears[0].inputs[0])
        assert file.get_tensor(f"{site}.act_quant_scale") == np.float32(quantizer.attributes["scale"][0])
        assert file.get_tensor(f"{site}.act_quant_zero_point") == quantizer.attributes["zero"][0] - 128
        assert file.get_tensor(f"{site}.weight").dtype == np.float32
    assert {f"{op.output}.act_quant_scale" for op in linears} <= names


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--to", "onix"), ("onix", "onnx")),
        (("--out", "m.xml"), ("m.xml", ".onnx")),
        (("--out", "nowhere/m.onnx"), ("folder that exists",)),
        (("--opset", "13"), ("opset 13", "17")),
        (("--gelu", "fast"), ("gelu", "erf")),
        (("--to", "torchao", "--verify"), ("--verify",)),
        (("--to", "torchao", "--out", "ARTIFACT/model.safetensors", "--force"), ("of the artifact",)),
        (
            ("--to", "torchao", "--out", "ARTIFACT/../fashion_vit-repq-4/model.safetensors", "--force"),
            ("of the artifact",),
        ),
        (("--to", "openvino", "--out", "ARTIFACT/program.xml", "--force"), ("of the artifact",)),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(halfbyte, folder, tmp_path, monkeypatch, arguments, parts):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.iterdir())
    given = [argument.replace("ARTIFACT", str(folder)) for argument in arguments]
    halfbyte("export", folder, *given).refused(*parts)
    assert sorted(folder.iterdir()) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("verb", "asked", "package"),
    [("export", "--to onnx", "onnx"), ("export", "--to openvino", "openvino"),
     ("eval", "--engine onnx", "onnx"), ("eval", "--engine onnx", "onnxruntime")],
)  # fmt: skip
def test_a_missing_package_has_its_remedy(halfbyte, folder, monkeypatch, verb, asked, package):  # noqa: F811
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else plain(name, *rest)
    )
    extra = package.removesuffix("runtime")
    halfbyte(verb, folder, *asked.split()).refused(f"{asked} needs {package}", f"pip install 'halfbyte[{extra}]'")


def test_a_folder_that_is_no_artifact(halfbyte, tmp_path):  # noqa: F811
    halfbyte("export", tmp_path, "--out", tmp_path / "m.onnx").refused("not an artifact")
    (tmp_path / "file").touch()
    halfbyte("export", tmp_path / "file").refused("file is a file; give an artifact's folder")
    halfbyte("export", tmp_path, "--val", "nowhere").refused("--val has the images of --verify")


def test_an_artifact_of_links_in_a_circle(halfbyte, folder, tmp_path):  # noqa: F811
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    (own / "model.safetensors").unlink()
    (own / "model.safetensors").symlink_to("model.safetensors")
    halfbyte("export", own, "--out", tmp_path / "model.onnx").refused("model.safetensors", "symbolic links")


def test_weights_of_8_bits_are_named(program):
    found = program(Case("fashion_vit", "repq", 8))
    assert len(unsafe_sites(found, OnnxForm())) == 26
    few = program(Case("fashion_vit", "repq", 4))
    assert unsafe_sites(few, OnnxForm()) == ["patch_embed.proj", "head"]
    assert unsafe_sites(few, OnnxForm(convolutions="integer")) == ["head"]


def test_few_bits_stay_few_bits_at_opset_21(program):
    found = to_onnx(program(Case("fashion_vit", "repq", 4)), OnnxForm(opset=21)).model
    kinds = [tensor.data_type for tensor in found.graph.initializer]
    assert kinds.count(onnx.TensorProto.INT4) >= 24
    assert found.ByteSize() < 0.7 * to_onnx(program(Case("fashion_vit", "repq", 4))).model.ByteSize()


def test_forms_that_do_not_exist(program):
    found = program(Case("fashion_vit", "repq", 4))
    for form in (OnnxForm(opset=22), OnnxForm(gelu="tanh"), OnnxForm(convolutions="float")):
        with pytest.raises(HalfbyteError):
            to_onnx(found, form)

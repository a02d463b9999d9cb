"""Whatever is wrong with a command or with a file: one line that names it, exit code 2, and nothing harmed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from halfbyte import api
from halfbyte.models.builtin import create_builtin

EMBEDDED_WEIGHTS = Path(str(resources.files("halfbyte") / "assets" / "fashion_resnet.safetensors"))


@pytest.fixture(autouse=True)
def no_folder_left(tmp_path, monkeypatch):
    """Each of these commands runs in an empty place and is to leave no run folder, wherever it would have put one."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    yield
    assert list(place.iterdir()) == []


@pytest.fixture
def refused(quantize, tmp_path):
    """Asserts that `quantize` with these options is refused with one line and makes no folder."""

    def check(*parts: str, options: tuple[object, ...] = (), **keywords: str) -> str:
        line = quantize(*options, **keywords).refused(*parts)
        assert not (tmp_path / "out").exists()
        return line

    return check


# Models and weights


def test_an_unknown_model_is_told_with_the_nearest_names(refused):
    refused("unknown model 'fashion_resnett'", "did you mean", "fashion_resnet", model="fashion_resnett")


def test_an_unknown_tag_is_told_with_the_nearest(refused):
    refused("'resnet18'", "no tag 'tv_in2k'", "resnet18.tv_in1k", model="resnet18.tv_in2k")


def test_a_hub_out_of_reach_ends_at_once_with_the_remedy(refused, monkeypatch, tmp_path):
    from huggingface_hub import constants

    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    start = time.monotonic()
    refused("resnet18.tv_in1k", "give --weights FILE (.safetensors or .pth)", model="resnet18")
    assert time.monotonic() - start < 15


@pytest.mark.slow
def test_as_a_process_a_hub_behind_a_dead_proxy_ends_with_the_remedy(tmp_path):
    closed = "http://127.0.0.1:9"
    environment = {
        **os.environ, "HF_HOME": str(tmp_path / "hub"), "HTTPS_PROXY": closed, "HTTP_PROXY": closed,
        "https_proxy": closed, "http_proxy": closed, "NO_PROXY": "", "no_proxy": "",
    }  # fmt: skip
    start = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "halfbyte", "quantize", "resnet18", "--calib", str(tmp_path), "--out", "out"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 2
    assert time.monotonic() - start < 60
    (line,) = ended.stderr.splitlines()
    assert line.startswith("halfbyte: cannot fetch the pretrained weights of resnet18.tv_in1k")
    assert "give --weights FILE (.safetensors or .pth)" in line


def test_an_offline_hub_is_told_with_the_remedy(refused, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("resnet18.tv_in1k", "give --weights FILE", model="resnet18")


def test_weights_of_another_model_are_told(refused, tmp_path):
    save_file(create_builtin("fashion_swin").state_dict(), tmp_path / "swin.safetensors")
    refused("swin.safetensors", "fashion_resnet", "missing", options=("--weights", tmp_path / "swin.safetensors"))


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.7])
def test_truncated_weights_are_told(refused, tmp_path, name, share):
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(create_builtin("fashion_resnet").state_dict(), path)
        whole = path.read_bytes()
    else:
        whole = EMBEDDED_WEIGHTS.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(name, options=("--weights", path))


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_code_in_a_pickle_is_not_run(refused, tmp_path):
    torch.save({"fc.weight": _Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    refused("bomb.pth", options=("--weights", tmp_path / "bomb.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["none.safetensors", "none.pth", "."])
def test_weights_that_are_not_there_are_told(refused, tmp_path, name):
    refused(str(tmp_path / name), "give a .safetensors or .pth file", options=("--weights", tmp_path / name))


# Images


def _bomb_png() -> bytes:
    """A small file that unfolds to a picture of 3.6 gigapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_missing_folder_of_images_is_told(refused, tmp_path):
    for option in ("--calib", "--val"):
        refused(str(tmp_path / "none"), "does not exist", options=(option, tmp_path / "none"))


def test_a_folder_without_images_is_told(refused, tmp_path):
    (tmp_path / "empty" / "class0").mkdir(parents=True)
    refused(str(tmp_path / "empty"), "no images", options=("--calib", tmp_path / "empty"))
    (tmp_path / "empty" / "class0").rmdir()
    refused(str(tmp_path / "empty"), "no class folders", options=("--calib", tmp_path / "empty"))


def test_more_than_one_corrupt_image_in_a_hundred_is_refused(refused, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "images")
    for number in range(3):
        path = folder / "class3" / f"{number:02}.png"
        path.write_bytes(path.read_bytes()[:60])
    for option in ("--calib", "--val"):
        refused("3 of 200 images", "class3/00.png", "mend or remove", options=(option, folder))


@pytest.mark.parametrize("content", [b"", b"no picture", _bomb_png()], ids=["empty", "text", "decompression bomb"])
def test_one_corrupt_image_in_two_hundred_is_skipped_named_and_counted(quantize, pictures, tmp_path, content):
    folder = shutil.copytree(pictures, tmp_path / "images")
    (folder / "class7" / "05.png").write_bytes(content)
    outcome = quantize("--calib", folder, "--calib-images", 199, "--val", folder, "--limit", 1000)
    assert outcome.code == 0, outcome.err
    assert "1 of 200 images cannot be read and are skipped: class7/05.png" in outcome.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["skipped_images"] == {"calibration": ["class7/05.png"], "evaluation": ["class7/05.png"]}
    assert metrics["images"] == {"calibration": 199, "evaluation": 199}


def test_a_corrupt_image_whose_name_is_no_text_is_skipped_too(quantize, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "images")
    try:
        os.rename(folder / "class7" / "05.png", os.fsencode(folder / "class7") + b"/\xff[b].png")
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    (folder / "class7" / "\udcff[b].png").write_bytes(b"")
    outcome = quantize("--val", folder, "--out", tmp_path / "\udcfe")
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "\udcfe" / "metrics.json").read_text())
    assert metrics["skipped_images"]["evaluation"] == ["class7/\udcff[b].png"]


def test_classes_that_do_not_fit_the_head_are_told(refused, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "images")
    shutil.rmtree(folder / "class4")
    refused(str(folder), "9 class folders", "10 classes", options=("--val", folder))


def test_labels_that_do_not_fit_the_head_are_told(refused, tmp_path):
    np.savez(tmp_path / "labels.npz", x=np.zeros((40, 28, 28), np.uint8), y=np.arange(40) % 11)
    refused("labels.npz", "0 to 10", "10 classes", options=("--val", tmp_path / "labels.npz"))


def test_a_damaged_archive_of_images_is_told(refused, tmp_path):
    np.savez(tmp_path / "cut.npz", x=np.zeros((40, 28, 28), np.uint8), y=np.arange(40) % 10)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:5000])
    refused("cut.npz", options=("--calib", tmp_path / "cut.npz"))
    np.savez(tmp_path / "objects.npz", x=np.array([_Bomb(tmp_path / "ran")]), y=np.zeros(1, int))
    refused("objects.npz", options=("--calib", tmp_path / "objects.npz"))
    assert not (tmp_path / "ran").exists()


def test_a_model_that_needs_images_says_so(refused, tmp_path):
    torch.save(_resnet20(), tmp_path / "cifar.pth")
    line = refused("give --calib DIR", model="cifar_resnet20", options=("--weights", tmp_path / "cifar.pth"))
    assert "cifar_resnet20" in line


def _resnet20() -> dict[str, torch.Tensor]:
    from halfbyte.models.load import create_architecture

    return create_architecture("cifar_resnet20").state_dict()


# Numbers and names on the command line


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--w-bits", "9"), ("--w-bits", "2 to 8", "9")),
        (("--a-bits", "1"), ("--a-bits", "2 to 8", "1")),
        (("--calib-images", "0"), ("--calib-images", "at least 1")),
        (("--calib-images", "-5"), ("--calib-images", "at least 1")),
        (("--calib-images", "1000000"), ("1000000 calibration images", "give 1 to")),
        (("--calib-images", "8"), ("recipe percentile: percentile asks for 32", "has 8", "--set percentile.images")),
        (("--limit", "0"), ("--limit", "at least 1")),
        (("--batch-size", "0"), ("--batch-size", "at least 1")),
        (("--workers", "-1"), ("--workers", "at least 0")),
        (("--seed", "-1"), ("--seed", "at least 0")),
        (("--seed", str(2**64)), ("--seed", "at most")),
        (("--device", "tpu"), ("--device", "auto, cpu or cuda", "'tpu'")),
        (("--crop-pct", "0"), ("--crop-pct", "from 0.05 to 1")),
        (("--crop-pct", "1e-6"), ("--crop-pct", "from 0.05 to 1")),
        (("--crop-pct", "nan"), ("--crop-pct",)),
        (("--interpolation", "bicubik"), ("--interpolation", "bicubik", "bicubic")),
        (("--recipe", "repqq"), ("'repqq'", "did you mean repq")),
        (("--recipe", ""), ("no recipe or file ''",)),
        (("--set", "percentile.images"), ("--set takes step.key=value", "percentile.images")),
        (("--set", "images=3"), ("--set takes step.key=value",)),
        (("--set", "percentile.=3"), ("--set takes step.key=value",)),
        (("--set", "percentil.images=3"), ("percentil", "did you mean percentile")),
        (("--set", "percentile.image=3"), ("'image'", "did you mean images")),
        (("--set", "percentile.images=many"), ("percentile.images", "type int", "'many'")),
        (("--set", "percentile.images=true"), ("percentile.images", "type int", "True")),
        (("--set", "percentile.images=[1"), ("--set percentile.images=[1", "not valid YAML")),
        (("--set", "percentile.images=0"), ("percentile asks for 0", "1 to 32")),
        (("--set", "percentile.images=33"), ("percentile asks for 33", "1 to 32")),
        (("--set", "percentile.images=1" + "0" * 300), ("percentile.images", "too long")),
        (("--set", "percentile.percentiles=[]"), ("percentile", "percentiles must lie")),
        (("--set", "percentile.percentiles=[2]"), ("percentile", "percentiles must lie")),
        (("--set", "percentile.percentiles=[.nan]"), ("percentile.percentiles", "finite")),
        (("--recipe", "mse", "--set", "mse.shrink_steps=0"), ("mse", "shrink_steps")),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_options_out_of_range_are_told(refused, options, parts):
    refused(*parts, options=options)


def test_cuda_without_cuda_is_told(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("--device cuda", "use --device cpu", options=("--device", "cuda"))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--w-bits", "four"), "--w-bits"),
        (("--limit",), "--limit"),
        (("--no-such-option",), "--no-such-option"),
        (("--seed", "1.5"), "--seed"),
    ],
    ids=lambda value: " ".join(value),
)
def test_usage_errors_are_shown_as_usage(quantize, tmp_path, options, part):
    outcome = quantize(*options)
    assert outcome.code == 2
    assert part in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


# Recipe files


def _nested_aliases() -> str:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join(["l0: &l0 [x, x, x, x]", *levels, "name: *l9", "steps: [percentile]"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: x\nstep: [percentile]", ("unknown key 'step'", "did you mean steps")),
        ("name: x", ("'steps' is missing",)),
        ("", ("keys and values",)),
        ("- percentile", ("keys and values",)),
        ("name: 3\nsteps: [percentile]", ("name must be a text", "3")),
        ("name: x\nsteps: percentile", ("steps must be a list",)),
        ("name: x\nsteps: []", ("steps must be a list",)),
        ("name: x\nsteps: [{percentile: 3}]", ("parameters of percentile", "3")),
        ("name: x\nsteps: [{percentile: {}, repq: {}}]", ("a step is one name",)),
        ("name: x\nsteps: [percentil]", ("unknown step 'percentil'", "did you mean percentile")),
        ("name: x\nsteps: [{percentile: {image: 3}}]", ("'image'", "did you mean images")),
        ("name: x\nsteps: [{percentile: {images: yes}}]", ("percentile.images", "type int", "True")),
        ("name: x\npaper_exact: 1\nsteps: [percentile]", ("paper_exact", "true or false")),
        ("name: x\nbits: 4\nsteps: [percentile]", ("bits", "keys and values")),
        ("name: x\nbits: {weight: 9}\nsteps: [percentile]", ("bits.weight", "2 to 8", "9")),
        ("name: x\nbits: {weight: 4.0}\nsteps: [percentile]", ("bits.weight", "2 to 8", "4.0")),
        ("name: x\nbits: {weights: 4}\nsteps: [percentile]", ("unknown key 'weights'", "did you mean weight")),
        ("name: x\nbits: {roles: {heads: 4}}\nsteps: [percentile]", ("unknown key 'heads'", "did you mean head")),
        ("name: x\nbits: {sites: [a]}\nsteps: [percentile]", ("bits.sites",)),
        ("name: x\nbits: {sites: {'blocks.*': 4}}\nsteps: [percentile]", ("'blocks.*'", "halfbyte inspect")),
        ("name: x\nname: y\nsteps: [percentile]", ("'name' is given twice",)),
        ("name: x\nsteps: [{percentile: {images: 3, images: 4}}]", ("'images' is given twice",)),
        ("name: x\n1: y\nsteps: [percentile]", ("key 1 is not a text",)),
        ("name: x\n? [a]\n: y\nsteps: [percentile]", ("not a text",)),
        (_nested_aliases(), ("aliases",)),
        ("name: &a [*a]\nsteps: [percentile]", ("aliases",)),
        ("name: !!python/object/apply:os.mkdir [ran]\nsteps: [percentile]", ("python/object",)),
        ("name: !!int x\nsteps: [percentile]", ("does not fit its type",)),
        ("name: !!bool x\nsteps: [percentile]", ("does not fit its type",)),
        ("name: !!timestamp x\nsteps: [percentile]", ("does not fit its type",)),
        ("name: 2001-99-99\nsteps: [percentile]", ("does not fit its type",)),
        ("!!map [a, b]", ("does not fit its type",)),
        ("name: x\nsteps: [{percentile: {images: 0x" + "f" * 9999 + "}}]", ("too long",)),
        ("name: x\nsteps: [{percentile: {images: 1" + "0" * 9999 + "}}]", ("too long",)),
        ("name: [" + "x, " * 9999 + "]\nsteps: [percentile]", ("name must be a text", "...")),
        ("[" * 3000, ("not valid YAML",)),
        ("name: x\x00y\nsteps: [percentile]", ("not valid YAML",)),
        ("name: x\n\tsteps: [percentile]", ("not valid YAML",)),
        ("name: 'x", ("not valid YAML",)),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, str) else "",
)
def test_a_wrong_recipe_file_is_told_with_its_name(refused, tmp_path, text, parts):
    (tmp_path / "mine.yaml").write_text(text)
    refused(str(tmp_path / "mine.yaml"), *parts, options=("--recipe", tmp_path / "mine.yaml"))


def test_a_recipe_that_is_no_text_is_told(refused, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff\xfe\nsteps: [percentile]")
    refused("mine.yaml", "UTF-8", options=("--recipe", tmp_path / "mine.yaml"))


def test_a_recipe_of_many_megabytes_is_not_read(refused, tmp_path):
    with (tmp_path / "mine.yaml").open("wb") as file:
        file.truncate(2**32)
    refused("mine.yaml", "not a recipe", options=("--recipe", tmp_path / "mine.yaml"))


def test_steps_that_do_not_fit_together_are_told(quantize, tmp_path):
    (tmp_path / "mine.yaml").write_text("name: x\nsteps: [{repq: {images: 2}}, {percentile: {images: 2}}]")
    outcome = quantize("--recipe", tmp_path / "mine.yaml", model="fashion_vit")
    outcome.refused("log_sqrt2", "blocks.0.attn.pv", "come first")


def test_names_with_brackets_and_slashes_are_only_names(halfbyte, tmp_path, no_folder_left):
    (tmp_path / "mine.yaml").write_text("name: '../../[/x]:smile:'\nsteps: [percentile]")
    outcome = halfbyte("quantize", "fashion_resnet", "--recipe", tmp_path / "mine.yaml", "--limit", 4, "--workers", 0)
    assert outcome.code == 0, outcome.err
    assert "[/x]:smile:" in outcome.out
    (folder,) = (tmp_path / "place" / "runs").iterdir()
    assert (folder / "metrics.json").is_file()
    assert folder.name == "fashion_resnet-.._.._x_smile_-w4a4"
    shutil.rmtree(folder.parent)


# Where to write


def test_out_that_is_a_file_is_told(quantize, tmp_path):
    (tmp_path / "out").write_text("mine")
    for force in ((), ("--force",), ("--resume",)):
        quantize(*force).refused(f"--out {tmp_path / 'out'} is a file")
    quantize("--out", tmp_path / "out" / "below").refused(str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


def test_out_with_other_files_is_not_touched(quantize, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text("mine")
    quantize().refused(str(tmp_path / "out"), "--force", "another --out")
    quantize("--resume").refused(str(tmp_path / "out"), "no run to resume")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["metrics.json"]
    assert (tmp_path / "out" / "metrics.json").read_text() == "mine"


@pytest.mark.parametrize("log", ["", "\n", "[]", "{}", '{"event": "step"}', "[" * 9999, "\x00", "{", '{"event": [1]}'])
def test_a_log_of_something_else_makes_no_run(quantize, tmp_path, log):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.jsonl").write_text(log)
    quantize().refused("not a run", "--force")
    quantize("--resume").refused("no run to resume")
    assert (tmp_path / "out" / "log.jsonl").read_text() == log


def test_force_with_wrong_input_harms_nothing(quantize, tmp_path):
    assert quantize().code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    quantize("--force", "--weights", tmp_path / "none.pth").refused("none.pth")
    quantize("--force", "--calib-images", 8).refused("percentile asks for 32")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_path_too_long_is_told(quantize, halfbyte, tmp_path):
    quantize("--out", tmp_path / ("x" * 300)).refused("File name too long")
    quantize("--recipe", "x" * 300).refused("x" * 300)
    quantize("--weights", "x" * 300 + ".pth").refused("x" * 300)
    quantize("--calib", "x" * 300).refused("x" * 300)
    halfbyte("eval", "x" * 300).refused("x" * 300)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read and write everything")
def test_what_may_not_be_read_or_written_is_told(quantize, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    quantize("--out", tmp_path / "closed" / "run").refused("Permission denied")
    (tmp_path / "mine.yaml").write_text("name: x")
    (tmp_path / "mine.yaml").chmod(0)
    quantize("--recipe", tmp_path / "mine.yaml").refused("mine.yaml", "Permission denied")


@pytest.mark.parametrize(
    "command",
    [("quantize", "fashion_resnet"), ("eval", "fashion_resnet"), ("inspect", "fashion_resnet"), ("recipes",)],
    ids=lambda command: command[0],
)
def test_json_without_a_folder_is_told_before_any_work(halfbyte, tmp_path, command, monkeypatch):
    monkeypatch.setattr(api, "load_model", None)
    for place in (tmp_path / "none" / "facts.json", tmp_path):
        halfbyte(*command, "--json", place).refused(f"--json {place}", "folder that exists")


# Commands that read


@pytest.mark.parametrize("command", ["eval", "inspect"])
def test_what_is_no_artifact_is_told(halfbyte, tmp_path, command):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("{}")
    halfbyte(command, tmp_path / "empty").refused(str(tmp_path / "empty"), "not an artifact", "quantization.json")
    halfbyte(command, tmp_path / "file").refused(str(tmp_path / "file"), "is a file", "artifact")
    halfbyte(command, tmp_path / "none").refused(str(tmp_path / "none"), "does not exist")
    halfbyte(command, "fashion_resnett").refused("unknown model 'fashion_resnett'", "did you mean")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--engine", "natife"), ("--engine", "natife", "torch")),
        (("--limit", "0"), ("--limit", "at least 1")),
        (("--batch-size", "0"), ("--batch-size", "at least 1")),
        (("--workers", "-1"), ("--workers", "at least 0")),
        (("--val", "nowhere"), ("nowhere", "does not exist")),
        (("--weights", "nowhere.pth"), ("nowhere.pth", "does not exist")),
        (("--device", "tpu"), ("--device", "'tpu'")),
        (("--interpolation", "cubic"), ("--interpolation", "cubic")),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_options_of_eval_are_told(halfbyte, options, parts):
    halfbyte("eval", "fashion_resnet", "--workers", 0, *options).refused(*parts)


def test_eval_refuses_what_does_not_belong_to_the_artifact(quantize, halfbyte, tmp_path):
    assert quantize().code == 0
    other = {name: tensor + 0.01 for name, tensor in create_builtin("fashion_resnet").state_dict().items()}
    save_file(other, tmp_path / "other.safetensors")
    command = ("eval", tmp_path / "out", "--workers", 0, "--limit", 4)
    halfbyte(*command, "--weights", tmp_path / "other.safetensors").refused("other.safetensors", "sha256")
    halfbyte(*command, "--crop-pct", "2").refused("--crop-pct")
    halfbyte(*command, "--interpolation", "cubic").refused("--interpolation", "cubic")
    assert halfbyte(*command, "--interpolation", "bilinear").code == 0


# What goes wrong outside the program


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (PermissionError(13, "Permission denied", "some.file"), "some.file: Permission denied"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (MemoryError(), "--batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAdvice"), "--batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "--batch-size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is"), "--workers 0"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_trouble_with_the_machine_is_one_line(halfbyte, monkeypatch, error, part):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(api, "inspect_model", fail)
    halfbyte("inspect", "fashion_resnet").refused(part)


def test_an_error_of_the_program_keeps_its_traceback(halfbyte, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(api, "inspect_model", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        halfbyte("inspect", "fashion_resnet")


def test_an_interrupted_command_says_how_to_go_on(quantize, halfbyte, monkeypatch, request):
    def interrupt(*_, **__):
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(api, "read_inputs", interrupt)
    monkeypatch.setattr(api, "inspect_model", interrupt)
    # A shell starts what it runs in the background with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    outcome = quantize()
    assert (outcome.code, outcome.err) == (130, "halfbyte: interrupted; the same command with --resume continues\n")
    outcome = halfbyte("inspect", "fashion_resnet")
    assert (outcome.code, outcome.err) == (130, "halfbyte: interrupted\n")


def test_as_a_process_an_error_is_one_line_and_warnings_of_pillow_are_none(tmp_path):
    # Pillow warns of every picture above 89 megapixels before it finds it damaged.
    header = bytearray(_bomb_png())
    header[16:24] = struct.pack(">II", 10000, 10000)
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    for label in range(10):
        (tmp_path / "images" / f"class{label}").mkdir(parents=True)
        Image.new("L", (28, 28)).save(tmp_path / "images" / f"class{label}" / "0.png")
    (tmp_path / "images" / "class0" / "1.png").write_bytes(header)
    ended = subprocess.run(
        [sys.executable, "-m", "halfbyte", "eval", "fashion_resnet", "--val", str(tmp_path / "images")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"halfbyte: images {tmp_path / 'images'}: 1 of 11 images cannot be read (class0/1.png")

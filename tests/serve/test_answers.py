"""What the server answers is what the evaluation computes, from one client or from many at once."""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from halfbyte import api
from halfbyte.artifact_files import read_facts
from halfbyte.data.classes import imagenet_descriptions
from halfbyte.data.images import open_images
from halfbyte.engines import start_engine
from halfbyte.models.load import create_architecture
from halfbyte.progress import Progress
from halfbyte.runtime import native
from halfbyte.serve.classifier import Classifier
from halfbyte.serve.picture import Limits

QUIET = Progress(quiet=True)
pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels were not built")


@pytest.fixture(scope="module")
def files(tmp_path_factory, noise, encode) -> Path:
    """Ten classes' folders with pictures of many kinds, named by their numbers."""
    root = tmp_path_factory.mktemp("files")
    grey = noise(30, 41, 5).convert("L")
    wide = Image.fromarray(np.asarray(noise(20, 33, 6).convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned upright
    pictures = [
        encode(noise(28, 28, 1)), encode(noise(300, 200, 2), "JPEG"), encode(noise(9, 17, 3), "JPEG", quality=30),
        encode(noise(64, 61, 4), "WEBP"), encode(grey), encode(grey, "JPEG"), encode(wide),
        encode(noise(40, 50, 7), "JPEG", exif=exif), encode(noise(50, 50, 8).quantize(8), "GIF"),
        encode(noise(31, 29, 9).convert("RGBA")),
    ]  # fmt: skip
    for number, content in enumerate(pictures):
        (root / str(number)).mkdir()
        kind = Image.open(io.BytesIO(content)).format.lower()
        (root / str(number) / f"a.{kind}").write_bytes(content)
    return root


def evaluated(folder: Path, files: Path) -> dict[str, np.ndarray]:
    """The logits that `halfbyte eval --engine native` computes, by the file's name."""
    facts, config = read_facts(folder)
    images = open_images(files, facts["preprocessing"], num_classes=None, progress=QUIET)
    run = start_engine("native", folder)
    assert config["num_classes"] in (10, 1000)
    batch = torch.stack([images[number][0] for number in range(len(images))])
    return dict(zip(images.names, run(batch).numpy(), strict=True))


@pytest.fixture(scope="module")
def colours(tmp_path_factory, files) -> Path:
    """An artifact for colour images of ImageNet's classes, with random weights."""
    place = tmp_path_factory.mktemp("colours")
    torch.manual_seed(0)
    model = create_architecture("test_vit", "r160_in1k")
    with torch.no_grad():
        model.head.weight.normal_(std=0.3)
    save_file(model.state_dict(), place / "random.safetensors")
    api.quantize(
        model="test_vit.r160_in1k", weights=place / "random.safetensors", calib=files, recipe="percentile",
        calib_images=8, settings=("percentile.images=8",), workers=0, out=place / "run", progress=QUIET,
    )  # fmt: skip
    return place / "run"


@pytest.mark.parametrize("which", ["artifact", "colours"])
def test_logits_are_those_of_the_evaluation_to_the_bit(request, which, files) -> None:
    folder = request.getfixturevalue(which)
    classifier = Classifier(folder, Limits())
    expected = evaluated(folder, files)
    assert len(expected) == 10
    for name, logits in expected.items():
        assert classifier.logits((files / name).read_bytes()).tobytes() == logits.tobytes(), name
    best = {int(logits.argmax()) for logits in expected.values()}
    assert len(best) > 1


def test_the_server_tells_the_evaluation_s_top_five(server, artifact, files) -> None:
    labels = read_facts(artifact)[1]["pretrained_cfg"]["label_names"]
    for name, logits in evaluated(artifact, files).items():
        shares = torch.from_numpy(logits).double().softmax(0)
        reply = server.predict((files / name).read_bytes())
        assert [entry["index"] for entry in reply.top] == shares.argsort(descending=True, stable=True)[:5].tolist()
        for entry in reply.top:
            assert entry["label"] == labels[entry["index"]]
            assert entry["probability"] == pytest.approx(float(shares[entry["index"]]), rel=1e-12)
        times = reply.json["milliseconds"]
        assert reply.json["model"] == "fashion_vit"
        parts = times["wait"] + times["prepare"] + times["engine"]
        assert 0 < times["engine"] < times["total"] == pytest.approx(parts, abs=0.01)


def test_classes_of_imagenet_are_called_by_what_they_mean(colours, files) -> None:
    classifier = Classifier(colours, Limits())
    meanings = list(imagenet_descriptions().values())
    top = classifier((files / "0" / "a.png").read_bytes()).top
    assert [entry["label"] for entry in top] == [meanings[entry["index"]] for entry in top]
    assert classifier.label(0) == "tench, Tinca tinca"
    classifier.labels = None
    assert classifier.label(7) == "class 7"


def test_a_form_and_a_plain_body_are_answered_alike(server, files) -> None:
    for path in files.glob("*/*"):
        content = path.read_bytes()
        plain = server.predict(content).top
        assert server.predict(content, "image/jpeg").top == plain
        assert server.predict(content, "text/plain").top == plain
        assert server.predict_form(content).top == plain
        assert server.predict_form(content, file="../../etc/passwd").top == plain


def test_eight_clients_at_once_get_what_one_gets(server, files) -> None:
    contents = [path.read_bytes() for path in sorted(files.glob("*/*"))] * 12
    one_by_one = [server.predict(content).top for content in contents]
    with ThreadPoolExecutor(8) as pool:
        together = [reply.top for reply in pool.map(server.predict, contents)]
    assert together == one_by_one


def test_the_process_has_neither_torch_nor_timm(server, png) -> None:
    assert server.predict(png).status == 200
    mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "_native" in mapped
    assert not re.search(r"/(lib)?(torch|timm)", mapped)


def test_it_tells_what_it_serves(server) -> None:
    facts = server.ask("GET", "/model").json
    assert (facts["model"], facts["engine"], facts["classes"]) == ("fashion_vit", "native", 10)
    assert facts["bits"] == {"weight": 4, "activation": 4}
    assert facts["limits"] == {"upload_bytes": 10_000_000, "pixels": 50_000_000}
    assert facts["preprocessing"]["input_size"] == [1, 28, 28]
    paths = server.ask("GET", "/openapi.json").json["paths"]
    assert set(paths) == {"/", "/health", "/model", "/predict"}


class References(HTMLParser):
    """What a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attributes) -> None:
        self.found += [value for name, value in attributes if name in ("src", "href", "action", "srcset")]


def test_the_page_needs_nothing_from_elsewhere(server) -> None:
    reply = server.ask("GET", "/")
    text = reply.body.decode()
    parser = References()
    parser.feed(text)
    assert parser.found == ["data:,"]
    assert not re.search(r"https?://|@import|url\(|\{\{", text)
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "unsafe" not in reply.headers["content-security-policy"]
    for shown in ("fashion_vit", "W4A4", "native", "28 × 28, grey", "10 classes", "at most 10 MB"):
        assert shown in text


def test_names_of_an_artifact_are_no_markup(artifact, tmp_path) -> None:
    from halfbyte.serve.page import page

    facts = Classifier(artifact, Limits()).facts
    text = page(facts | {"model": "<script>alert(1)</script> /*script*/"})
    assert "<script>alert" not in text
    assert text.count("<script>") == 1
    assert "/*script*/" in text

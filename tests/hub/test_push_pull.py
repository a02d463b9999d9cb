"""An artifact goes to a hub and comes back the same, through the hub's own client."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from tests.hub.conftest import NAME
from tests.hub.stub import Repository

import halfbyte as package
from halfbyte import api
from halfbyte.hub import FILES
from halfbyte.program.load import load_program
from halfbyte.run_files import read_metrics

PUSHED = {
    "config.json", "quantization.json", "model.safetensors", "program.bin", "metrics.json", "recipe.yaml", "README.md"
}  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_there_and_back_again(halfbyte, hub, run, tmp_path) -> None:
    outcome = halfbyte("push", run, NAME, "--json", tmp_path / "push.json")
    assert outcome.code == 0, outcome.err
    files = hub.files(NAME)
    assert set(files) == {".gitattributes", *PUSHED}
    assert not hub.repositories[NAME].private
    assert len(hub.repositories[NAME].commits) == 2
    assert f"PUT /lfs/{json.loads(files['quantization.json'])['tensors_sha256']}" in hub.asked
    sha = hub.repositories[NAME].commits[-1].sha
    assert outcome.out == f"pushed 7 files to {hub.address}/{NAME}, commit {sha}\n"
    facts = json.loads((tmp_path / "push.json").read_text())
    assert (facts["revision"], set(facts["files"])) == (sha, PUSHED)

    out = tmp_path / "deep" / "back"
    outcome = halfbyte("pull", NAME, "--out", out, "--json", tmp_path / "pull.json", without=("HF_TOKEN",))
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("pulled 7 files, ")
    assert json.loads((tmp_path / "pull.json").read_text())["revision"] == sha
    assert names(out) == PUSHED
    assert names(out.parent) == {"back"}
    for name in PUSHED - {"README.md"}:
        assert (out / name).read_bytes() == (run / name).read_bytes()
    assert (out / "README.md").read_bytes() == files["README.md"]

    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(api.load(out)(images), api.load(run)(images))
    assert load_program(out).input_shape == (1, 28, 28)
    assert read_metrics(out)["model"] == "fashion_vit"


def test_from_python(monkeypatch, hub, run, tmp_path) -> None:
    """Every file is a regular one here: the client would send large ones its own way."""
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.setattr("tests.hub.stub.LFS", ("nothing",))
    facts = package.push(run, f"hf-hub:{NAME}", endpoint=hub.address)
    assert facts["url"] == f"{hub.address}/{NAME}"
    pulled = package.pull(f"hf-hub:{NAME}@{facts['revision']}", tmp_path / "back", endpoint=hub.address)
    assert pulled == {"repository": NAME, "revision": facts["revision"], "files": facts["files"]}


@pytest.mark.slow  # three processes, and a hub that is tried again
def test_loading_by_a_name_as_timm_has_it(pushed, environment, run) -> None:
    """Also a second time with the hub out of reach."""
    program = (
        "import numpy, torch, halfbyte, sys\n"
        f"model = halfbyte.load('hf-hub:{NAME}')\n"
        "images = torch.linspace(-1, 1, 784).reshape(1, 1, 28, 28)\n"
        "print(model(images).detach().numpy().tobytes().hex(), model.pretrained_cfg['label_names'][7])"
    )
    command = [sys.executable, "-c", program]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    logits, label = first.split()
    with torch.no_grad():
        expected = api.load(run)(torch.linspace(-1, 1, 784).reshape(1, 1, 28, 28)).numpy()
    assert np.frombuffer(bytes.fromhex(logits), np.float32).tobytes() == expected.tobytes()
    assert label == "Sneaker"
    pushed.refuse(".*", 500)
    away = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert subprocess.run(command, env=away, capture_output=True, text=True, check=True).stdout == first
    away["HF_HOME"] += "-empty"
    done = subprocess.run(command, env=away, capture_output=True, text=True)
    assert f"HalfbyteError: cannot load {NAME}: the hub does not answer" in done.stderr


def test_pushing_again(halfbyte, pushed, run, tmp_path) -> None:
    """The same changes nothing; another artifact replaces all of the one before, a card of one's own is kept."""
    outcome = halfbyte("push", run, NAME)
    assert outcome.code == 0, outcome.err
    before = pushed.files(NAME)
    pushed.files(NAME)["notes.txt"] = b"somebody's own"
    other = tmp_path / "other"
    other.mkdir()
    for name in PUSHED - {"README.md", "program.bin"}:
        (other / name).write_bytes((run / name).read_bytes())
    forget_program(other)
    (other / "README.md").write_text("---\nlicense: mit\n---\n\nMine.\n")
    outcome = halfbyte("push", other, NAME)
    assert outcome.code == 0, outcome.err
    after = pushed.files(NAME)
    assert set(after) == (PUSHED | {".gitattributes", "notes.txt"}) - {"program.bin"}
    assert after["README.md"].endswith(b"Mine.\n")
    assert before["model.safetensors"] == after["model.safetensors"]
    outcome = halfbyte("pull", NAME, "--out", tmp_path / "back")
    assert outcome.code == 0, outcome.err
    assert names(tmp_path / "back") == PUSHED - {"program.bin"}


def forget_program(folder: Path) -> None:
    """Make an artifact one that could not be lowered."""
    from halfbyte.artifact_files import facts_sha256

    facts, config = (json.loads((folder / name).read_text()) for name in ("quantization.json", "config.json"))
    facts["program"] = {"refused": "an operation that is none", "sha256": None}
    facts["facts_sha256"] = facts_sha256(facts, config)
    (folder / "quantization.json").write_text(json.dumps(facts))


def test_an_earlier_commit(halfbyte, pushed, tmp_path) -> None:
    first = pushed.repositories[NAME].commits[-1].sha
    pushed.repositories[NAME].commits.append(type(pushed.repositories[NAME].commits[-1])({"README.md": b""}))
    halfbyte("pull", NAME, "--out", tmp_path / "back").refused("holds no artifact", "config.json")
    assert halfbyte("pull", NAME, "--out", tmp_path / "back", "--revision", first).code == 0
    assert halfbyte("pull", f"{NAME}@{first}", "--out", tmp_path / "again").code == 0
    halfbyte("pull", NAME, "--out", tmp_path / "no", "--revision", "v1").refused("no such revision")


def test_private(halfbyte, hub, run, tmp_path) -> None:
    assert halfbyte("push", run, "somebody/secret", "--private").code == 0
    assert hub.repositories["somebody/secret"].private
    assert halfbyte("push", run, "somebody/secret", "--private").code == 0
    line = halfbyte("pull", "somebody/secret", "--out", tmp_path / "a", without=("HF_TOKEN",)).refused()
    assert "no such repository, or it is private" in line
    assert halfbyte("pull", "somebody/secret", "--out", tmp_path / "a").code == 0
    hub.repositories["somebody/open"] = Repository(private=False)
    halfbyte("push", run, "somebody/open", "--private").refused("exists and is public")
    assert set(hub.files("somebody/open")) == {".gitattributes"}


def test_the_card(pushed, run) -> None:
    text = pushed.files(NAME)["README.md"].decode()
    card = ModelCard(text)
    found = card.data.to_dict()
    assert found["library_name"] == "halfbyte"
    assert found["pipeline_tag"] == "image-classification"
    assert {"fashion_vit", "w4a4", "repq", "quantization"} <= set(found["tags"])
    metrics = json.loads((run / "metrics.json").read_text())
    top1, top5 = card.data.eval_results
    assert (top1.metric_type, top1.metric_name) == ("accuracy", "top-1 accuracy")
    assert top1.metric_value == pytest.approx(metrics["quantized"]["top1"] / 100)
    assert top5.metric_value == pytest.approx(metrics["quantized"]["top5"] / 100)
    assert top1.dataset_name == "Fashion-MNIST, 20 test images"
    assert f"halfbyte pull {NAME} --out model" in text
    assert f"{metrics['float']['top1']:.2f}\u00a0%" in text
    assert "T-shirt/top, Trouser" in text
    assert "bicubic, crop 1 (center)" in text
    assert metrics["weights"]["sha256"] in text


def test_a_pull_that_is_killed_leaves_nothing_and_can_be_given_again(halfbyte, environment, pushed, tmp_path) -> None:
    pushed.hold = threading.Event()
    command = [sys.executable, "-m", "halfbyte", "pull", NAME, "--out", str(tmp_path / "back")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert pushed.held.wait(60)
    assert not (tmp_path / "back").exists()
    halfbyte("pull", NAME, "--out", tmp_path / "back").refused("another pull into", "under way")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "back").exists()
    assert (tmp_path / ".back.part" / "config.json").exists()
    pushed.hold.set()
    outcome = halfbyte("pull", NAME, "--out", tmp_path / "back")
    assert outcome.code == 0, outcome.err
    assert names(tmp_path / "back") == PUSHED
    assert not (tmp_path / ".back.part").exists()


def test_what_is_listed_is_what_is_fetched(halfbyte, pushed, tmp_path) -> None:
    """Names that lead elsewhere, and pickles, are not even asked for."""
    evil = ["../evil.txt", "..\\evil.txt", "/etc/evil", "a/../../evil", "config.json/../../evil", "C:\\evil", "~/evil"]
    pushed.repositories[NAME].listed += evil
    pushed.files(NAME).update(dict.fromkeys([*evil, "pytorch_model.bin", "setup.py", "report.html"], b"evil"))
    outcome = halfbyte("pull", NAME, "--out", tmp_path / "place" / "back")
    assert outcome.code == 0, outcome.err
    assert names(tmp_path / "place") == {"back"}
    assert names(tmp_path / "place" / "back") == PUSHED
    asked = {path.rsplit("/", 1)[-1] for path in pushed.asked if "/resolve/" in path}
    assert asked == PUSHED <= set(FILES)

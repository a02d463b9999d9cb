"""What goes wrong with a hub is one line, and nothing on the disk or in the hub has changed."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from tests.hub.conftest import NAME
from tests.hub.stub import Commit, Repository

from halfbyte import hub as hub_module
from halfbyte.errors import HalfbyteError


@pytest.fixture(autouse=True)
def nothing_left(tmp_path):
    yield
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.part").exists()


@pytest.fixture
def pull(halfbyte, tmp_path):
    def call(name: str = NAME, *options: object, **keywords):
        return halfbyte("pull", name, "--out", tmp_path / "out", *options, **keywords)

    return call


def test_no_token(halfbyte, hub, run) -> None:
    halfbyte("push", run, NAME, without=("HF_TOKEN",)).refused("no token", "hf auth login", "HF_TOKEN")
    assert hub.asked == []


def test_a_wrong_token(halfbyte, hub, run) -> None:
    halfbyte("push", run, NAME, HF_TOKEN="hf_bad").refused(f"cannot push to {NAME}", "token is not accepted")
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("pattern", "status", "message", "code", "part"),
    [
        (
            "POST /api/repos/create",
            403,
            "You lack the rights",
            None,
            "does not allow that (You lack the rights)",
        ),
        ("POST /api/models/.*/commit", 403, "", None, "the token does not allow that"),
        ("POST /api/models/.*/preupload", 404, "Repository not found", "RepoNotFound", "no such repository"),
        ("PUT /lfs", 400, "no room", None, "the hub answers 400"),
        ("POST /api/validate-yaml", 400, "bad", None, "Invalid metadata in README.md"),
        ("POST /api/models/.*/commit", 413, "too large", None, "the hub answers 413 (too large)"),
    ],
)
def test_a_push_that_is_refused(halfbyte, hub, run, pattern, status, message, code, part) -> None:
    hub.refuse(pattern, status, message, code)
    halfbyte("push", run, NAME).refused(f"cannot push to {NAME}", part)
    assert all(set(known.commits[-1].files) == {".gitattributes"} for known in hub.repositories.values())


@pytest.mark.parametrize(
    ("pattern", "status", "message", "code", "part"),
    [
        ("GET /api/models", 401, "Invalid credentials in Authorization header", None, "token is not accepted"),
        ("GET /api/models", 403, "", "GatedRepo", "access must be granted"),
        ("GET /api/models", 403, "blocked", None, "does not allow that (blocked)"),
        ("HEAD /.*/config.json", 404, "Entry not found", "EntryNotFound", "the hub answers 404"),
        ("GET /cdn", 403, "", None, "does not allow that"),
    ],
)
def test_a_pull_that_is_refused(pull, pushed, pattern, status, message, code, part) -> None:
    pushed.refuse(pattern, status, message, code)
    pull().refused(f"cannot pull from {NAME}", part)


def test_no_such_repository(pull, hub) -> None:
    pull("nobody/nothing").refused("nobody/nothing", "no such repository, or it is private")


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "/b", "a/", "hf-hub:b", "owner/na me", "owner/..", "-a/b--c"])
def test_names_that_are_none(pull, halfbyte, hub, run, name) -> None:
    assert "OWNER/NAME" in pull(name if not name.startswith("-") else f"hf-hub:{name}").refused()


def test_pushing_to_a_revision(halfbyte, hub, run) -> None:
    halfbyte("push", run, f"{NAME}@v1").refused("leave @v1 out")


def test_nobody_answers(halfbyte, pull, run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"http://127.0.0.1:{busy.getsockname()[1]}"
    pull(NAME, "--endpoint", address).refused("the hub does not answer", "Connection refused", "--endpoint")
    halfbyte("push", run, NAME, "--endpoint", address).refused("the hub does not answer")
    pull(NAME, HF_HUB_OFFLINE="1").refused("offline mode is on; unset HF_HUB_OFFLINE")


@pytest.mark.slow  # it is tried again, later each time
def test_the_network_fails_in_the_middle(pull, pushed) -> None:
    """The hub hangs up in every file of one kind."""
    whole = pushed.files(NAME)["metrics.json"]
    pushed.spoil = lambda name, content: _cut(content) if name == "metrics.json" else content
    assert len(_cut(whole)) == len(whole)
    pull().refused(NAME)


class _Short(bytes):
    """Says that it is longer than it is."""

    def __len__(self) -> int:
        return super().__len__() + 100


def _cut(content: bytes) -> bytes:
    return _Short(content[:-100])


@pytest.mark.parametrize("name", ["config.json", "quantization.json", "model.safetensors"])
def test_a_file_that_lacks(pull, pushed, name) -> None:
    del pushed.files(NAME)[name]
    pull().refused(f"{NAME} holds no artifact of halfbyte: it has no {name}")


def test_a_program_that_lacks(pull, pushed) -> None:
    del pushed.files(NAME)["program.bin"]
    pull().refused(NAME, "program.bin")


def test_only_a_pickle(pull, hub) -> None:
    hub.repositories[NAME] = Repository(False, [Commit({"pytorch_model.bin": b"\x80\x04K\x01.", "config.json": b"{}"})])
    pull().refused("holds no artifact of halfbyte: it has no quantization.json")
    assert not [path for path in hub.asked if "resolve" in path]


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("name", ["config.json", "quantization.json", "model.safetensors", "program.bin"])
def test_a_file_of_another_hash(pull, pushed, name, tmp_path) -> None:
    pushed.spoil = lambda file, content: _flip(content) if file == name else content
    line = pull().refused(NAME)
    assert "damaged" in line
    assert str(tmp_path) not in line
    pushed.spoil = lambda file, content: b"" if file == name else content
    assert "damaged" in pull().refused(NAME)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_a_file_too_large_is_not_fetched(pull, pushed, name, tmp_path) -> None:
    pushed.sizes[name] = 2**40
    pull().refused(NAME, f"{name} has 1,099,511,627,776 bytes")
    assert not any("/resolve/" in path for path in pushed.asked)


def test_a_pull_that_fails_leaves_no_folder(halfbyte, pushed, tmp_path) -> None:
    pushed.spoil = lambda file, content: _flip(content)
    (tmp_path / "x").mkdir()
    halfbyte("pull", NAME, "--out", tmp_path / "x" / "y" / "z").refused("damaged")
    assert not list((tmp_path / "x").iterdir())


def test_figures_and_cards_of_another_artifact(halfbyte, pushed, run, tmp_path) -> None:
    mixed = tmp_path / "mixed"
    assert halfbyte("pull", NAME, "--out", mixed).code == 0
    card = (mixed / "README.md").read_text()
    (mixed / "README.md").write_text(card.replace(_sha256(run), 64 * "0"))
    halfbyte("push", mixed, NAME).refused("README.md is the card of another artifact", "remove it")
    (mixed / "README.md").write_text(card)
    metrics = json.loads((mixed / "metrics.json").read_text())
    assert metrics["tensors_sha256"] == _sha256(run)
    (mixed / "metrics.json").write_text(json.dumps(metrics | {"tensors_sha256": 64 * "0"}))
    halfbyte("push", mixed, NAME).refused("metrics.json is not of the artifact beside it", "--force")
    # An earlier version did not say.
    del metrics["tensors_sha256"]
    (mixed / "metrics.json").write_text(json.dumps(metrics))
    assert halfbyte("push", mixed, NAME).code == 0


def _sha256(run: Path) -> str:
    return str(json.loads((run / "quantization.json").read_text())["tensors_sha256"])


def test_an_out_that_holds_something(halfbyte, pushed, tmp_path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("place", "file", "link"):
        halfbyte("pull", NAME, "--out", tmp_path / name).refused(f"{name} exists", "choose another --out")
    assert pushed.asked == []
    halfbyte("pull", NAME, "--out", tmp_path / "file" / "below").refused("cannot write beside --out")
    halfbyte("pull", NAME, "--out", tmp_path / ("x" * 300) / "below").refused("--out", "too long; choose another --out")
    assert (place / "mine").read_text() == "mine"


def test_an_empty_out_is_taken(halfbyte, pushed, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert halfbyte("pull", NAME, "--out", tmp_path / "empty").code == 0


def test_what_is_no_run(halfbyte, hub, run, tmp_path) -> None:
    halfbyte("push", tmp_path, NAME).refused("is not an artifact")
    halfbyte("push", tmp_path / "nothing", NAME).refused("nothing")
    for path in run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(_flip((run / "model.safetensors").read_bytes()))
    halfbyte("push", tmp_path, NAME).refused("model.safetensors is damaged")
    (tmp_path / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    metrics = json.loads((run / "metrics.json").read_text())
    for damaged in ({"model": 1}, {**metrics, "dataset": ["fashion_mnist"]}):
        (tmp_path / "metrics.json").write_text(json.dumps(damaged))
        halfbyte("push", tmp_path, NAME).refused("metrics.json is damaged")
    assert hub.asked == []


def test_a_missing_client_is_one_line(monkeypatch, run, tmp_path) -> None:
    monkeypatch.setattr("halfbyte.hub_client.importlib.util.find_spec", lambda name: None)
    for call in (lambda: hub_module.push(run, NAME), lambda: hub_module.pull(NAME, tmp_path / "out")):
        with pytest.raises(HalfbyteError, match=r"needs huggingface_hub; pip install 'halfbyte\[hub\]'"):
            call()

"""A small artifact, a copy of it to damage, and what must be true of the damaged copy."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from halfbyte import api
from halfbyte.artifact import load_artifact
from halfbyte.artifact_files import CONFIG, QUANTIZATION, TENSORS
from halfbyte.errors import HalfbyteError


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A small artifact of the embedded ResNet with 4-bit weights and activations."""
    folder = tmp_path_factory.mktemp("artifact") / "whole"
    api.quantize(
        model="fashion_resnet", recipe="percentile", w_bits=4, a_bits=4, calib_images=32, limit=4, workers=0, out=folder
    )
    return folder


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def logits_of(images) -> Callable[[Path], torch.Tensor]:
    """What the artifact in a folder says of `images`."""

    def run(folder: Path) -> torch.Tensor:
        with torch.no_grad():
            return api.load(folder)(images)

    return run


@pytest.fixture(scope="session")
def logits(whole, logits_of) -> torch.Tensor:
    return logits_of(whole)


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy to damage."""
    for name in (TENSORS, CONFIG, QUANTIZATION):
        shutil.copy(whole / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="session")
def told() -> Callable[[HalfbyteError], None]:
    """Asserts that an error is one line."""

    def check(error: HalfbyteError) -> None:
        assert "\n" not in str(error)

    return check


@pytest.fixture
def refused(folder, told) -> Callable[..., None]:
    """Asserts that the copy is refused with one line that holds its folder and `parts`."""

    def check(*parts: str) -> None:
        with pytest.raises(HalfbyteError) as caught:
            load_artifact(folder)
        told(caught.value)
        message = str(caught.value)
        assert str(folder) in message
        for part in parts:
            assert part in message

    return check


@pytest.fixture
def forge(folder, write_json) -> Callable[..., None]:
    """Edits tensors, facts and configuration of the copy in place, and makes its checksums right again."""

    def edit(change: Callable[[dict, dict, dict], Any], *, blob: bytes | None = None) -> None:
        tensors = load((folder / TENSORS).read_bytes())
        facts, config = (json.loads((folder / name).read_bytes()) for name in (QUANTIZATION, CONFIG))
        change(tensors, facts, config)
        blob = save(tensors) if blob is None else blob
        (folder / TENSORS).write_bytes(blob)
        if "tensors_sha256" in facts:
            facts["tensors_sha256"] = hashlib.sha256(blob).hexdigest()
        write_json(facts, config)

    return edit


@pytest.fixture
def write_json(folder) -> Callable[[Any, Any], None]:
    """Writes facts and configuration of the copy, with the checksum that fits them."""

    def write(facts: Any, config: Any) -> None:
        if isinstance(facts, dict):
            said = [{key: value for key, value in facts.items() if key != "facts_sha256"}, config]
            facts = {**facts, "facts_sha256": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}
        (folder / QUANTIZATION).write_text(json.dumps(facts))
        (folder / CONFIG).write_text(json.dumps(config))

    return write

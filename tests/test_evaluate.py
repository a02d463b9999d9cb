import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import halfbyte
from halfbyte.data.images import EMBEDDED_TEST, limit, open_images
from halfbyte.evaluate import Loop, evaluate, metrics
from halfbyte.models.load import load_model


def test_metrics_by_hand() -> None:
    logits = torch.tensor(
        [[5.0, 1, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6], [1, 0, 0, 0, 0, 0, 0], [0, 3, 1, 1, 1, 1, 1]]
    )
    labels = torch.tensor([0, 1, 3, 1])
    found = metrics(logits, labels)
    assert (found.images, found.top1, found.top5) == (4, 50.0, 75.0)
    assert (found.agreement, found.kl) == (None, None)
    same = metrics(logits, labels, logits)
    assert (same.agreement, same.kl) == (100.0, 0.0)
    other = logits.clone()
    other[0] = torch.tensor([1.0, 5, 0, 0, 0, 0, 0])
    found = metrics(other, labels, logits)
    p, q = np.exp(logits.double().numpy()), np.exp(other.double().numpy())
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    assert found.agreement == 75.0
    assert found.kl == pytest.approx(float((p * np.log(p / q)).sum(1).mean()))


def test_the_embedded_float_model_has_the_accuracy_on_its_card() -> None:
    loaded = load_model("fashion_resnet")
    images = open_images(EMBEDDED_TEST, loaded.data_config, num_classes=10)
    card = json.loads((Path(halfbyte.__file__).parent / "assets" / "fashion_resnet.json").read_text())
    found, logits = evaluate(loaded.model, images, Loop(batch_size=250))
    assert logits.shape == (2000, 10)
    # The embedded images are 2,000 of the 10,000 on the card.
    assert abs(found.top1 - card["test_top1"]) < 2.0


def test_a_limit_takes_images_of_every_class() -> None:
    loaded = load_model("fashion_resnet")
    images = limit(open_images(EMBEDDED_TEST, loaded.data_config, num_classes=10), 50)
    assert sorted(set(images.labels)) == list(range(10))


def test_sharded_evaluation_gives_the_metrics_of_one_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    halfbyte.quantize(
        model="fashion_resnet", recipe="repq", w_bits=4, a_bits=4, out=run, limit=20, workers=0, calib_images=32
    )
    arguments = ["eval", str(run), "--limit", "53", "--batch-size", "16", "--workers", "0", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    single, sharded = tmp_path / "single.json", tmp_path / "sharded.json"
    subprocess.run([sys.executable, "-m", "halfbyte", *arguments, str(single)], check=True, env=environment)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "halfbyte",
    ]
    printed = subprocess.run([*torchrun, *arguments, str(sharded)], check=True, env=environment, capture_output=True)
    one, two = json.loads(single.read_text()), json.loads(sharded.read_text())
    assert one["quantized"] == two["quantized"]
    assert one["images"]["evaluation"] == two["images"]["evaluation"] == 53
    assert one["quantized"]["agreement"] is not None
    assert printed.stdout.decode().count("fashion_resnet") == 1

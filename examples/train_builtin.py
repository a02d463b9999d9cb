"""Train one of the embedded models on the whole of Fashion-MNIST (Debian's package dataset-fashion-mnist).

    python examples/train_builtin.py fashion_vit --epochs 8

writes src/halfbyte/assets/fashion_vit.safetensors (float16) and its model card; `--images` writes the embedded
calibration and test images instead.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from halfbyte.models.builtin import BUILTIN_MODELS, create_builtin

DATASET = Path("/usr/share/datasets/fashion-mnist")
BATCH = 64
ASSETS = Path(__file__).parent.parent / "src/halfbyte/assets"


def read_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `uint8 [N, 28, 28]` and labels `uint8 [N]` of `train` or `t10k`, from the IDX files."""
    with gzip.open(DATASET / f"{split}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(DATASET / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return images, labels


def as_input(images: np.ndarray, model: nn.Module) -> torch.Tensor:
    config = model.pretrained_cfg
    pixels = torch.from_numpy(images.copy()).float().div_(255)[:, None]
    return (pixels - config["mean"][0]) / config["std"][0]


def flip_half(batch: torch.Tensor) -> torch.Tensor:
    """Mirror each image left to right with probability one half."""
    mirrored = torch.rand(len(batch)) < 0.5
    return torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal by five Newton-Schulz steps (Jordan et al. 2024), for matrices.

    torch.optim.Muon does the same in bfloat16, which a CPU without bfloat16 arithmetic runs many times slower. The
    update is scaled to the size that AdamW's would have (Moonlight), so that both take the same learning rate.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - group["momentum"])
                update = self._orthogonal(matrix.grad.lerp(momentum, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.sub_(update, alpha=group["lr"] * 0.2 * max(matrix.shape) ** 0.5)

    def _orthogonal(self, matrix: torch.Tensor) -> torch.Tensor:
        a, b, c = self.COEFFICIENTS
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        wide = wide / (wide.norm() + 1e-7)
        for _ in range(5):
            gram = wide @ wide.T
            wide = a * wide + (b * gram + c * gram @ gram) @ wide
        return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformer blocks, AdamW for everything else."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks" in name and "table" not in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=rate, weight_decay=0.05)]
    return [*found, Muon(matrices, rate, 0.05)] if matrices else found


@torch.no_grad()
def top1(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(250), labels.split(250), strict=True))
    return 100.0 * hits / len(labels)


def train(name: str, epochs: int, seed: int, rate: float) -> dict[str, object]:
    torch.manual_seed(seed)
    model = create_builtin(name)
    (train_images, train_labels), (test_images, test_labels) = read_split("train"), read_split("t10k")
    x, y = as_input(train_images, model), torch.from_numpy(train_labels.astype(np.int64))
    steps = epochs * (len(y) // BATCH)
    chosen = optimizers(model, rate)
    schedules = [OneCycleLR(each, rate, total_steps=steps, pct_start=0.15, cycle_momentum=False) for each in chosen]
    start = time.time()
    for epoch in range(epochs):
        model.train()
        order, total = torch.randperm(len(y)), 0.0
        for i in range(len(y) // BATCH):
            index = order[i * BATCH : (i + 1) * BATCH]
            loss = F.cross_entropy(model(flip_half(x[index])), y[index], label_smoothing=0.05)
            model.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for each in chosen:
                each.step()
            for schedule in schedules:
                schedule.step()
            total += loss.item()
        print(f"{name} epoch {epoch + 1}/{epochs} loss {total / i:.4f} {time.time() - start:.0f} s", flush=True)
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    accuracy = top1(model, as_input(test_images, model), torch.from_numpy(test_labels.astype(np.int64)))
    print(f"{name}: test top-1 {accuracy:.2f} %", flush=True)
    save_file({key: value.contiguous() for key, value in state.items()}, ASSETS / f"{name}.safetensors")
    return {
        "model": name,
        "data": "Fashion-MNIST (MIT licence), all 60,000 training images",
        "command": f"python examples/train_builtin.py {name} --epochs {epochs} --seed {seed} --rate {rate}",
        "epochs": epochs,
        "seed": seed,
        "test_images": len(test_labels),
        "test_top1": round(accuracy, 2),
        "parameters": sum(p.numel() for p in model.parameters()),
        "stored_as": "float16",
    }


def write_images(seed: int) -> None:
    """1,024 training images for calibration and 2,000 test images, the same number of every class but for rounding."""
    generator = np.random.default_rng(seed)
    for split, count, target in (("train", 1024, "calibration"), ("t10k", 2000, "test")):
        images, labels = read_split(split)
        shuffled = generator.permutation(len(labels))
        rank = np.empty(len(labels), int)
        for label in range(10):
            members = shuffled[labels[shuffled] == label]
            rank[members] = np.arange(len(members))
        chosen = shuffled[np.argsort(rank[shuffled], kind="stable")][:count]
        np.savez_compressed(ASSETS / f"fashion_{target}.npz", x=images[chosen], y=labels[chosen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=BUILTIN_MODELS)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--images", action="store_true", help="write the embedded images")
    arguments = parser.parse_args()
    ASSETS.mkdir(exist_ok=True)
    if arguments.images:
        write_images(arguments.seed)
    if arguments.model:
        card = train(arguments.model, arguments.epochs, arguments.seed, arguments.rate)
        (ASSETS / f"{arguments.model}.json").write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()

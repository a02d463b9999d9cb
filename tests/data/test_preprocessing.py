"""Preparing an image without torch gives the very bits that timm's transform gives."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from halfbyte.data.preprocessing import CROP_MODES, INTERPOLATIONS, Preprocessing
from halfbyte.errors import HalfbyteError

GREY = {"mean": (0.286,), "std": (0.353,)}
COLOUR = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def picture(width: int, height: int, channels: int) -> Image.Image:
    shape = (height, width) if channels == 1 else (height, width, 3)
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, shape, np.uint8))


@example(1, (21, 22), (32, 32), 1.0, "border", "nearest")  # one column short: half of it is none
@settings(max_examples=150, deadline=None)
@given(
    channels=st.sampled_from((1, 3)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    wanted=st.sampled_from(((32, 32), (28, 28), (24, 40), (33, 17))),
    crop_pct=st.sampled_from((1.0, 0.875, 0.9, 0.985, 0.51, 0.05)),
    crop_mode=st.sampled_from(CROP_MODES),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
def test_the_tensor_is_timm_s_to_the_bit(channels, size, wanted, crop_pct, crop_mode, interpolation) -> None:
    config = {
        "input_size": (channels, *wanted), "interpolation": interpolation, "crop_pct": crop_pct,
        "crop_mode": crop_mode, **(GREY if channels == 1 else COLOUR),
    }  # fmt: skip
    image = picture(*size, channels)
    ours = Preprocessing.of(config)
    if min(ours.resized(*image.size)) < 1:
        with pytest.raises(ValueError, match="must be > 0"):
            create_transform(**config, is_training=False)(image)
        return
    expected = create_transform(**config, is_training=False)(image).numpy()
    found = ours(image)
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "wrong",
    [
        {"std": (0.0,)},
        {"std": (0.1, 0.1)},
        {"crop_mode": "corner"},
        {"crop_pct": 0.0},
        {"crop_pct": 0.01},
        {"interpolation": "random"},
        {"input_size": (3, 28, 28)},
        {"input_size": (1, 28)},
    ],
)
def test_what_prepares_no_image_is_refused(wrong) -> None:
    right = {"input_size": (1, 28, 28), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center", **GREY}
    Preprocessing.of(right)
    with pytest.raises(HalfbyteError):
        Preprocessing.of(right | wrong)


def test_it_needs_no_torch() -> None:
    program = "import halfbyte.data.preprocessing, halfbyte.data.decode, sys; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert not {name.partition(".")[0] for name in printed.split()} & {"torch", "timm", "torchvision"}

"""Numbers and names on the command line that are out of range, misspelt or not there."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.usefixtures("no_folder_left")


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


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--engine", "natife"), ("--engine", "natife", "native")),
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

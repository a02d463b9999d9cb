"""What the commands print when all is well."""

import json
import sys
from pathlib import Path

import pytest

from halfbyte.__main__ import main
from halfbyte.recipe import builtin_recipes, parse_recipe


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["halfbyte", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


def test_a_model_is_quantized_inspected_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, facts = str(tmp_path / "run"), tmp_path / "facts.json"
    small = ("--calib-images", "32", "--workers", "0")
    run(monkeypatch, "quantize", "fashion_resnet", "--limit", "50", *small, "--out", out, "--json", str(facts))
    printed = capsys.readouterr().out
    metrics = json.loads(facts.read_text())
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"{metrics['quantized']['top1']:.2f}" in printed
    assert "fashion_resnet, halfbyte-fast, W4A4" in printed

    run(monkeypatch, "eval", out, "--limit", "50", "--json", str(facts))
    evaluated = json.loads(facts.read_text())
    assert evaluated["quantized"] == pytest.approx(metrics["quantized"])
    assert evaluated["engine"] == "torch"
    assert "50" in capsys.readouterr().out

    # ONNX Runtime rounds what is float in its own way.
    for engine, near in (("interpreter", {}), ("onnx", {"abs": 4})):
        run(monkeypatch, "eval", out, "--limit", "50", "--engine", engine, "--json", str(facts))
        found = json.loads(facts.read_text())
        assert found["engine"] == engine
        assert found["quantized"] == pytest.approx(evaluated["quantized"], **near)
    capsys.readouterr()

    run(monkeypatch, "inspect", out, "--json", str(facts))
    printed = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads(facts.read_text())["sites"]}
    assert rows["conv1"]["weight"] == "8 per_channel"
    assert rows["layer1.0.conv1"]["weight"] == "4 per_channel"
    assert rows["layer1.0.conv1"]["bytes"] == 32 * 64 * 3 * 3 // 2
    assert "layer1.0.conv1" in printed
    assert "100.00 %" in printed


def test_a_float_model_is_inspected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "inspect", "swinv2_tiny_window8_256")
    printed = capsys.readouterr().out
    assert "in float: aten.bmm" in printed


def test_recipes_are_listed_and_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "recipes")
    printed = capsys.readouterr().out
    assert all(name in printed for name in builtin_recipes())
    run(monkeypatch, "recipes", "repq")
    assert parse_recipe(capsys.readouterr().out, "printed").name == "repq"

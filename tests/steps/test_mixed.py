"""Mixed precision: the budget is kept in bits and in bytes, and what suffers most gets most."""

from __future__ import annotations

import pytest
import torch
import yaml

from halfbyte import api
from halfbyte.errors import HalfbyteError
from halfbyte.inputs import Options, resolved_recipe
from halfbyte.prepare import model_state
from halfbyte.session import Session
from halfbyte.steps.mixed import Mixed

RECIPE = "name: m\nbits: {{weight: 3, activation: 3{sites}}}\nsteps: [{mixed}percentile: {{images: 16}}]\n"


@pytest.fixture
def run(tmp_path):
    def quantize(mixed, name, model="fashion_vit", sites="", images=8, **options):
        path = tmp_path / "r.yaml"
        path.write_text(RECIPE.format(mixed=f"mixed: {{images: {images}, {mixed}}}, " if mixed else "", sites=sites))
        return api.quantize(
            **{"model": model, "recipe": path, "out": tmp_path / name, "calib_images": 16, "limit": 1000, "workers": 0,
               **options}
        )  # fmt: skip

    return quantize


def averages(metrics):
    """The sites that are not stem or head, and their widths by name."""
    rows = [site for site in metrics["sites"] if site["role"] not in ("stem", "head")]
    return rows, {site["name"]: site["bits"] for site in rows}


@pytest.mark.parametrize(
    "model",
    [*(pytest.param(f"fashion_{name}", marks=pytest.mark.slow) for name in ("vit", "swin")), "fashion_resnet"],
)
def test_it_beats_one_width_for_all_at_equal_bytes(model, run):
    mixed = run("budget: 3.0bits", "mixed", model, images=32, calib_images=32)
    plain = run("", "plain", model)
    assert mixed.metrics["bytes"]["artifact"] <= plain.metrics["bytes"]["artifact"] * 1.002
    assert mixed.metrics["quantized"]["kl"] < 0.7 * plain.metrics["quantized"]["kl"]
    assert mixed.metrics["quantized"]["top1"] > plain.metrics["quantized"]["top1"]
    rows, _ = averages(mixed.metrics)
    assert {row["bits"]["activation"] for row in rows} - {3}
    # Stem and head keep what their roles say.
    ends = [site["bits"] for site in mixed.metrics["sites"] if site["role"] in ("stem", "head")]
    assert all(end == {"weight": 8, "activation": 8} for end in ends)


@pytest.mark.slow
def test_what_was_tried_tells_it_too(run):
    mixed = run("budget: 3.0bits, sensitivity: measured, most: 4", "measured")
    plain = run("", "plain")
    assert mixed.metrics["bytes"]["artifact"] <= plain.metrics["bytes"]["artifact"] * 1.002
    assert mixed.metrics["quantized"]["kl"] < 0.7 * plain.metrics["quantized"]["kl"]


def test_the_least_that_is_possible_is_possible(run):
    result = run("budget: 2.0bits, most: 3", "least", limit=4)
    rows, _ = averages(result.metrics)
    assert all(row["bits"]["weight"] in (2, None) for row in rows)
    assert result.metrics["budget"] == "2.0bits"


def test_megabytes_are_kept_by_the_file(run):
    for amount in (0.3, 0.5):
        result = run(f"budget: {amount}MB", f"mb{amount}", limit=4)
        size = result.metrics["bytes"]["artifact"]
        assert 0.85e6 * amount < size <= 1e6 * amount
        # Activations stay as planned.
        assert {site["bits"]["activation"] for site in averages(result.metrics)[0]} == {3}


def test_saved_loaded_and_continued(run, tmp_path):
    result = run("budget: 3.5bits", "m", limit=100)
    images = torch.randn(4, 1, 28, 28)
    with torch.no_grad(), model_state(result.model, "quantized"):
        expected = result.model(images)
    with torch.inference_mode():
        assert torch.equal(api.load(result.folder)(images), expected)
    (tmp_path / "more.yaml").write_text("name: more\nsteps: [refit: {images: 16}]\n")
    more = api.quantize(start=result.folder, recipe=tmp_path / "more.yaml", out=tmp_path / "more", calib_images=16,
                        limit=100, workers=0)  # fmt: skip
    assert [site["bits"] for site in more.metrics["sites"]] == [site["bits"] for site in result.metrics["sites"]]
    # The recipe in the folder is what was asked for; it can be run again.
    written = yaml.safe_load((result.folder / "recipe.yaml").read_text())
    assert "sites" not in written["bits"]


def test_a_stopped_run_goes_on_with_the_chosen_widths(run, tmp_path, monkeypatch):
    run("budget: 3.0bits", "whole", limit=4)
    save = Session._save

    def save_and_stop(session):
        save(session)
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "_save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run("budget: 3.0bits", "parts", limit=4)
    monkeypatch.setattr(Session, "_save", save)
    run("budget: 3.0bits", "parts", limit=4, resume=True)
    for name in ("model.safetensors", "quantization.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_names_that_the_recipe_fixes_stay(run):
    result = run("budget: 2.5bits", "fixed", sites=", sites: {blocks.0.*: 6}", limit=4)
    rows, bits = averages(result.metrics)
    assert all(bits[row["name"]]["activation"] == 6 for row in rows if row["name"].startswith("blocks.0."))


@pytest.mark.parametrize(
    ("mixed", "told"),
    [
        ("budget: 1.5bits", "budget must be at least 2bits, the least width there is, not 1.5bits"),
        ("budget: 0.05MB", "0.05MB is too little"),
        ("budget: 4", "mixed.budget must be of type str, not 4"),
        ("budget: four bits", "budget must be like 4.0bits or 3.2MB"),
        ("sensitivity: guessed", "sensitivity must be one of curvature, measured"),
        ("least: 1", "least and most must be from 2 to 8"),
        ("least: 5, most: 4", "in this order"),
    ],
)
def test_wrong_budgets_are_told(mixed, told, run, tmp_path):
    with pytest.raises(HalfbyteError, match=told):
        run(mixed, "wrong", limit=4)


def test_a_model_whose_widths_are_all_fixed_is_told(run):
    with pytest.raises(HalfbyteError, match="fix the widths of all sites"):
        run("budget: 4.0bits", "none", sites=', sites: {"*": 4}', limit=4)


def test_a_budget_on_the_command_line(tmp_path):
    asked = Options(recipe="repq", budget="3.2MB")
    assert [call.name for call in resolved_recipe(asked).steps] == ["mixed", "repq"]
    assert resolved_recipe(asked).steps[0].parameters["budget"] == "3.2MB"
    (tmp_path / "r.yaml").write_text("name: r\nsteps: [rotate, mixed: {images: 8}, repq]\n")
    own = resolved_recipe(Options(recipe=tmp_path / "r.yaml", budget="3.5bits"))
    assert [call.name for call in own.steps] == ["rotate", "mixed", "repq"]
    assert (own.steps[1].parameters["budget"], own.steps[1].parameters["images"]) == ("3.5bits", 8)
    (tmp_path / "r.yaml").write_text("name: r\nsteps: [refit: {images: 8}]\n")
    with pytest.raises(HalfbyteError, match=r"--budget 4.0bits: .* does not calibrate"):
        resolved_recipe(Options(recipe=tmp_path / "r.yaml", budget="4.0bits"))
    with pytest.raises(HalfbyteError, match="budget must be like"):
        resolved_recipe(Options(recipe="repq", budget="small"))


def test_the_default_is_four_bits():
    assert Mixed().budget == "4.0bits"

from pathlib import Path

import pytest

import halfbyte
from halfbyte.errors import HalfbyteError
from halfbyte.recipe import Bits, builtin_recipes, load_recipe, parse_recipe
from halfbyte.steps.catalog import resolve, with_defaults

GOOD = """
name: mine
bits: {weight: 4, activation: 3, roles: {head: {weight: 6}}, sites: {"blocks.0.*": 5}}
paper_exact: true
steps:
  - repq: {images: 16}
  - percentile
"""


def test_a_recipe_survives_being_written() -> None:
    recipe = with_defaults(parse_recipe(GOOD, "good.yaml"))
    assert parse_recipe(recipe.as_yaml(), "again").as_dict() == recipe.as_dict()
    assert recipe.bits.roles == {"stem": Bits(8, 8), "head": Bits(6, None), "side": Bits(8, 8)}
    assert recipe.bits.sites == {"blocks.0.*": Bits(5, 5)}
    assert dict(recipe.steps[0].parameters) == {"images": 16, "percentiles": [0.999, 0.9999, 0.99999]}


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_recipe_of_the_package_resolves(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert resolve(recipe)


def test_bits_and_parameters_are_overridden() -> None:
    recipe = load_recipe("repq").with_bits(6, 3).with_parameter("repq.images=8")
    assert (recipe.bits.weight, recipe.bits.activation) == (6, 3)
    assert recipe.steps[0].parameters == {"images": 8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nsteps: [repq]\nfewer_images: 1", "fewer_images must be true or false, not 1"),
        ("name: x\nsteps: [repq]\nif_possible: [rotate]", "if_possible must list steps of the recipe, not"),
        ("name: x\nsteps: [repq]\nif_possible: repq", "if_possible must list steps of the recipe, not 'repq'"),
        ("name: x\nstep: []", r"unknown key 'step'; did you mean steps"),
        ("steps: [repq]", r"'name' is missing"),
        ("name: x", r"'steps' is missing"),
        ("name: 3\nsteps: [repq]", "name must be a text"),
        ("name: x\nsteps: repq", "steps must be a list"),
        ("name: x\nsteps: []", "at least one step"),
        ("name: x\nsteps: [3]", "a step is one name"),
        ("name: x\nsteps: [{a: {}, b: {}}]", "a step is one name"),
        ("name: x\nsteps: [{repq: 3}]", "parameters of repq"),
        ("name: x\npaper_exact: 1\nsteps: [repq]", "paper_exact must be true or false"),
        ("name: x\nbits: {weight: 9}\nsteps: [repq]", r"bits\.weight must be a whole number from 2 to 8, not 9"),
        ("name: x\nbits: {weigth: 4}\nsteps: [repq]", "unknown key 'weigth'; did you mean weight"),
        ("name: x\nbits: {roles: {haed: 4}}\nsteps: [repq]", "unknown key 'haed'; did you mean head"),
        ("name: x\nbits: {sites: {a: {w: 4}}}\nsteps: [repq]", "unknown key 'w'"),
        ("name: x\nbits: 4\nsteps: [repq]", "expected keys and values"),
        ("name: x\nname: y\nsteps: [repq]", "'name' is given twice"),
        ("name: [\nsteps", "not valid YAML"),
        ("name: !!python/object:os.system x\nsteps: [repq]", "not valid YAML"),
        ("- a", "expected keys and values"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(HalfbyteError, match=message) as caught:
        parse_recipe(text, "mine.yaml")
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("rebq", "unknown step 'rebq'; did you mean repq"),
        ("{repq: {image: 3}}", "repq has no parameter 'image'; did you mean images"),
        ("{repq: {images: many}}", "repq.images must be of type int, not 'many'"),
        ("{repq: {images: true}}", "repq.images must be of type int"),
        ("{repq: {images: 0}}", "images must be at least 1"),
        ("{repq: {percentiles: [0.3]}}", "percentiles must lie above 0.5"),
        ("{repq: {percentiles: [a]}}", "percentiles must be of type float"),
    ],
)
def test_mistakes_in_steps_are_named(step: str, message: str) -> None:
    with pytest.raises(HalfbyteError, match=message):
        resolve(parse_recipe(f"name: x\nsteps: [{step}]", "mine.yaml"))


@pytest.mark.parametrize("assignment", ["repq.images", "images=3", "=3", "repq.=3"])
def test_a_set_that_is_no_assignment(assignment: str) -> None:
    with pytest.raises(HalfbyteError, match=r"step\.key=value"):
        load_recipe("repq").with_parameter(assignment)


def test_a_set_for_a_step_that_is_not_there() -> None:
    with pytest.raises(HalfbyteError, match="no step 'repqq'; did you mean repq"):
        load_recipe("repq").with_parameter("repqq.images=3")


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(HalfbyteError, match="no recipe or file 'zzz'; `halfbyte recipes` lists"):
        load_recipe("zzz")
    with pytest.raises(HalfbyteError, match="is a folder; give a file"):
        load_recipe(Path(__file__).parent)
    with pytest.raises(HalfbyteError, match="no recipe or file 'repk'; did you mean repq"):
        load_recipe("repk")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(HalfbyteError, match="UTF-8"):
        load_recipe(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_text("#" * 2_000_000)
    with pytest.raises(HalfbyteError, match="larger than"):
        load_recipe(tmp_path / "large.yaml")


def test_a_recipe_may_take_the_images_that_there_are(tmp_path):
    text = "name: x\nfewer_images: {}\nsteps: [percentile: {{images: 64}}, refit: {{images: 512}}]\n"
    options = {"model": "fashion_resnet", "recipe": tmp_path / "r.yaml", "calib_images": 16, "limit": 4, "workers": 0}
    (tmp_path / "r.yaml").write_text(text.format("true"))
    result = halfbyte.quantize(out=tmp_path / "out", **options)
    written = load_recipe(result.folder / "recipe.yaml")
    assert [call.parameters["images"] for call in written.steps] == [16, 16]
    (tmp_path / "r.yaml").write_text(text.format("false"))
    with pytest.raises(HalfbyteError, match="percentile asks for 64 calibration images, the run has 16"):
        halfbyte.quantize(out=tmp_path / "none", **options)
    (tmp_path / "r.yaml").write_text(text.format("true").replace("512", "0"))
    with pytest.raises(HalfbyteError, match="images"):
        halfbyte.quantize(out=tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()

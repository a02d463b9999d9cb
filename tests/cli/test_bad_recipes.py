"""Recipe files that are wrong, hostile or no recipe at all, and names in them that look like paths."""

from __future__ import annotations

import shutil

import pytest

pytestmark = pytest.mark.usefixtures("no_folder_left")


def _nested_aliases() -> str:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join(["l0: &l0 [x, x, x, x]", *levels, "name: *l9", "steps: [percentile]"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: x\nstep: [percentile]", ("unknown key 'step'", "did you mean steps")),
        ("name: x", ("'steps' is missing",)),
        ("", ("keys and values",)),
        ("- percentile", ("keys and values",)),
        ("name: 3\nsteps: [percentile]", ("name must be a text", "3")),
        ("name: x\nsteps: percentile", ("steps must be a list",)),
        ("name: x\nsteps: []", ("steps must be a list",)),
        ("name: x\nsteps: [{percentile: 3}]", ("parameters of percentile", "3")),
        ("name: x\nsteps: [{percentile: {}, repq: {}}]", ("a step is one name",)),
        ("name: x\nsteps: [percentil]", ("unknown step 'percentil'", "did you mean percentile")),
        ("name: x\nsteps: [{percentile: {image: 3}}]", ("'image'", "did you mean images")),
        ("name: x\nsteps: [{percentile: {images: yes}}]", ("percentile.images", "type int", "True")),
        ("name: x\npaper_exact: 1\nsteps: [percentile]", ("paper_exact", "true or false")),
        ("name: x\nbits: 4\nsteps: [percentile]", ("bits", "keys and values")),
        ("name: x\nbits: {weight: 9}\nsteps: [percentile]", ("bits.weight", "2 to 8", "9")),
        ("name: x\nbits: {weight: 4.0}\nsteps: [percentile]", ("bits.weight", "2 to 8", "4.0")),
        ("name: x\nbits: {weights: 4}\nsteps: [percentile]", ("unknown key 'weights'", "did you mean weight")),
        ("name: x\nbits: {roles: {heads: 4}}\nsteps: [percentile]", ("unknown key 'heads'", "did you mean head")),
        ("name: x\nbits: {sites: [a]}\nsteps: [percentile]", ("bits.sites",)),
        ("name: x\nbits: {sites: {'blocks.*': 4}}\nsteps: [percentile]", ("'blocks.*'", "halfbyte inspect")),
        ("name: x\nname: y\nsteps: [percentile]", ("'name' is given twice",)),
        ("name: x\nsteps: [{percentile: {images: 3, images: 4}}]", ("'images' is given twice",)),
        ("name: x\n1: y\nsteps: [percentile]", ("key 1 is not a text",)),
        ("name: x\n? [a]\n: y\nsteps: [percentile]", ("not a text",)),
        (_nested_aliases(), ("aliases",)),
        ("name: &a [*a]\nsteps: [percentile]", ("aliases",)),
        ("name: !!python/object/apply:os.mkdir [ran]\nsteps: [percentile]", ("python/object",)),
        ("name: !!int x\nsteps: [percentile]", ("does not fit its type",)),
        ("name: !!bool x\nsteps: [percentile]", ("does not fit its type",)),
        ("name: !!timestamp x\nsteps: [percentile]", ("does not fit its type",)),
        ("name: 2001-99-99\nsteps: [percentile]", ("does not fit its type",)),
        ("!!map [a, b]", ("does not fit its type",)),
        ("name: x\nsteps: [{percentile: {images: 0x" + "f" * 9999 + "}}]", ("too long",)),
        ("name: x\nsteps: [{percentile: {images: 1" + "0" * 9999 + "}}]", ("too long",)),
        ("name: [" + "x, " * 9999 + "]\nsteps: [percentile]", ("name must be a text", "...")),
        ("[" * 3000, ("not valid YAML",)),
        ("name: x\x00y\nsteps: [percentile]", ("not valid YAML",)),
        ("name: x\n\tsteps: [percentile]", ("not valid YAML",)),
        ("name: 'x", ("not valid YAML",)),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, str) else "",
)
def test_a_wrong_recipe_file_is_told_with_its_name(refused, tmp_path, text, parts):
    (tmp_path / "mine.yaml").write_text(text)
    refused(str(tmp_path / "mine.yaml"), *parts, options=("--recipe", tmp_path / "mine.yaml"))


def test_a_recipe_that_is_no_text_is_told(refused, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff\xfe\nsteps: [percentile]")
    refused("mine.yaml", "UTF-8", options=("--recipe", tmp_path / "mine.yaml"))


def test_a_recipe_of_many_megabytes_is_not_read(refused, tmp_path):
    with (tmp_path / "mine.yaml").open("wb") as file:
        file.truncate(2**32)
    refused("mine.yaml", "not a recipe", options=("--recipe", tmp_path / "mine.yaml"))


def test_steps_that_do_not_fit_together_are_told(quantize, tmp_path):
    (tmp_path / "mine.yaml").write_text("name: x\nsteps: [{repq: {images: 2}}, {percentile: {images: 2}}]")
    outcome = quantize("--recipe", tmp_path / "mine.yaml", model="fashion_vit")
    outcome.refused("log_sqrt2", "blocks.0.attn.pv", "come first")


def test_names_with_brackets_and_slashes_are_only_names(halfbyte, tmp_path, no_folder_left):
    (tmp_path / "mine.yaml").write_text("name: '../../[/x]:smile:'\nsteps: [percentile]")
    outcome = halfbyte("quantize", "fashion_resnet", "--recipe", tmp_path / "mine.yaml", "--limit", 4, "--workers", 0)
    assert outcome.code == 0, outcome.err
    assert "[/x]:smile:" in outcome.out
    (folder,) = (tmp_path / "place" / "runs").iterdir()
    assert (folder / "metrics.json").is_file()
    assert folder.name == "fashion_resnet-.._.._x_smile_-w4a4"
    shutil.rmtree(folder.parent)

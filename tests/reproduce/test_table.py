"""The papers' tables as data: what comes with the package, and files of the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.errors import HalfbyteError
from halfbyte.inputs import Options, resolved_recipe
from halfbyte.models.names import PAPER_MODELS, resolve
from halfbyte.reproduce.table import builtin_tables, chosen_rows, load_table, load_tables

GOOD = """
title: Ours
source: a paper
measured: 50,000 images
recipes: [repq, own.yaml]
settings: [repq.images=16]
note: of all rows
models:
  vit: {checkpoint: fashion_vit, top1: 91.2, crop_pct: 0.9, note: of the model}
rows:
  - {model: vit, bits: w4a8, top1: 90}
  - {model: vit, bits: w3a3, top1: 80.5, recipes: [minmax], settings: null, note: null, source: another}
"""


@pytest.fixture
def table(tmp_path):
    """Reads a text as a table in a file."""
    (tmp_path / "own.yaml").write_text("name: own\nsteps: [repq]")

    def read(text: str):
        (tmp_path / "mine.yaml").write_text(text)
        return load_table(tmp_path / "mine.yaml")

    return read


def test_rows_take_what_they_lack_from_their_table(table, tmp_path):
    read = table(GOOD)
    assert (read.name, read.title) == ("mine", "Ours")
    first, second, third = read.rows
    assert [row.name for row in read.rows] == ["vit-repq-w4a8", "vit-own-w4a8", "vit-minmax-w3a3"]
    assert (first.recipe, second.recipe) == ("repq", str(tmp_path / "own.yaml"))
    assert (first.source, first.settings, first.notes) == (
        "a paper",
        ("repq.images=16",),
        ["of the model", "of all rows"],
    )
    assert (third.source, third.settings, third.notes) == ("another", (), ["of the model"])
    assert (third.top1, third.model.top1, third.model.crop_pct) == (80.5, 91.2, 0.9)
    assert (first.weight_bits, first.activation_bits) == (4, 8)


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("title: Ours", "titel: Ours", r"mine\.yaml: unknown key 'titel'; did you mean title"),
        ("title: Ours", "title: 3", r"mine\.yaml\.title must be a text, not 3"),
        ("title: Ours", "", "'title' is missing"),
        ("source: a paper", "", r"rows\[0\]: the key 'source' is missing"),
        ("recipes: [repq, own.yaml]", "recipes: repq", r"rows\[0\]\.recipes must be a list of texts"),
        ("[repq, own.yaml]", "[reqp]", r"rows\[0\]: no recipe or file 'reqp'; did you mean repq"),
        ("[repq, own.yaml]", "[gone.yaml]", "no recipe or file 'gone.yaml'"),
        ("[repq, own.yaml]", "[repq, repq]", "the row vit-repq-w4a8 is given twice"),
        ("repq.images=16", "repq.images", r"settings are such as step\.key=value, not 'repq.images'"),
        ("checkpoint: fashion_vit", "chekpoint: fashion_vit", r"models\.vit: unknown key 'chekpoint'; did you mean ch"),
        ("checkpoint: fashion_vit, ", "", r"models\.vit: the key 'checkpoint' is missing"),
        ("top1: 91.2", "top1: yes", r"models\.vit\.top1 must be a percentage from 0 to 100, not True"),
        ("top1: 91.2", "top1: 912", "must be a percentage from 0 to 100, not 912"),
        ("crop_pct: 0.9", "crop_pct: 90", r"crop_pct must be above 0 and at most 1, not 90"),
        ("  vit:", "  ../vit:", "a name has letters"),
        ("{model: vit, bits: w4a8", "{model: vti, bits: w4a8", r"rows\[0\]: unknown model 'vti'; did you mean vit"),
        ("w4a8", "w4a9", r"rows\[0\]\.bits must be such as w4a8, each from 2 to 8, not 'w4a9'"),
        ("bits: w4a8", "bit: w4a8", r"rows\[0\]: unknown key 'bit'; did you mean bits"),
        ("top1: 90}", "top1: nan}", "must be a percentage"),
        ("top1: 90}", "top1: 90, long: a week, bounded_by: null}", r"rows\[0\]: long needs bounded_by"),
        ("top1: 90}", "top1: .nan}", "must be a percentage"),
    ],
)  # fmt: skip
def test_mistakes_are_named(table, good, bad, message):
    assert good in GOOD
    with pytest.raises(HalfbyteError, match=message):
        table(GOOD.replace(good, bad, 1))


@pytest.mark.parametrize(
    "text", ["", "- a", "title: [", "title: x\nmodels: 3\nrows: []", "title: x\nmodels: {}\nrows: []"]
)
def test_what_is_no_table_is_refused(table, text):
    with pytest.raises(HalfbyteError, match=r"mine\.yaml"):
        table(text)


def test_an_unknown_table_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(HalfbyteError, match="no table or file 'adalgo'; did you mean adalog"):
        load_table("adalgo")
    (tmp_path / "repq.yaml").write_text(GOOD.replace(", own.yaml", ""))
    with pytest.raises(HalfbyteError, match="two tables are called repq"):
        load_tables(["repq", tmp_path / "repq.yaml"])


def test_rows_are_chosen_by_patterns():
    tables = load_tables([])
    assert [table.name for table in tables] == list(builtin_tables())
    everything = chosen_rows(tables, ())
    assert len(everything) == sum(len(table.rows) for table in tables)
    assert [row.name for row in chosen_rows(tables, ("repq/deit_tiny*",))] == [
        "deit_tiny-repq-paper-w4a4", "deit_tiny-repq-w4a4", "deit_tiny-repq-paper-w6a6", "deit_tiny-repq-w6a6",
    ]  # fmt: skip
    with pytest.raises(HalfbyteError, match=r"--rows 'resnet19'.*--list"):
        chosen_rows(tables, ("resnet18*", "resnet19"))


@pytest.mark.parametrize("name", builtin_tables())
def test_the_rows_of_the_package_can_be_run(name):
    for row in load_table(name).rows:
        recipe = resolved_recipe(
            Options(row.model.checkpoint, recipe=row.recipe, w_bits=row.weight_bits, a_bits=row.activation_bits,
                    settings=row.settings)
        )  # fmt: skip
        assert recipe.name == Path(row.recipe).stem
        known = resolve(row.model.checkpoint)
        assert known.full == row.model.checkpoint
        if (paper := PAPER_MODELS.get(row.model.name)) is not None:
            assert paper.timm_name == row.model.checkpoint
            # VVTQ starts from float weights of its own; where tables round, they do so to a tenth.
            assert name == "vvtq" or row.model.top1 == pytest.approx(paper.top1, abs=0.06)
            # A quantized model above its float model by more than a rounding was trained.
            assert name == "vvtq" or row.top1 <= row.model.top1 + 0.3


@pytest.mark.parametrize(
    ("table", "row", "top1"),
    [
        ("repq", "deit_tiny-repq-w4a4", 57.43),
        ("repq", "swin_small-repq-paper-w6a6", 82.79),
        ("adalog", "vit_base-adalog-w3a3", 37.91),
        ("adalog", "swin_base-adalog-paper-w6a6", 85.09),
        ("adalog-retrain", "deit_small-adalog-optimize-w4a4", 76.36),
        ("qwt", "deit_small_distilled-qwt-w4a4", 76.2),
        ("qwt", "vit_base-repq-ends-paper-w6a6", 83.6),
        ("qwt", "resnet18-percentile-qwt-paper-w4a8", 68.9),
        ("percentile", "resnet50-percentile-paper-w3a3", 21.4),
        ("qla", "swin_tiny-qla-paper-w4a4", 78.8),
        ("qla", "resnet50-percentile-qla-paper-w5a5", 74.6),
        ("vvtq", "sret_t-vvtq-w2a2", 67.53),
        ("brecq", "resnet18-brecq-folded-w2a4", 65.21),
    ],
)
def test_figures_are_those_that_were_published(table, row, top1):
    assert chosen_rows([load_table(table)], (row,))[0].top1 == top1

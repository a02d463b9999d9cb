"""The pages speak of what there is: commands, options, steps, parameters, recipes, kinds of operations."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

import halfbyte
from halfbyte.cli import app
from halfbyte.program.kinds import KINDS
from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.kinds import KINDS as QUANTIZERS
from halfbyte.recipe import builtin_recipes, load_recipe
from halfbyte.steps.catalog import STEPS, resolve

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {str(page.relative_to(DOCS)): page.read_text() for page in sorted(DOCS.rglob("*.md"))}
README = (DOCS.parent / "README.md").read_text()
SPANS = re.compile(r"`([^`\n]+)`")
COMMANDS = typer.main.get_command(app).commands


def commands(text: str) -> list[list[str]]:
    """The `halfbyte` commands of the blocks of shell lines, and of spans of code."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += SPANS.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = []
    for line in lines:
        words = shlex.split(line.split("#")[0]) if "'" not in line else line.split()
        if words[:1] == ["halfbyte"] and len(words) > 1 and words[1].isidentifier():
            found.append(words[1:])
        elif "halfbyte" in words[1:] and "-m" in words:
            found.append(words[words.index("halfbyte") + 1 :])
    return found


@pytest.mark.parametrize("page", [*PAGES, "README"])
def test_commands_and_their_options_exist(page: str) -> None:
    for verb, *words in commands(README if page == "README" else PAGES[page]):
        assert verb in COMMANDS, verb
        known = {option for parameter in COMMANDS[verb].params for option in parameter.opts}
        for word in words:
            if word.startswith("--") and word != "--help":
                assert word in known, f"halfbyte {verb} {word}"


def test_counterparts_of_published_options_exist() -> None:
    known = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    seen = 0
    for line in PAGES["published/options.md"].splitlines():
        if line.startswith("| "):
            for option in re.findall(r"(?<!\S)--[a-z][\w-]*", " ".join(SPANS.findall(line.split("|")[-2]))):
                assert option in known, line
                seen += 1
    assert seen > 80


@pytest.mark.parametrize("page", PAGES)
def test_inserted_examples_exist(page: str) -> None:
    # Formatters of code in Markdown take the mark of an insertion for arithmetic.
    marks = [line for line in PAGES[page].splitlines() if re.match(r"\s*-+ ?8", line)]
    for mark in marks:
        found = re.fullmatch(r'--8<-- "([\w./]+?)(?::(\w+))?"', mark)
        assert found, mark
        text = (DOCS.parent / found[1]).read_text()
        assert found[2] is None or f"--8<-- [start:{found[2]}]" in text, mark


@pytest.mark.parametrize("page", PAGES)
def test_parameters_of_steps_exist(page: str) -> None:
    for span in SPANS.findall(PAGES[page]):
        for step, key in re.findall(r"(?<![\w/.])(\w+)\.([a-z_]+)\b(?!\(|\.)", span):
            if step in STEPS and key not in ("py", "md", "yaml"):
                assert key in {field.name for field in dataclasses.fields(STEPS.get(step))}, f"{page}: {span}"


def test_everything_public_is_in_the_reference() -> None:
    named = re.findall(r"^::: halfbyte[\w.]*\.(\w+)$", PAGES["api/index.md"], re.MULTILINE)
    assert set(halfbyte.__all__) <= set(named)


def test_every_step_has_its_parameters_and_a_method() -> None:
    reference = PAGES["api/steps.md"]
    methods = "".join(text for page, text in PAGES.items() if page.startswith("methods/"))
    for name in STEPS:
        kind = STEPS.get(name)
        assert f"::: {kind.__module__}.{kind.__name__}\n    options: {{heading: {name}," in reference, name
        assert f"`{name}`" in methods, name
        assert f"steps.md#{kind.__module__}.{kind.__name__})" in methods, name


def test_every_recipe_is_explained() -> None:
    methods = "".join(text for page, text in PAGES.items() if page.startswith("methods/"))
    for name in builtin_recipes():
        assert name in methods, name


def test_recipes_and_widths_in_the_pages_are_valid(tmp_path: Path) -> None:
    whole = re.compile(r"```yaml\n(name: .*?)```", re.DOTALL)
    spans = [span for text in PAGES.values() for span in SPANS.findall(text) if span.startswith("bits: {")]
    blocks = re.findall(r"```yaml\n(bits:.*?)```", "".join(PAGES.values()), re.DOTALL)
    recipes = [text for page, text in PAGES.items() if page != "own-step.md" for text in whole.findall(text)]
    plans = [{"name": "widths", **yaml.safe_load(bits.replace("N}", "4}"))} for bits in [*spans, *blocks]]
    assert len(plans) > 4
    for number, recipe in enumerate([*plans, *map(yaml.safe_load, recipes)]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump({"steps": [{"repq": {}}], **recipe}))
        resolve(load_recipe(path))


def test_every_kind_of_operation_is_described() -> None:
    lines = [line for line in PAGES["artifact.md"].splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    described = {row[0].strip("`"): row[1:] for row in cells if len(row) == 5}
    assert described.keys() == KINDS.keys()
    for name, kind in KINDS.items():
        _, meaning, attributes, tensors = described[name]
        assert meaning == kind.meaning
        assert re.findall(r"`(\w+)`", attributes) == list(kind.attributes)
        assert re.findall(r"`(\w+\??)`", tensors) == list(kind.tensors)


def test_every_key_of_a_quantizer_is_described() -> None:
    page = PAGES["artifact.md"]
    table = page[page.index("| `kind` | keys |") :]
    rows = [line.split("|")[1:4] for line in table[: table.index("\n\n")].splitlines()[2:]]
    told = {kind: set(SPANS.findall(keys)) for kinds, keys, _ in rows for kind in SPANS.findall(kinds)}
    assert told.keys() == QUANTIZERS.keys()
    for kind, quantizer in QUANTIZERS.items():
        makers = [vars(owner)["__init__"] for owner in quantizer.__mro__ if "__init__" in vars(owner)]
        keys = {
            name
            for maker in makers[: makers.index(Quantizer.__init__)]
            for name, parameter in inspect.signature(maker).parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD
        }
        unlike = {"base"} if kind != "adalog" else set()
        assert told[kind] - unlike == keys - {"self", "bits"}, kind


def test_the_pages_name_no_place_of_one_machine() -> None:
    for page, text in PAGES.items():
        assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/", text), page

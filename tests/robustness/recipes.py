"""Recipes that were damaged, misspelt or made by an enemy, and what `recipes`, `quantize` and `train` say.

    python -m tests.robustness.recipes SEED COUNT

Prints as JSON what became of the commands, and what ended as none may.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from tests.robustness.commands import tree
from tests.robustness.damage import BYTES, recoded
from tests.robustness.here import Ends, follow, limit_memory, run

from halfbyte.recipe import KEYS, builtin_recipes
from halfbyte.steps.catalog import STEPS

# A step of each kind with little to do, and what must run before it.
FIRST = {"percentile": {"images": 4}}
SMALL: dict[str, tuple[dict[str, Any], ...]] = {
    "percentile": (FIRST,), "mse": ({"mse": {"images": 4, "shrink_steps": 3}},), "minmax": ({"minmax": {"images": 4}},),
    "repq": ({"repq": {"images": 4}},),
    "adalog": ({"adalog": {"images": 4, "candidates": 8, "steps": 2, "rounds": 1}},),
    "learned_steps": ({"learned_steps": {"images": 4}},), "groupwise": ({"groupwise": {"images": 4, "groups": 2}},),
    "bias_correct": (FIRST, {"bias_correct": {"images": 4}}), "refit": (FIRST, {"refit": {"images": 8}}),
    "reconstruct": (FIRST, {"reconstruct": {"images": 8, "iterations": 2, "batch_size": 2}}),
    "fold_batchnorm": ({"fold_batchnorm": {}}, FIRST), "rotate": ({"rotate": {}}, FIRST),
    "reconstruct_mlp": ({"reconstruct_mlp": {"images": 8, "iterations": 2}}, FIRST),
    "mixed": ({"mixed": {"images": 4, "draws": 1}}, FIRST),
    "bn_recalibrate": (FIRST, {"bn_recalibrate": {"images": 4}}),
    "qwt": (FIRST, {"qwt": {"images": 8}}), "qla": (FIRST, {"qla": {"images": 8, "epochs": 1}}),
    "train": (FIRST, {"train": {"steps": 1, "batch_size": 4, "training_images": 8}}),
    "quantformer": (
        {"groupwise": {"images": 4, "groups": 1}},
        {"quantformer": {"stage": "search", "steps": 1, "batch_size": 4, "training_images": 8, "groups": 2}},
    ),
}  # fmt: skip
MODELS = {"fold_batchnorm": "fashion_resnet", "bn_recalibrate": "fashion_resnet"}
FEW = ["--calib-images", "8", "--limit", "2", "--workers", "0", "--batch-size", "4"]
NUMBERS: dict[type, tuple[Any, ...]] = {
    int: (0, -1, 1, 2, 3, 5, 7, 8, 9, 16, 255, 2**31, 2**63, -(2**63), 10**19),
    float: (0.0, -1.0, 1.0, 2, 0.5, -0.0, 1e-300, 1e-30, 1e30, 1e300, 0.999999, 100.0, 1e-8),
    bool: (True, False), str: ("", "none", "all", "mse", "stream", "local", "nearest", "x" * 1000, "4.0bits", "3.2MB"),
}  # fmt: skip
WRONG: tuple[Any, ...] = (
    None, True, -1, 1.5, "x", "", [], [[]], {}, {"a": 1}, float("nan"), float("inf"), 10**25, "\x00", "\ud800", [None],
    "4",
)  # fmt: skip
TEXTS = (
    "\t", "\n\t", "&a [*a]", "*x", "!!python/object/apply:os.system [false]", "!!binary aGk=", "!!set {a, b}", "!x y",
    "<<: {a: 1}", "---\n", "...\n", "%YAML 9.9\n", "? ", "{{", "[" * 2000, "{a: " * 2000, "- " * 2000, "\x85", "\ufeff",
    "\u2028", "'", '"\\ud800"', "|\n  x", ">-\n  x", "0x" + "f" * 3000, "1_000", "0o777", "1:30:00", "=", "~",
    "1e400", ".nan", "2024-01-01", "2001-99-99T99:99:99Z", "#" * 2**20, "x" * 2**20, "&a " * 1000, "name: again\n",
    "steps: []\n",
)  # fmt: skip
# A step may be asked for more rounds than anybody waits for: that it has begun is enough.
PARSING, RUNNING = 20.0, 10.0


def bomb(chance: random.Random) -> str:
    """A small text that would unfold into a large value."""
    width, depth = chance.choice([(10, 9), (2, 60), (1000, 4)])
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * width)}]" for n in range(1, depth + 1)]
    return "\n".join(["l0: &l0 [x]", *levels, f"name: *l{depth}", "steps: [percentile]"])


def text_mutant(chance: random.Random) -> tuple[bytes, str]:
    """A recipe of the package with something else in its text."""
    name = chance.choice(builtin_recipes())
    text = (resources.files("halfbyte") / "recipes" / f"{name}.yaml").read_text("utf-8")
    lines, way = text.splitlines(keepends=True), chance.choice(["insert", "insert", "line", "bytes", "recoded", "bomb"])
    if way == "bomb":
        return bomb(chance).encode(), way
    if way == "bytes":
        return chance.choice(BYTES)(text.encode(), chance), way
    if way == "recoded":
        return recoded(text.encode(), chance), way
    if way == "insert":
        place = chance.randrange(len(text))
        skip = chance.choice([0, 0, 1, 5])
        return (text[:place] + chance.choice(TEXTS) + text[place + skip :]).encode("utf-8", "surrogatepass"), way
    number = chance.randrange(len(lines))
    chance.choice([
        lambda: lines.insert(number, lines[number]), lambda: lines.pop(number), lambda: lines.reverse(),
        lambda: lines.insert(number, lines[number].replace(" ", "\t")),
        lambda: lines.insert(number, "  " + lines[number]),
        lambda: lines.insert(number, lines.pop(chance.randrange(len(lines)))),
    ])()  # fmt: skip
    return "".join(lines).encode(), way


def value_mutant(chance: random.Random) -> tuple[bytes, str]:
    """A small recipe with other values: of the right type for the most part."""
    kind = chance.choice(sorted(SMALL))
    calls = [{name: dict(parameters) for name, parameters in call.items()} for call in SMALL[kind]]
    plain: dict[str, Any] = {"name": kind, "bits": {"weight": 4, "activation": 4}, "steps": calls}
    for _ in range(chance.choice([1, 1, 2])):
        name, parameters = next(call.popitem() for call in [dict(chance.choice(calls))])
        field = chance.choice([*dataclasses.fields(STEPS.get(name)), None])
        if field is None:
            _other_key(plain, chance)
            continue
        types = NUMBERS.get(type(field.default), ((), (0.5,), (-1.0, 2.0), (1.0, 1.0, 1.0), ("x",)))
        parameters[field.name] = chance.choice(types if chance.random() < 0.75 else WRONG)
    return yaml.safe_dump(plain, sort_keys=False).encode("utf-8", "surrogatepass"), f"value of {kind}"


def _other_key(plain: dict[str, Any], chance: random.Random) -> None:
    key = chance.choice([*KEYS, "x", "weight", "roles", "sites"])
    if key in ("weight", "roles", "sites"):
        plain["bits"] = plain["bits"] if isinstance(plain["bits"], dict) else {}
        odd = ({"stem": {}}, {"head": 2, "stem": 2}, {"*": 8}, {"blocks.*": {"weight": 2}}, {"": 3}, {"[": 3}, 2, 8, 0)
        plain["bits"][key] = chance.choice((*odd, *WRONG))
    else:
        plain[key] = chance.choice((*WRONG, ["rotate"], ["percentile"], ["minmax", {"minmax": {}}], "x" * 300, True))


def one(number: int, ends: Ends) -> None:
    """Make the mutant of that number, read it, and run it on a few images."""
    chance = random.Random(number)
    content, what = (text_mutant if chance.random() < 0.5 else value_mutant)(chance)
    with tempfile.TemporaryDirectory(prefix="halfbyte-recipe-") as place:
        file, out = Path(place) / "mine.yaml", Path(place) / "run"
        file.write_bytes(content)
        before = tree(Path(place))
        model = MODELS.get(what.rpartition(" ")[2], chance.choice(["fashion_vit", "fashion_resnet"]))
        verb = "train" if what.endswith(("train", "quantformer")) else "quantize"
        read = run(["recipes", str(file)], str(file), PARSING)
        ran = run([verb, model, "--recipe", str(file), *FEW, "--out", str(out)], "", RUNNING, may_be_long=True)
        for command, (_, wrong) in (("recipes", read), (verb, ran)):
            if wrong is not None:
                ends.wrong.append(f"{number}, {what}, {command}: {wrong}")
        if read[0] == "refused" and ran[0] != "refused":
            ends.wrong.append(f"{number}, {what}: cannot be read, but {ran[0]}")
        if read[0] == "refused" and tree(Path(place)) != before:
            ends.wrong.append(f"{number}, {what}: refused, but leaves something")
        ends.counts[ran[0]] += 1


def main(seed: str, count: str) -> None:
    """Print what became of so many."""
    limit_memory()
    print(json.dumps(follow(range(int(seed), int(seed) + int(count)), one).as_dict()))


if __name__ == "__main__":
    main(*sys.argv[1:])

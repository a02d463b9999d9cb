"""The papers' tables as data: published figures, with what they were measured, and the recipes to compare with them.

Listing them needs no torch.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.errors import HalfbyteError, did_you_mean
from halfbyte.form import number
from halfbyte.strict_yaml import keys_and_values, package_files, parse_yaml, read_text, shown

FOLDER = "reproduce/tables"
# What a row takes from its table where it has none of its own (null: none at all); the first three must be somewhere.
SHARED = ("source", "measured", "recipes", "settings", "labels", "long", "bounded_by", "note")
TABLE_KEYS = ("title", *SHARED, "models", "rows")
MODEL_KEYS = ("checkpoint", "top1", "crop_pct", "interpolation", "note")
ROW_KEYS = ("model", "bits", "top1", *SHARED)
_BITS = re.compile(r"w([2-8])a([2-8])")
_SETTING = re.compile(r"\w+\.\w+=.+")


@dataclass(frozen=True)
class PaperCheckpoint:
    """A model under a paper's short name: the `checkpoint` that stands for it here (timm's name with tag, or one of our
    own), the float top-1 in percent that the paper quotes, and the preprocessing where it is not the checkpoint's."""

    name: str
    checkpoint: str
    top1: float
    crop_pct: float | None = None
    interpolation: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Row:
    """A published top-1 in percent, and one recipe of ours (a name or a file) with `settings` to compare with it.

    `source` says where the figure is printed, `measured` with what it was measured. `labels` are the soft labels that
    the training needs, `long` why a processor is too slow for it; both are words for a message. `bounded_by` are the
    parameters, as `step.key`, less of which makes it short enough.
    """

    table: str
    model: PaperCheckpoint
    weight_bits: int
    activation_bits: int
    recipe: str
    top1: float
    source: str
    measured: str
    settings: tuple[str, ...] = ()
    labels: str | None = None
    long: str | None = None
    bounded_by: tuple[str, ...] = ()
    note: str | None = None

    @property
    def name(self) -> str:
        """The row's name in its table, also that of its run folder."""
        return f"{self.model.name}-{Path(self.recipe).stem}-w{self.weight_bits}a{self.activation_bits}"

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from every other row."""
        return self.table, self.name

    @property
    def notes(self) -> list[str]:
        """What is to be known of the row and its model."""
        return [note for note in (self.model.note, self.note) if note is not None]


@dataclass(frozen=True)
class Table:
    """The figures of one method under a `name`."""

    name: str
    title: str
    rows: tuple[Row, ...]


def builtin_tables() -> tuple[str, ...]:
    """The names of the tables that come with the package."""
    return tuple(package_files(FOLDER))


def load_table(name_or_file: str | Path) -> Table:
    """A built-in table by name, or a file; raises `HalfbyteError` that names the key, the file and the spelling."""
    name, builtin = str(name_or_file), package_files(FOLDER)
    path = builtin.get(name, Path(name))
    if name not in builtin and not path.is_file():
        raise HalfbyteError(f"no table or file {name!r}{did_you_mean(name, builtin)}")
    return _Reader(f"table {name}" if name in builtin else name, path).read()


def load_tables(names: Iterable[str | Path]) -> list[Table]:
    """The tables of these names or files, without any all that come with the package; one given twice counts once."""
    tables = [load_table(name) for name in dict.fromkeys(names)] or [load_table(name) for name in builtin_tables()]
    known = [table.name for table in tables]
    for name in known:
        if known.count(name) > 1:
            raise HalfbyteError(f"two tables are called {name}; rename one of the files")
    return tables


def chosen_rows(tables: Iterable[Table], patterns: Sequence[str]) -> list[Row]:
    """The rows whose name, or TABLE/NAME, fits one of the glob patterns, all without patterns; raises `HalfbyteError`
    for a pattern that none fits."""
    rows = [row for table in tables for row in table.rows]
    fitting = {pattern: [row for row in rows if _fits(row, pattern)] for pattern in patterns}
    for pattern, found in fitting.items():
        if not found:
            near = did_you_mean(pattern, {row.name for row in rows})
            raise HalfbyteError(f"--rows {pattern!r} fits no row{near}; --list shows them")
    return [row for row in rows if not patterns or any(row in found for found in fitting.values())]


def _fits(row: Row, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (row.name, f"{row.table}/{row.name}"))


class _Reader:
    """The table in one file."""

    def __init__(self, source: str, path: Path) -> None:
        self.source, self.path = source, path
        self.recipes = package_files("recipes")

    def read(self) -> Table:
        plain = keys_and_values(parse_yaml(read_text(self.path, "table"), self.source), self.source, TABLE_KEYS)
        self._require(plain, ("title", "models", "rows"), self.source)
        where = f"{self.source}: models"
        if not isinstance(plain["models"], dict):
            raise HalfbyteError(f"{where} must be names with keys and values, not {shown(plain['models'])}")
        models = {name: self._model(name, value, f"{where}.{name}") for name, value in plain["models"].items()}
        if not isinstance(plain["rows"], list) or not plain["rows"]:
            raise HalfbyteError(f"{self.source}: rows must be a list of at least one row")
        shared = {key: plain[key] for key in SHARED if key in plain}
        rows = [row for place, value in enumerate(plain["rows"])
                for row in self._rows(shared, value, models, f"{self.source}: rows[{place}]")]  # fmt: skip
        names = [row.name for row in rows]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise HalfbyteError(f"{self.source}: the row {twice[0]} is given twice; give one another recipe file")
        return Table(self.path.stem, self._text(plain, "title", self.source), tuple(rows))

    def _model(self, name: str, value: Any, where: str) -> PaperCheckpoint:
        plain = keys_and_values(value, where, MODEL_KEYS)
        self._require(plain, ("checkpoint", "top1"), where)
        if re.fullmatch(r"[\w.-]+", name) is None:
            raise HalfbyteError(f"{where}: a name has letters, digits, '_', '.' and '-' only, not {shown(name)}")
        texts = {key: self._text(plain, key, where) for key in ("checkpoint", "interpolation", "note") if key in plain}
        crop_pct = plain.get("crop_pct")
        if crop_pct is not None and not (number(crop_pct) and 0 < crop_pct <= 1):
            raise HalfbyteError(f"{where}.crop_pct must be above 0 and at most 1, not {shown(crop_pct)}")
        return PaperCheckpoint(name, top1=self._percent(plain, where), crop_pct=crop_pct, **texts)

    def _rows(self, shared: dict[str, Any], value: Any, models: dict[str, PaperCheckpoint], where: str) -> list[Row]:
        """One row for each of the recipes."""
        merged = {**shared, **keys_and_values(value, where, ROW_KEYS)}
        plain = {key: given for key, given in merged.items() if given is not None}
        self._require(plain, ("model", "bits", "top1", "source", "measured", "recipes"), where)
        model = self._text(plain, "model", where)
        if model not in models:
            raise HalfbyteError(f"{where}: unknown model {model!r}{did_you_mean(model, models)}")
        bits = _BITS.fullmatch(str(plain["bits"]))
        if bits is None:
            raise HalfbyteError(f"{where}.bits must be such as w4a8, each from 2 to 8, not {shown(plain['bits'])}")
        texts = {key: self._text(plain, key, where) for key in ("labels", "long", "note") if key in plain}
        lists = {key: self._texts(plain, key, where) for key in ("settings", "bounded_by") if key in plain}
        if "long" in texts and "bounded_by" not in lists:
            raise HalfbyteError(f"{where}: long needs bounded_by, the parameters less of which makes the row short")
        for setting in lists.get("settings", ()):
            if _SETTING.fullmatch(setting) is None:
                raise HalfbyteError(f"{where}.settings are such as step.key=value, not {setting!r}")
        return [
            Row(
                self.path.stem, models[model], int(bits[1]), int(bits[2]), self._recipe(recipe, where),
                self._percent(plain, where), self._text(plain, "source", where), self._text(plain, "measured", where),
                settings=lists.get("settings", ()), bounded_by=lists.get("bounded_by", ()), **texts,
            )
            for recipe in self._texts(plain, "recipes", where)
        ]  # fmt: skip

    def _recipe(self, recipe: str, where: str) -> str:
        """A built-in name, or the path of a file that the table names relative to its own folder."""
        if recipe in self.recipes:
            return recipe
        path = self.path.parent / recipe
        if path.suffix != ".yaml" or not path.is_file():
            raise HalfbyteError(f"{where}: no recipe or file {recipe!r}{did_you_mean(recipe, self.recipes)}")
        return str(path)

    @staticmethod
    def _require(plain: dict[str, Any], keys: Iterable[str], where: str) -> None:
        for key in keys:
            if key not in plain:
                raise HalfbyteError(f"{where}: the key {key!r} is missing")

    @staticmethod
    def _text(plain: dict[str, Any], key: str, where: str) -> str:
        value = plain[key]
        if not isinstance(value, str) or not value.strip():
            raise HalfbyteError(f"{where}.{key} must be a text, not {shown(value)}")
        return " ".join(value.split())

    @staticmethod
    def _texts(plain: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
        value = plain[key]
        if not isinstance(value, list) or not value or not all(isinstance(entry, str) for entry in value):
            raise HalfbyteError(f"{where}.{key} must be a list of texts, not {shown(value)}")
        return tuple(value)

    @staticmethod
    def _percent(plain: dict[str, Any], where: str) -> float:
        value = plain["top1"]
        if not number(value) or not 0 <= value <= 100:
            raise HalfbyteError(f"{where}.top1 must be a percentage from 0 to 100, not {shown(value)}")
        return float(value)

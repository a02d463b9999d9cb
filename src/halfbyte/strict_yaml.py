"""YAML that a user wrote, read strictly: every mistake is told with the key, the file and the nearest spelling."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from halfbyte.errors import HalfbyteError, did_you_mean

MAX_BYTES = 2**20
MAX_DIGITS = 20


def shown(value: Any) -> str:
    """A value as messages quote it: short, however long the value."""
    return reprlib.repr(value)


def package_files(folder: str) -> dict[str, Path]:
    """The YAML files in a folder of the package, by name without ending, sorted."""
    found = resources.files("halfbyte").joinpath(*folder.split("/"))
    return dict(
        sorted((entry.name[:-5], Path(str(entry))) for entry in found.iterdir() if entry.name.endswith(".yaml"))
    )


def read_text(path: Path, what: str) -> str:
    """The text of a small file that is to be a `what`; raises `HalfbyteError` for a large one and for no text."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise HalfbyteError(f"{path} is larger than {MAX_BYTES} bytes: not a {what}")
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise HalfbyteError(f"{path} is not a text file in UTF-8") from None
    except OSError as error:
        raise HalfbyteError(f"cannot read the {what} {path}: {error.strerror}") from None


class _StrictLoader(yaml.SafeLoader):
    """Refuses what PyYAML takes silently: a key given twice, aliases (small files that unfold without end), and whole
    numbers that nobody needs."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {key!r} is not a text")
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"the key {sorted(twice)[0]!r} is given twice")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def whole_number(self, node: Any) -> int:
        if len(node.value) > MAX_DIGITS:
            raise yaml.YAMLError(f"the number {node.value[:MAX_DIGITS]}... is too long")
        value: int = self.construct_yaml_int(node)
        return value


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.whole_number)


def parse_yaml(text: str, source: str) -> Any:
    """The value that a text in YAML stands for; `source` is what messages quote."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise HalfbyteError(f"{source} is not valid YAML: {error}") from None
    except Exception as error:  # a tag such as !!bool or !!timestamp raises whatever its constructor happens to raise
        raise HalfbyteError(f"{source} is not valid YAML: a value does not fit its type ({error})") from None


def keys_and_values(value: Any, where: str, keys: Iterable[str]) -> dict[str, Any]:
    """`value` if it is a mapping with no other keys; raises `HalfbyteError` with the nearest spelling otherwise."""
    known = tuple(keys)
    if not isinstance(value, dict):
        raise HalfbyteError(f"{where}: expected keys and values, not {shown(value)}")
    for key in value:
        if key not in known:
            raise HalfbyteError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}")
    return value

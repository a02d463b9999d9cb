"""The files of an artifact: their names, their form, their checksums; written whole or not at all.

Reading them as NumPy arrays needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from halfbyte.errors import HalfbyteError
from halfbyte.files import read_file, real_path, reason, remedy
from halfbyte.form import misfit, nullable, number, optional, whole
from halfbyte.locks import Lock, lock

if TYPE_CHECKING:
    from torch import Tensor

FORMAT, VERSION = "halfbyte", 1
TENSORS, CONFIG, QUANTIZATION = "model.safetensors", "config.json", "quantization.json"
# The integer program; an artifact that could not be lowered has none.
PROGRAM = "program.bin"
ARTIFACT = (TENSORS, CONFIG, QUANTIZATION, PROGRAM)

_FACTS = {
    "source": {"name": str, "architecture": str, "tag": nullable(str), "weights": nullable(str),
               "sha256": nullable(str)},
    "preprocessing": {"input_size": [whole(1)], "interpolation": str, "mean": [number], "std": [number],
                      "crop_pct": number, "crop_mode": str},
    "recipe": optional({"name": str}),
    "edits": [{"name": str, "arguments": dict}],
    "sites": [{"name": str, "role": str, "quantizers": dict, "sqnr_db": optional(number)}],
    "coverage": optional({"quantized_macs_percent": number,
                          "float": [{"operation": str, "where": str, "macs": whole(0)}]}),
    "batch_size": optional(whole(1)), "tensors_sha256": str,
    "program": optional({"sha256": optional(str), "refused": optional(str), "approximate": optional([str])}),
}  # fmt: skip
_CONFIG = {"architecture": str, "num_classes": whole(1), "pretrained_cfg": dict}
MAX_JSON_BYTES = 2**26
# Far more than the few-bit tensors of any vision model.
MAX_BYTES = 2**34


def stored_bytes(folder: Path) -> dict[str, int]:
    """The bytes of an artifact's tensors, "artifact", and of all files that a machine needs to run it, "shipped"."""
    sizes = {name: (folder / name).stat().st_size for name in ARTIFACT if (folder / name).exists()}
    return {"artifact": sizes[TENSORS], "shipped": sum(sizes.values())}


def remove_artifact(folder: Path) -> None:
    """Remove an artifact's files, that first without which it is none."""
    for name in (QUANTIZATION, CONFIG, TENSORS, PROGRAM):
        (folder / name).unlink(missing_ok=True)


def write_files(folder: Path, contents: dict[str, bytes], option: str = "--out") -> None:
    """Write all files beside their places, then rename them in their order: who finds the last finds all.

    On failure, also where another process writes one of them at this moment, remove the parts and raise
    `HalfbyteError`, which asks for another `option`.
    """
    parts = {folder / f"{name}.part": folder / name for name in contents}
    locks: dict[Path, Lock] = {}
    try:
        for part, place in parts.items():
            if place.is_dir():
                raise HalfbyteError(f"cannot write {place}: a folder has its name; choose another {option}")
            if part.exists() and not part.is_file():
                raise HalfbyteError(f"cannot write {place}: {part} is no file; remove it, or choose another {option}")
            if (held := lock(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0))) is None:
                raise HalfbyteError(f"another process writes {place}; wait until it ends, or choose another {option}")
            locks[part] = held
        for part, content in zip(parts, contents.values(), strict=True):
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for part, place in parts.items():
            os.replace(part, place)
    except (OSError, HalfbyteError) as error:
        for part in locks:
            part.unlink(missing_ok=True)
        if isinstance(error, HalfbyteError):
            raise
        raise HalfbyteError(f"cannot write to {folder}: {reason(error)}; {remedy(error, option)}") from None
    finally:
        for held in locks.values():
            held.release()


def write_option(place: Path, content: bytes, option: str) -> None:
    """Write one file that an option asks for, as `write_files` does; also into a device, a pipe, or what is printed."""
    real, printed = real_path(place), printed_into(place)
    if printed is None and (real.is_file() or not place.exists()):
        write_files(real.parent, {real.name: content}, option)
        return
    try:
        with place.open("wb") if printed is None else os.fdopen(os.dup(printed), "wb") as file:
            file.write(content)
    except OSError as error:
        raise HalfbyteError(f"cannot write {option} {place}: {reason(error)}; {remedy(error, option)}") from None


def printed_into(place: Path) -> int | None:
    """The descriptor of what standard output or error goes into, where that is the `place`: a file that was opened for
    it (`--json /dev/stdout >> log`) is not to be replaced under it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
            if os.path.samestat(os.stat(place), os.fstat(stream.fileno())):
                return stream.fileno()
    return None


def json_bytes(value: dict[str, Any]) -> bytes:
    """A JSON file's content, the same for the same facts."""
    # No newline at the end: then every truncation leaves something that is not JSON.
    return json.dumps(value, indent=1, sort_keys=True).encode()


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(read_file(folder / name, MAX_JSON_BYTES))
    except FileNotFoundError:
        if not folder.exists():
            raise HalfbyteError(f"{folder} does not exist; give an artifact's folder") from None
        raise HalfbyteError(f"{folder} is not an artifact: it has no {name}") from None
    except NotADirectoryError:
        raise HalfbyteError(f"{folder} is not an artifact but a file; give the folder that holds {name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise HalfbyteError(f"{folder / name} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise HalfbyteError(f"{folder / name} is damaged: not a JSON object")
    return value


def read_tensors(folder: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors by name; raises `HalfbyteError` where the file is damaged or not the one of that sha256."""
    from safetensors.torch import load

    blob = read_checked(folder, TENSORS, sha256)
    try:
        return load(blob)
    except (SafetensorError, ValueError) as error:
        raise HalfbyteError(f"{folder / TENSORS} is damaged: {error}") from None


def read_arrays(folder: Path, sha256: str) -> dict[str, npt.NDArray[np.generic]]:
    """The same as NumPy arrays, without torch."""
    blob = read_checked(folder, TENSORS, sha256)
    try:
        return load_arrays(blob)
    except (SafetensorError, ValueError, KeyError) as error:
        raise HalfbyteError(f"{folder / TENSORS} is damaged: {error}") from None


def read_checked(folder: Path, name: str, sha256: str) -> bytes:
    """A file's content; raises `HalfbyteError` where it cannot be read or is not the one of that sha256."""
    path = folder / name
    try:
        blob = read_file(path, MAX_BYTES)
    except OSError as error:
        raise HalfbyteError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise HalfbyteError(f"{path} is damaged: {error}; quantize again with --force") from None
    if hashlib.sha256(blob).hexdigest() != sha256:
        raise HalfbyteError(f"{path} is damaged or incomplete: its sha256 is not the one in {QUANTIZATION}")
    return blob


def class_labels(config: dict[str, Any]) -> list[str] | None:
    """What the classes are called, one text a class; None where config.json does not say.

    timm's `label_names`, in its `pretrained_cfg` or beside it, by `label_descriptions` where those say more.
    """
    known = {**config["pretrained_cfg"], **config}
    names, described = known.get("label_names"), known.get("label_descriptions")
    if not isinstance(names, list) or misfit(names, [str], "") is not None or len(names) != config["num_classes"]:
        return None
    meanings = described if isinstance(described, dict) else {}
    return [meaning if isinstance(meaning := meanings.get(name), str) else name for name in names]


def facts_sha256(facts: dict[str, Any], config: dict[str, Any]) -> str:
    """Of all that the two JSON files say; the tensors are covered by the sha256 among the facts."""
    said = [{key: value for key, value in facts.items() if key != "facts_sha256"}, config]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_facts(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """quantization.json and config.json, checked; raises `HalfbyteError` where they are damaged or not ours."""
    facts, config = _read_json(folder, QUANTIZATION), _read_json(folder, CONFIG)
    version = facts.get("version")
    if facts.get("format") != FORMAT or not whole(1)(version):
        raise HalfbyteError(f"{folder / QUANTIZATION} is not of the format {FORMAT!r}")
    if facts["version"] > VERSION:
        raise HalfbyteError(f"{folder} was written by a newer halfbyte (format {version}); upgrade halfbyte")
    wrong = misfit(facts, _FACTS, QUANTIZATION) or misfit(config, _CONFIG, CONFIG)
    if wrong is not None:
        raise HalfbyteError(f"{folder} is damaged: {wrong} is missing or wrong")
    if facts.get("facts_sha256") != facts_sha256(facts, config):
        raise HalfbyteError(f"{folder} is damaged: {QUANTIZATION} or {CONFIG} was changed since it was written")
    return facts, config

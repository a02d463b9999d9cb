"""From an artifact to a file of another runtime: what is asked for is checked, written beside and renamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from halfbyte.artifact_files import ARTIFACT, read_facts, write_files
from halfbyte.errors import HalfbyteError, check_installed, did_you_mean
from halfbyte.files import real_path
from halfbyte.program.load import load_program
from halfbyte.program.ops import Array
from halfbyte.progress import Progress

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torchao": ".safetensors"}
# Packages that writing needs, and which of our extras has each.
_NEEDS = {"onnx": {"onnx": "onnx"}, "openvino": {"onnx": "onnx", "openvino": "openvino"}, "torchao": {}}
_SHOWN = 3


@dataclass(frozen=True)
class ExportOptions:
    """`to` is onnx, openvino or torchao. `opset`, `gelu` and `convolutions` are those of `OnnxForm`."""

    to: str
    out: Path
    verify: bool = False
    force: bool = False
    opset: int = 17
    gelu: str = "exact"
    convolutions: str = "qdq"


@dataclass
class Exported:
    """The files, what is to be known of them, and what each runtime makes of them where that was asked for."""

    files: list[Path]
    warnings: list[str] = field(default_factory=list)
    engines: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        sizes = {str(path): path.stat().st_size for path in self.files}
        return {"files": sizes, "warnings": self.warnings, "engines": self.engines}


def check_options(folder: Path, options: ExportOptions) -> None:
    """Raise `HalfbyteError` for what cannot be written there, before anything is computed."""
    if options.to not in _NEEDS:
        raise HalfbyteError(f"--to {options.to!r} is not known{did_you_mean(options.to, _NEEDS)}")
    for package, extra in _NEEDS[options.to].items():
        check_installed(f"--to {options.to}", (package,), extra)
    if not folder.is_dir():
        problem = "is a file" if folder.is_file() else "does not exist"
        raise HalfbyteError(f"{folder} {problem}; give an artifact's folder")
    out, ending = options.out, ENDINGS[options.to]
    if out.suffix != ending:
        raise HalfbyteError(f"--out {out}: give a file that ends in {ending}")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise HalfbyteError(f"--out {out}: give a file in a folder that exists")
    for path in export_places(folder, options.to, out):
        if real_path(path) in {real_path(folder / name) for name in ARTIFACT}:
            raise HalfbyteError(f"--out {out} would replace a file of the artifact; choose another --out")
        if path.exists() and not options.force:
            raise HalfbyteError(f"--out {path} exists; replace it with --force, or choose another --out")
    if options.verify and options.to == "torchao":
        raise HalfbyteError("--verify runs exported models; scales for torchao are none, leave it out")


def export_artifact(folder: Path, options: ExportOptions, images: Callable[[], Array], progress: Progress) -> Exported:
    """Write the model of an artifact's folder for another runtime.

    `images` gives the preprocessed images `[B, C, H, W]` to verify with. Raises `HalfbyteError` for options that do not
    fit, an artifact without a program, an operation that the form lacks; nothing is written then.
    """
    check_options(folder, options)
    program = load_program(folder)
    facts = _facts(folder)
    if options.to == "torchao":
        from halfbyte.export.plain import plain_state
        from halfbyte.export.torchao import to_torchao

        state = plain_state(folder)
        exported = Exported(export_places(folder, options.to, options.out))
        if state is None:
            exported.warnings.append(
                "the recipe made another model of the architecture, so the file has the linear layers alone; for the "
                "whole model quantize by a recipe without rotations and compensation, such as repq"
            )
        return _write(options, {".safetensors": to_torchao(program, facts, state)}, exported)
    from halfbyte.export.onnx import OnnxForm, to_onnx, unsafe_sites

    form = OnnxForm(options.opset, options.gelu, options.convolutions)
    written = to_onnx(program, form, facts)
    exported = Exported(export_places(folder, options.to, options.out))
    if unsafe := unsafe_sites(program, form):
        names = ", ".join(unsafe[:_SHOWN]) + (" ..." if len(unsafe) > _SHOWN else "")
        exported.warnings.append(
            f"{len(unsafe)} sites have 8-bit weights ({names}): on processors without VNNI 16-bit sums of runtimes may "
            f"overflow; quantize with at most 7 bits for those"
        )
    if options.to == "openvino":
        from halfbyte.export.openvino import to_openvino

        contents = to_openvino(written.model)
    else:
        contents = {".onnx": written.model.SerializeToString(deterministic=True)}
    if options.verify:
        from halfbyte.export.verify import verify

        exported.engines = verify(written, program, images(), progress)
    return _write(options, contents, exported)


def export_places(folder: Path, to: str, out: Path | None) -> list[Path]:
    """The files that an export makes: `out`, else one in the artifact's folder, and what the form has beside it."""
    # Without a name of its own the scales would take that of the artifact's tensors.
    out = out or folder / f"{'torchao' if to == 'torchao' else 'model'}{ENDINGS.get(to, '')}"
    return [out, out.parent / f"{out.stem}.bin"] if to == "openvino" else [out]


def _write(options: ExportOptions, contents: dict[str, bytes], exported: Exported) -> Exported:
    stem = options.out.with_suffix("").name
    write_files(options.out.absolute().parent, {f"{stem}{ending}": content for ending, content in contents.items()})
    return exported


def _facts(folder: Path) -> dict[str, Any]:
    """What the file says of itself: nothing that depends on the time or the place of the export."""
    facts, config = read_facts(folder)
    source = facts["source"]
    known = {"recipe": facts.get("recipe"), "labels": config["pretrained_cfg"].get("label_names")}
    return {
        "weights": {key: source[key] for key in ("tag", "sha256")},
        "num_classes": config["num_classes"],
        "halfbyte": metadata.version("halfbyte"),
        **{key: value for key, value in known.items() if value is not None},
    }

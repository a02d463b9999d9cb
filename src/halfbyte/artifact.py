"""The quantized model on disk: packed integer codes, everything needed to rebuild the model, and nothing else.

A folder with `model.safetensors` (packed codes, quantizer parameters, float leftovers), `config.json` (timm's
conventions), `quantization.json` (format, edits, the quantizer of every operand, where the weights came from) and
`program.bin` (the integer program, without the tensors that it shares; absent where the model has none).
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from halfbyte.artifact_files import (
    CONFIG,
    FORMAT,
    PROGRAM,
    QUANTIZATION,
    TENSORS,
    VERSION,
    facts_sha256,
    json_bytes,
    read_facts,
    read_tensors,
    write_files,
)  # fmt: skip
from halfbyte.data.preprocessing import Preprocessing
from halfbyte.edits import Edit
from halfbyte.errors import HalfbyteError
from halfbyte.families.describe import describe
from halfbyte.families.layout import Layout
from halfbyte.layers.branch import Branch
from halfbyte.layers.site import SiteModule, WeightedSite
from halfbyte.models.load import create_architecture
from halfbyte.prepare import example_input, prepare, set_state, settle, site_module
from halfbyte.program.saved import lowered
from halfbyte.quantizers.groupwise import GroupwiseQuantizer
from halfbyte.quantizers.kinds import build_quantizer
from halfbyte.quantizers.packing import pack, packed_size, unpack

# Tables of this size or more (position embeddings, relative position biases) are stored as float16.
HALF_PRECISION_FROM = 4096
# The trained weights must give the rescaled ones again.
_EXACT = (".folded_scale", ".input_scale")
_NOT_STORED = "num_batches_tracked"


@dataclass
class Artifact:
    """A loaded artifact: the model in the state `quantized`, and what is known of it.

    `facts` is quantization.json: "source", "recipe", "paper_exact", "preprocessing", "edits", "sites" and more.
    """

    model: nn.Module
    layout: Layout
    facts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def stored_dtype(name: str, tensor: Tensor) -> torch.dtype:
    """The type in which a float leftover is kept: float16 for large tables that fit it, else float32."""
    large = tensor.numel() >= HALF_PRECISION_FROM and not name.endswith(_EXACT)
    half = large and bool((tensor.abs() < torch.finfo(torch.float16).max).all())
    return torch.float16 if half else torch.float32


def round_leftovers(model: nn.Module) -> None:
    """Round every float that the artifact keeps to the type in which it keeps it, before anything is evaluated."""
    with torch.no_grad():
        for name, tensor in named_leftovers(model).items():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(stored_dtype(name, tensor)))


def save_artifact(model: nn.Module, layout: Layout, folder: Path, facts: dict[str, Any]) -> None:
    """Write the files into the existing `folder`, each beside its place and then renamed.

    `facts` needs "source" (architecture, tag, ...), "edits" and "preprocessing"; whatever else it holds is kept.
    Raises `HalfbyteError` where the disk is full or not writable; then no file of an earlier artifact is harmed.
    """
    sites = []
    for site in layout.sites:
        module = site_module(model, site.name)
        specs = {operand: module.quantizer(operand).spec() for operand in site.operands}
        sites.append({"name": site.name, "role": site.role, "quantizers": specs})
    blob = save_tensors(_stored_tensors(model, layout))
    known = {entry["name"]: entry for entry in facts.get("sites", [])}
    merged = [{**known.get(entry["name"], {}), **entry} for entry in sites]
    quantization = {**facts, "format": FORMAT, "version": VERSION, "sites": merged,
                    "tensors_sha256": hashlib.sha256(blob).hexdigest()}  # fmt: skip
    config = _timm_config(model, facts)
    quantization["program"], program = lowered(model, layout, facts, blob)
    quantization["facts_sha256"] = facts_sha256(quantization, config)
    files = {TENSORS: blob, CONFIG: json_bytes(config)}
    files |= {PROGRAM: program} if program is not None else {}
    # The last one has the checksums of the others.
    write_files(folder, {**files, QUANTIZATION: json_bytes(quantization)})
    if program is None:
        (folder / PROGRAM).unlink(missing_ok=True)


def side_bytes(model: nn.Module, layout: Layout) -> int:
    """The bytes of the tensors that an artifact keeps for what stands beside the blocks (`Branch`)."""
    beside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Branch))
    stored = _stored_tensors(model, layout) if beside else {}
    return sum(tensor.nbytes for name, tensor in stored.items() if name.startswith(beside))


@torch.inference_mode(False)  # what is made in it can never be trained, nor tell whether it changed
def load_artifact(folder: str | Path) -> Artifact:
    """Rebuild a quantized model from its folder, without the original weights and without the network.

    Raises `HalfbyteError` for a folder that is no artifact, and for one that is damaged in any way.
    """
    folder = Path(folder)
    facts, config = read_facts(folder)
    tensors = read_tensors(folder, facts["tensors_sha256"])
    try:
        source = facts["source"]
        model = create_architecture(source["architecture"], source["tag"])
        _check_model(model, facts, config)
        layout = prepare(model, describe(model))
        for edit in facts["edits"]:
            layout = Edit(edit["name"], edit["arguments"]).apply(model, layout)
        layout = settle(model, layout)
        if [(entry["name"], entry["role"]) for entry in facts["sites"]] != [(s.name, s.role) for s in layout.sites]:
            raise HalfbyteError(f"the sites are not those of {source['architecture']}")
        for entry in facts["sites"]:
            _fill_site(site_module(model, entry["name"]), entry, tensors)
        _fill_leftovers(model, tensors)
        if tensors:
            raise HalfbyteError(f"{len(tensors)} tensors too many, such as {sorted(tensors)[0]}")
        set_state(model.eval().requires_grad_(False), "quantized")
        # What fits by itself may still not fit together; better here than in the middle of an evaluation.
        with torch.no_grad():
            output = model(example_input(model))
        if not bool(output.isfinite().all()):
            raise HalfbyteError("its outputs are not finite")
    except HalfbyteError as error:
        raise HalfbyteError(f"cannot load {folder}: {error}") from None
    except Exception as error:  # an edited file can make any part of a model raise anything
        reason = f"{type(error).__name__}: {error}"
        raise HalfbyteError(f"cannot load {folder}: damaged or edited ({reason})") from error
    return Artifact(model, layout, facts, config)


def _check_model(model: nn.Module, facts: dict[str, Any], config: dict[str, Any]) -> None:
    if config["architecture"] != facts["source"]["architecture"] or config["num_classes"] != _classes(model):
        raise HalfbyteError(f"{CONFIG} does not describe the model of {QUANTIZATION}")
    images = facts["preprocessing"]
    wanted = list(example_input(model).shape[1:])
    if images["input_size"] != wanted:
        raise HalfbyteError(f"the model takes images {wanted}, {QUANTIZATION} prepares others")
    Preprocessing.of(images)


def is_trained(name: str) -> bool:
    """Whether a tensor is what a step replaced, kept for the state `float`."""
    return name.rpartition(".")[2].startswith("trained_")


def named_leftovers(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers that are neither a site's weight nor a quantizer's."""
    owned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, WeightedSite)}
    return {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name not in owned and "_quantizer." not in name
        and not name.endswith((_NOT_STORED, ".weight_codes")) and not is_trained(name)
    }  # fmt: skip


def _stored_tensors(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """What an artifact keeps: packed codes, leftovers in the types they are stored in, parameters of quantizers."""
    tensors: dict[str, Tensor] = {}
    for site in layout.sites:
        module = site_module(model, site.name)
        if isinstance(module, WeightedSite):
            stream = pack(module.codes().cpu().numpy(), module.quantizer("weight").bits)
            tensors[f"{site.name}.weight_codes"] = torch.from_numpy(stream)
    for name, tensor in named_leftovers(model).items():
        kept = tensor.to(stored_dtype(name, tensor)) if tensor.is_floating_point() else tensor
        tensors[name] = kept.detach().cpu().clone().contiguous()
    for name, tensor in _quantizer_tensors(model, layout).items():
        tensors[name] = tensor.detach().cpu().clone().contiguous()
    return tensors


def _quantizer_tensors(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    found = {}
    for site in layout.sites:
        for operand in site.operands:
            quantizer = site_module(model, site.name).quantizer(operand)
            if not quantizer.fitted:
                raise HalfbyteError(f"the {operand} of {site.name} was never calibrated; begin with a calibration step")
            for name, tensor in quantizer.named_buffers():
                found[f"{site.name}.{operand}_quantizer.{name}"] = tensor
    return found


def _timm_config(model: nn.Module, facts: dict[str, Any]) -> dict[str, Any]:
    """timm's config.json: `architecture`, `num_classes`, `num_features`, `pretrained_cfg`."""
    known = {**cast("dict[str, Any]", getattr(model, "pretrained_cfg", None) or {}), **facts["preprocessing"]}
    plain = {
        key: value for key, value in known.items() if isinstance(value, (str, int, float, bool, list, tuple, dict))
    }
    return {
        "architecture": facts["source"]["architecture"],
        "num_classes": _classes(model),
        "num_features": getattr(model, "num_features", None),
        "pretrained_cfg": {**plain, "num_classes": _classes(model)},
    }


def _classes(model: nn.Module) -> int:
    return int(cast(int, model.num_classes))


def _fill_site(module: SiteModule, entry: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    name = entry["name"]
    if set(entry["quantizers"]) != set(module.operands):
        raise ValueError(f"{name}: the quantizers are not those of {', '.join(module.operands)}")
    for operand in module.operands:
        spec = entry["quantizers"][operand]
        quantizer = build_quantizer(spec)
        if quantizer.spec() != spec or not isinstance(spec.get("axis"), (int, type(None))):
            raise ValueError(f"{name}: {spec} describes no quantizer of the {operand}")
        for buffer in list(quantizer._buffers):
            setattr(quantizer, buffer, tensors.pop(f"{name}.{operand}_quantizer.{buffer}"))
        module.set_quantizer(operand, quantizer)
        _check_parameters(module, operand, name)
    if isinstance(module, WeightedSite):
        assert module.weight is not None
        shape, bits = tuple(module.weight.shape), module.quantizer("weight").bits
        stream = tensors.pop(f"{name}.weight_codes")
        if stream.dtype != torch.uint8 or stream.shape != (packed_size(int(np.prod(shape)), bits),):
            raise ValueError(f"{name}: {stream.dtype} {list(stream.shape)} cannot hold {shape} codes of {bits} bits")
        module.weight_codes = torch.from_numpy(unpack(stream.numpy(), bits, shape))
        module.weight = None


def _check_parameters(module: SiteModule, operand: str, name: str) -> None:
    quantizer = module.quantizer(operand)
    wanted: tuple[int, ...] = ()
    if operand == "weight" and getattr(quantizer, "axis", None) == 0:
        weight = cast(Tensor, module.weight)
        wanted = (weight.shape[0],) + (1,) * (weight.ndim - 1)
    if isinstance(quantizer, GroupwiseQuantizer) and quantizer.groups > 1:
        _check_groups(module, quantizer, f"{name}: the {operand}'s")
        return
    for buffer, tensor in quantizer.named_buffers():
        per_tensor_wanted = operand == "weight" or getattr(quantizer, "axis", None) is None
        if per_tensor_wanted and tuple(tensor.shape) != wanted:
            raise ValueError(f"{name}: the {operand}'s {buffer} has the shape {tuple(tensor.shape)}, not {wanted}")
        kind = torch.int32 if buffer == "zero_point" and quantizer.exact_integers else torch.float32
        if tensor.dtype != kind or not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: the {operand}'s {buffer} must be finite and {kind}")
        if buffer.endswith("scale") and not bool((tensor > 0).all()):
            raise ValueError(f"{name}: the {operand}'s {buffer} must be positive")


def _check_groups(module: SiteModule, quantizer: GroupwiseQuantizer, whose: str) -> None:
    scale, group = quantizer.calibrated(quantizer.scale), quantizer.calibrated(quantizer.group)
    if not isinstance(module, WeightedSite) or module.weight is None:
        raise ValueError(f"{whose} groups belong to a linear's input")
    if tuple(group.shape) != (module.weight.shape[1],) or group.dtype != torch.uint8:
        raise ValueError(f"{whose} group must be uint8, one for each of {module.weight.shape[1]} channels")
    if tuple(scale.shape) != (quantizer.groups,) or int(group.max()) >= quantizer.groups:
        raise ValueError(f"{whose} groups must be {quantizer.groups}")
    if scale.dtype != torch.float32 or not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise ValueError(f"{whose} scale must be positive, finite and float32")


def _fill_leftovers(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, place in named_leftovers(model).items():
            tensor = tensors.pop(name)
            if tensor.shape != place.shape:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(place.shape)}")
            kinds = (torch.float16, torch.float32) if place.is_floating_point() else (place.dtype,)
            if tensor.dtype not in kinds or not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} must be finite numbers of the type {' or '.join(map(str, kinds))}")
            place.copy_(tensor)


def edits_as_dicts(edits: list[Edit]) -> list[dict[str, Any]]:
    """Edits as plain values, for quantization.json."""
    return [asdict(edit) for edit in edits]

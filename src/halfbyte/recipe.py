"""Recipes: which steps run, in which order, with how many bits where. This file checks their syntax."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from halfbyte.errors import HalfbyteError, did_you_mean
from halfbyte.families.layout import ROLES, Site
from halfbyte.quantizers.base import check_bits
from halfbyte.strict_yaml import keys_and_values, package_files, parse_yaml, read_text, shown

OPERANDS = ("weight", "activation")
KEYS = ("name", "bits", "paper_exact", "if_possible", "fewer_images", "steps")


@dataclass(frozen=True)
class Bits:
    """Bit widths of one role or site; None leaves the plan's default."""

    weight: int | None = None
    activation: int | None = None


# The first and the last layer hold few of the weights and most of the damage; what stands beside a block repairs it.
DEFAULT_ROLES = {"stem": Bits(8, 8), "head": Bits(8, 8), "side": Bits(8, 8)}


@dataclass(frozen=True)
class BitPlan:
    """Default bit widths, overridden by role, overridden by site (glob patterns on the name; the last match wins)."""

    weight: int = 4
    activation: int = 4
    roles: dict[str, Bits] = field(default_factory=lambda: dict(DEFAULT_ROLES))
    sites: dict[str, Bits] = field(default_factory=dict)

    def of(self, site: Site) -> tuple[int, int]:
        """The bits of a site's weight and activation; both operands of a product have the activation's."""
        weight, activation = self.weight, self.activation
        overrides = [self.roles.get(site.role)]
        overrides += [bits for pattern, bits in self.sites.items() if fnmatch.fnmatchcase(site.name, pattern)]
        for bits in overrides:
            if bits is not None:
                weight = weight if bits.weight is None else bits.weight
                activation = activation if bits.activation is None else bits.activation
        return weight, activation

    def is_free(self, site: Site) -> bool:
        """Whether the defaults decide: neither the site's role nor its name has widths of its own."""
        return site.role not in self.roles and not any(fnmatch.fnmatchcase(site.name, p) for p in self.sites)

    def as_dict(self) -> dict[str, Any]:
        """Plain values in the form in which recipes are written."""
        bits: dict[str, Any] = {"weight": self.weight, "activation": self.activation}
        for group in ("roles", "sites"):
            table = {key: _plain_bits(value) for key, value in getattr(self, group).items()}
            if table or group == "roles":
                bits[group] = table
        return bits

    def unmatched(self, sites: tuple[Site, ...]) -> list[str]:
        """The site patterns that name none of `sites`."""
        return [p for p in self.sites if not any(fnmatch.fnmatchcase(site.name, p) for site in sites)]


@dataclass(frozen=True)
class StepCall:
    """The name of a step and its parameters, not yet resolved."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A quantization from start to end.

    `if_possible` names the steps that are left out of a model in which they have nothing to do. With `fewer_images`
    steps take the calibration images that there are where they ask for more. `source` is the file or built-in name that
    messages quote.
    """

    name: str
    bits: BitPlan
    steps: tuple[StepCall, ...]
    paper_exact: bool = False
    if_possible: tuple[str, ...] = ()
    fewer_images: bool = False
    source: str = ""

    def with_bits(self, weight: int | None = None, activation: int | None = None) -> Recipe:
        """The same recipe with other default widths."""
        weight = self.bits.weight if weight is None else check_bits(weight, "--w-bits")
        activation = self.bits.activation if activation is None else check_bits(activation, "--a-bits")
        return replace(self, bits=replace(self.bits, weight=weight, activation=activation))

    def with_parameter(self, assignment: str) -> Recipe:
        """The same recipe with one `step.key=value` applied to each step of that name; the value is read as YAML."""
        path, equals, text = assignment.partition("=")
        step, dot, key = path.partition(".")
        if not (equals and dot and key):
            raise HalfbyteError(f"--set takes step.key=value, not {assignment!r}")
        names = [call.name for call in self.steps]
        if step not in names:
            raise HalfbyteError(f"--set {assignment}: {self.source} has no step {step!r}{did_you_mean(step, names)}")
        value = parse_yaml(text, f"--set {assignment}")
        steps = tuple(
            replace(call, parameters={**call.parameters, key: value}) if call.name == step else call
            for call in self.steps
        )
        return replace(self, steps=steps)

    def with_stage(self, stage: str) -> Recipe:
        """The same recipe with one of its stages: the steps with that parameter, and those in front of the first
        stage for this."""
        stages = [call.parameters.get("stage") for call in self.steps]
        known = [name for name in dict.fromkeys(stages) if name is not None]
        if stage not in known:
            has = f"the stages {', '.join(known)}" if known else "no stages"
            raise HalfbyteError(f"--stage {stage}: {self.source} has {has}{did_you_mean(stage, known)}")
        before = stages.index(known[0]) if stage == known[0] else 0
        kept = [number < before or own == stage for number, own in enumerate(stages)]
        return replace(self, steps=tuple(call for call, keep in zip(self.steps, kept, strict=True) if keep))

    def as_dict(self) -> dict[str, Any]:
        """Plain values in the form in which recipes are written, everything resolved."""
        steps = [{call.name: call.parameters} for call in self.steps]
        plain = {"name": self.name, "bits": self.bits.as_dict(), "paper_exact": self.paper_exact, "steps": steps}
        plain |= {"if_possible": list(self.if_possible)} if self.if_possible else {}
        return plain | ({"fewer_images": True} if self.fewer_images else {})

    def as_yaml(self) -> str:
        """The recipe file that gives this recipe."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, default_flow_style=None, width=100)


def builtin_recipes() -> tuple[str, ...]:
    """The names of the recipes that come with the package."""
    return tuple(package_files("recipes"))


def load_recipe(name_or_file: str | Path) -> Recipe:
    """A built-in recipe by name, or a file; raises `HalfbyteError` that names the key and the file."""
    name, builtin = str(name_or_file), package_files("recipes")
    if name in builtin:
        return parse_recipe(read_text(builtin[name], "recipe"), f"recipe {name}")
    path = Path(name)
    if not path.is_file():
        if name and path.is_dir():
            raise HalfbyteError(f"recipe {name!r} is a folder; give a file, or a name that `halfbyte recipes` lists")
        near = did_you_mean(name, builtin) or "; `halfbyte recipes` lists what there is"
        raise HalfbyteError(f"no recipe or file {name!r}{near}")
    return parse_recipe(read_text(path, "recipe"), str(path))


def parse_recipe(text: str, source: str) -> Recipe:
    """Read the YAML of a recipe strictly."""
    plain = keys_and_values(parse_yaml(text, source), source, KEYS)
    for key in ("name", "steps"):
        if key not in plain:
            raise HalfbyteError(f"{source}: the key {key!r} is missing")
    if not isinstance(plain["name"], str):
        raise HalfbyteError(f"{source}: name must be a text, not {shown(plain['name'])}")
    for key in ("paper_exact", "fewer_images"):
        if not isinstance(flag := plain.get(key, False), bool):
            raise HalfbyteError(f"{source}: {key} must be true or false, not {shown(flag)}")
    steps = plain["steps"]
    if not isinstance(steps, list) or not steps:
        raise HalfbyteError(f"{source}: steps must be a list of at least one step")
    bits = bit_plan(plain.get("bits", {}), source)
    calls = tuple(_step(step, source) for step in steps)
    optional, names = plain.get("if_possible", []), [call.name for call in calls]
    if not isinstance(optional, list) or not all(name in names for name in optional):
        raise HalfbyteError(f"{source}: if_possible must list steps of the recipe, not {shown(optional)}")
    flags = {key: plain.get(key, False) for key in ("paper_exact", "fewer_images")}
    return Recipe(plain["name"], bits, calls, if_possible=tuple(optional), source=source, **flags)


def bit_plan(value: Any, source: str) -> BitPlan:
    """The bit widths as a recipe writes them, checked; `source` is what messages quote."""
    where = f"{source}: bits"
    plain = keys_and_values(value, where, (*OPERANDS, "roles", "sites"))
    defaults = {operand: check_bits(plain[operand], f"{where}.{operand}") for operand in OPERANDS if operand in plain}
    roles, sites = plain.get("roles") or {}, plain.get("sites") or {}
    role_bits = {role: _bits(bits, f"{where}.roles.{role}") for role, bits in
                 keys_and_values(roles, f"{where}.roles", ROLES).items()}  # fmt: skip
    if not isinstance(sites, dict):
        raise HalfbyteError(f"{where}.sites must map name patterns to bits, not {shown(sites)}")
    site_bits = {pattern: _bits(bits, f"{where}.sites.{pattern}") for pattern, bits in sites.items()}
    return BitPlan(**defaults, roles={**DEFAULT_ROLES, **role_bits}, sites=site_bits)


def _bits(value: Any, where: str) -> Bits:
    if isinstance(value, dict):
        return Bits(**{key: check_bits(bits, f"{where}.{key}") for key, bits in
                       keys_and_values(value, where, OPERANDS).items()})  # fmt: skip
    both = check_bits(value, where)
    return Bits(both, both)


def _plain_bits(bits: Bits) -> dict[str, int]:
    return {operand: value for operand in OPERANDS if (value := getattr(bits, operand)) is not None}


def _step(value: Any, source: str) -> StepCall:
    if isinstance(value, str):
        return StepCall(value)
    if not isinstance(value, dict) or len(value) != 1:
        raise HalfbyteError(f"{source}: a step is one name with its parameters, not {shown(value)}")
    ((name, parameters),) = value.items()
    if not isinstance(parameters, (dict, type(None))):
        raise HalfbyteError(f"{source}: the parameters of {name} must be keys and values, not {shown(parameters)}")
    return StepCall(name, parameters or {})

"""A recording of one forward pass: every tensor operation as it runs, modules with an arithmetic of their own as one.

The arithmetic that the model does in float64 and rounds once is one operation of a program: casts to float64 and back
leave no trace, and in between at most one operation may compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from halfbyte.errors import HalfbyteError
from halfbyte.program.ops import Array

# A value by its number, or the tensor that holds it.
Ref = Tensor | int
# How a module is recorded: given the recorder, the module, what its forward is without a recording, its arguments.
ModuleRule = Callable[["Recorder", nn.Module, Callable[..., Any], tuple[Any, ...]], Any]
# How a tensor operation is recorded: given the recorder, its arguments and its result.
TensorRule = Callable[["Recorder", Sequence[Any], Mapping[str, Any], Any], None]


@dataclass
class Record:
    """One operation of the recording; values are numbered in the order of their making.

    `where` is the module that ran it; `name` what its value is called; `sample` the value, where it is a constant."""

    kind: str
    inputs: tuple[int, ...]
    output: int
    attributes: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Array] = field(default_factory=dict)
    where: str = ""
    name: str | None = None
    sample: Tensor | None = None


@dataclass
class _Seen:
    """A tensor's value. `stage`: of float32 "", cast to float64 "wide", computed there "spent"; "stale" was overwritten
    through another view."""

    value: int
    stage: str = ""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what a model does with `images`: `modules` by class, and every other operation by `tensors`."""

    def __init__(
        self, model: nn.Module, images: Tensor, modules: Mapping[type, ModuleRule], tensors: Mapping[str, TensorRule]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.module_rules, self.tensor_rules = model, modules, tensors
        self.records: list[Record] = []
        self.approximate: list[str] = []
        self.path: list[str] = [""]
        self._named = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        # By identity, and forgotten with the tensor: a recording takes no more memory than a forward pass.
        self._seen = cast("MutableMapping[Tensor, _Seen]", WeakTensorKeyDictionary())
        self._constant: set[int] = set()
        self._count = 0
        self._pauses = 0
        self._bind(images, self._next())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside leaves no trace."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    @contextmanager
    def following(self) -> Iterator[None]:
        """Modules tell where they are, and are recorded by their rules, as long as this lasts."""
        patched = [(module, name) for name, module in self.model.named_modules()]
        before = {id(module): module.__dict__.get("forward") for module, _ in patched}
        try:
            for module, name in patched:
                module.forward = self._wrapped(module, name, module.forward)
            yield
        finally:
            for module, _ in patched:
                if (own := before[id(module)]) is not None:
                    module.forward = own
                else:
                    module.__dict__.pop("forward", None)

    @property
    def where(self) -> str:
        """The path of the module that runs."""
        return self.path[-1]

    def refuse(self, reason: str, remedy: str = "evaluate it with --engine torch") -> HalfbyteError:
        """The error for what is no operation of a program."""
        return HalfbyteError(f"{self.where or 'the model'} {reason}; {remedy}")

    def emit(
        self,
        kind: str,
        inputs: Sequence[Ref],
        output: Tensor | None,
        attributes: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Array] | None = None,
        name: str | None = None,
        *,
        computes: bool = False,
    ) -> int:
        """Record an operation, whose result the tensor `output` holds (None: no tensor does); returns its value.

        `computes`: what it gives would not be the same were it rounded twice.
        """
        stages = {self._stage(ref) for ref in inputs}
        if computes and "spent" in stages:
            raise self.refuse(f"computes more than one step in float64 (the last: {kind})")
        known = tuple(self.value(ref) for ref in inputs)
        value = self._next()
        sample = None
        if inputs and all(entry in self._constant for entry in known):
            self._constant.add(value)
            sample = output
        record = Record(kind, known, value, dict(attributes or {}), dict(tensors or {}), self.where, name, sample)
        self.records.append(record)
        if output is not None:
            wide = "spent" if computes or "spent" in stages else "wide"
            self._bind(output, value, wide if output.dtype == torch.float64 else "")
        return value

    def alias(self, source: Tensor, output: Tensor) -> None:
        """`output` holds the value of `source`."""
        value, stage = self.value(source), self._stage(source)
        if output.dtype == torch.float64:
            stage = stage or "wide"
        self._bind(output, value, "" if output.dtype == torch.float32 else stage)

    def value(self, ref: Ref) -> int:
        """The value's number; a tensor that was never seen is a constant."""
        if isinstance(ref, int):
            return ref
        seen = self._seen.get(ref)
        if seen is None:
            self._bind(ref, value := self._next(), "wide" if ref.dtype == torch.float64 else "")
            self._constant.add(value)
            self.records.append(Record("constant", (), value, name=self._named.get(id(ref)), sample=ref))
            return value
        if seen.stage == "stale":
            raise self.refuse("reads a tensor that was overwritten through another view of it")
        return seen.value

    def is_traced(self, value: Any) -> bool:
        """Whether a tensor depends on the images, or on how many there are."""
        seen = self._seen.get(value) if isinstance(value, Tensor) else None
        return seen is not None and seen.value not in self._constant

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if self._pauses:
            return output
        name = str(function).split(".")[1]
        in_place = name.endswith("_") and not name.startswith("_")
        rule = self.tensor_rules.get(name.removesuffix("_") if in_place else name)
        if rule is not None and any(tensor in self._seen or id(tensor) in self._named for tensor in _tensors(args)):
            if in_place and not self.is_traced(args[0]):
                raise self.refuse(f"changes a constant in place ({name})")
            rule(self, args, kwargs, output)
            if in_place:
                self._seen[args[0]] = self._seen[output]
                self._overwritten(args[0])
        elif any(self.is_traced(tensor) for tensor in _tensors(args)):
            raise self.refuse(f"runs {name} in float, which is no operation of a program", self._remedy())
        return output

    def _remedy(self) -> str:
        from halfbyte.layers.branch import Branch

        modules = dict(self.model.named_modules())
        if any(isinstance(modules[path], Branch) for path in self.path):
            return "give the step that adds it form: int8"
        return "evaluate it with --engine torch (`halfbyte inspect` lists what is left in float)"

    def _next(self) -> int:
        self._count += 1
        return self._count - 1

    def _stage(self, ref: Ref) -> str:
        seen = self._seen.get(ref) if isinstance(ref, Tensor) else None
        return "" if seen is None else seen.stage

    def _bind(self, tensor: Tensor, value: int, stage: str = "") -> None:
        self._seen[tensor] = _Seen(value, stage)

    def _overwritten(self, tensor: Tensor) -> None:
        storage, own = tensor.untyped_storage().data_ptr(), self._seen[tensor].value
        for other, seen in self._seen.items():
            if seen.value != own and other.numel() and other.untyped_storage().data_ptr() == storage:
                seen.stage = "stale"

    def _wrapped(self, module: nn.Module, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        rule = next((self.module_rules[kind] for kind in type(module).__mro__ if kind in self.module_rules), None)

        def run(*args: Any, **kwargs: Any) -> Any:
            self.path.append(name)
            try:
                if rule is None or self._pauses:
                    return forward(*args, **kwargs)
                return rule(self, module, forward, args)
            finally:
                self.path.pop()

        return run


def as_array(tensor: Tensor) -> Array:
    """A tensor's values: float32 for floats, else as they are."""
    detached = tensor.detach().cpu()
    return np.array((detached.float() if detached.is_floating_point() else detached).numpy())


def _tensors(args: Sequence[Any]) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _tensors(arg)

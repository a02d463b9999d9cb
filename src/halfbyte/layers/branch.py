"""What is added beside a module: the hooks that carry it, so that no module changes its place or its name."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

from torch import Tensor, nn

from halfbyte.errors import HalfbyteError
from halfbyte.layers.site import Stateful

Side = Literal["input", "output"]


class Branch(Stateful):
    """A function of the input or the output of one module that is added to the output of another.

    In the state `float` it adds nothing: the model is then the trained one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: Tensor | None = None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """What is added."""

    def attach(self, name: str, at: nn.Module, source: nn.Module, side: Side) -> None:
        """Become the child `name` of `at`, to whose output is added what this makes of `source`'s input or output.

        Raises `HalfbyteError` where `at` has a child or an attribute of that name, `ValueError` where `at` is a
        Sequential, which would run it like its other children.
        """
        if isinstance(at, nn.Sequential):
            raise ValueError("what is added beside a Sequential belongs to its last part")
        if hasattr(at, name):
            raise HalfbyteError(f"there is a {name} already where the recipe wants to add one; name the step once")
        # Bound methods: a copy of the model gets hooks that belong to its own branches.
        if side == "input":
            source.register_forward_pre_hook(self._keep_input)
        else:
            source.register_forward_hook(self._keep_output)
        at.register_forward_hook(self._add)
        at.add_module(name, self)

    def _keep_input(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._seen = inputs[0]

    def _keep_output(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._seen = output

    def _add(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        seen, self._seen = self._seen, None
        if self.state == "float":
            return output
        if seen is None:
            raise HalfbyteError(
                "what stands beside a whole stage reads what comes before its last block, which ran alone here; let "
                "the step that goes block by block come first"
            )
        result: Tensor = output + self(seen)
        return result

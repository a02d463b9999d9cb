"""What the modules that do quantized arithmetic share: their state, their operands, their exact sums."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from halfbyte.errors import HalfbyteError
from halfbyte.quantizers.base import Quantizer

State = Literal["float", "observe", "quantized"]
Observer = Callable[["SiteModule", str, Tensor], Tensor]

# Whole numbers up to here are exact in float32 (float64), and so is every partial sum, in any order.
EXACT_FLOAT32, EXACT_FLOAT64 = 2.0**24, 2.0**53


class Stateful(nn.Module):
    """A module whose arithmetic depends on the model's state, which `prepare.model_state` sets."""

    state: State = "float"


class SiteModule(Stateful):
    """One Site: a linear, a convolution, or a product of two activations, with a quantizer for each operand.

    In the state `float` it computes what the module it replaces did. In `observe` it hands each operand to `observer`
    and uses what that returns. In `quantized` it multiplies centred integer codes and applies the scales afterwards,
    so that no result depends on the batch size, the number of threads or the library.
    """

    operands: ClassVar[tuple[str, str]]
    observer: Observer | None = None

    @property
    def has_quantizers(self) -> bool:
        """Whether every operand has one."""
        return all(isinstance(getattr(self, f"{operand}_quantizer", None), Quantizer) for operand in self.operands)

    def quantizer(self, operand: str) -> Quantizer:
        """The quantizer of an operand; raises `HalfbyteError` where the site has none."""
        quantizer = getattr(self, f"{operand}_quantizer", None)
        if not isinstance(quantizer, Quantizer):
            raise HalfbyteError(f"a site has no quantizer for its {operand}; prepare the model with bit widths first")
        return quantizer

    def set_quantizer(self, operand: str, quantizer: Quantizer) -> None:
        """Replace the quantizer of an operand; a name that is not one of `operands` raises `ValueError`."""
        if operand not in self.operands:
            raise ValueError(f"{type(self).__name__} has the operands {self.operands}, not {operand!r}")
        setattr(self, f"{operand}_quantizer", quantizer)

    def seen(self, operand: str, x: Tensor) -> Tensor:
        """What to compute with in the state `observe`."""
        return x if self.observer is None else self.observer(self, operand, x)


class IntegerForm(NamedTuple):
    """What a weighted site multiplies by in the state `quantized`.

    weight: centred codes in the dtype in which all sums with the input are exact. scale: float32 `[O]`, of a sum.
    bias: float32 `[O]`, the site's own with what the offset of the input's quantizer adds (AdaLog's bias
    reparameterization; made of the quantized weight, so that it always fits it), or None.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None


class WeightedSite(SiteModule):
    """A Site with a stored weight `[O, ...]`, quantized once and kept as codes.

    `folded_scale` `[I]` is what the trained weight's input channels were multiplied by, where a step rescaled them, and
    `input_scale` `[I]` what their inputs are multiplied by in every state, where no norm before could take that up.
    `trained_bias` `[O]` is the bias before a step corrected it, for the state `float`; an artifact does not keep it.
    """

    operands: ClassVar[tuple[str, str]] = ("input", "weight")
    weight: Tensor | None
    bias: Tensor | None
    weight_codes: Tensor | None
    folded_scale: Tensor | None
    input_scale: Tensor | None
    trained_bias: Tensor | None

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.register_buffer("weight_codes", None)
        self.register_buffer("folded_scale", None)
        self.register_buffer("input_scale", None)
        self.register_buffer("trained_bias", None)
        self._integer: tuple[tuple[object, ...], IntegerForm] | None = None
        self._keyed: tuple[object, ...] = ()

    def set_quantizer(self, operand: str, quantizer: Quantizer) -> None:
        super().set_quantizer(operand, quantizer)
        if operand == "weight" and self.weight is not None:
            self.weight_codes = None

    def rescale_weight(self, scale: Tensor) -> None:
        """Multiply the float weight's input channels by `scale` `[I]`, float32."""
        assert self.weight is not None
        per_channel = scale.double().view(-1, *[1] * (self.weight.ndim - 2))
        self.weight.copy_(self.weight.double() * per_channel)

    def codes(self) -> Tensor:
        """The weight's codes, uint8, in the weight's shape: the stored ones, or those of the float weight."""
        if self.weight_codes is not None:
            return self.weight_codes
        assert self.weight is not None
        return self.quantizer("weight").quantize(self.weight.detach())

    @property
    def float_bias(self) -> Tensor | None:
        """The bias in the state `float`."""
        return self.bias if self.trained_bias is None else self.trained_bias

    @torch.no_grad()
    def correct(self, scale: Tensor | None, shift: Tensor) -> None:
        """Let the integer arithmetic give `scale` times what it gave, plus `shift` (`[O]` each; the codes stay).

        Needs a bias. The state `float` gives what it gave.
        """
        assert self.bias is not None
        codes, bias = self.codes(), self.bias.double()
        if scale is not None:
            quantizer = self.quantizer("weight")
            factor = scale.double().view(-1, *[1] * (codes.ndim - 1))
            quantizer.scale = (quantizer.factor.double() * factor).float()
            bias = bias * scale.double()
        self.refit(codes, bias + shift.double())

    @torch.no_grad()
    def refit(self, codes: Tensor, bias: Tensor) -> None:
        """Take other codes and another bias `[O]` in the integer arithmetic; the state `float` gives what it gave."""
        assert self.bias is not None
        if self.trained_bias is None:
            self.trained_bias = self.bias.detach().clone()
        self.weight_codes = codes
        self.bias.copy_(bias)

    def float_weight(self) -> Tensor:
        """The float weight; for a site that was loaded as codes, what these stand for."""
        if self.weight is not None:
            return self.weight
        return self.quantizer("weight").dequantize(self.codes())

    @abstractmethod
    def patches(self, x: Tensor) -> Tensor:
        """Of an input, what each output is a product with: `[g, rows, K]` for g groups, K in the weight's order."""

    @abstractmethod
    def by_patch(self, y: Tensor) -> Tensor:
        """Outputs in the order of `patches`: `[g, rows, O / g]`."""

    def integer_form(self) -> IntegerForm:
        """Weight, scale and bias of the integer arithmetic. Kept until the weight, the bias or a quantizer changes."""
        weight_quantizer, input_quantizer = self.quantizer("weight"), self.quantizer("input")
        source = self.weight_codes if self.weight_codes is not None else self.weight
        parts = (source, self.bias, *weight_quantizer.buffers(), *input_quantizer.buffers())
        versions = [part for tensor in parts if tensor is not None for part in (id(tensor), _version(tensor))]
        key = (id(input_quantizer), *versions)
        if self._integer is None or self._integer[0] != key:
            self._integer = (key, self._make_integer_form())
            # What the key names is kept alive with it, so that no id can be used again.
            self._keyed = (input_quantizer, *parts)
        return self._integer[1]

    def release(self) -> None:
        """Give up what `integer_form` keeps: four bytes a weight, made again when it is asked for."""
        self._integer = None
        self._keyed = ()

    def _make_integer_form(self) -> IntegerForm:
        weight_quantizer, input_quantizer = self.quantizer("weight"), self.quantizer("input")
        centred = weight_quantizer.centre(self.codes())
        largest_sum = float(centred.double().abs().flatten(1).sum(1).max()) * input_quantizer.largest
        whole = weight_quantizer.exact_integers and input_quantizer.exact_integers
        weight_factor = weight_quantizer.factor.double().flatten()
        scale = (weight_factor * input_quantizer.factor.double()).float().expand(len(centred))
        bias = self.bias
        if input_quantizer.offset:
            folded = input_quantizer.offset * centred.double().flatten(1).sum(1) * weight_factor
            bias = (folded if bias is None else folded + bias.double()).float()
        return IntegerForm(centred.to(exact_dtype(largest_sum, whole)), scale, bias)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; those made in inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def exact_dtype(largest_sum: float, whole_numbers: bool = True) -> torch.dtype:
    """The narrower of float32 and float64 in which sums of whole numbers up to `largest_sum` are exact.

    What is not whole (a paper's own fractional codes) is summed in float64.
    """
    if whole_numbers and largest_sum < EXACT_FLOAT32:
        return torch.float32
    if largest_sum >= EXACT_FLOAT64:
        raise HalfbyteError("integer sums of a site pass 2**53; its zero point lies too far from its codes")
    return torch.float64


def rescale(sums: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """sums * scale + bias in float32, each step rounded once: the epilogue of every site."""
    result = sums.float().mul_(scale) if sums.dtype != torch.float32 else sums.mul_(scale)
    return result if bias is None else result.add_(bias)

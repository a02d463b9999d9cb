"""Quantizing one tensor with many candidate parameters: only the differences that each would make."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from halfbyte.calibrate.grids import Candidates
from halfbyte.calibrate.polish import Form, best_scale, log_crossing, log_window, uniform_crossing, uniform_window
from halfbyte.quantizers.log import LogQuantizer, prefixes
from halfbyte.quantizers.twin import TwinUniformQuantizer

_PREFIXES = 2**16


class Trial(ABC):
    """Holds `values` and gives, candidate by candidate, what quantizing changes in them.

    `polishes`: the kind has a scale that can be refined by `polished`.
    """

    polishes = True

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def prepare(self, candidates: Candidates, row: int) -> None:
        """Take the candidates `[n, row]` that `change` will be asked for."""
        self.scales = candidates.scale[:, row].tolist()
        self.others = candidates.other[:, row].tolist()

    @abstractmethod
    def of(self, values: Tensor) -> Trial:
        """The same trial of other values."""

    def part(self, chosen: slice) -> Trial:
        """The trial of a part of the second-last dimension."""
        return self.of(self.values[..., chosen, :])

    @abstractmethod
    def change(self, candidate: int, out: Tensor) -> None:
        """Write quantized values less the values, for one of the prepared candidates."""

    def polished(self, form: Form, candidate: Candidates, spacing: Tensor) -> Tensor:
        """The best scale `[R]` near a candidate `[1, R]` of each search, the trials of all of which are alike."""
        raise NotImplementedError


class UniformTrial(Trial):
    """Affine quantization; `other` is the zero point."""

    def __init__(self, values: Tensor, bits: int) -> None:
        super().__init__(values)
        self.bits = bits

    def of(self, values: Tensor) -> UniformTrial:
        return UniformTrial(values, self.bits)

    def change(self, candidate: int, out: Tensor) -> None:
        scale, zero_point = self.scales[candidate], self.others[candidate]
        last = (1 << self.bits) - 1
        torch.div(self.values, scale, out=out)
        out.round_().clamp_(-zero_point, last - zero_point).mul_(scale).sub_(self.values)

    def polished(self, form: Form, candidate: Candidates, spacing: Tensor) -> Tensor:
        window = uniform_window(form, candidate, spacing, self.bits)
        return best_scale(form, uniform_crossing(form, candidate, *window, self.bits), *window)


class LogTrial(Trial):
    """Log quantization of a kind; `other` is the base.

    The deployed codes depend on a value's upper half alone, so that each candidate is a table with an entry for every
    upper half that occurs.
    """

    def __init__(self, values: Tensor, like: LogQuantizer) -> None:
        super().__init__(values)
        self.like = like
        self._shifted = values + like.shift if like.shift else values
        if not like.paper_exact:
            index = prefixes(self._shifted)
            occurs = torch.bincount(index, minlength=_PREFIXES) > 0
            self._seen = occurs.nonzero()[:, 0]
            self._index = (occurs.cumsum(0).to(torch.int32) - 1)[index]

    def of(self, values: Tensor) -> LogTrial:
        return LogTrial(values, self.like)

    def prepare(self, candidates: Candidates, row: int) -> None:
        super().prepare(candidates, row)
        scale = candidates.scale[:, row].cpu().numpy()
        base = candidates.other[:, row].cpu().numpy()
        levels = self.like.level_table(base)
        unit = scale.astype(np.float64) * (1.0 if self.like.paper_exact else 1.0 / self.like.largest)
        device = self.values.device
        values = torch.from_numpy((levels * unit[:, None] - self.like.shift).astype(np.float32)).to(device)
        ascending = torch.from_numpy(self.like.thresholds(scale, base)[:, ::-1].copy()).to(device)
        last = self.like.symbols - 1
        if self.like.paper_exact:
            self._ascending, self._tables = ascending, values.flip(1).contiguous()
            return
        # Negative inputs get the code of zero.
        first = (self._seen * (self._seen < _PREFIXES // 2) * 0x10000).to(torch.int32).view(torch.float32)
        codes = last - torch.searchsorted(ascending, first.expand(len(ascending), -1).contiguous())
        self._tables = values.gather(1, codes)

    def change(self, candidate: int, out: Tensor) -> None:
        if self.like.paper_exact:
            floor = self.like.paper_floor * self.scales[candidate]
            index = torch.bucketize(self._shifted.clamp(min=floor), self._ascending[candidate], out_int32=True)
            looked_up = self._tables[candidate][index]
        else:
            looked_up = torch.index_select(self._tables[candidate], 0, self._index).view(self.values.shape)
        torch.sub(looked_up, self.values, out=out)

    def polished(self, form: Form, candidate: Candidates, spacing: Tensor) -> Tensor:
        base = candidate.other[0].cpu().numpy()
        steps = float(self.like.steps_per_octave(np.abs(base))[0])
        levels = torch.from_numpy(self.like.level_table(base)[0] / self.like.largest).float().to(spacing.device)
        window = log_window(candidate, spacing, form.values.shape[-1], torch.full_like(spacing, steps))
        width = self.values.shape[-1]
        if self.like.paper_exact:
            keys, index = self._shifted.reshape(-1, width), None
        else:
            # The middle of the values with the same upper half: where thresholds are rounded to.
            keys = (self._seen * (self._seen < _PREFIXES // 2) * 0x10000 + 0x8000).to(torch.int32).view(torch.float32)
            index = self._index.view(-1, width)
        return best_scale(form, log_crossing(keys, index, levels, steps, *window, -self.like.shift), *window)


class TwinTrial(Trial):
    """Twin-uniform quantization; `scale` is the fine step and 2**`other` times it the coarse one."""

    polishes = False

    def __init__(self, values: Tensor, bits: int, signed: bool) -> None:
        super().__init__(values)
        self.bits, self.signed = bits, signed

    def of(self, values: Tensor) -> TwinTrial:
        return TwinTrial(values, self.bits, self.signed)

    def change(self, candidate: int, out: Tensor) -> None:
        quantizer = TwinUniformQuantizer(self.bits, signed=self.signed)
        scale = torch.tensor(self.scales[candidate], device=self.values.device)
        quantizer.set_scales(scale, scale * 2.0 ** self.others[candidate])
        torch.sub(quantizer(self.values), self.values, out=out)

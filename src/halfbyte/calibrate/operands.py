"""One operand of a site under search: its values, its kind of quantizer, and how that kind is searched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from halfbyte.calibrate.fpcs import CandidateError, Found, Search, best_of, better, progressive_search
from halfbyte.calibrate.grids import Candidates, Grid, log_grid, range_candidate, uniform_grid
from halfbyte.calibrate.own_error import OwnError
from halfbyte.calibrate.percentile import quantiles
from halfbyte.calibrate.trials import LogTrial, Trial, TwinTrial, UniformTrial
from halfbyte.quantizers.base import Quantizer
from halfbyte.quantizers.log import GELU_SHIFT, AdaLogQuantizer, LogQuantizer
from halfbyte.quantizers.twin import TwinUniformQuantizer
from halfbyte.quantizers.uniform import UniformQuantizer

# Published numbers (AdaLog, section 4.1 and its code).
MOST_ZERO_POINTS = 16
LEAST_ACTIVATION_SCALE = 1e-4
KEPT_BASES, KEPT_LOG = 8, 32
FIRST_SCALES = 128
# Values a row that decide by their own error, at most.
MOST_OWN = 2**22
TWIN_EXPONENTS = range(-5, 25)


@dataclass(frozen=True)
class Settings:
    """What all searches of a run share. `paper_exact` restores the published search, defects included."""

    search: Search
    rounds: int = 3
    paper_exact: bool = False

    @staticmethod
    def make(count: int, steps: int, rounds: int, paper_exact: bool, race: bool) -> Settings:
        """Settings from the parameters that a recipe may give."""
        better_than_published = not paper_exact
        search = Search(
            count, steps=steps, race=race,
            keep_incumbent=better_than_published, drop_duplicates=better_than_published,
        )  # fmt: skip
        return Settings(search, rounds, paper_exact)

    def kept(self, found: Found, current: Found, error: CandidateError) -> Found:
        """Row by row the better of what a round found and what there was (the published rounds do not look back)."""
        if self.paper_exact:
            return found
        known = error(Candidates(current.scale[None], current.other[None]))[0]
        return better(found, replace(current, error=known))


class Operand(ABC):
    """An activation: `values` `[H, G, m, K]` for H heads searched on their own; K is what the product sums over."""

    # Whether a round begins with this operand of a linear rather than with the weight.
    first = False

    def __init__(self, values: Tensor, bits: int, settings: Settings) -> None:
        self.values, self.bits, self.settings = values, bits, settings

    def call(self, values: Tensor) -> Operand:
        """One call of this operand's site: with its candidates, but with values `[H, G, m, K]` of the call alone."""
        one = copy(self)
        one.values = values
        return one

    @abstractmethod
    def initial(self) -> Found:
        """Where the alternation begins."""

    @abstractmethod
    def trials(self) -> list[Trial]:
        """One trial a head."""

    @abstractmethod
    def searched(self, error: CandidateError, current: Found) -> Found:
        """The result of one search for the least error."""

    @abstractmethod
    def quantizer(self, found: Found) -> Quantizer:
        """The quantizer with the parameters found."""

    def improved(self, error: CandidateError, current: Found) -> Found:
        """The result of one search, or `current` where it is better."""
        return self.settings.kept(self.searched(error, current), current, error)

    def quantized(self, found: Found) -> Tensor:
        """The values as the quantizer gives them back, in their shape."""
        quantizer = self.quantizer(found)
        if isinstance(quantizer, UniformQuantizer) and quantizer.axis is not None:
            return quantizer(self.values.transpose(0, 1)).transpose(0, 1)  # type: ignore[no-any-return]
        return quantizer(self.values)  # type: ignore[no-any-return]


def all_calls(values: Sequence[Tensor]) -> Tensor:
    """The values of an operand in all calls of its site, each `[H, G, m, K]`; of several shapes as `[H, 1, 1, K]`."""
    return values[0] if len(values) == 1 else torch.cat([x.flatten(1) for x in values], 1)[:, None, None]


class UniformOperand(Operand):
    """Affine quantization with one scale and zero point a head (H = 1: for the tensor)."""

    def __init__(
        self, values: Tensor, bits: int, settings: Settings, *, of_product: bool = False, covers_zero: bool = False
    ) -> None:
        super().__init__(values, bits, settings)
        self.of_product, self.covers_zero = of_product, covers_zero
        self.rows = values.flatten(1)

    def grid(self) -> Grid:
        """The first candidates of every search."""
        most = 1 << (self.bits - 1 if self.of_product else self.bits)
        return uniform_grid(
            self.rows, self.bits, self.settings.search.count, min(MOST_ZERO_POINTS, most),
            centred_on_data=not self.settings.paper_exact, covers_zero=self.covers_zero, least_scale=self._least(),
        )  # fmt: skip

    def initial(self) -> Found:
        if self.of_product and self.settings.paper_exact:
            # The published code begins with the last but one of its grid, which has the largest zero point.
            start = self.grid().candidates
            return Found(start.scale[-2], start.other[-2], torch.zeros(len(self.rows), dtype=torch.float64))
        return self.by_own_error()

    def by_own_error(self) -> Found:
        """The parameters with the least error of the values themselves."""
        error = OwnError(self.rows[:, :: -(-self.rows.shape[1] // MOST_OWN)], self.bits)
        found = progressive_search(self.grid(), error, self.settings.search, self._least())
        if self.settings.paper_exact:
            return found
        # The grid's zero points do not reach rows that lie far from zero; the plain range does.
        plain = range_candidate(self.rows, self.bits, covers_zero=self.covers_zero)
        return better(Found(plain.scale[0], plain.other[0], error(plain)[0]), found)

    def trials(self) -> list[Trial]:
        return [UniformTrial(head, self.bits) for head in self.values]

    def searched(self, error: CandidateError, current: Found) -> Found:
        return progressive_search(self.grid(), error, self.settings.search, self._least())

    def quantizer(self, found: Found) -> UniformQuantizer:
        axis, shape = (1, (1, -1, 1, 1)) if self.of_product else (None, ())
        quantizer = UniformQuantizer(self.bits, axis, covers_zero=self.covers_zero)
        quantizer.set_parameters(found.scale.reshape(shape), found.other.reshape(shape))
        return quantizer

    def _least(self) -> float:
        return LEAST_ACTIVATION_SCALE if self.settings.paper_exact else 0.0


class LogOperand(Operand):
    """Log quantization, its scale and its base searched together (published for post-GELU inputs), or the base alone
    with the scale 1 (published for attention maps)."""

    first = True

    def __init__(self, values: Tensor, like: LogQuantizer, settings: Settings, *, search_scale: bool) -> None:
        super().__init__(values, like.bits, settings)
        self.like, self.search_scale = like, search_scale
        bases = like.bases(like.bits, like.paper_exact)
        if not like.paper_exact:
            # Which symbol of the paper's 2**bits + 1 is given up, zero or the smallest level, is part of the search.
            bases += tuple(-base for base in bases)
        self.bases = torch.tensor(bases, dtype=torch.float32, device=values.device)
        if search_scale:
            positive = values[values > 0]
            positive = positive if len(positive) else torch.ones(1, device=values.device)
            span = quantiles(positive[None], (0.9, 1.0))[:, 0] + like.shift
            self.least, self.largest = float(span[0]), float(span[1])

    def initial(self) -> Found:
        scale = 1.0
        if self.search_scale:
            scale = float(torch.linspace(self.least, self.largest, FIRST_SCALES)[-2])
        one = self.bases.new_full((1,), scale)
        return Found(one, self.bases[len(self.bases) // 2, None], torch.zeros(1, dtype=torch.float64))

    def trials(self) -> list[Trial]:
        return [LogTrial(self.values[0], self.like)]

    def searched(self, error: CandidateError, current: Found) -> Found:
        at_scale = Candidates(current.scale.expand(len(self.bases), 1), self.bases[:, None])
        count = min(KEPT_BASES, len(self.bases)) if self.search_scale else 1
        ranked, errors = best_of(at_scale, error, self.settings.search, count)
        if not self.search_scale:
            return Found(ranked.scale[0], ranked.other[0], errors[0])
        # Errors of log quantizers have more hollows than those of uniform ones.
        search = replace(self.settings.search, kept=KEPT_LOG, finalists=24)
        grid = log_grid(self.least, self.largest, search.count // count, ranked.other[:, 0])
        return progressive_search(grid, error, search)

    def quantizer(self, found: Found) -> LogQuantizer:
        base = int(found.other)
        like = self.like
        options: dict[str, Any] = {
            "zero": base > 0, "paper_exact": like.paper_exact, "shift": like.shift, "level_bits": like.level_bits
        }  # fmt: skip
        if isinstance(self.like, AdaLogQuantizer):
            options["base"] = abs(base)
        quantizer = type(self.like)(self.bits, **options)
        quantizer.set_scale(found.scale[0])
        return quantizer


class TwinOperand(Operand):
    """Twin-uniform quantization: one step is fixed, the other a power of two times it (PTQ4ViT)."""

    first = True

    def __init__(self, values: Tensor, bits: int, settings: Settings, *, signed: bool) -> None:
        super().__init__(values, bits, settings)
        self.signed = signed
        half = 1 << (bits - 1)
        if signed:
            # The negative part ends at the least value of GELU.
            exponents = torch.tensor(TWIN_EXPONENTS, dtype=torch.float32, device=values.device)
            scales = torch.full_like(exponents, GELU_SHIFT / half)
        else:
            exponents = torch.arange(0, 16, dtype=torch.float32, device=values.device)
            scales = 2.0**-exponents / max(1, half - 1)
        self.candidates = Candidates(scales[:, None], exponents[:, None])

    def initial(self) -> Found:
        middle = len(self.candidates.scale) // 2
        return Found(self.candidates.scale[middle], self.candidates.other[middle], torch.zeros(1, dtype=torch.float64))

    def trials(self) -> list[Trial]:
        return [TwinTrial(self.values[0], self.bits, self.signed)]

    def searched(self, error: CandidateError, current: Found) -> Found:
        best, errors = best_of(self.candidates, error, self.settings.search)
        return Found(best.scale[0], best.other[0], errors[0])

    def quantizer(self, found: Found) -> TwinUniformQuantizer:
        quantizer = TwinUniformQuantizer(self.bits, signed=self.signed)
        quantizer.set_scales(found.scale[0], found.scale[0] * 2.0 ** found.other[0])
        return quantizer
